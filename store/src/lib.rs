//! kube-store: a Raft-replicated store that speaks the etcd v3 protocol.

pub mod apply;
pub mod env;
pub mod lease;
pub mod mvcc;
pub mod wal;
pub mod watch;
