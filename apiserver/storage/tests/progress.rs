//! A store that answers questions for progress (Debian's etcd is too old to be asked): consistent reads
//! are served from the cache although the store's revision moves on elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use keelson_proto::etcd::etcdserverpb::kv_server::{Kv, KvServer};
use keelson_proto::etcd::etcdserverpb::maintenance_server::{Maintenance, MaintenanceServer};
use keelson_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use keelson_proto::etcd::etcdserverpb::watch_server::{Watch, WatchServer};
use keelson_proto::etcd::etcdserverpb::*;
use keelson_proto::etcd::mvccpb::KeyValue;
use keelson_storage::{Key, ReadVersion, ResourceConfig, Storage, StoreConfig, TypeMeta};
use tokio_util::sync::CancellationToken;
use tonic::codegen::Service;
use tonic::{Request, Response, Status, Streaming};

const KEY: &str = "/registry/things/a";

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One object, and a revision that moves on without events.
#[derive(Clone, Default)]
struct Fake {
    revision: Arc<AtomicI64>,
    /// Reads of the object itself (not of the revision).
    reads: Arc<AtomicUsize>,
    questions: Arc<AtomicUsize>,
}

impl Fake {
    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision: self.revision.load(Ordering::SeqCst), ..Default::default() })
    }
}

#[tonic::async_trait]
impl Kv for Fake {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        let mut response = RangeResponse { header: self.header(), ..Default::default() };
        if !request.count_only {
            self.reads.fetch_add(1, Ordering::SeqCst);
            response.kvs.push(KeyValue {
                key: KEY.into(),
                mod_revision: 5,
                value: Bytes::from_static(br#"{"metadata":{"name":"a"}}"#),
                ..Default::default()
            });
        }
        Ok(Response::new(response))
    }

    async fn put(&self, _: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn delete_range(
        &self,
        _: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn txn(&self, _: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn compact(&self, _: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl Watch for Fake {
    type WatchStream = Answers<WatchResponse>;

    async fn watch(
        &self,
        requests: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let fake = self.clone();
        let answers = requests.into_inner().map(move |request| {
            let header = fake.header();
            Ok(match request?.request_union {
                Some(RequestUnion::ProgressRequest(_)) => {
                    fake.questions.fetch_add(1, Ordering::SeqCst);
                    WatchResponse { header, watch_id: -1, ..Default::default() }
                }
                _ => WatchResponse { header, created: true, ..Default::default() },
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

#[tonic::async_trait]
impl Maintenance for Fake {
    type SnapshotStream = Answers<SnapshotResponse>;

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(StatusResponse { version: "3.5.21".into(), ..Default::default() }))
    }

    async fn alarm(&self, _: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn defragment(
        &self,
        _: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn hash_kv(&self, _: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn move_leader(
        &self,
        _: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn downgrade(&self, _: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

async fn serve(fake: Fake) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let fake = fake.clone();
            let service =
                hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let fake = fake.clone();
                    async move {
                        match request.uri().path().split('/').nth(1) {
                            Some("etcdserverpb.KV") => KvServer::new(fake).call(request).await,
                            Some("etcdserverpb.Watch") => WatchServer::new(fake).call(request).await,
                            _ => MaintenanceServer::new(fake).call(request).await,
                        }
                    }
                });
            let connection = hyper_util::rt::TokioIo::new(connection);
            let executor = hyper_util::rt::TokioExecutor::new();
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(executor).serve_connection(connection, service),
            );
        }
    });
    address
}

#[tokio::test]
async fn consistent_reads_ask_for_progress() {
    let fake = Fake::default();
    fake.revision.store(10, Ordering::SeqCst);
    let address = serve(fake.clone()).await;
    let config = StoreConfig::new(vec![format!("http://{address}")]);
    let storage = Storage::connect(config, CancellationToken::new()).unwrap();
    let things = storage.resource(ResourceConfig {
        prefix: "things".into(),
        name: "things".into(),
        type_meta: TypeMeta { api_version: "a.io/v1".into(), kind: "Thing".into() },
        namespaced: false,
        fields: None,
    });
    tokio::time::timeout(Duration::from_secs(20), storage.wait_ready()).await.unwrap();
    assert_eq!(fake.reads.load(Ordering::SeqCst), 1, "the filling");
    for revision in [20, 30] {
        // A write outside of the prefix: no event will ever tell of it.
        fake.revision.store(revision, Ordering::SeqCst);
        let thing = things.get(Key::cluster("a"), ReadVersion::Latest).await.unwrap();
        assert_eq!(thing.resource_version(), 5);
        assert_eq!(storage.cached_revision(), revision as u64);
    }
    assert_eq!(fake.reads.load(Ordering::SeqCst), 1, "all answers came from the cache");
    assert!(fake.questions.load(Ordering::SeqCst) >= 2);
}
