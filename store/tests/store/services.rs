//! The smaller services on the clients' port: health, reflection, locks, elections, and what is not there.

use std::fmt::Debug;
use std::time::Duration;

use keelson_proto::etcd::etcdserverpb::auth_client::AuthClient;
use keelson_proto::etcd::etcdserverpb::{
    AuthStatusRequest, AuthenticateRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
};
use keelson_proto::etcd::v3electionpb::election_client::ElectionClient;
use keelson_proto::etcd::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use keelson_proto::etcd::v3lockpb::lock_client::LockClient;
use keelson_proto::etcd::v3lockpb::{LockRequest, UnlockRequest};
use keelson_proto::health::HealthCheckRequest;
use keelson_proto::health::health_check_response::ServingStatus;
use keelson_proto::health::health_client::HealthClient;
use tokio_stream::StreamExt;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_reflection::pb::v1;

use crate::etcd::Etcd;
use crate::harness::{self, Client, eventually};
use crate::peer::anonymous;

fn channel(port: u16) -> Channel {
    Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect_lazy()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_told_until_it_stops() {
    let mut member = harness::single().await;
    let mut health = HealthClient::new(channel(member.client_port));
    let request = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let answer = health.check(request("")).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    let refused = health.check(request("etcdserverpb.KV")).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "unknown service"));
    let mut unknown = health.watch(request("x")).await.unwrap().into_inner();
    assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    let mut watch = health.watch(request("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    member.signal(nix::sys::signal::SIGTERM);
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    member.ended();
}

#[tokio::test]
async fn services_describe_themselves() {
    use v1::server_reflection_client::ServerReflectionClient;
    use v1::server_reflection_request::MessageRequest;
    use v1::server_reflection_response::MessageResponse;
    let member = harness::single().await;
    let channel = channel(member.client_port);
    let ask = async |request: MessageRequest| {
        let request = v1::ServerReflectionRequest { host: String::new(), message_request: Some(request) };
        let mut client = ServerReflectionClient::new(channel.clone());
        let mut answers =
            client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap().message_response.unwrap()
    };
    let MessageResponse::ListServicesResponse(listed) =
        ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("it lists no services")
    };
    let names: Vec<&str> = listed.service.iter().map(|service| service.name.as_str()).collect();
    for name in [
        "etcdserverpb.KV",
        "etcdserverpb.Watch",
        "etcdserverpb.Lease",
        "etcdserverpb.Cluster",
        "etcdserverpb.Maintenance",
        "v3lockpb.Lock",
        "v3electionpb.Election",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    let symbol = MessageRequest::FileContainingSymbol("etcdserverpb.KV.Range".to_owned());
    assert!(matches!(ask(symbol).await, MessageResponse::FileDescriptorResponse(_)));
}

/// Calls a method of which there is no client; `request` is its message.
async fn call(channel: Channel, path: &'static str, request: PutRequest) -> Status {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<PutRequest, PutRequest>::default();
    client.unary(tonic::Request::new(request), PathAndQuery::from_static(path), codec).await.unwrap_err()
}

#[tokio::test]
async fn what_is_not_there_says_so() {
    let member = harness::single().await;
    let channel = channel(member.client_port);
    let mut auth = AuthClient::new(channel.clone());
    let status = auth.auth_status(AuthStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.enabled, status.auth_revision), (false, 1));
    let refused = auth.authenticate(AuthenticateRequest::default()).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::FailedPrecondition, "etcdserver: authentication is not enabled")
    );
    let large = PutRequest { value: vec![0; 3 << 20].into(), ..PutRequest::default() };
    for (path, request, code, message) in [
        (
            "/etcdserverpb.Auth/UserList",
            PutRequest::default(),
            Code::Unimplemented,
            "etcdserver: users and roles are not supported by kube-store",
        ),
        ("/a.Service/Method", PutRequest::default(), Code::Unimplemented, "unknown service a.Service"),
        (
            "/etcdserverpb.KV/Put",
            large,
            Code::ResourceExhausted,
            "grpc: received message larger than max (3145733 vs. 2097152)",
        ),
    ] {
        let refused = call(channel.clone(), path, request).await;
        assert_eq!((refused.code(), refused.message()), (code, message), "{path}");
    }
}

fn show<T: Debug>(result: Result<tonic::Response<T>, Status>) -> String {
    match result {
        Ok(response) => format!("{:?}", response.into_inner()),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// Ids and terms are the servers' own.
macro_rules! plain {
    ($call:expr) => {
        show($call.await.map(|response| {
            response.map(|mut response| {
                anonymous(&mut response.header);
                response
            })
        }))
    };
}

/// One client's locks and elections, and what it is told.
async fn locks_and_elections(client: &Client, port: u16) -> Vec<String> {
    let mut lock = LockClient::new(channel(port));
    let mut election = ElectionClient::new(channel(port));
    for id in [7, 0x1f] {
        client.lease.clone().lease_grant(LeaseGrantRequest { ttl: 600, id }).await.unwrap();
    }
    let lease = |lease| LockRequest { name: "n".into(), lease };
    let campaign = |value: &'static str| CampaignRequest { name: "e".into(), lease: 7, value: value.into() };
    let key = |rev| LeaderKey { name: "e".into(), key: "e/7".into(), rev, lease: 7 };
    let proclaim =
        |leader, value: &'static str| ProclaimRequest { leader: Some(leader), value: value.into() };
    let unlock = |key: &'static str| UnlockRequest { key: key.into() };
    let named = |name: &'static str| LeaderRequest { name: name.into() };
    let mut told = vec![
        plain!(lock.lock(lease(0x1f))),
        plain!(lock.lock(lease(0x1f))),
        plain!(lock.unlock(unlock("n/1f"))),
        plain!(lock.unlock(unlock("n/1f"))),
        plain!(lock.lock(lease(7))),
        plain!(lock.lock(lease(99))),
        plain!(lock.unlock(unlock(""))),
        plain!(election.leader(named("e"))),
        plain!(election.campaign(campaign("one"))),
        plain!(election.leader(named("e"))),
        plain!(election.campaign(campaign("two"))),
        plain!(election.leader(named("e"))),
    ];
    let rev = election.leader(named("e")).await.unwrap().into_inner().kv.unwrap().create_revision;
    told.extend([
        plain!(election.proclaim(proclaim(key(rev), "three"))),
        plain!(election.proclaim(proclaim(key(rev + 1), "four"))),
        plain!(election.proclaim(ProclaimRequest::default())),
        plain!(election.resign(ResignRequest::default())),
        plain!(election.resign(ResignRequest { leader: Some(key(rev + 1)) })),
        plain!(election.leader(named("e"))),
        plain!(election.resign(ResignRequest { leader: Some(key(rev)) })),
        plain!(election.leader(named("e"))),
    ]);
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_and_elections_are_etcds() {
    let (member, etcd) = (harness::single().await, Etcd::start(&[]).await);
    let ours = locks_and_elections(&member.client(), member.client_port).await;
    let theirs = locks_and_elections(&etcd.client(), etcd.port).await;
    for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours, theirs, "answer {at}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_holds_a_lock_and_the_next_gets_it() {
    let members = harness::group(3).await;
    let client = members[0].client();
    for id in 1..=4 {
        client.lease.clone().lease_grant(LeaseGrantRequest { ttl: 600, id }).await.unwrap();
    }
    let lock = async |member: usize, lease: i64| {
        let mut lock = LockClient::new(channel(members[member].client_port));
        let held = lock.lock(LockRequest { name: "n".into(), lease }).await?;
        Ok::<_, Status>(held.into_inner().key)
    };
    let wait = |member: usize, lease: i64| {
        let mut lock = LockClient::new(channel(members[member].client_port));
        tokio::spawn(async move { lock.lock(LockRequest { name: "n".into(), lease }).await })
    };
    let queued = async |count: usize| {
        eventually("they wait", || async { (client.all("n/").await.unwrap().len() == count).then_some(()) })
            .await;
    };
    assert_eq!(lock(0, 1).await.unwrap(), "n/1");
    let second = wait(1, 2);
    queued(2).await;
    let gone = wait(2, 3);
    queued(3).await;
    let fourth = wait(2, 4);
    queued(4).await;
    // A client that gives up leaves the queue.
    gone.abort();
    queued(3).await;
    assert!(!second.is_finished() && !fourth.is_finished());
    LockClient::new(channel(members[2].client_port))
        .unlock(UnlockRequest { key: "n/1".into() })
        .await
        .unwrap();
    assert_eq!(second.await.unwrap().unwrap().into_inner().key, "n/2");
    assert!(!fourth.is_finished());
    // So does one whose lease ends.
    client.lease.clone().lease_revoke(LeaseRevokeRequest { id: 2 }).await.unwrap();
    assert_eq!(fourth.await.unwrap().unwrap().into_inner().key, "n/4");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leads_is_observed() {
    let member = harness::single().await;
    let client = member.client();
    for id in 1..=2 {
        client.lease.clone().lease_grant(LeaseGrantRequest { ttl: 600, id }).await.unwrap();
    }
    let mut election = ElectionClient::new(channel(member.client_port));
    let mut observing = election.clone();
    let observed = tokio::spawn(async move { observing.observe(LeaderRequest { name: "e".into() }).await });
    let campaign =
        |lease, value: &'static str| CampaignRequest { name: "e".into(), lease, value: value.into() };
    let first = election.campaign(campaign(1, "a")).await.unwrap().into_inner().leader.unwrap();
    let mut observed = observed.await.unwrap().unwrap().into_inner();
    let mut next = async || {
        let next = tokio::time::timeout(Duration::from_secs(30), observed.next()).await;
        next.unwrap().unwrap().unwrap().kv.unwrap().value
    };
    assert_eq!(next().await, "a");
    let mut waiting = election.clone();
    let second = tokio::spawn(async move { waiting.campaign(campaign(2, "b")).await });
    eventually("it waits", || async { client.get("e/2").await.unwrap() }).await;
    let request = ProclaimRequest { leader: Some(first.clone()), value: "c".into() };
    election.proclaim(request).await.unwrap();
    assert_eq!(next().await, "c");
    election.resign(ResignRequest { leader: Some(first) }).await.unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(next().await, "b");
}
