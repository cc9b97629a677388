//! The etcd v3 client: requests to one of several endpoints, with errors sorted by what a caller can do.
//!
//! Reads are tried again, at the next endpoint, until [`PATIENCE`] is used up. Writes are tried again only
//! when they certainly did not reach a store: after a lost answer nobody knows whether a write happened,
//! and to repeat a compare-and-swap would turn its success into a conflict.

use std::error::Error as _;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_proto::etcd::etcdserverpb::kv_client::KvClient;
use keelson_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use keelson_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use keelson_proto::etcd::etcdserverpb::request_op::Request;
use keelson_proto::etcd::etcdserverpb::response_op::Response;
use keelson_proto::etcd::etcdserverpb::watch_client::WatchClient;
use keelson_proto::etcd::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest,
    RangeResponse, RequestOp, StatusRequest, TxnRequest, WatchRequest, WatchResponse,
};
use keelson_proto::etcd::mvccpb::KeyValue;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status, Streaming};

mod config;

pub use config::{StoreConfig, StoreError, StoreTls};

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long reads (and writes that were not sent) are tried again.
const PATIENCE: Duration = Duration::from_millis(2500);

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(25);

/// Keys and objects of one store may be large; etcd's own limit is on requests.
const MAX_ANSWER: usize = i32::MAX as usize;

/// A connection to each endpoint, made when first used; shared by clone.
#[derive(Clone)]
pub(crate) struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    channels: Vec<Channel>,
    /// The endpoint that answered last.
    current: AtomicUsize,
}

/// What a compare-and-swap found.
pub(crate) enum Swapped {
    /// The revision of the write.
    Done(u64),
    /// The key was at another revision; what it holds now.
    Conflict(Option<KeyValue>),
}

/// A write in a compare-and-swap.
pub(crate) enum Write {
    Put { value: Bytes, lease: i64 },
    Delete,
}

impl Client {
    pub(crate) fn new(config: &StoreConfig) -> Result<Self, StoreError> {
        if config.endpoints.is_empty() {
            return Err(StoreError::Config("no endpoint is given".into()));
        }
        let tls = config.tls.as_ref().map(tls_config).transpose()?;
        let channels = config
            .endpoints
            .iter()
            .map(|endpoint| channel(endpoint, tls.as_ref()))
            .collect::<Result<_, StoreError>>()?;
        Ok(Self { shared: Arc::new(Shared { channels, current: AtomicUsize::new(0) }) })
    }

    fn channel(&self) -> (usize, Channel) {
        let at = self.shared.current.load(Ordering::Relaxed) % self.shared.channels.len();
        (at, self.shared.channels[at].clone())
    }

    /// The endpoint failed: others come first from now on (unless somebody has found that already).
    fn failed(&self, at: usize) {
        let next = (at + 1) % self.shared.channels.len();
        let _ = self.shared.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    async fn call<T, F>(&self, repeatable: bool, request: impl Fn(Channel) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let start = Instant::now();
        loop {
            let (at, channel) = self.channel();
            let status = match timeout(REQUEST_TIMEOUT, request(channel)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => {
                    self.failed(at);
                    return Err(StoreError::Timeout(format!("no answer within {REQUEST_TIMEOUT:?}")));
                }
            };
            let unsent = unsent(&status);
            let error = classify(&status);
            if matches!(error, StoreError::Unavailable(_)) {
                self.failed(at);
                if (repeatable || unsent) && start.elapsed() < PATIENCE {
                    sleep(PAUSE).await;
                    continue;
                }
            }
            return Err(error);
        }
    }

    pub(crate) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.call(true, |channel| {
            let request = request.clone();
            async move { KvClient::new(channel).max_decoding_message_size(MAX_ANSWER).range(request).await }
        })
        .await
    }

    /// One key, linearizable; with the store's revision.
    pub(crate) async fn get(&self, key: &str) -> Result<(Option<KeyValue>, u64), StoreError> {
        let request = RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() };
        let mut response = self.range(request).await?;
        let revision = revision(response.header.as_ref());
        Ok((response.kvs.pop(), revision))
    }

    /// The store's revision, linearizable, by a read that moves no value.
    pub(crate) async fn revision(&self, key: &str) -> Result<u64, StoreError> {
        let request = RangeRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            count_only: true,
            ..Default::default()
        };
        Ok(revision(self.range(request).await?.header.as_ref()))
    }

    /// Writes if the key's revision is `expected` (0: the key does not exist).
    pub(crate) async fn swap(&self, key: &str, expected: u64, write: Write) -> Result<Swapped, StoreError> {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let write = match write {
            Write::Put { value, lease } => {
                Request::RequestPut(PutRequest { key: key.clone(), value, lease, ..Default::default() })
            }
            Write::Delete => {
                Request::RequestDeleteRange(DeleteRangeRequest { key: key.clone(), ..Default::default() })
            }
        };
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(expected as i64)),
            ..Default::default()
        };
        let read = Request::RequestRange(RangeRequest { key, ..Default::default() });
        let request = TxnRequest {
            compare: vec![compare],
            success: vec![RequestOp { request: Some(write) }],
            failure: vec![RequestOp { request: Some(read) }],
        };
        let response = self
            .call(false, |channel| {
                let request = request.clone();
                async move { KvClient::new(channel).max_decoding_message_size(MAX_ANSWER).txn(request).await }
            })
            .await?;
        if response.succeeded {
            return Ok(Swapped::Done(revision(response.header.as_ref())));
        }
        let found = response.responses.into_iter().find_map(|operation| match operation.response {
            Some(Response::ResponseRange(mut range)) => range.kvs.pop(),
            _ => None,
        });
        Ok(Swapped::Conflict(found))
    }

    /// Writes whatever is there.
    pub(crate) async fn put(&self, key: &str, value: Bytes, lease: i64) -> Result<u64, StoreError> {
        let request =
            PutRequest { key: Bytes::copy_from_slice(key.as_bytes()), value, lease, ..Default::default() };
        let response = self
            .call(false, |channel| {
                let request = request.clone();
                async move { KvClient::new(channel).put(request).await }
            })
            .await?;
        Ok(revision(response.header.as_ref()))
    }

    /// A new lease; its id.
    pub(crate) async fn grant(&self, seconds: u64) -> Result<i64, StoreError> {
        let request = LeaseGrantRequest { ttl: seconds as i64, id: 0 };
        let response = self
            .call(true, |channel| async move { LeaseClient::new(channel).lease_grant(request).await })
            .await?;
        if response.error.is_empty() { Ok(response.id) } else { Err(StoreError::Other(response.error)) }
    }

    /// The version that the store gives itself, such as `3.5.21`.
    pub(crate) async fn version(&self) -> Result<String, StoreError> {
        let response =
            self.call(true, |channel| async move {
                MaintenanceClient::new(channel).status(StatusRequest {}).await
            })
            .await?;
        Ok(response.version)
    }

    /// Opens a watch stream at the current endpoint, without trying again.
    pub(crate) async fn watch(
        &self,
        requests: tokio::sync::mpsc::Receiver<WatchRequest>,
    ) -> Result<WatchStream, StoreError> {
        let (at, channel) = self.channel();
        let mut client = WatchClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let error = match timeout(REQUEST_TIMEOUT, client.watch(requests)).await {
            Ok(Ok(response)) => {
                return Ok(WatchStream { client: self.clone(), at, stream: response.into_inner() });
            }
            Ok(Err(status)) => classify(&status),
            Err(_) => StoreError::Timeout(format!("no watch within {REQUEST_TIMEOUT:?}")),
        };
        self.failed(at);
        Err(error)
    }

    /// Lets the store forget all versions before a revision.
    pub(crate) async fn compact(&self, revision: u64) -> Result<(), StoreError> {
        let request = CompactionRequest { revision: revision as i64, physical: false };
        let compact = |channel| async move { KvClient::new(channel).compact(request).await };
        match self.call(true, compact).await {
            // Somebody else did.
            Ok(_) | Err(StoreError::Compacted) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A watch at one endpoint.
pub(crate) struct WatchStream {
    client: Client,
    at: usize,
    stream: Streaming<WatchResponse>,
}

impl WatchStream {
    /// The next answer. After an error the stream is over, and requests go to the next endpoint.
    pub(crate) async fn next(&mut self) -> Result<WatchResponse, StoreError> {
        let error = match self.stream.message().await {
            Ok(Some(response)) => return Ok(response),
            Ok(None) => StoreError::Unavailable("the store closed the watch".into()),
            Err(status) => classify(&status),
        };
        self.client.failed(self.at);
        Err(error)
    }
}

pub(crate) fn revision(header: Option<&keelson_proto::etcd::etcdserverpb::ResponseHeader>) -> u64 {
    header.map_or(0, |header| header.revision.max(0) as u64)
}

/// The first key after all keys with this prefix.
pub(crate) fn prefix_end(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end.into();
        }
    }
    // No such key: to the end of the key space, as etcd writes it.
    Bytes::from_static(b"\0")
}

fn channel(endpoint: &str, tls: Option<&ClientTlsConfig>) -> Result<Channel, StoreError> {
    let config = |error: tonic::transport::Error| {
        let cause = error.source().map_or_else(String::new, |source| format!(": {source}"));
        StoreError::Config(format!("endpoint {endpoint:?}: {error}{cause}"))
    };
    let mut builder = Endpoint::from_shared(endpoint.to_owned())
        .map_err(config)?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .tcp_nodelay(true);
    match builder.uri().scheme_str() {
        Some("http") => {}
        Some("https") => {
            let tls = tls.cloned().unwrap_or_else(|| ClientTlsConfig::new().with_enabled_roots());
            builder = builder.tls_config(tls).map_err(config)?;
        }
        _ => {
            return Err(StoreError::Config(format!(
                "endpoint {endpoint:?}: must begin with http:// or https://"
            )));
        }
    }
    Ok(builder.connect_lazy())
}

fn tls_config(tls: &StoreTls) -> Result<ClientTlsConfig, StoreError> {
    let read = |file: &std::path::Path| {
        std::fs::read(file).map_err(|error| StoreError::Config(format!("{}: {error}", file.display())))
    };
    let mut config = ClientTlsConfig::new();
    if let Some(file) = &tls.ca_file {
        config = config.ca_certificate(Certificate::from_pem(read(file)?));
    }
    if let Some((certificate, key)) = &tls.client {
        config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(config)
}

/// Whether the request certainly did not leave this process.
fn unsent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    // The store says so itself: without a leader nothing is proposed.
    status.message() == "etcdserver: no leader"
}

/// Sorts a gRPC status. etcd tells its errors apart by text alone (api/v3rpc/rpctypes).
pub(crate) fn classify(status: &Status) -> StoreError {
    let message = status.message();
    let text = || {
        let mut text = message.to_owned();
        let mut source = status.source();
        while let Some(error) = source {
            let cause = error.to_string();
            if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
            source = error.source();
        }
        text
    };
    match message {
        "etcdserver: mvcc: required revision has been compacted" => return StoreError::Compacted,
        "etcdserver: mvcc: required revision is a future revision" => return StoreError::FutureRevision,
        "etcdserver: request is too large" => return StoreError::TooLarge,
        "etcdserver: requested lease not found" => return StoreError::LeaseNotFound,
        _ => {}
    }
    match status.code() {
        Code::ResourceExhausted if message.contains("database space exceeded") => StoreError::NoSpace(text()),
        Code::ResourceExhausted if message.contains("too many requests") => StoreError::Unavailable(text()),
        Code::ResourceExhausted | Code::OutOfRange => StoreError::TooLarge,
        Code::Unavailable if message.contains("timed out") => StoreError::Timeout(text()),
        Code::Unavailable => StoreError::Unavailable(text()),
        // hyper and h2 report a connection that broke with the request on it as these.
        Code::Unknown | Code::Internal if status.source().is_some() => StoreError::Unavailable(text()),
        Code::Cancelled if status.source().is_some() => StoreError::Unavailable(text()),
        Code::DeadlineExceeded => StoreError::Timeout(text()),
        Code::Unauthenticated | Code::PermissionDenied => StoreError::Denied(text()),
        code => StoreError::Other(format!("{code:?}: {}", text())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart() {
        fn check(code: Code, message: &str, expected: &str) {
            let error = classify(&Status::new(code, message));
            let name = format!("{error:?}");
            assert!(name.starts_with(expected), "{code:?} {message}: {name}");
        }
        check(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", "Compacted");
        check(Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision", "FutureRevision");
        check(Code::InvalidArgument, "etcdserver: request is too large", "TooLarge");
        check(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", "NoSpace");
        check(Code::ResourceExhausted, "grpc: received message larger than max", "TooLarge");
        check(Code::ResourceExhausted, "etcdserver: too many requests", "Unavailable");
        check(Code::Unavailable, "etcdserver: request timed out, possibly due to connection lost", "Timeout");
        check(Code::Unavailable, "etcdserver: leader changed", "Unavailable");
        check(Code::DeadlineExceeded, "context deadline exceeded", "Timeout");
        check(Code::NotFound, "etcdserver: requested lease not found", "LeaseNotFound");
        check(Code::PermissionDenied, "etcdserver: permission denied", "Denied");
        check(Code::FailedPrecondition, "etcdserver: odd", "Other");
    }

    #[test]
    fn prefix_ends() {
        assert_eq!(prefix_end("/registry/"), "/registry0");
        assert_eq!(prefix_end(""), "\0");
    }

    #[test]
    fn unusable_endpoints_are_named() {
        fn check(endpoints: &[&str], expected: &str) {
            let config = StoreConfig::new(endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect());
            let error = Client::new(&config).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(expected), "{error}");
        }
        check(&[], "no endpoint");
        check(&["127.0.0.1:2379"], "127.0.0.1:2379");
        check(&["ftp://localhost:1"], "must begin with http://");
    }
}
