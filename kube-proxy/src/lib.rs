//! kube-proxy: makes a Service's addresses lead to its endpoints on this node.
//!
//! `facts` is what is kept of Services and EndpointSlices, `model` decides what each Service's
//! addresses lead to (pure), `nftables` says that in nftables' words, and `server` follows the
//! cluster and applies one transaction per batch of changes. The cost of a change depends on the
//! Services that changed, never on how many there are.

pub mod config;
pub mod conntrack;
pub mod facts;
pub mod health;
pub mod metrics;
pub mod model;
pub mod nftables;
pub mod server;
