//! Requests and their answers, as etcd gives them.

use keelson_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_proto::etcd::etcdserverpb::request_op::Request;
use keelson_proto::etcd::etcdserverpb::response_op::Response;
use keelson_proto::etcd::etcdserverpb::{
    AlarmRequest, CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RangeResponse, RequestOp, SnapshotRequest, TxnRequest, TxnResponse,
};
use sha2::{Digest, Sha256};
use tonic::{Code, Status};

use crate::harness::{self, Client};
use crate::secure::get;

fn put(key: &'static str, value: &'static str) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }
}

fn range(key: &'static str, end: &'static str) -> RangeRequest {
    RangeRequest { key: key.into(), range_end: end.into(), ..RangeRequest::default() }
}

fn keys(response: &RangeResponse) -> String {
    response.kvs.iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn ranges() {
    let member = harness::single().await;
    let client = member.client();
    // Revisions 2 to 6; versions a 1, b 2, c 1, d 1.
    for (key, value) in [("a", "4"), ("b", "3"), ("c", "2"), ("b", "1"), ("d", "")] {
        client.put(key, value).await.unwrap();
    }
    let all = || range("\0", "\0");
    let check = async |request: RangeRequest, expected: &str, count: i64, more: bool| {
        let response = client.range(request.clone()).await.unwrap();
        assert_eq!(
            (keys(&response).as_str(), response.count, response.more),
            (expected, count, more),
            "{request:?}"
        );
        response
    };
    check(all(), "a b c d", 4, false).await;
    check(range("b", "d"), "b c", 2, false).await;
    check(range("b", "\0"), "b c d", 3, false).await;
    check(range("x", ""), "", 0, false).await;
    check(RangeRequest { limit: 2, ..all() }, "a b", 4, true).await;
    check(RangeRequest { limit: 4, ..all() }, "a b c d", 4, false).await;
    check(RangeRequest { count_only: true, ..all() }, "", 4, false).await;
    check(RangeRequest { revision: 3, ..all() }, "a b", 2, false).await;
    let order = |order: SortOrder, target: SortTarget| RangeRequest {
        sort_order: order as i32,
        sort_target: target as i32,
        ..all()
    };
    check(order(SortOrder::Descend, SortTarget::Key), "d c b a", 4, false).await;
    check(order(SortOrder::Ascend, SortTarget::Value), "d b c a", 4, false).await;
    check(order(SortOrder::None, SortTarget::Mod), "a c b d", 4, false).await;
    check(order(SortOrder::Descend, SortTarget::Create), "d c b a", 4, false).await;
    check(order(SortOrder::Descend, SortTarget::Version), "b a c d", 4, false).await;
    check(RangeRequest { limit: 1, ..order(SortOrder::Descend, SortTarget::Mod) }, "d", 4, true).await;
    check(RangeRequest { min_mod_revision: 4, max_mod_revision: 5, ..all() }, "b c", 4, false).await;
    check(RangeRequest { min_create_revision: 3, max_create_revision: 4, ..all() }, "b c", 4, false).await;
    let only_keys = check(RangeRequest { keys_only: true, ..all() }, "a b c d", 4, false).await;
    assert!(only_keys.kvs.iter().all(|kv| kv.value.is_empty() && kv.version > 0));
    let b = &client.range(range("b", "")).await.unwrap().kvs[0];
    assert_eq!((b.create_revision, b.mod_revision, b.version), (3, 5, 2));
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, message: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, message));
}

#[tokio::test]
async fn errors_are_etcds() {
    let member = harness::single().await;
    let client = member.client();
    let mut kv = client.kv.clone();
    let mut lease = client.lease.clone();
    client.put("a", "1").await.unwrap();
    use Code::*;
    refused(client.range(range("", "")).await, InvalidArgument, "etcdserver: key is not provided");
    let sort = RangeRequest { sort_target: 9, ..range("a", "") };
    refused(client.range(sort).await, InvalidArgument, "etcdserver: invalid sort option");
    let future = RangeRequest { revision: 99, ..range("a", "") };
    refused(
        client.range(future).await,
        OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
    refused(kv.put(put("", "")).await, InvalidArgument, "etcdserver: key is not provided");
    let request = PutRequest { ignore_value: true, ..put("a", "x") };
    refused(kv.put(request).await, InvalidArgument, "etcdserver: value is provided");
    let request = PutRequest { ignore_lease: true, lease: 1, ..put("a", "x") };
    refused(kv.put(request).await, InvalidArgument, "etcdserver: lease is provided");
    let request = PutRequest { ignore_value: true, ..put("b", "") };
    refused(kv.put(request).await, InvalidArgument, "etcdserver: key not found");
    let request = PutRequest { lease: 99, ..put("a", "x") };
    refused(kv.put(request).await, NotFound, "etcdserver: requested lease not found");
    refused(client.put("a", vec![0; 1600 << 10]).await, InvalidArgument, "etcdserver: request is too large");
    refused(
        lease.lease_grant(LeaseGrantRequest { ttl: 9_000_000_001, id: 0 }).await,
        OutOfRange,
        "etcdserver: too large lease TTL",
    );
    lease.lease_grant(LeaseGrantRequest { ttl: 60, id: 5 }).await.unwrap();
    refused(
        lease.lease_grant(LeaseGrantRequest { ttl: 60, id: 5 }).await,
        FailedPrecondition,
        "etcdserver: lease already exists",
    );
    refused(
        lease.lease_revoke(LeaseRevokeRequest { id: 6 }).await,
        NotFound,
        "etcdserver: requested lease not found",
    );
    kv.compact(CompactionRequest { revision: 2, physical: true }).await.unwrap();
    const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
    refused(kv.compact(CompactionRequest { revision: 2, physical: false }).await, OutOfRange, COMPACTED);
    let old = RangeRequest { revision: 1, ..range("a", "") };
    refused(client.range(old).await, OutOfRange, COMPACTED);
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn compare(key: &'static str, target: CompareTarget, result: CompareResult, union: TargetUnion) -> Compare {
    Compare {
        key: key.into(),
        target: target as i32,
        result: result as i32,
        target_union: Some(union),
        ..Compare::default()
    }
}

async fn txn(client: &Client, request: TxnRequest) -> Result<TxnResponse, Status> {
    Ok(client.kv.clone().txn(request).await?.into_inner())
}

#[tokio::test]
async fn compares() {
    let member = harness::single().await;
    let client = member.client();
    client.put("a", "b").await.unwrap();
    client.put("a", "b").await.unwrap();
    let check = async |key, target, result, union, expected: bool| {
        let compare = compare(key, target, result, union);
        let request = TxnRequest { compare: vec![compare.clone()], ..TxnRequest::default() };
        assert_eq!(txn(&client, request).await.unwrap().succeeded, expected, "{compare:?}");
    };
    use CompareResult::*;
    use CompareTarget::*;
    check("a", Version, Equal, TargetUnion::Version(2), true).await;
    check("a", Create, Equal, TargetUnion::CreateRevision(2), true).await;
    check("a", Mod, Less, TargetUnion::ModRevision(3), false).await;
    check("a", Mod, Greater, TargetUnion::ModRevision(2), true).await;
    check("a", Lease, NotEqual, TargetUnion::Lease(0), false).await;
    check("a", Value, Equal, TargetUnion::Value("b".into()), true).await;
    check("a", Value, Greater, TargetUnion::Value("a".into()), true).await;
    check("x", Mod, Equal, TargetUnion::ModRevision(0), true).await;
    check("x", Value, NotEqual, TargetUnion::Value("b".into()), false).await;
}

#[tokio::test]
async fn transactions() {
    let member = harness::single().await;
    let client = member.client();
    let nested = TxnRequest {
        compare: vec![compare("a", CompareTarget::Version, CompareResult::Equal, TargetUnion::Version(0))],
        success: vec![op(Request::RequestPut(put("nested", "yes")))],
        failure: vec![op(Request::RequestPut(put("nested", "no")))],
    };
    let request = TxnRequest {
        success: vec![
            op(Request::RequestPut(put("a", "1"))),
            op(Request::RequestTxn(nested)),
            op(Request::RequestRange(range("a", ""))),
            op(Request::RequestDeleteRange(DeleteRangeRequest { key: "gone".into(), ..Default::default() })),
        ],
        ..TxnRequest::default()
    };
    let response = txn(&client, request).await.unwrap();
    assert_eq!(response.header.unwrap().revision, 2);
    let Some(Response::ResponseRange(seen)) = &response.responses[2].response else { panic!("{response:?}") };
    assert_eq!(seen.kvs[0].value, "1", "a transaction sees its own writes");
    // Compares are decided before anything is written.
    assert_eq!(client.get("nested").await.unwrap().unwrap(), b"yes");
    // What cannot be done leaves nothing done.
    let request = TxnRequest {
        success: vec![
            op(Request::RequestPut(put("b", "1"))),
            op(Request::RequestPut(PutRequest { lease: 99, ..put("c", "1") })),
        ],
        ..TxnRequest::default()
    };
    refused(txn(&client, request).await, Code::NotFound, "etcdserver: requested lease not found");
    assert_eq!(client.get("b").await.unwrap(), None);
    let request =
        TxnRequest { success: vec![op(Request::RequestRange(range("a", "")))], ..Default::default() };
    assert_eq!(txn(&client, request).await.unwrap().header.unwrap().revision, 2, "reading changes nothing");
    let request = TxnRequest {
        success: vec![op(Request::RequestDeleteRange(DeleteRangeRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            prev_kv: true,
        }))],
        ..TxnRequest::default()
    };
    let response = txn(&client, request).await.unwrap();
    let Some(Response::ResponseDeleteRange(deleted)) = &response.responses[0].response else {
        panic!("{response:?}")
    };
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (2, 2));
}

#[tokio::test]
async fn puts_keep_what_they_are_told_to() {
    let member = harness::single().await;
    let client = member.client();
    let mut kv = client.kv.clone();
    client.lease.clone().lease_grant(LeaseGrantRequest { ttl: 60, id: 5 }).await.unwrap();
    kv.put(PutRequest { lease: 5, ..put("a", "1") }).await.unwrap();
    let request = PutRequest { ignore_lease: true, prev_kv: true, ..put("a", "2") };
    let previous = kv.put(request).await.unwrap().into_inner().prev_kv.unwrap();
    assert_eq!((&previous.value[..], previous.lease), (&b"1"[..], 5));
    kv.put(PutRequest { ignore_value: true, lease: 0, ..put("a", "") }).await.unwrap();
    let now = client.range(range("a", "")).await.unwrap().kvs.remove(0);
    assert_eq!((&now.value[..], now.lease, now.version), (&b"2"[..], 0, 3));
    client.lease.clone().lease_revoke(LeaseRevokeRequest { id: 5 }).await.unwrap();
    assert!(client.get("a").await.unwrap().is_some(), "it was detached");
}

#[tokio::test]
async fn the_quota_refuses_writes_until_there_is_room() {
    let mut member = harness::members(1).remove(0);
    member.extra = vec!["--quota-backend-bytes=1000000".to_owned()];
    member.start();
    member.ready().await;
    let client = member.client();
    let error = harness::eventually("the quota is noticed", || async {
        client.put("k", vec![7; 200_000]).await.err()
    })
    .await;
    assert_eq!(
        (error.code(), error.message()),
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded")
    );
    assert!(client.get("k").await.is_ok());
    harness::eventually("the alarm is raised", || async {
        let alarms =
            client.maintenance.clone().alarm(AlarmRequest::default()).await.unwrap().into_inner().alarms;
        (alarms.len() == 1).then_some(())
    })
    .await;
    let check = |path: &str, status: u16, body: &str| {
        let answer = get(member.client_port, path);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.ends_with(body),
            "{path}: {answer}"
        );
    };
    check("/health", 503, "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n");
    check("/health?exclude=NOSPACE", 200, "{\"health\":\"true\",\"reason\":\"\"}");
    check("/livez", 200, "\r\nok\n");
    check("/readyz", 200, "\r\nok\n");
    check(
        "/readyz?verbose&exclude=data_corruption",
        200,
        "\n[+]serializable_read ok\n[+]linearizable_read ok\nok\n",
    );
    check("/readyz/linearizable_read", 200, "\r\nok\n");
    check("/livez/linearizable_read", 404, "404 page not found\n");
    let delete = DeleteRangeRequest { key: "k".into(), ..DeleteRangeRequest::default() };
    let revision =
        client.kv.clone().delete_range(delete).await.unwrap().into_inner().header.unwrap().revision;
    client.kv.clone().compact(CompactionRequest { revision, physical: false }).await.unwrap();
    harness::eventually("there is room again", || async { client.put("k", "v").await.ok() }).await;
}

#[tokio::test]
async fn a_snapshot_ends_with_its_checksum() {
    let member = harness::single().await;
    let client = member.client();
    client.put("a", vec![7; 1 << 20]).await.unwrap();
    let mut stream = client.maintenance.clone().snapshot(SnapshotRequest {}).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    let mut remaining = u64::MAX;
    while let Some(piece) = stream.message().await.unwrap() {
        assert!(piece.remaining_bytes <= remaining);
        remaining = piece.remaining_bytes;
        bytes.extend_from_slice(&piece.blob);
    }
    assert_eq!(remaining, 0);
    let (content, sum) = bytes.split_at(bytes.len() - 32);
    assert!(content.len() > 1 << 20 && content.len() % 512 == 0);
    assert_eq!(&Sha256::digest(content)[..], sum);
}
