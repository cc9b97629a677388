//! The rules, one a file.

pub mod host_ports;
pub mod node_affinity;
pub mod pod_affinity;
pub mod resources;
pub mod taints;
pub mod topology_spread;
pub mod unschedulable;
pub mod volume_binding;
pub mod volume_restrictions;
pub mod volume_zone;

use crate::cycle::Profile;

/// Upstream's default profile, as far as the rules exist here.
pub fn default_profile() -> Profile {
    Profile {
        filters: vec![
            Box::new(unschedulable::NodeUnschedulable),
            Box::new(taints::TaintToleration),
            Box::new(node_affinity::NodeAffinity),
            Box::new(host_ports::NodePorts),
            Box::new(resources::NodeResourcesFit),
            Box::new(volume_restrictions::VolumeRestrictions),
            Box::new(volume_binding::VolumeBinding),
            Box::new(volume_zone::VolumeZone),
            Box::new(topology_spread::PodTopologySpread),
            Box::new(pod_affinity::InterPodAffinity),
        ],
        scores: vec![
            Box::new(taints::TaintToleration),
            Box::new(node_affinity::NodeAffinity),
            Box::new(resources::NodeResourcesFit),
            Box::new(resources::NodeResourcesBalancedAllocation),
            Box::new(topology_spread::PodTopologySpread),
            Box::new(pod_affinity::InterPodAffinity),
        ],
    }
}
