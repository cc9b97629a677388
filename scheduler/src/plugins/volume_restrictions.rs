//! A claim of access mode ReadWriteOncePod is for one pod at a time, in the whole cluster.

use crate::framework::{Check, Cycle, Filter};

pub struct VolumeRestrictions;

impl Filter for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn prepare<'a>(&self, cycle: &Cycle<'a>) -> Option<Check<'a>> {
        let namespace = &cycle.pod.key.namespace;
        let exclusive = |name: &str| {
            let claim = cycle.volumes.claim(namespace, name);
            claim.is_some_and(|c| c.wanted.access_modes.iter().any(|mode| &**mode == "ReadWriteOncePod"))
        };
        // An ephemeral volume's claim is the pod's own.
        let used = cycle.pod.wishes.claims.iter().filter(|used| !used.ephemeral && exclusive(&used.name));
        let used: Vec<_> = used.collect();
        if used.is_empty() {
            return None;
        }
        let mut others = cycle.nodes.iter().flat_map(|node| &node.pods);
        let taken = others.any(|pod| {
            pod.key.namespace == *namespace
                && pod.wishes.claims.iter().any(|theirs| used.iter().any(|ours| ours.name == theirs.name))
        });
        taken.then(|| -> Check<'a> {
            Box::new(|_| {
                Err(vec![
                    "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already \
                     in-use by another pod"
                        .into(),
                ])
            })
        })
    }
}
