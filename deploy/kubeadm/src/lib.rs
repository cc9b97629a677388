//! The ground of cluster bootstrap: certificates and kubeconfig files with upstream kubeadm's
//! names, subjects and places, so that an operator finds everything where it has always been.
//!
//! Nothing here talks to a running cluster.

pub mod certs;
pub mod kubeconfig;
