//! The service Watch: one task per client stream, between the client's requests and the hub's events.
//!
//! A watch begins *behind* (it reads history) or *synced* (the hub feeds the stream's queue), and may go back and
//! forth; see [`crate::watch`]. The task alone decides what is sent in which order, so a watch's creation is announced
//! before its first event, and nothing follows its cancellation.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use keelson_proto::etcd::etcdserverpb::watch_create_request::FilterType;
use keelson_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use keelson_proto::etcd::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use keelson_proto::etcd::mvccpb::{Event, KeyValue};
use prost::Message;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use super::answer::{Answer, AnswerCodec, Batch, Batches};
use super::{Server, Service, long, status};
use crate::mvcc::{KeyRange, MvccError, Store};
use crate::watch::{Change, Changes, Item, Stream, history};

/// Events of one watch that are sent together, should so many wait.
const MAX_EVENTS: usize = 1000;
/// Speaks for no watch, or for all of a stream.
const NO_WATCH: i64 = -1;

/// Bytes of answers that are handed over together: many small ones would each be written to the connection alone.
const BATCH: usize = 64 << 10;
const METHOD: &str = "/etcdserverpb.Watch/Watch";

/// Serves a request to the service Watch.
pub fn serve(
    service: Service,
    request: http::Request<Incoming>,
) -> BoxFuture<http::Response<Body>, Infallible> {
    if request.uri().path() != METHOD {
        return Box::pin(std::future::ready(Ok(Status::unimplemented("").into_http())));
    }
    let limit = service.message_limit();
    let mut grpc = Grpc::new(AnswerCodec).apply_max_message_size_config(Some(limit), None);
    Box::pin(async move { Ok(grpc.streaming(service, request).await) })
}

impl StreamingService<WatchRequest> for Service {
    type Response = Answer;
    type ResponseStream = Batches;
    type Future = BoxFuture<Response<Batches>, Status>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        let require_leader =
            request.metadata().get("hasleader").is_some_and(|value| value.as_bytes() == b"true");
        let (answers, stream) = mpsc::channel(4);
        self.metrics.watch_streams.inc();
        let session = Session {
            server: self.0.clone(),
            stream: Arc::default(),
            answers,
            batch: (Vec::new(), 0),
            watches: BTreeMap::new(),
            serials: HashMap::new(),
            last_serial: 0,
            next_id: 0,
            lost: BTreeSet::new(),
            progress_wanted: false,
        };
        tokio::spawn(session.run(request.into_inner(), require_leader));
        Box::pin(std::future::ready(Ok(Response::new(Batches::new(stream)))))
    }
}

struct Watcher {
    /// What the hub knows it by: a client may use a watch's id again, while something is still queued for the first.
    serial: u64,
    range: KeyRange,
    /// The first revision that it has not been sent.
    next: i64,
    synced: bool,
    no_put: bool,
    no_delete: bool,
    prev_kv: bool,
    fragment: bool,
    progress_notify: bool,
    /// Something was sent since the last periodic progress.
    sent: bool,
}

/// The client is gone, or has been told why the stream ends.
struct Ended;

struct Session {
    server: Arc<Server>,
    stream: Arc<Stream>,
    answers: mpsc::Sender<Batch>,
    /// Answers that are not handed over yet, with their bytes.
    batch: (Vec<Answer>, usize),
    watches: BTreeMap<i64, Watcher>,
    /// Ids of watches by serial.
    serials: HashMap<u64, i64>,
    last_serial: u64,
    next_id: i64,
    /// Watches that ended because of a compaction. As in etcd, their ids are free once the client has cancelled them.
    lost: BTreeSet<i64>,
    /// The client asked how far its watches are, and not all are synced.
    progress_wanted: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.server.metrics.watch_streams.dec();
        self.server.metrics.watchers.dec_by(self.watches.len() as i64);
        for watcher in self.watches.values() {
            self.server.state.hub.remove(&self.stream, watcher.serial, &watcher.range);
            if watcher.prev_kv {
                self.server.state.hub.unwant_previous();
            }
        }
    }
}

impl Session {
    async fn run(mut self, mut requests: Streaming<WatchRequest>, require_leader: bool) {
        let mut leader = self.server.shared.watch_leader();
        let answers = self.answers.clone();
        let stopping = self.server.stopping.clone();
        let mut progress =
            tokio::time::interval(self.server.limits.watch_progress.max(Duration::from_millis(100)));
        progress.reset();
        let lost_leader = async {
            loop {
                // The sender lives as long as the server.
                if leader.wait_for(|leader| *leader == 0).await.is_err() {
                    return;
                }
                let back = leader.wait_for(|leader| *leader != 0);
                if tokio::time::timeout(LEADER_GRACE, back).await.is_err() {
                    return;
                }
            }
        };
        tokio::pin!(lost_leader);
        let stream = self.stream.clone();
        loop {
            let behind = self.watches.values().any(|watcher| !watcher.synced);
            let worked = tokio::select! {
                biased;
                () = stopping.cancelled() => {
                    let _ = answers.try_send(Err(status::stopped()));
                    return;
                }
                () = answers.closed() => return,
                () = &mut lost_leader, if require_leader => {
                    let _ = answers.send(Err(status::no_leader())).await;
                    return;
                }
                request = requests.message() => match request {
                    Ok(Some(request)) => self.request(request).await,
                    Ok(None) | Err(_) => return,
                },
                _ = progress.tick() => {
                    self.notify_progress();
                    Ok(())
                }
                () = stream.arrived() => self.deliver().await,
                () = std::future::ready(()), if behind => self.catch_up().await,
            };
            if worked.is_err() || self.hand_over().await.is_err() {
                return;
            }
        }
    }

    async fn send(&mut self, answer: impl Into<Answer>) -> Result<(), Ended> {
        let answer = answer.into();
        self.batch.1 += answer.encoded_len();
        self.batch.0.push(answer);
        if self.batch.1 >= BATCH { self.hand_over().await } else { Ok(()) }
    }

    /// Ends the stream with why it cannot go on, behind what is to be sent before.
    async fn fail(&mut self, error: MvccError) -> Ended {
        let status = self.server.read_failed(error);
        if self.hand_over().await.is_ok() {
            // The client may have gone meanwhile.
            let _ = self.answers.send(Err(status)).await;
        }
        Ended
    }

    async fn hand_over(&mut self) -> Result<(), Ended> {
        let (batch, _) = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        self.answers.send(Ok(batch)).await.map_err(|_| Ended)
    }

    async fn request(&mut self, request: WatchRequest) -> Result<(), Ended> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request).await,
            Some(RequestUnion::CancelRequest(request)) => match self.forget(request.watch_id)
                || self.lost.remove(&request.watch_id)
            {
                true => {
                    // What is queued for it is dropped when it is met.
                    let header = self.server.current_header();
                    let watch_id = request.watch_id;
                    self.send(WatchResponse { header, watch_id, canceled: true, ..Default::default() }).await
                }
                false => Ok(()),
            },
            Some(RequestUnion::ProgressRequest(_)) => {
                self.progress_wanted = true;
                self.offer_progress();
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Answers a client's question for progress behind everything queued, once all watches are synced.
    fn offer_progress(&mut self) {
        if self.progress_wanted && self.watches.values().all(|watcher| watcher.synced) {
            self.progress_wanted = false;
            self.server.state.hub.progress(&self.stream, None);
        }
    }

    async fn refuse(&mut self, reason: &str) -> Result<(), Ended> {
        self.send(WatchResponse {
            header: self.server.current_header(),
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason: reason.to_owned(),
            ..Default::default()
        })
        .await
    }

    async fn create(&mut self, request: WatchCreateRequest) -> Result<(), Ended> {
        let hub = &self.server.state.hub;
        let key = if request.key.is_empty() { vec![0].into() } else { request.key.clone() };
        let range = KeyRange::new(key, request.range_end.clone());
        if matches!(&range.end, crate::mvcc::RangeEnd::Before(end) if *end <= range.start) {
            return self.refuse("mvcc: watcher range is empty").await;
        }
        let id = if request.watch_id == 0 {
            while self.is_taken(self.next_id) {
                self.next_id += 1;
            }
            self.next_id += 1;
            self.next_id - 1
        } else {
            request.watch_id
        };
        if request.watch_id != 0 && self.is_taken(id) {
            return self.refuse("mvcc: duplicate watch ID provided on the WatchStream").await;
        }
        let filters = |filter: FilterType| request.filters.contains(&(filter as i32));
        if request.prev_kv {
            hub.want_previous();
        }
        let revision = hub.revision();
        let next = match request.start_revision {
            0 => revision + 1,
            // As in etcd, below 0 is before everything, and that is compacted as soon as anything is.
            start if start < 0 && start >= self.server.state.store.compacted() => 1,
            start => start,
        };
        self.last_serial += 1;
        let mut watcher = Watcher {
            serial: self.last_serial,
            range,
            next,
            synced: false,
            no_put: filters(FilterType::Noput),
            no_delete: filters(FilterType::Nodelete),
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            sent: true,
        };
        watcher.synced = hub.sync(&self.stream, watcher.serial, &watcher.range, watcher.next).is_ok();
        self.serials.insert(watcher.serial, id);
        self.watches.insert(id, watcher);
        self.server.metrics.watchers.inc();
        let header = self.server.header(revision);
        self.send(WatchResponse { header, watch_id: id, created: true, ..Default::default() }).await
    }

    fn is_taken(&self, id: i64) -> bool {
        self.watches.contains_key(&id) || self.lost.contains(&id)
    }

    /// Whether there was such a watch.
    fn forget(&mut self, id: i64) -> bool {
        let Some(watcher) = self.watches.remove(&id) else { return false };
        self.serials.remove(&watcher.serial);
        self.server.metrics.watchers.dec();
        let hub = &self.server.state.hub;
        hub.remove(&self.stream, watcher.serial, &watcher.range);
        if watcher.prev_kv {
            hub.unwant_previous();
        }
        true
    }

    /// Sends what the hub has queued, the events of a watch together as far as they lie together.
    async fn deliver(&mut self) -> Result<(), Ended> {
        let mut items = self.stream.take().into_iter().peekable();
        while let Some(item) = items.next() {
            match item {
                Item::Behind { watch, from } => {
                    let Some(watcher) = self.serials.get(&watch).and_then(|id| self.watches.get_mut(id))
                    else {
                        continue;
                    };
                    self.server.metrics.slow_watchers.inc();
                    (watcher.synced, watcher.next) = (false, from);
                }
                Item::Progress { watch, revision } => {
                    // A watch may have fallen behind after it was thought to be synced: then it lacks what the mark
                    // would promise. Whoever asked is told once all have caught up.
                    let watch_id = match watch {
                        None if self.watches.values().all(|watcher| watcher.synced) => NO_WATCH,
                        None => {
                            self.progress_wanted = true;
                            continue;
                        }
                        Some(serial) => match self.serials.get(&serial) {
                            Some(id) if self.watches.get(id).is_some_and(|watcher| watcher.synced) => *id,
                            _ => continue,
                        },
                    };
                    let header = self.server.header(revision);
                    self.send(WatchResponse { header, watch_id, ..Default::default() }).await?;
                }
                Item::Changes { watch, mut revision, changes } => {
                    let Some(id) = self.serials.get(&watch).copied() else { continue };
                    let Some(watcher) = self.watches.get_mut(&id) else { continue };
                    let mut changes = vec![changes];
                    let mut events = changes[0].list().len();
                    while events < MAX_EVENTS
                        && let Some(Item::Changes { revision: later, changes: more, .. }) = items.next_if(
                            |item| matches!(item, Item::Changes { watch: same, .. } if *same == watch),
                        )
                    {
                        events += more.list().len();
                        changes.push(more);
                        revision = later;
                    }
                    watcher.next = revision + 1;
                    if watcher.is_plain() {
                        self.send_shared(id, revision, changes).await?;
                        continue;
                    }
                    let store = &self.server.state.store;
                    let lists = changes.iter().map(|changes| watcher.events(store, changes.list()));
                    let events = match lists.collect::<Result<Vec<_>, _>>() {
                        Ok(lists) => lists.concat(),
                        Err(error) => return Err(self.fail(error).await),
                    };
                    self.send_events(id, revision, events).await?;
                }
            }
        }
        self.offer_progress();
        Ok(())
    }

    /// Takes every watch that is behind one step further.
    async fn catch_up(&mut self) -> Result<(), Ended> {
        let behind: Vec<i64> =
            self.watches.iter().filter(|(_, watcher)| !watcher.synced).map(|(id, _)| *id).collect();
        let server = self.server.clone();
        let (hub, store) = (&server.state.hub, &server.state.store);
        for id in behind {
            let Some(watcher) = self.watches.get_mut(&id) else { continue };
            let through = match hub.sync(&self.stream, watcher.serial, &watcher.range, watcher.next) {
                Ok(()) => {
                    watcher.synced = true;
                    continue;
                }
                Err(revision) => revision,
            };
            let read = || history(store, &watcher.range, watcher.next, through, watcher.prev_kv);
            match long(read) {
                Ok(found) => {
                    watcher.next = found.through + 1;
                    let events = match watcher.events(store, &found.changes) {
                        Ok(events) => events,
                        Err(error) => return Err(self.fail(error).await),
                    };
                    self.send_events(id, found.through, events).await?;
                }
                Err(MvccError::Compacted) => {
                    self.forget(id);
                    self.lost.insert(id);
                    self.send(WatchResponse {
                        header: self.server.header(0),
                        watch_id: id,
                        canceled: true,
                        compact_revision: store.compacted(),
                        ..Default::default()
                    })
                    .await?;
                }
                Err(other) => {
                    return Err(self.fail(other).await);
                }
            }
            // Nothing here waits; others get their turn.
            tokio::task::yield_now().await;
        }
        self.offer_progress();
        Ok(())
    }

    /// Sends what other watches may be sent too.
    async fn send_shared(
        &mut self,
        watch_id: i64,
        revision: i64,
        shared: Vec<Arc<Changes>>,
    ) -> Result<(), Ended> {
        if let Some(watcher) = self.watches.get_mut(&watch_id) {
            watcher.sent = true;
        }
        let count = shared.iter().map(|changes| changes.list().len() as u64).sum();
        self.server.metrics.events.inc_by(count);
        let header = self.server.header(revision);
        let head = WatchResponse { header, watch_id, ..WatchResponse::default() };
        self.send(Answer { head, shared }).await
    }

    async fn send_events(&mut self, id: i64, revision: i64, events: Vec<Event>) -> Result<(), Ended> {
        if events.is_empty() {
            return Ok(());
        }
        let Some(watcher) = self.watches.get_mut(&id) else { return Ok(()) };
        watcher.sent = true;
        let fragment = watcher.fragment;
        self.server.metrics.events.inc_by(events.len() as u64);
        let response = WatchResponse {
            header: self.server.header(revision),
            watch_id: id,
            events,
            ..Default::default()
        };
        if !fragment {
            return self.send(response).await;
        }
        for part in fragments(response, self.server.message_limit()) {
            self.send(part).await?;
        }
        Ok(())
    }

    /// Tells watches that asked for it, and had nothing else to hear, how far they are.
    fn notify_progress(&mut self) {
        for watcher in self.watches.values_mut() {
            if watcher.progress_notify && watcher.synced && !std::mem::replace(&mut watcher.sent, false) {
                self.server.state.hub.progress(&self.stream, Some(watcher.serial));
            }
        }
    }
}

/// How long a stream that requires a leader outlives one: three default election timeouts, as in etcd.
const LEADER_GRACE: Duration = Duration::from_secs(3);

impl Watcher {
    /// Whether it gets just what other watches of the same keys get.
    fn is_plain(&self) -> bool {
        !(self.no_put || self.no_delete || self.prev_kv || self.fragment)
    }

    fn events(&self, store: &Store, changes: &[Change]) -> Result<Vec<Event>, MvccError> {
        let wanted = changes.iter().filter(|change| match change.record.tombstone {
            true => !self.no_delete,
            false => !self.no_put,
        });
        wanted
            .map(|change| {
                let prev_kv = if self.prev_kv { previous(store, change)? } else { None };
                Ok(Event { prev_kv, ..change.event() })
            })
            .collect()
    }
}

/// The version before a change. Usually it comes with it; not if this watch was the first to want one just then.
fn previous(store: &Store, change: &Change) -> Result<Option<KeyValue>, MvccError> {
    let kv = &change.record.kv;
    let found = match &change.previous {
        Some(previous) => Some(previous.clone()),
        None if change.record.tombstone || kv.version > 1 => store.at(&kv.key, kv.mod_revision - 1)?,
        None => None,
    };
    Ok(found.map(|record| record.kv.clone()))
}

/// Bytes of the tag before each event.
const EVENT_TAG: usize = 1;

/// Splits a response that takes `limit` or more where etcd does; all parts but the last are marked.
fn fragments(mut response: WatchResponse, limit: usize) -> Vec<WatchResponse> {
    if response.encoded_len() < limit || response.events.len() < 2 {
        return vec![response];
    }
    let events = std::mem::take(&mut response.events);
    response.fragment = true;
    let empty = response.encoded_len();
    let mut parts: Vec<WatchResponse> = Vec::new();
    let (mut part, mut size) = (Vec::new(), empty);
    for event in events {
        let length = event.encoded_len();
        let length = EVENT_TAG + prost::length_delimiter_len(length) + length;
        if !part.is_empty() && size + length >= limit {
            let events = std::mem::take(&mut part);
            parts.push(WatchResponse { events, ..response.clone() });
            size = empty;
        }
        size += length;
        part.push(event);
    }
    parts.push(WatchResponse { events: part, fragment: false, ..response });
    parts
}
