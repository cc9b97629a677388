//! kube-apiserver: the HTTP API of the cluster.
//!
//! A request's way: [`http`] (TLS, the filter chain) → [`request`] (what is asked for) → [`endpoints`] (the verb) →
//! [`generic`] (the only write path) → `keelson_storage`. What a kind is comes from `keelson_registry`, what a value
//! may look like from `keelson_schema`, who may do what from `keelson_access`. The server holds no state of its own:
//! any number of them run side by side.

pub mod authorization;
pub mod config;
pub mod discovery;
pub mod encoding;
pub mod endpoints;
pub mod generic;
pub mod http;
pub mod metrics;
pub mod openapi;
pub mod request;
pub mod served;
pub mod server;
pub mod services;
pub mod startup;
pub mod status;
pub mod streams;

/// What `/version` and build_info tell.
pub const VERSION: &str = "v1.36.0+keelson";
