//! The kubelet: runs the pods of one node through a container runtime, over CRI.
//!
//! [`source`] says which pods are wanted, [`pods`] keeps one worker for each, a worker ([`pod::worker`]) brings its pod
//! nearer to what is wanted by [`pod::plan`], and [`status`] tells the API server. `kill -9` of a kubelet never stops a
//! container: the next one finds it by its labels.

pub mod admission;
pub mod cgroups;
pub mod config;
pub mod context;
pub mod events;
pub mod eviction;
pub mod images;
pub mod metrics;
pub mod mirror;
pub mod node;
pub mod objects;
pub mod pod;
pub mod pods;
pub mod probes;
pub mod run;
pub mod runtime;
pub mod server;
pub mod source;
pub mod status;
pub mod volumes;
