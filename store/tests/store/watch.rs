//! Watches: every event once, in order, whole revisions, whatever the watcher does meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::request_op::Request;
use keelson_proto::etcd::etcdserverpb::watch_create_request::FilterType;
use keelson_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use keelson_proto::etcd::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, WatchCancelRequest,
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use keelson_proto::etcd::mvccpb::Event;
use keelson_proto::etcd::mvccpb::event::EventType;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::harness::{self, Client, PATIENCE};

pub struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    responses: tonic::Streaming<WatchResponse>,
}

impl Stream {
    pub async fn open(client: &Client) -> Self {
        let (requests, receiver) = mpsc::channel(8);
        let mut watch = client.watch.clone();
        let responses = watch.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    pub async fn send(&self, request: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    pub async fn create(&mut self, request: WatchCreateRequest) -> WatchResponse {
        self.send(RequestUnion::CreateRequest(request)).await;
        let created = self.next().await;
        assert!(created.created);
        created
    }

    pub async fn next(&mut self) -> WatchResponse {
        let response = tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("no response");
        response.unwrap().expect("the stream ended")
    }

    pub async fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            let response = self.next().await;
            assert!(!response.canceled, "{response:?}");
            if let Some(last) = response.events.last() {
                let revision = last.kv.as_ref().unwrap().mod_revision;
                assert!(response.header.unwrap().revision >= revision);
            }
            events.extend(response.events);
        }
        events
    }
}

pub fn prefix(key: &'static str) -> WatchCreateRequest {
    let mut end = key.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    WatchCreateRequest { key: key.into(), range_end: end.into(), ..WatchCreateRequest::default() }
}

pub fn show(event: &Event) -> String {
    let kv = event.kv.as_ref().unwrap();
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let kind = if event.r#type() == EventType::Put { "put" } else { "delete" };
    let previous = event.prev_kv.as_ref().map(|kv| format!(" was {}", text(&kv.value))).unwrap_or_default();
    format!("{} {kind} {}={}{previous}", kv.mod_revision, text(&kv.key), text(&kv.value))
}

pub async fn delete(client: &Client, key: &'static str) {
    let request = DeleteRangeRequest { key: key.into(), ..DeleteRangeRequest::default() };
    client.kv.clone().delete_range(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_and_the_present_are_one_sequence() {
    let member = harness::single().await;
    let client = member.client();
    client.put("a/1", "x").await.unwrap();
    client.put("a/1", "y").await.unwrap();
    client.put("b", "other").await.unwrap();
    delete(&client, "a/1").await;
    let mut stream = Stream::open(&client).await;
    let created =
        stream.create(WatchCreateRequest { start_revision: 2, prev_kv: true, ..prefix("a/") }).await;
    assert_eq!((created.watch_id, created.header.unwrap().revision), (0, 5));
    client.put("a/2", "z").await.unwrap();
    client.put("a/2", "zz").await.unwrap();
    let shown: Vec<_> = stream.events(5).await.iter().map(show).collect();
    let expected =
        ["2 put a/1=x", "3 put a/1=y was x", "5 delete a/1= was y", "6 put a/2=z", "7 put a/2=zz was z"];
    assert_eq!(shown, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_ids_and_cancellation() {
    let member = harness::single().await;
    let client = member.client();
    let mut stream = Stream::open(&client).await;
    let no_put = vec![FilterType::Noput as i32];
    let no_delete = vec![FilterType::Nodelete as i32];
    stream.create(WatchCreateRequest { filters: no_put, watch_id: 7, ..prefix("a") }).await;
    stream.create(WatchCreateRequest { filters: no_delete, watch_id: 8, ..prefix("a") }).await;
    let again = stream.create(WatchCreateRequest { watch_id: 7, ..prefix("a") }).await;
    assert!(again.canceled && again.watch_id == -1, "{again:?}");
    let empty =
        WatchCreateRequest { key: "b".into(), range_end: "a".into(), ..WatchCreateRequest::default() };
    assert!(stream.create(empty).await.canceled);
    client.put("a", "1").await.unwrap();
    let response = stream.next().await;
    assert_eq!((response.watch_id, show(&response.events[0])), (8, "2 put a=1".to_owned()));
    delete(&client, "a").await;
    let response = stream.next().await;
    assert_eq!((response.watch_id, show(&response.events[0])), (7, "3 delete a=".to_owned()));
    stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 8 })).await;
    let canceled = stream.next().await;
    assert!(canceled.canceled && canceled.watch_id == 8);
    client.put("a", "2").await.unwrap();
    delete(&client, "a").await;
    assert_eq!(stream.next().await.watch_id, 7, "the cancelled watch is silent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_start_is_told() {
    let member = harness::single().await;
    let client = member.client();
    for value in ["1", "2", "3"] {
        client.put("a", value).await.unwrap();
    }
    client.kv.clone().compact(CompactionRequest { revision: 3, physical: false }).await.unwrap();
    let mut stream = Stream::open(&client).await;
    stream.create(WatchCreateRequest { start_revision: 2, ..prefix("a") }).await;
    let canceled = stream.next().await;
    assert!(canceled.canceled && canceled.compact_revision == 3, "{canceled:?}");
    stream.create(WatchCreateRequest { start_revision: 3, ..prefix("a") }).await;
    let shown: Vec<_> = stream.events(2).await.iter().map(show).collect();
    assert_eq!(shown, ["3 put a=2", "4 put a=3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_is_behind_all_events() {
    let mut member = harness::members(1).remove(0);
    member.extra = vec!["--experimental-watch-progress-notify-interval=300ms".to_owned()];
    member.start();
    member.ready().await;
    let client = member.client();
    let mut stream = Stream::open(&client).await;
    stream.create(WatchCreateRequest { progress_notify: true, ..prefix("a") }).await;
    client.put("b", "unrelated").await.unwrap();
    let notified = stream.next().await;
    assert!(notified.events.is_empty() && notified.watch_id == 0, "{notified:?}");
    assert_eq!(notified.header.unwrap().revision, 2);
    for round in 0..50 {
        client.put("a", "x").await.unwrap();
        stream.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
        let mut seen = 0;
        loop {
            let response = stream.next().await;
            seen += response.events.len();
            let revision = response.header.unwrap().revision;
            if response.watch_id == -1 {
                assert_eq!((revision, seen), (3 + round, 1), "round {round}");
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_watcher_loses_nothing_and_holds_nobody_up() {
    let member = harness::single().await;
    let client = member.client();
    let mut slow = Stream::open(&client).await;
    slow.create(WatchCreateRequest { prev_kv: true, ..prefix("k/") }).await;
    let mut quick = Stream::open(&member.client()).await;
    quick.create(prefix("k/")).await;
    const COUNT: usize = 3000;
    let value = "v".repeat(4000);
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (client, value) = (member.client(), value.clone());
            tokio::spawn(async move {
                for serial in 0..COUNT / 8 {
                    client.put(&format!("k/{writer}/{}", serial % 10), value.clone()).await.unwrap();
                }
            })
        })
        .collect();
    // The quick one reads while the slow one reads nothing, far beyond what is buffered for it.
    let quick_events = quick.events(COUNT).await;
    for writer in writers {
        writer.await.unwrap();
    }
    let slow_events = slow.events(COUNT).await;
    let revisions = |events: &[Event]| -> Vec<i64> {
        events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision).collect()
    };
    let expected: Vec<i64> = (2..2 + COUNT as i64).collect();
    assert_eq!(revisions(&quick_events), expected);
    assert_eq!(revisions(&slow_events), expected);
    // And what was before is told rightly, whether it came from the hub or from history.
    let mut last: BTreeMap<Bytes, i64> = BTreeMap::new();
    for event in &slow_events {
        let kv = event.kv.clone().unwrap();
        let previous = event.prev_kv.as_ref().map(|kv| kv.mod_revision);
        assert_eq!(previous, last.insert(kv.key, kv.mod_revision), "revision {}", kv.mod_revision);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_responses_are_split_where_asked_for() {
    let member = harness::single().await;
    let client = member.client();
    let put = |key: String| RequestOp {
        request: Some(Request::RequestPut(PutRequest {
            key: key.into(),
            value: vec![b'x'; 300 << 10].into(),
            ..PutRequest::default()
        })),
    };
    for _ in 0..3 {
        let success = (0..4).map(|i| put(format!("a/{i}"))).collect();
        client.kv.clone().txn(TxnRequest { success, ..TxnRequest::default() }).await.unwrap();
    }
    let mut stream = Stream::open(&client).await;
    stream
        .create(WatchCreateRequest { start_revision: 2, fragment: true, prev_kv: true, ..prefix("a/") })
        .await;
    let (mut events, mut parts, mut ended) = (0, 0, false);
    while events < 12 {
        let response = stream.next().await;
        assert!(prost::Message::encoded_len(&response) < 2 << 20);
        events += response.events.len();
        parts += 1;
        ended = !response.fragment;
    }
    assert!(ended && parts >= 5, "{parts}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_through_a_snapshot() {
    let mut members = harness::members(3);
    for member in &mut members {
        // Nothing more for one that is away, however shortly.
        member.start_with("log_most=return(8388608)");
    }
    for member in &members {
        member.ready().await;
    }
    // A follower is away: writes go on without a new election.
    let leader = harness::leader(&members).await;
    let away = (leader + 1) % 3;
    let other = members[leader].client();
    other.put("w/before", "x").await.unwrap();
    members[away].kill();
    for serial in 0..20 {
        other.put(&format!("w/{serial:02}"), vec![b'x'; 1 << 20]).await.unwrap();
    }
    members[away].start();
    members[away].ready().await;
    assert!(members[away].log().contains("installed a peer's snapshot"));
    let mut stream = Stream::open(&members[away].client()).await;
    stream.create(WatchCreateRequest { start_revision: 2, ..prefix("w/") }).await;
    let events = tokio::time::timeout(Duration::from_secs(30), stream.events(21)).await.unwrap();
    let revisions: Vec<i64> = events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision).collect();
    assert_eq!(revisions, (2..23).collect::<Vec<_>>());
}
