//! The consensus shell: everything that decides around raft-rs, with no I/O, no async, no clock and no randomness.
//!
//! A [`Group`] takes ticks, messages, proposals and reads, and gives [`Output`]s that say what to send, what to write
//! and what to apply. Invariants:
//!
//! - Messages of an output that raft-rs wants sent only after its entries are durable are held back here until
//!   [`Group::persisted`] names that output; the caller cannot send them too early.
//! - A change of the configuration takes effect, and others hear that it is committed, only when that is durable here
//!   ([`changes`]).
//! - Election timeouts depend on (seed, member, term, role) alone ([`timeout`]), so a run can be replayed.
//! - A read is answered only by a ReadIndex round that began after the read arrived ([`reads`]).
//!
//! It must not know what an entry means, where the log lies or how a message travels.

mod admit;
mod changes;
mod group;
mod log;
mod logger;
mod reads;
mod timeout;

pub use group::{
    Change, Config, Dropped, Group, Initial, Output, Progress, Role, Status, Write, configuration_change,
};
pub use log::Log;
pub use raft::eraftpb::{
    ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
};
pub use raft::{Error, Result, SnapshotStatus};
