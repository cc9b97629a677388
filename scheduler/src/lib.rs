//! kube-scheduler: gives each pending pod a node.
//!
//! `cache` follows the cluster, `queue` holds the pods that wait, `cycle` decides (pure: snapshot and
//! pod in, decision out) by asking the `plugins`, `bind` carries the decision out, and `server` joins
//! them. Only `bind` and `server` speak to the API server.

pub mod bind;
pub mod cache;
pub mod config;
pub mod cycle;
pub mod framework;
pub mod labels;
pub mod metrics;
pub mod namespaces;
pub mod plugins;
pub mod pod;
pub mod queue;
pub mod resources;
pub mod selector;
pub mod server;
pub mod volumes;
