//! A port of the node can be taken by one pod only.

use crate::framework::{Check, Cycle, Filter};

pub struct NodePorts;

impl Filter for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn prepare<'a>(&self, cycle: &Cycle<'a>) -> Option<Check<'a>> {
        let wanted = &cycle.pod.host_ports;
        if wanted.is_empty() {
            return None;
        }
        Some(Box::new(|node| {
            let mut taken = node.pods.iter().flat_map(|pod| pod.host_ports.iter());
            if taken.any(|port| wanted.iter().any(|w| w.collides_with(port))) {
                return Err(vec!["node(s) didn't have free ports for the requested pod ports".into()]);
            }
            Ok(())
        }))
    }
}
