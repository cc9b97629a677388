//! A Keelson cluster on one machine: where its files are, which processes it has, and how it is
//! started and taken away again. `make up` and the end-to-end tests use the same code.
//!
//! Everything that a cluster owns can be told from its root directory, so that two clusters and a
//! system containerd never touch each other's state.

pub mod addons;
pub mod cgroups;
pub mod cluster;
pub mod command;
pub mod containerd;
pub mod daemons;
pub mod dns_probe;
pub mod host;
pub mod images;
pub mod layout;
pub mod ports;
pub mod sandboxes;
pub mod supervisor;
pub mod systemd;
