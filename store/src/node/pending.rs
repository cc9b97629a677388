//! Requests that wait for their entry to be applied.

use std::collections::BTreeMap;

use keelson_proto::etcd::storepb::command::Operation;
use tokio::sync::oneshot;

use super::Refused;
use crate::apply::{Rejected, Response};

/// What became of a proposal: the state machine's answer with the store's revision, or none.
pub type Answer = Result<(i64, Result<Response, Rejected>), Refused>;
pub type Reply = oneshot::Sender<Answer>;

/// A request before it is in the log.
pub struct Proposal {
    pub operation: Operation,
    /// None: the node's own.
    pub reply: Option<Reply>,
    /// The tick at which it fails.
    pub deadline: u64,
}

impl Proposal {
    /// Whether its client has gone: it need not enter the log any more.
    pub fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    pub fn refuse(self, refused: Refused) {
        if let Some(reply) = self.reply {
            // The client may have gone.
            let _ = reply.send(Err(refused));
        }
    }
}

/// A request in the log.
pub struct Waiting {
    reply: Reply,
    deadline: u64,
}

impl Waiting {
    pub fn refuse(self, refused: Refused) {
        let _ = self.reply.send(Err(refused));
    }
}

/// Requests in the log, by number. Numbers and deadlines ascend together.
#[derive(Default)]
pub struct Pending {
    waiting: BTreeMap<u64, Waiting>,
    last: u64,
}

impl Pending {
    pub fn len(&self) -> u64 {
        self.waiting.len() as u64
    }

    pub fn next_request(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub fn add(&mut self, request: u64, reply: Option<Reply>, deadline: u64) {
        if let Some(reply) = reply {
            self.waiting.insert(request, Waiting { reply, deadline });
        }
    }

    pub fn answer(&mut self, request: u64, revision: i64, result: Result<Response, Rejected>) {
        if let Some(Waiting { reply, .. }) = self.waiting.remove(&request) {
            let _ = reply.send(Ok((revision, result)));
        }
    }

    /// Those whose deadline has passed. What was proposed may still be applied: the client cannot know.
    pub fn expire(&mut self, now: u64) -> Vec<Waiting> {
        let mut expired = Vec::new();
        while let Some(first) = self.waiting.first_entry().filter(|first| first.get().deadline <= now) {
            expired.push(first.remove());
        }
        expired
    }
}
