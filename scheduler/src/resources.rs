//! Amounts of resources, in fixed units for fast sums.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use keelson_objects::quantity::Quantity;
use keelson_objects::resources;

/// CPU in thousandths of a core; everything else in bytes or pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Extended resources and huge pages; few pods have any.
    pub extended: BTreeMap<Box<str>, i64>,
}

/// Share of a node that a container without a CPU request is taken to use when nodes are compared
/// (upstream's numbers); it is not counted as a request.
pub const ASSUMED_MILLI_CPU: i64 = 100;
pub const ASSUMED_MEMORY: i64 = 200 * 1024 * 1024;

impl Resources {
    fn set(&mut self, name: &str, quantity: Quantity) {
        match name {
            "cpu" => self.milli_cpu = quantity.milli_value(),
            "memory" => self.memory = quantity.value(),
            "ephemeral-storage" => self.ephemeral_storage = quantity.value(),
            _ => {
                self.extended.insert(name.into(), quantity.value());
            }
        }
    }

    /// A node's allocatable resources and how many pods it takes.
    pub fn of_node(allocatable: &BTreeMap<String, ApiQuantity>) -> (Self, i64) {
        let mut total = Self::default();
        // The API server refuses malformed quantities; one from an older store counts for nothing.
        for (name, quantity) in resources::parse(Some(allocatable)).unwrap_or_default() {
            total.set(&name, quantity);
        }
        let pods = total.extended.remove("pods").unwrap_or_default();
        (total, pods)
    }

    /// What a pod requests: its containers together, or its largest init container, plus overhead.
    pub fn of_pod(spec: &PodSpec) -> Self {
        let mut total = Self::default();
        for (name, quantity) in resources::pod_requests(spec).unwrap_or_default() {
            total.set(&name, quantity);
        }
        total
    }

    /// Saturates: a pod that named its node itself may ask for any amount.
    pub fn add(&mut self, other: &Self) {
        let sum = |a: &mut i64, b: i64| *a = a.saturating_add(b);
        sum(&mut self.milli_cpu, other.milli_cpu);
        sum(&mut self.memory, other.memory);
        sum(&mut self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.extended {
            sum(self.extended.entry(name.clone()).or_default(), *amount);
        }
    }
}
