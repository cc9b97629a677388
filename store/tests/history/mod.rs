//! What a store was asked and what it told, in a simulation or by real processes, and what every such history must be.

pub mod check;
mod matching;
mod model;
#[cfg(test)]
mod tests;
mod versions;

use std::collections::BTreeMap;

use keelson_proto::etcd::etcdserverpb::{RangeRequest, RangeResponse};
use keelson_proto::etcd::mvccpb::KeyValue;
use keelson_proto::etcd::storepb::command::Operation;
use kube_store::apply::Response;
use kube_store::mvcc::KeyRange;
use kube_store::node::LeaseAnswer;

/// Times are nanoseconds since some moment.
pub const SECOND: u64 = 1_000_000_000;

#[derive(Debug, Clone)]
pub enum Request {
    Operation(Operation),
    Range(RangeRequest),
    KeepAlive(i64),
}

#[derive(Debug, Clone)]
pub enum Outcome {
    /// No answer: it may have happened, or may happen yet.
    Unknown,
    /// It did not happen, and never will.
    Refused,
    /// The state machine's answer, and the revision behind it.
    Applied {
        revision: i64,
        result: Result<Response, String>,
    },
    Read {
        revision: i64,
        response: RangeResponse,
    },
    ReadCompacted,
    KeptAlive(LeaseAnswer),
}

#[derive(Debug, Clone)]
pub struct Call {
    #[allow(dead_code, reason = "it is printed with a call that is wrong")]
    pub client: usize,
    pub member: usize,
    /// The member's process that answered; none: it may have been one or another.
    pub life: Option<u64>,
    pub begun: u64,
    /// When it was answered.
    pub ended: Option<u64>,
    pub request: Request,
    pub outcome: Outcome,
}

/// One change of a revision: the new version, or the key alone if it was deleted.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    pub kv: KeyValue,
    pub deleted: bool,
}

/// An event as a watch got it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub changed: Changed,
    pub previous: Option<KeyValue>,
}

/// All that was ever applied: the changes of each revision, with the time at which somebody first saw them.
#[derive(Default)]
pub struct Ledger {
    pub revisions: BTreeMap<i64, (u64, Vec<Changed>)>,
}

impl Ledger {
    /// Takes what was seen of a revision, which has to be what everybody else saw.
    ///
    /// # Errors
    /// What was seen before.
    pub fn take(&mut self, revision: i64, changes: Vec<Changed>, now: u64) -> Result<(), Vec<Changed>> {
        match self.revisions.get(&revision) {
            Some((_, known)) if *known != changes => Err(known.clone()),
            Some(_) => Ok(()),
            None => {
                self.revisions.insert(revision, (now, changes));
                Ok(())
            }
        }
    }
}

/// What one watch was told, in all its lives.
pub struct Watched<'a> {
    pub range: &'a KeyRange,
    /// Whether it asked for the versions before.
    pub previous: bool,
    /// Whether it asked for no puts, or for no deletions.
    pub no_put: bool,
    pub no_delete: bool,
    /// The first revision that it has not seen.
    pub next: i64,
    /// All it has seen, by revision, in the order in which it did.
    pub seen: &'a [(i64, Vec<Seen>)],
    /// Where it could not resume: from, and the compacted revision from which it went on.
    pub gaps: &'a [(i64, i64)],
}
