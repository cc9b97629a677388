//! The cluster's DNS server: names of Services and pods from the API server's objects, everything else
//! from the upstream resolvers.
//!
//! `records` answers questions about the cluster's zone (pure, after the Kubernetes DNS specification
//! 1.1.0), `services` keeps what it needs of Services and EndpointSlices, `upstream` forwards, and
//! `handler` joins them to hickory's server, which speaks DNS.

pub mod handler;
pub mod records;
pub mod services;
pub mod upstream;
