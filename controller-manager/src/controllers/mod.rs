//! One module for each controller: `plan` is pure, the module itself watches and executes.

pub mod daemonset;
pub mod deployment;
pub mod endpoints;
pub mod endpointslice;
pub mod history;
pub mod garbage_collector;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod replicaset;
pub mod root_ca;
pub mod serviceaccount;
