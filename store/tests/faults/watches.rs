//! Watches that go on whatever happens: each resumes at some member where it was.
//!
//! A *tap* watches everything at one member, and begins now and then with all that this one still has: what taps see
//! makes the ledger, and no two may see a revision differently. The others see parts, move between members, and do not
//! always listen.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::watch_create_request::FilterType;
use keelson_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use keelson_proto::etcd::etcdserverpb::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use keelson_proto::etcd::mvccpb::event::EventType;
use kube_store::mvcc::KeyRange;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::client::Client;
use crate::history::{Changed, Seen, Watched};
use crate::random::Random;
use crate::shared::Shared;

/// What a watch saw.
pub struct Record {
    key: Bytes,
    range_end: Bytes,
    range: KeyRange,
    /// A tap's member.
    tap: Option<usize>,
    previous: bool,
    no_put: bool,
    no_delete: bool,
    fragment: bool,
    /// The first revision that it has not seen.
    pub next: i64,
    seen: Vec<(i64, Vec<Seen>)>,
    gaps: Vec<(i64, i64)>,
}

impl Record {
    pub fn tap(member: usize) -> Self {
        let everything = Bytes::from_static(b"\0");
        Self { tap: Some(member), ..Self::new(everything.clone(), everything) }
    }

    fn new(key: Bytes, range_end: Bytes) -> Self {
        let range = KeyRange::new(key.clone(), range_end.clone());
        Self {
            key,
            range_end,
            range,
            tap: None,
            previous: false,
            no_put: false,
            no_delete: false,
            fragment: false,
            next: 1,
            seen: Vec::new(),
            gaps: Vec::new(),
        }
    }

    pub fn draw(random: &mut Random) -> Self {
        let key = |number| Bytes::from(format!("k{number:02}"));
        let low = random.below(20);
        let end = match random.below(3) {
            0 => Bytes::new(),
            1 => key(random.between(low + 1, 24)),
            _ => Bytes::from_static(b"\0"),
        };
        Self {
            previous: random.percent(60),
            no_put: random.percent(10),
            no_delete: random.percent(10),
            fragment: random.percent(50),
            ..Self::new(key(low), end)
        }
    }

    pub fn is_tap(&self) -> bool {
        self.tap.is_some()
    }

    pub fn watched(&self) -> Watched<'_> {
        Watched {
            range: &self.range,
            previous: self.previous,
            no_put: self.no_put,
            no_delete: self.no_delete,
            next: self.next,
            seen: &self.seen,
            gaps: &self.gaps,
        }
    }

    /// What it saw so far is checked.
    pub fn forget(&mut self) {
        self.seen.clear();
        self.gaps.clear();
    }

    fn request(&self) -> WatchCreateRequest {
        let mut filters = Vec::new();
        if self.no_put {
            filters.push(FilterType::Noput as i32);
        }
        if self.no_delete {
            filters.push(FilterType::Nodelete as i32);
        }
        WatchCreateRequest {
            key: self.key.clone(),
            range_end: self.range_end.clone(),
            start_revision: self.next,
            prev_kv: self.previous,
            progress_notify: true,
            fragment: self.fragment,
            filters,
            ..Default::default()
        }
    }

    /// Takes one response; whether the watch goes on.
    fn take(&mut self, response: WatchResponse) -> Result<bool, String> {
        let revision = response.header.as_ref().ok_or("a response has no header")?.revision;
        if response.canceled {
            let compacted = response.compact_revision;
            if compacted <= self.next {
                return Err(format!("cancelled at {} by {response:?}", self.next));
            }
            self.gaps.push((self.next, compacted));
            self.next = compacted;
            return Ok(false);
        }
        if response.created {
            return Ok(true);
        }
        if response.events.is_empty() {
            // Everything up to here has been seen.
            self.next = self.next.max(revision + 1);
            return Ok(true);
        }
        let fragment = response.fragment;
        let mut last = 0;
        for event in response.events {
            let deleted = event.r#type() == EventType::Delete;
            let kv = event.kv.ok_or("an event has no key")?;
            let at = kv.mod_revision;
            if at < self.next || at < last || at > revision || !self.range.contains(&kv.key) {
                return Err(format!(
                    "an event of {:?} at revision {at}, behind {last} in a response of {revision}, when {} is next",
                    kv.key, self.next
                ));
            }
            last = at;
            let seen = Seen { changed: Changed { kv, deleted }, previous: event.prev_kv };
            match self.seen.last_mut().filter(|(last, _)| *last == at) {
                Some((_, events)) => events.push(seen),
                None => self.seen.push((at, vec![seen])),
            }
        }
        // All of a revision come together; parts of one response may share one.
        if !fragment {
            self.next = last + 1;
        }
        Ok(true)
    }
}

/// One watch on its way from member to member.
pub struct Watcher {
    pub record: Arc<Mutex<Record>>,
    pub shared: Arc<Shared>,
    pub random: Random,
}

impl Watcher {
    /// Watches for ever.
    pub async fn run(mut self) {
        let clients: Vec<Client> =
            (0..self.shared.members()).map(|member| self.shared.client(member)).collect();
        let tap = self.record.lock().tap;
        loop {
            let member = tap.unwrap_or_else(|| self.random.index(clients.len()));
            // Whatever ended it: it resumes.
            let _ = self.watch(&clients[member], tap).await;
            sleep(Duration::from_millis(self.random.between(20, 200))).await;
        }
    }

    async fn watch(&mut self, client: &Client, tap: Option<usize>) -> Result<(), Status> {
        self.shared.counts.lock().resumed += 1;
        let (requests, receiver) = mpsc::channel(8);
        let request = {
            let mut record = self.record.lock();
            if tap.is_some() && self.random.one_in(2) {
                // From as far back as there may be something.
                record.next = self.shared.ledger.lock().compacted.max(1);
            }
            record.request()
        };
        let send = async |union| requests.send(WatchRequest { request_union: Some(union) }).await;
        let Ok(()) = send(RequestUnion::CreateRequest(request)).await else { return Ok(()) };
        let mut service = client.watch.clone();
        let opened = service.watch(ReceiverStream::new(receiver));
        let Ok(opened) = timeout(Duration::from_secs(3), opened).await else { return Ok(()) };
        let mut responses: Streaming<WatchResponse> = opened?.into_inner();
        // A tap stays; another watch moves on after a while.
        let stay = Duration::from_millis(self.random.between(100, if tap.is_some() { 20_000 } else { 6000 }));
        let end = Instant::now() + stay;
        let mut ask = Instant::now() + Duration::from_millis(500);
        loop {
            let response = match timeout_at(ask.min(end), responses.message()).await {
                Ok(response) => response?,
                Err(_) if Instant::now() >= end => return Ok(()),
                Err(_) => {
                    ask = Instant::now() + Duration::from_millis(500);
                    let union = RequestUnion::ProgressRequest(WatchProgressRequest {});
                    // Not waited for: a member that is paused takes nothing.
                    let _ = requests.try_send(WatchRequest { request_union: Some(union) });
                    continue;
                }
            };
            let Some(response) = response else { return Ok(()) };
            if !self.take(response, tap) {
                return Ok(());
            }
            if tap.is_none() && self.random.one_in(200) {
                // It does not listen, so that its member has to do without.
                sleep(Duration::from_millis(self.random.between(100, 3000))).await;
            }
        }
    }

    fn take(&mut self, response: WatchResponse, tap: Option<usize>) -> bool {
        let mut record = self.record.lock();
        {
            let mut counts = self.shared.counts.lock();
            counts.events += response.events.len() as u64;
            counts.compacted_away += u64::from(response.compact_revision > 0);
        }
        let whole = !response.fragment;
        let goes_on = match record.take(response) {
            Ok(goes_on) => goes_on,
            Err(wrong) => {
                self.shared.fail(format!("a watch of {:?} got {wrong}", record.range));
                return false;
            }
        };
        if let Some(member) = tap.filter(|_| whole) {
            for (revision, seen) in record.seen.drain(..) {
                let changes = seen.into_iter().map(|seen| seen.changed).collect();
                self.shared.saw(revision, changes, member);
            }
            record.gaps.clear();
        }
        goes_on
    }
}
