//! The watches of both servers, side by side.
//!
//! Events come when a server likes, in batches as it likes: what is compared is the sequence of events of each watch.
//! kube-store says when it has sent everything (it answers a request for progress behind all events); etcd then has to
//! send the same, neither less nor more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keelson_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use keelson_proto::etcd::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use keelson_proto::etcd::mvccpb::Event;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::anonymous;
use crate::harness::Client;

/// etcd looks for watches that are behind ten times a second.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Received {
    events: BTreeMap<i64, Vec<Event>>,
    /// How many of them an earlier watch of the same id had been sent.
    earlier: BTreeMap<i64, usize>,
    created: Vec<WatchResponse>,
    canceled: Vec<WatchResponse>,
    progress: Vec<WatchResponse>,
    /// Watches in the middle of a response that comes in parts.
    parts: BTreeMap<i64, usize>,
    wrong: Option<String>,
}

impl Received {
    fn take(&mut self, response: WatchResponse) {
        if response.created {
            let id = response.watch_id;
            self.earlier.insert(id, self.events.get(&id).map_or(0, Vec::len));
            self.created.push(response);
        } else if response.canceled {
            self.canceled.push(response);
        } else if response.events.is_empty() {
            self.progress.push(response);
        } else {
            self.take_events(response);
        }
    }

    fn take_events(&mut self, response: WatchResponse) {
        let id = response.watch_id;
        let revision = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        let (first, last) = (response.events.first().map(revision), response.events.last().map(revision));
        let parts = self.parts.entry(id).or_default();
        let seen = self.events.entry(id).or_default();
        let earlier = self.earlier.get(&id).copied().unwrap_or(0);
        if *parts == 0 && seen.iter().skip(earlier).next_back().map(revision) >= first {
            self.wrong = Some(format!("a revision came in two responses: {response:?}"));
        }
        if response.header.as_ref().map(|header| header.revision) < last {
            self.wrong = Some(format!("the header is behind the events: {response:?}"));
        }
        *parts = if response.fragment { *parts + 1 } else { 0 };
        seen.extend(response.events);
    }
}

/// One stream to one server.
struct Side {
    requests: mpsc::Sender<WatchRequest>,
    received: Arc<Mutex<Received>>,
    arrived: Arc<Notify>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Side {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Side {
    async fn open(client: &Client) -> Self {
        let (requests, receiver) = mpsc::channel(8);
        let (received, arrived) = (Arc::new(Mutex::new(Received::default())), Arc::new(Notify::new()));
        let (into, notify, mut watch) = (received.clone(), arrived.clone(), client.watch.clone());
        let reader = tokio::spawn(async move {
            // etcd answers with headers only when there is something to say.
            let mut responses = watch.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
            while let Ok(Some(response)) = responses.message().await {
                into.lock().take(response);
                notify.notify_one();
            }
        });
        Self { requests, received, arrived, reader }
    }

    async fn send(&self, request: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    /// Waits until what was received is as wanted; what it is then, or at the end of all patience.
    async fn wait<T>(&self, mut look: impl FnMut(&Received) -> (bool, T)) -> T {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (enough, found) = look(&self.received.lock());
            let arrived = tokio::time::timeout_at(deadline, self.arrived.notified());
            if enough || arrived.await.is_err() {
                return found;
            }
        }
    }
}

/// Watches a key from a revision at which it changed, until that is told.
pub async fn catch_up(client: &Client, key: &'static str, revision: i64) {
    let side = Side::open(client).await;
    let create =
        WatchCreateRequest { key: key.into(), start_revision: revision, ..WatchCreateRequest::default() };
    side.send(RequestUnion::CreateRequest(create)).await;
    side.wait(|received| (!received.events.is_empty(), ())).await;
}

/// One stream to each server.
pub struct Pair {
    ours: Side,
    theirs: Side,
    /// Watches that both servers have, and have not cancelled.
    open: Vec<i64>,
}

/// The answers of both servers.
pub type Both<T> = (T, T);

fn plain(responses: &[WatchResponse]) -> Vec<WatchResponse> {
    let plain = |response: &WatchResponse| {
        let mut response = response.clone();
        anonymous(&mut response.header);
        response
    };
    responses.iter().map(plain).collect()
}

/// Watches whose start is compacted end on their own account: in which order is chance.
fn sorted(mut canceled: Vec<WatchResponse>) -> Vec<WatchResponse> {
    canceled.sort_by_key(|response| (response.watch_id, response.compact_revision));
    canceled
}

impl Pair {
    pub async fn open(ours: &Client, theirs: &Client) -> Self {
        let (ours, theirs) = (Side::open(ours).await, Side::open(theirs).await);
        Self { ours, theirs, open: Vec::new() }
    }

    async fn send(&self, request: RequestUnion) {
        self.ours.send(request.clone()).await;
        self.theirs.send(request).await;
    }

    async fn both(
        &self,
        count: usize,
        of: impl Fn(&Received) -> &Vec<WatchResponse>,
    ) -> Both<Vec<WatchResponse>> {
        let look = |received: &Received| (of(received).len() >= count, plain(of(received)));
        (self.ours.wait(look).await, self.theirs.wait(look).await)
    }

    /// Creates a watch; the answers so far to all such requests.
    pub async fn create(&mut self, create: WatchCreateRequest) -> Both<Vec<WatchResponse>> {
        let count = self.ours.received.lock().created.len() + 1;
        self.send(RequestUnion::CreateRequest(create)).await;
        let answers = self.both(count, |received| &received.created).await;
        if let Some(created) = answers.0.last()
            && !created.canceled
        {
            self.open.push(created.watch_id);
        }
        answers
    }

    /// Cancels a watch; the answers so far to all such requests. One that there is none of is not answered: no harm.
    pub async fn cancel(&mut self, id: i64) -> Both<Vec<WatchResponse>> {
        let known = self.open.iter().position(|open| *open == id);
        let count = self.ours.received.lock().canceled.len() + usize::from(known.is_some());
        known.map(|at| self.open.remove(at));
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id })).await;
        let (ours, theirs) = self.both(count, |received| &received.canceled).await;
        (sorted(ours), sorted(theirs))
    }

    /// Whether every etcd tells how far the stream is: from 3.5.8 on not without a watch, nor beside one that began at
    /// a compacted revision, even when that has ended.
    pub fn tells_progress(&self) -> bool {
        let lost = |response: &WatchResponse| response.compact_revision != 0;
        !self.open.is_empty() && !self.ours.received.lock().canceled.iter().any(lost)
    }

    /// What both servers say how far the stream is.
    pub async fn progress(&self) -> Both<Vec<WatchResponse>> {
        let counts =
            (self.ours.received.lock().progress.len() + 1, self.theirs.received.lock().progress.len() + 1);
        self.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
        let look = |count| {
            move |received: &Received| {
                let answers = plain(&received.progress);
                (answers.len() >= count, answers.get(count - 1).cloned().into_iter().collect())
            }
        };
        (self.ours.wait(look(counts.0)).await, self.theirs.wait(look(counts.1)).await)
    }

    /// Waits until kube-store has sent everything, and then until etcd has; says what differs.
    pub async fn level(&self) -> Result<(), String> {
        let count = self.ours.received.lock().progress.len() + 1;
        self.ours.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
        let told = self.ours.wait(|received| {
            let told = received.progress.len() >= count;
            (told, told)
        });
        if !told.await {
            return Err("kube-store does not tell how far it is".to_owned());
        }
        let (events, canceled) = {
            let ours = self.ours.received.lock();
            if let Some(wrong) = &ours.wrong {
                return Err(format!("kube-store: {wrong}"));
            }
            (ours.events.clone(), plain(&ours.canceled))
        };
        let theirs = self.theirs.wait(|received| {
            let same = received.events == events && plain(&received.canceled).len() == canceled.len();
            (same, (received.events.clone(), plain(&received.canceled)))
        });
        let (their_events, their_canceled) = theirs.await;
        if events != their_events {
            for id in events.keys().chain(their_events.keys()) {
                let (ours, theirs) = (events.get(id), their_events.get(id));
                if ours != theirs {
                    return Err(format!("watch {id}: kube-store sent {ours:?}, etcd {theirs:?}"));
                }
            }
        }
        let (canceled, their_canceled) = (sorted(canceled), sorted(their_canceled));
        if canceled != their_canceled {
            return Err(format!("cancelled by kube-store: {canceled:?}, by etcd: {their_canceled:?}"));
        }
        Ok(())
    }
}
