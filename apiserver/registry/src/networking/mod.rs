//! Kinds of `networking.k8s.io/v1` that need no allocator.

mod ingress;
mod networkpolicy;

pub(crate) use ingress::{CLASS as INGRESS_CLASS, KIND as INGRESS};
pub(crate) use networkpolicy::KIND as NETWORK_POLICY;
