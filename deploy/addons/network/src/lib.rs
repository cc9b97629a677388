//! The pod network of one host: a CNI configuration for the pods here, routes to the pods on other
//! hosts, and masquerading of what leaves the cluster.
//!
//! Hosts must reach each other directly (one link, or a router that knows the pod ranges). `plan`
//! decides, the other modules act; everything they make can be told apart from other people's
//! routes and tables, and nothing else is ever touched.

pub mod cni;
pub mod masquerade;
pub mod plan;
pub mod routes;
