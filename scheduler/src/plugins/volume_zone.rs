//! Volumes that are labelled with zones or regions are used by nodes in them.

use crate::framework::{Check, Cycle, Filter, Reason};
use crate::labels;
use crate::volumes::{Standing, VolumeInfo};

pub struct VolumeZone;

/// Labels of topology, each with its old name.
const LABELS: &[(&str, &str)] = &[
    ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"),
];

/// Separates the zones of a volume that is in several.
const DELIMITER: &str = "__";

/// The volumes of the pod's bound claims. Ephemeral ones are left out, as upstream does.
fn volumes<'a>(cycle: &Cycle<'a>) -> Result<Vec<&'a VolumeInfo>, Reason> {
    let mut found = Vec::new();
    for used in cycle.pod.wishes.claims.iter().filter(|used| !used.ephemeral) {
        let claim = cycle.volumes.claim(&cycle.pod.key.namespace, &used.name);
        if let Some(Standing::Bound { volume: name }) = claim.map(|claim| &claim.standing) {
            match cycle.volumes.volume(name) {
                Some(volume) => found.push(volume),
                None => return Err(format!("persistentvolume \"{name}\" not found").into()),
            }
        }
    }
    Ok(found)
}

impl Filter for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn refuse(&self, cycle: &Cycle<'_>) -> Option<Reason> {
        volumes(cycle).err()
    }

    fn prepare<'a>(&self, cycle: &Cycle<'a>) -> Option<Check<'a>> {
        let mut wanted = Vec::new();
        for volume in volumes(cycle).ok()? {
            for &(name, old) in LABELS {
                for key in [old, name] {
                    // One of them that names a nameless zone says nothing.
                    let zones = labels::get(&volume.labels, key)
                        .filter(|zones| zones.split(DELIMITER).all(|zone| !zone.trim().is_empty()));
                    wanted.extend(zones.map(|zones| (key, name, zones)));
                }
            }
        }
        if wanted.is_empty() {
            return None;
        }
        Some(Box::new(move |node| {
            let label = |key: &str| node.facts.label(key);
            // A cluster without zones has one for all.
            if LABELS.iter().all(|(name, old)| label(name).is_none() && label(old).is_none()) {
                return Ok(());
            }
            let is_in = |&(key, name, zones): &(&str, &str, &str)| {
                let of_node = label(key).or_else(|| label(name));
                of_node.is_some_and(|of_node| zones.split(DELIMITER).any(|zone| zone.trim() == of_node))
            };
            if wanted.iter().all(is_in) {
                Ok(())
            } else {
                Err(vec!["node(s) had no available volume zone".into()])
            }
        }))
    }
}
