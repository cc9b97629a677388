//! `kube-controller-manager`: the loops that make the cluster what its objects say.
//!
//! Each controller watches caches that all share, queues the keys of what changed, and for each key plans (pure)
//! and executes. It talks to the API server only. See [`descriptors`] for the one list of controllers.

pub mod claim;
pub mod config;
pub mod context;
pub mod controllers;
pub mod descriptors;
pub mod discovery;
pub mod expectations;
pub mod identity;
pub mod informers;
pub mod meta;
pub mod node;
pub mod pod;
pub mod pod_control;
pub mod service;
pub mod sync;
