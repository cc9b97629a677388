//! Everything that can happen to a node, and what it asks of the network.

use keelson_proto::etcd::storepb::MembershipChange;
use keelson_proto::etcd::storepb::command::Operation;
use keelson_raft::Message;
use tokio::sync::oneshot;

use super::pending::Reply;
use crate::apply::Fatal;
use crate::membership::Members;
use crate::mvcc::BackendError;
use crate::snapshot::{self, Outgoing};
use crate::wal;

/// Why a request got no answer from the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the request timed out")]
    Timeout,
    #[error("this member is not the leader")]
    NotLeader,
    #[error("the server is stopping")]
    Stopped,
}

/// Why a member cannot go on. Nothing that it acknowledged is lost by stopping.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    #[error("the write-ahead log failed")]
    Wal(#[source] wal::WalError),
    #[error("the tree of values failed; after a restart it is checked, and rebuilt if it has to be")]
    Tree(#[source] BackendError),
    #[error("the state machine failed")]
    Apply(#[source] Fatal),
    #[error("cannot install the snapshot that the leader sent")]
    Install(#[source] snapshot::SnapshotError),
    #[error("the member has been permanently removed from the cluster")]
    Removed,
}

/// Seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseAnswer {
    pub ttl: i64,
    pub granted: i64,
}

pub enum Event {
    Propose {
        operation: Operation,
        reply: Reply,
    },
    Read {
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    KeepAlive {
        lease: i64,
        reply: oneshot::Sender<Result<LeaseAnswer, Refused>>,
    },
    TimeToLive {
        lease: i64,
        reply: oneshot::Sender<Result<LeaseAnswer, Refused>>,
    },
    Messages {
        from: u64,
        messages: Vec<Message>,
    },
    /// A change of the membership, for the leader to check and to propose.
    Membership {
        change: MembershipChange,
        reply: Reply,
    },
    /// Another member says that this one was removed.
    Removed,
    /// Another member says that it belongs to a later incarnation of the cluster.
    Superseded {
        by: u64,
    },
    /// A snapshot that is durable here, with the message that announced it.
    SnapshotReceived {
        message: Box<Message>,
    },
    SnapshotSent {
        to: u64,
        ok: bool,
    },
    Unreachable(u64),
    Wal(wal::Report),
    Keeper(snapshot::Report),
    TreeFailed(BackendError),
    TreeDrained,
    MoveLeader {
        to: u64,
    },
    /// Makes a snapshot of this moment for someone.
    Snapshot {
        send: snapshot::Send,
    },
    /// Gives disk back, as far as the tree can.
    Defragment,
    Stop,
}

/// Who waits for a ReadIndex round.
pub enum Reader {
    Read(oneshot::Sender<Result<(), Refused>>),
    KeepAlive { lease: i64, reply: oneshot::Sender<Result<LeaseAnswer, Refused>> },
    TimeToLive { lease: i64, reply: oneshot::Sender<Result<LeaseAnswer, Refused>> },
}

impl Reader {
    /// Tells the reader, unless it has gone.
    pub fn fail(self, refused: Refused) {
        match self {
            Reader::Read(reply) => {
                let _ = reply.send(Err(refused));
            }
            Reader::KeepAlive { reply, .. } | Reader::TimeToLive { reply, .. } => {
                let _ = reply.send(Err(refused));
            }
        }
    }
}

/// Sends a snapshot with its message, and reports with [`Event::SnapshotSent`].
pub type SnapshotSender = Box<dyn FnOnce(Message, Outgoing) + Send>;

/// The other members. Messages may be lost and overtaken, and doubled but for proposals (one that comes twice is applied
/// twice); they are not changed.
pub trait Network: Send {
    /// Never waits: what cannot be queued is dropped, and consensus sends again.
    fn send(&self, to: u64, messages: Vec<Message>);
    /// The members have changed.
    fn follow(&self, members: &Members);
    fn snapshot_sender(&self) -> SnapshotSender;
}
