//! The other members: a stream of messages to each, snapshots beside it, and what peers ask of this one.
//!
//! Peers are told apart by their cluster's id, mixed with its incarnation's; who they are is a matter of their certificates (`--peer-trusted-ca-file`).

#[cfg(test)]
mod fuzz;
mod peers;
mod server;
mod wire;

pub use peers::{Credentials, PeerNetwork, Peers, PeersConfig, ask_change, ask_members, reason};
pub use server::PeerService;
pub use wire::MAX_MESSAGE;

/// What a member that was removed is told, as in etcd.
pub const REMOVED: &str = "the member has been permanently removed from the cluster";

/// What a member of an earlier incarnation is told.
pub const SUPERSEDED: &str = "the cluster of this member was superseded by one that --force-new-cluster made";
