//! Where pods come from: the API server's watch ([`api`]) and a directory of manifests ([`file`]).

pub mod api;
pub mod file;
