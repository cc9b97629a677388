//! Connections to the other members.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use keelson_component_base::tls;
use keelson_proto::etcd::storepb::Incarnation;
use keelson_proto::peer::peer_client::PeerClient;
use keelson_proto::peer::snapshot_chunk::Part;
use keelson_proto::peer::{
    HashKvAnswer, HashKvQuery, LeaseQuery, MembersRequest, MembersResponse, MembershipAnswer,
    MembershipQuery, MessageBatch, SnapshotChunk, SnapshotData, SnapshotEnd, SnapshotHeader,
};
use keelson_raft::Message;
use parking_lot::RwLock;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prost::Message as _;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

use super::wire;
use super::{REMOVED, SUPERSEDED};
use crate::config::Url;
use crate::incarnation::peer_cluster;
use crate::membership::Members;
use crate::metrics::{Metrics, PeerCounters};
use crate::node::{Event, LeaseAnswer, Network, SnapshotSender};
use crate::seldom::Seldom;
use crate::snapshot::{Outgoing, SnapshotError};

/// Turns of messages that wait for a peer; what comes then is dropped, and consensus sends it again.
const QUEUE: usize = 512;
const CONNECT: Duration = Duration::from_secs(2);
/// Peers that may introduce themselves, members included: far more than a cluster has.
const MAX_PEERS: usize = 64;
/// Between two attempts to reach a peer.
const BACKOFF: Duration = Duration::from_millis(100);
const ASK: Duration = Duration::from_secs(5);
/// Between two measurements of how far away a peer is, as in etcd.
const PROBE: Duration = Duration::from_secs(4);
/// How long a stream to a peer that was lost has to stand until the peer is said to be back.
const SETTLED: Duration = Duration::from_secs(1);
/// A checksum reads everything.
const HASH: Duration = Duration::from_secs(60);

pub struct PeersConfig {
    /// With its incarnation: see [`crate::incarnation::peer_cluster`].
    pub cluster: u64,
    pub member: u64,
    /// This member's peer URLs, for those that do not know it yet.
    pub peer_urls: Vec<Url>,
    pub credentials: Credentials,
}

/// Files with which this member shows who it is, and checks who others are.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub ca_file: Option<PathBuf>,
    /// This member's certificate and key towards others.
    pub identity: Option<(PathBuf, PathBuf)>,
}

struct Peer {
    /// As the membership has them.
    urls: Vec<String>,
    dialed: Arc<RwLock<Vec<Url>>>,
    queue: mpsc::Sender<Vec<Message>>,
    client: PeerClient<Channel>,
    /// Batches that could not be sent.
    failed: Counter,
    _probe: DropGuard,
}

pub struct Peers {
    cluster: u64,
    member: u64,
    credentials: Credentials,
    /// Where this member is, as it was told and as the membership has it.
    peer_urls: (Vec<String>, RwLock<Vec<String>>),
    peers: RwLock<BTreeMap<u64, Peer>>,
    events: mpsc::UnboundedSender<Event>,
    metrics: Arc<Metrics>,
    runtime: Handle,
}

#[derive(Clone)]
struct Dialer {
    urls: Arc<RwLock<Vec<Url>>>,
    credentials: Credentials,
}

/// A connection, encrypted or not.
trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}

impl Dialer {
    /// The first of the peer's URLs that answers. Certificates are read at each attempt, so that they can be renewed.
    async fn dial(self) -> io::Result<TokioIo<Box<dyn Io>>> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let urls = self.urls.read().clone();
        for url in &urls {
            match tokio::time::timeout(CONNECT, self.connect(url)).await {
                Ok(Ok(stream)) => return Ok(TokioIo::new(stream)),
                Ok(Err(error)) => last = io::Error::new(error.kind(), format!("{url}: {error}")),
                Err(_) => {
                    last = io::Error::new(io::ErrorKind::TimedOut, format!("{url}: it does not answer"))
                }
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
        let Credentials { ca_file, identity } = &self.credentials;
        let ca_file =
            ca_file.as_ref().ok_or_else(|| io::Error::other("--peer-trusted-ca-file is not given"))?;
        let ca = std::fs::read(ca_file)?;
        let identity = match identity {
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

/// A connection that is made when it is needed.
fn channel(urls: Arc<RwLock<Vec<Url>>>, credentials: &Credentials) -> Channel {
    let dialer = Dialer { urls, credentials: credentials.clone() };
    // The URI only fills in the requests' authority; the dialer knows where to go.
    Endpoint::from(Uri::from_static("http://peer"))
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(tower::service_fn(move |_: Uri| dialer.clone().dial()))
}

/// Whoever listens at a peer URL, member or not.
fn client_at(url: &Url, credentials: &Credentials) -> PeerClient<Channel> {
    PeerClient::new(channel(Arc::new(RwLock::new(vec![url.clone()])), credentials))
}

/// What a peer answers, if it does so in time.
async fn answer<T>(
    patience: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(patience, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Status::unavailable("it does not answer")),
    }
}

/// Asks whoever listens at a peer URL who the members are.
///
/// # Errors
/// The answer, or that there is none.
pub async fn ask_members(url: &Url, credentials: &Credentials) -> Result<MembersResponse, Status> {
    answer(CONNECT, client_at(url, credentials).members(MembersRequest {})).await
}

/// Has the leader of a cluster that this process is no member of change the membership, if it listens there.
///
/// # Errors
/// The answer, or that there is none.
pub async fn ask_change(
    url: &Url,
    credentials: &Credentials,
    cluster_id: u64,
    change: Vec<u8>,
) -> Result<MembershipAnswer, Status> {
    let query = MembershipQuery { cluster_id, change: change.into() };
    answer(ASK, client_at(url, credentials).change_membership(query)).await
}

/// URLs of a form that the membership does not have are left out.
fn parse(urls: &[String]) -> impl Iterator<Item = Url> {
    urls.iter().filter_map(|url| url.parse().ok())
}

impl Peers {
    /// Knows nobody until [`Self::follow`]. Connections live in `runtime`.
    pub fn new(
        config: PeersConfig,
        events: mpsc::UnboundedSender<Event>,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Arc<Self> {
        let PeersConfig { cluster, member, peer_urls, credentials } = config;
        Arc::new(Self {
            cluster,
            member,
            credentials,
            peer_urls: (peer_urls.iter().map(Url::to_string).collect(), RwLock::default()),
            peers: RwLock::new(BTreeMap::new()),
            events,
            metrics,
            runtime,
        })
    }

    /// Follows the membership: what is queued for a member that was removed is still sent.
    pub fn follow(self: &Arc<Self>, members: &Members) {
        let mut peers = self.peers.write();
        // Those that only introduced themselves may be members that this one does not know of yet.
        peers.retain(|id, _| !members.is_removed(*id));
        for member in members.values() {
            if member.id == self.member {
                self.peer_urls.1.write().clone_from(&member.peer_urls);
            } else {
                self.meet(&mut peers, member.id, &member.peer_urls);
            }
        }
    }

    /// A member says where it is. This one may have yet to apply that it was added, or has other URLs; and whoever leads
    /// has to be answered.
    pub fn introduce(self: &Arc<Self>, id: u64, urls: &[String]) {
        if id == self.member || urls.is_empty() {
            return;
        }
        let mut peers = self.peers.write();
        match peers.get(&id) {
            Some(known) => {
                let mut dialed = known.dialed.write();
                // Its own word is as good as the membership's, but does not pile up.
                dialed.truncate(known.urls.len());
                for url in parse(urls) {
                    if !dialed.contains(&url) {
                        dialed.push(url);
                    }
                }
            }
            None if peers.len() < MAX_PEERS => self.meet(&mut peers, id, urls),
            None => {}
        }
    }

    fn meet(self: &Arc<Self>, peers: &mut BTreeMap<u64, Peer>, id: u64, urls: &[String]) {
        if peers.get(&id).is_some_and(|known| known.urls == urls) {
            return;
        }
        if let Some(known) = peers.get(&id) {
            tracing::info!(peer = format!("{id:x}"), from = ?known.urls, to = ?urls, "a peer has other URLs");
        }
        let dialed = Arc::new(RwLock::new(parse(urls).collect()));
        // Who introduces it may be at home in another runtime.
        let _context = self.runtime.enter();
        let client = PeerClient::new(channel(dialed.clone(), &self.credentials));
        let (queue, receiver) = mpsc::channel(QUEUE);
        let counters = self.metrics.peers.to(self.member, id);
        let (failed, ended) = (counters.failed.clone(), CancellationToken::new());
        let round_trips = counters.round_trip.clone();
        self.runtime.spawn(ended.clone().run_until_cancelled_owned(probe(client.clone(), round_trips)));
        let sender = MessageSender {
            peers: self.clone(),
            peer: id,
            client: client.clone(),
            queue: receiver,
            counters,
            lost: Lost::default(),
        };
        self.runtime.spawn(sender.run());
        let _probe = ended.drop_guard();
        peers.insert(id, Peer { urls: urls.to_vec(), dialed, queue, client, failed, _probe });
    }

    /// What members of its incarnation say as their cluster's id.
    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    fn own_urls(&self) -> Vec<String> {
        let (told, known) = &self.peer_urls;
        let mut urls = known.read().clone();
        urls.extend(told.iter().filter(|url| !urls.contains(url)).cloned().collect::<Vec<_>>());
        urls
    }

    fn client(&self, id: u64) -> Option<PeerClient<Channel>> {
        self.peers.read().get(&id).map(|peer| peer.client.clone())
    }

    /// Has the leader change the membership.
    ///
    /// # Errors
    /// The leader's answer; or `None`, if it is not known whether it got the change.
    pub async fn ask_membership(
        &self,
        leader: u64,
        change: Vec<u8>,
        patience: Duration,
    ) -> Result<MembershipAnswer, Option<Status>> {
        let Some(mut client) = self.client(leader) else { return Err(None) };
        let query = MembershipQuery { cluster_id: self.cluster, change: change.into() };
        let answered = answer(patience, client.change_membership(query)).await;
        answered.map_err(|status| Some(status).filter(|status| status.message().starts_with("etcdserver: ")))
    }

    /// Asks the leader about a lease.
    ///
    /// # Errors
    /// The leader's answer, or that it cannot be reached.
    pub async fn ask_lease(&self, leader: u64, id: i64, keep_alive: bool) -> Result<LeaseAnswer, Status> {
        let unreachable = || Status::unavailable("etcdserver: request timed out");
        let mut client = self.client(leader).ok_or_else(unreachable)?;
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
    /// Asks members at once for the checksum at a revision. A member that is further, or not as far, says so.
    pub async fn ask_hashes(
        &self,
        members: &[u64],
        revision: i64,
    ) -> Vec<(u64, Result<HashKvAnswer, Status>)> {
        let mut asking = tokio::task::JoinSet::new();
        for id in members.iter().copied() {
            let query = HashKvQuery { cluster_id: self.cluster, revision };
            let client = self.client(id);
            asking.spawn(async move {
                let Some(mut client) = client else {
                    return (id, Err(Status::not_found("no such peer")));
                };
                (id, answer(HASH, client.hash_kv(query)).await)
            });
        }
        asking.join_all().await
    }
}

/// Measures again and again how long a peer takes to answer.
async fn probe(mut client: PeerClient<Channel>, round_trips: Histogram) {
    loop {
        tokio::time::sleep(PROBE).await;
        let begun = Instant::now();
        if let Ok(Ok(_)) = tokio::time::timeout(PROBE, client.members(MembersRequest {})).await {
            round_trips.observe(begun.elapsed().as_secs_f64());
        }
    }
}

/// Sends to one peer what is queued for it, until it is no peer any more.
struct MessageSender {
    peers: Arc<Peers>,
    peer: u64,
    client: PeerClient<Channel>,
    queue: mpsc::Receiver<Vec<Message>>,
    counters: PeerCounters,
    lost: Lost,
}

/// A status with what brought it about: a connection that cannot be made says only there why.
pub fn reason(status: &Status) -> String {
    let mut reason = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let cause = error.to_string();
        if !reason.contains(&cause) {
            reason += ": ";
            reason += &cause;
        }
        source = error.source();
    }
    reason
}

/// What is said of a peer that cannot be reached: each reason once, and not all the time.
#[derive(Default)]
struct Lost {
    reason: Option<String>,
    said: Seldom,
}

impl Lost {
    /// Whether a failure is to be told.
    fn is_news(&mut self, reason: &str) -> bool {
        if self.reason.as_deref() == Some(reason) {
            return false;
        }
        let first = self.reason.is_none();
        let news = self.said.is_due() || first;
        if news {
            self.reason = Some(reason.to_owned());
        }
        news
    }
}

impl MessageSender {
    /// Whether the peer answers, and as a member of the same cluster, once a stream to it has stood for a while.
    async fn settled(mut client: PeerClient<Channel>, cluster: u64) -> bool {
        tokio::time::sleep(SETTLED).await;
        let Ok(answer) = client.members(MembersRequest {}).await else { return false };
        let answer = answer.into_inner();
        let incarnation = Incarnation::decode(answer.incarnation).unwrap_or_default().id;
        peer_cluster(answer.cluster_id, incarnation) == cluster
    }

    fn urls(&self) -> Vec<String> {
        self.peers.peers.read().get(&self.peer).map(|peer| peer.urls.clone()).unwrap_or_default()
    }

    async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            self.counters.active.set(1);
            let ended = self.stream(first).await;
            self.counters.active.set(0);
            if ended.is_ok() {
                return;
            }
            if let Err(error) = ended {
                let reason = reason(&error);
                if self.lost.is_news(&reason) {
                    let peer = format!("{:x}", self.peer);
                    tracing::warn!(peer, urls = ?self.urls(), error = reason, "lost a peer");
                }
                self.counters.failed.inc();
                let event = match error.message() {
                    REMOVED => Event::Removed,
                    SUPERSEDED => Event::Superseded { by: self.peer },
                    _ => Event::Unreachable(self.peer),
                };
                if self.peers.events.send(event).is_err() {
                    return;
                }
            }
            tokio::time::sleep(BACKOFF).await;
            // What waited all that time is of no use any more.
            while self.queue.try_recv().is_ok() {}
        }
    }

    /// One stream, until it breaks. Ok: this member is stopping, or the peer is none any more.
    async fn stream(&mut self, first: Vec<Message>) -> Result<(), Status> {
        let (batches, receiver) = mpsc::channel(16);
        let mut client = self.client.clone();
        let call = client.messages(ReceiverStream::new(receiver));
        tokio::pin!(call);
        let mut next = Some(first);
        let mut peer_urls = self.peers.own_urls();
        let settled = Self::settled(self.client.clone(), self.peers.cluster);
        tokio::pin!(settled);
        let mut awaited = self.lost.reason.is_some();
        loop {
            if let Some(messages) = next.take() {
                let messages: Vec<_> =
                    messages.iter().filter_map(wire::encode).map(bytes::Bytes::from).collect();
                let sent: usize = messages.iter().map(bytes::Bytes::len).sum();
                self.counters.sent.inc_by(sent as u64);
                let (cluster_id, from) = (self.peers.cluster, self.peers.member);
                let peer_urls = std::mem::take(&mut peer_urls);
                let batch = MessageBatch { cluster_id, from, messages, peer_urls };
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
                reached = &mut settled, if awaited => {
                    awaited = false;
                    if reached {
                        self.lost.reason = None;
                        let peer = format!("{:x}", self.peer);
                        tracing::info!(peer, urls = ?self.urls(), "reached a peer again");
                    }
                }
                messages = self.queue.recv() => match messages {
                    Some(messages) => next = Some(messages),
                    None => {
                        // What was sent last may be what tells the peer that it is removed: it ends the stream.
                        drop(batches);
                        let _ = tokio::time::timeout(ASK, call).await;
                        return Ok(());
                    }
                },
                ended = &mut call => return Err(ended.err().unwrap_or_else(|| Status::unavailable("the peer ended the stream"))),
            }
        }
    }
}

/// The node's network.
#[derive(Clone)]
pub struct PeerNetwork(pub Arc<Peers>);

impl Network for PeerNetwork {
    fn send(&self, to: u64, messages: Vec<Message>) {
        if let Some(peer) = self.0.peers.read().get(&to) {
            // A full queue: dropped, as on a slow network.
            if peer.queue.try_send(messages).is_err() {
                peer.failed.inc();
            }
        }
    }

    fn follow(&self, members: &Members) {
        self.0.follow(members);
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
    let mut client = peers.client(message.to).ok_or_else(|| Status::not_found("no such peer"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told_once_and_not_all_the_time() {
        let mut lost = Lost::default();
        assert!(lost.is_news("refused"));
        assert!(!lost.is_news("refused"));
        assert!(!lost.is_news("expired"), "too soon");
        lost.said = Seldom::default();
        assert!(lost.is_news("expired"));
        lost.said = Seldom::default();
        assert!(!lost.is_news("expired"), "that is known");
        lost.reason = None;
        assert!(lost.is_news("expired"), "it was back");
    }

    #[test]
    fn a_status_says_what_brought_it_about() {
        let cause = io::Error::other("http://m1:1: refused");
        let mut status = Status::unavailable("transport error");
        status.set_source(Arc::new(cause));
        assert_eq!(reason(&status), "transport error: http://m1:1: refused");
        assert_eq!(reason(&Status::unavailable("it is gone")), "it is gone");
    }
}
