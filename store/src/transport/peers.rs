//! Connections to the other members.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender as EventSender;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use keelson_component_base::tls;
use keelson_proto::peer::peer_client::PeerClient;
use keelson_proto::peer::snapshot_chunk::Part;
use keelson_proto::peer::{
    HashKvAnswer, HashKvQuery, LeaseQuery, MessageBatch, SnapshotChunk, SnapshotData, SnapshotEnd,
    SnapshotHeader,
};
use keelson_raft::Message;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

use super::wire;
use crate::config::Url;
use crate::metrics::Metrics;
use crate::node::{Event, LeaseAnswer, Network, SnapshotSender};
use crate::snapshot::{Outgoing, SnapshotError};

/// Turns of messages that wait for a peer; what comes then is dropped, and consensus sends it again.
const QUEUE: usize = 512;
const CONNECT: Duration = Duration::from_secs(2);
/// Between two attempts to reach a peer.
const BACKOFF: Duration = Duration::from_millis(100);
const ASK: Duration = Duration::from_secs(5);
/// A checksum reads everything.
const HASH: Duration = Duration::from_secs(60);

pub struct PeersConfig {
    pub cluster: u64,
    pub member: u64,
    /// Every other member with its peer URLs.
    pub members: Vec<(u64, Vec<Url>)>,
    pub ca_file: Option<PathBuf>,
    /// This member's certificate and key towards others.
    pub identity: Option<(PathBuf, PathBuf)>,
}

struct Peer {
    queue: mpsc::Sender<Vec<Message>>,
    client: PeerClient<Channel>,
}

pub struct Peers {
    cluster: u64,
    member: u64,
    peers: BTreeMap<u64, Peer>,
    events: EventSender<Event>,
    runtime: Handle,
}

#[derive(Clone)]
struct Dialer {
    urls: Arc<[Url]>,
    ca_file: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
}

/// A connection, encrypted or not.
trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}

impl Dialer {
    /// The first of the peer's URLs that answers. Certificates are read at each attempt, so that they can be renewed.
    async fn dial(self) -> io::Result<TokioIo<Box<dyn Io>>> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for url in self.urls.iter() {
            match tokio::time::timeout(CONNECT, self.connect(url)).await {
                Ok(Ok(stream)) => return Ok(TokioIo::new(stream)),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    async fn connect(&self, url: &Url) -> io::Result<Box<dyn Io>> {
        let stream = TcpStream::connect((url.host.as_str(), url.port)).await?;
        stream.set_nodelay(true)?;
        if !url.secure {
            return Ok(Box::new(stream));
        }
        let ca_file =
            self.ca_file.as_ref().ok_or_else(|| io::Error::other("--peer-trusted-ca-file is not given"))?;
        let ca = std::fs::read(ca_file)?;
        let identity = match &self.identity {
            Some((cert, key)) => Some((std::fs::read(cert)?, std::fs::read(key)?)),
            None => None,
        };
        let identity = identity.as_ref().map(|(cert, key)| (&cert[..], &key[..]));
        let mut config = tls::client_config(&ca, identity).map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from(url.host.clone()).map_err(io::Error::other)?;
        Ok(Box::new(tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?))
    }
}

impl Peers {
    /// Starts a task for each peer. Must be called inside the runtime.
    pub fn start(config: PeersConfig, events: EventSender<Event>, metrics: &Arc<Metrics>) -> Arc<Self> {
        let peers = config
            .members
            .into_iter()
            .map(|(id, urls)| {
                let dialer = Dialer {
                    urls: urls.into(),
                    ca_file: config.ca_file.clone(),
                    identity: config.identity.clone(),
                };
                // The URI only fills in the requests' authority; the dialer knows where to go.
                let channel = Endpoint::from(Uri::from_static("http://peer"))
                    .http2_keep_alive_interval(Duration::from_secs(5))
                    .keep_alive_timeout(Duration::from_secs(5))
                    .keep_alive_while_idle(true)
                    .connect_with_connector_lazy(tower::service_fn(move |_: Uri| dialer.clone().dial()));
                let client = PeerClient::new(channel);
                let (queue, receiver) = mpsc::channel(QUEUE);
                let sender = MessageSender {
                    cluster: config.cluster,
                    member: config.member,
                    peer: id,
                    client: client.clone(),
                    queue: receiver,
                    events: events.clone(),
                    metrics: metrics.clone(),
                };
                tokio::spawn(sender.run());
                (id, Peer { queue, client })
            })
            .collect();
        let (cluster, member) = (config.cluster, config.member);
        Arc::new(Self { cluster, member, peers, events, runtime: Handle::current() })
    }

    /// Asks the leader about a lease.
    ///
    /// # Errors
    /// The leader's answer, or that it cannot be reached.
    pub async fn ask_lease(&self, leader: u64, id: i64, keep_alive: bool) -> Result<LeaseAnswer, Status> {
        let unreachable = || Status::unavailable("etcdserver: request timed out");
        let mut client = self.peers.get(&leader).ok_or_else(unreachable)?.client.clone();
        let query = LeaseQuery { cluster_id: self.cluster, id };
        let ask = async {
            if keep_alive {
                client.lease_keep_alive(query).await
            } else {
                client.lease_time_to_live(query).await
            }
        };
        let answer = tokio::time::timeout(ASK, ask).await.map_err(|_| unreachable())??.into_inner();
        Ok(LeaseAnswer { ttl: answer.ttl, granted: answer.granted_ttl })
    }
}

impl Peers {
    /// Asks all other members at once for the checksum at a revision. A member that is further, or not as far, says so.
    pub async fn ask_hashes(&self, revision: i64) -> Vec<(u64, Result<HashKvAnswer, Status>)> {
        let mut asking = tokio::task::JoinSet::new();
        for (id, peer) in &self.peers {
            let (id, mut client) = (*id, peer.client.clone());
            let query = HashKvQuery { cluster_id: self.cluster, revision };
            asking.spawn(async move {
                let late = |_| Err(Status::unavailable("etcdserver: request timed out"));
                let answer = tokio::time::timeout(HASH, client.hash_kv(query)).await.unwrap_or_else(late);
                (id, answer.map(tonic::Response::into_inner))
            });
        }
        asking.join_all().await
    }
}

/// Sends to one peer what is queued for it.
struct MessageSender {
    cluster: u64,
    member: u64,
    peer: u64,
    client: PeerClient<Channel>,
    queue: mpsc::Receiver<Vec<Message>>,
    events: EventSender<Event>,
    metrics: Arc<Metrics>,
}

impl MessageSender {
    async fn run(mut self) {
        let mut reachable = true;
        while let Some(first) = self.queue.recv().await {
            let ended = self.stream(first).await;
            if ended.is_ok() {
                return;
            }
            if let Err(error) = ended {
                if reachable {
                    tracing::warn!(peer = format!("{:x}", self.peer), error = error.message(), "lost a peer");
                }
                reachable = false;
                if self.events.send(Event::Unreachable(self.peer)).is_err() {
                    return;
                }
            }
            tokio::time::sleep(BACKOFF).await;
            // What waited all that time is of no use any more.
            while self.queue.try_recv().is_ok() {}
        }
    }

    /// One stream, until it breaks. Ok: this member is stopping.
    async fn stream(&mut self, first: Vec<Message>) -> Result<(), Status> {
        let (batches, receiver) = mpsc::channel(16);
        let mut client = self.client.clone();
        let call = client.messages(ReceiverStream::new(receiver));
        tokio::pin!(call);
        let mut next = Some(first);
        loop {
            if let Some(messages) = next.take() {
                let messages: Vec<_> =
                    messages.iter().filter_map(wire::encode).map(bytes::Bytes::from).collect();
                let sent: usize = messages.iter().map(bytes::Bytes::len).sum();
                self.metrics.peer_sent.inc_by(sent as u64);
                let batch = MessageBatch { cluster_id: self.cluster, from: self.member, messages };
                tokio::select! {
                    sent = batches.send(batch) => {
                        if sent.is_err() {
                            return Err(Status::unavailable("the stream is closed"));
                        }
                    }
                    ended = &mut call => return Err(ended.err().unwrap_or_else(|| Status::unavailable("the peer ended the stream"))),
                }
            }
            tokio::select! {
                messages = self.queue.recv() => match messages {
                    Some(messages) => next = Some(messages),
                    None => return Ok(()),
                },
                ended = &mut call => return Err(ended.err().unwrap_or_else(|| Status::unavailable("the peer ended the stream"))),
            }
        }
    }
}

/// The node's network.
pub struct PeerNetwork(pub Arc<Peers>);

impl Network for PeerNetwork {
    fn send(&self, to: u64, messages: Vec<Message>) {
        if let Some(peer) = self.0.peers.get(&to) {
            // A full queue: dropped, as on a slow network.
            let _ = peer.queue.try_send(messages);
        }
    }

    fn snapshot_sender(&self) -> SnapshotSender {
        let peers = self.0.clone();
        Box::new(move |message, outgoing| {
            let runtime = peers.runtime.clone();
            runtime.spawn(async move {
                let to = message.to;
                let ok = match send_snapshot(&peers, message, outgoing).await {
                    Ok(()) => true,
                    Err(error) => {
                        tracing::warn!(
                            peer = format!("{to:x}"),
                            error = error.message(),
                            "cannot send a snapshot"
                        );
                        false
                    }
                };
                // The node may have stopped meanwhile.
                let _ = peers.events.send(Event::SnapshotSent { to, ok });
            });
        })
    }
}

async fn send_snapshot(peers: &Peers, message: Message, mut outgoing: Outgoing) -> Result<(), Status> {
    let peer = peers.peers.get(&message.to).ok_or_else(|| Status::not_found("no such peer"))?;
    let mut client = peer.client.clone();
    let (chunks, receiver) = mpsc::channel(4);
    let header = SnapshotHeader {
        cluster_id: peers.cluster,
        from: peers.member,
        message: wire::encode(&message).unwrap_or_default().into(),
    };
    let read = tokio::task::spawn_blocking(move || -> Result<(), SnapshotError> {
        let send = |part| chunks.blocking_send(SnapshotChunk { part: Some(part) }).is_ok();
        let (mut crc, mut length) = (crc32fast::Hasher::new(), 0);
        let mut going = send(Part::Header(header));
        while going && let Some(data) = outgoing.piece()? {
            crc.update(&data);
            length += data.len() as u64;
            going = send(Part::Data(SnapshotData { data }));
        }
        if going {
            send(Part::End(SnapshotEnd { crc32: crc.finalize(), length }));
        }
        Ok(())
    });
    client.snapshot(ReceiverStream::new(receiver)).await?;
    match read.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Status::internal(error.to_string())),
        Err(_) => Err(Status::internal("reading it was interrupted")),
    }
}
