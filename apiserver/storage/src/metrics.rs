//! Metrics of the storage layer, under upstream's names.

use prometheus_client::registry::Registry;

/// Handles to all metrics of this crate; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {}

impl Metrics {
    /// Adds the metrics to the process' registry.
    pub fn register(&self, _registry: &mut Registry) {
        todo!()
    }
}
