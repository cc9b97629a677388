//! kube-store: a Raft-replicated store that speaks the etcd v3 protocol.
//!
//! The way of a write: `grpc` → `node` → keelson-raft → `wal` (and `transport`, at the same time) → `apply` → `mvcc` and
//! `watch` → `grpc`. `snapshot` lets the log be cut; `start` puts snapshot, tree and log together again.

pub mod alarm;
pub mod apply;
mod authority;
pub mod calls;
mod compactor;
pub mod config;
mod corruption;
pub mod env;
pub mod environment;
mod etcd_data;
#[cfg(test)]
mod fuzz;
pub mod grpc;
mod health;
pub mod ignored;
pub mod incarnation;
pub mod join;
pub mod lease;
pub mod membership;
pub mod metrics;
pub mod mvcc;
pub mod node;
mod recovery;
pub mod rejoin;
pub mod run;
mod seldom;
pub mod serve;
pub mod shrink;
pub mod snapshot;
pub mod start;
pub mod tool;
mod traffic;
pub mod transport;
pub mod trees;
pub mod wal;
pub mod watch;
