//! Forwarding questions that are not about the cluster to the resolvers in resolv.conf.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

/// How long one resolver has for its answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long all of them have together; clients do not wait longer.
const DEADLINE: Duration = Duration::from_secs(5);
/// A packet may be lost, so everyone is asked this often.
const ROUNDS: usize = 2;
/// Questions under way at a time (CoreDNS's max_concurrent): a loop of resolvers must not eat the host.
const MAX_CONCURRENT: usize = 1000;
const BUFFER: usize = 4096;

/// Why no resolver gave an answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("no upstream resolver is configured")]
    NoResolver,
    #[error("too many questions are being forwarded")]
    TooMany,
    #[error("no upstream resolver answered in time")]
    Deadline,
    #[error("{server} did not answer")]
    Exchange { server: SocketAddr, source: io::Error },
    #[error("{server} gave a malformed answer")]
    Answer { server: SocketAddr, source: hickory_proto::serialize::binary::DecodeError },
    #[error("{server} answered another question")]
    Mismatch { server: SocketAddr },
}

/// The resolvers to ask, in order.
#[derive(Debug)]
pub struct Upstream {
    servers: Vec<SocketAddr>,
    places: Semaphore,
}

impl Upstream {
    /// The `nameserver` lines of a resolv.conf, without those that lead back to a server bound to `own`: in a pod,
    /// the host's loopback resolver is this very server.
    pub fn from_resolv_conf(text: &str, own: IpAddr) -> Self {
        let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let addresses = words.filter_map(|words| match words.as_slice() {
            ["nameserver", address, ..] => address.parse::<IpAddr>().ok(),
            _ => None,
        });
        let back = |address: &IpAddr| {
            *address == own || address.is_unspecified() || (own.is_unspecified() && address.is_loopback())
        };
        let (loops, servers): (Vec<_>, Vec<_>) = addresses.partition(back);
        if !loops.is_empty() {
            tracing::warn!(?loops, "resolvers that would be asked in a circle are left out");
        }
        let servers = servers.into_iter().map(|address| SocketAddr::new(address, 53)).collect();
        Self::new(servers)
    }

    fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers, places: Semaphore::new(MAX_CONCURRENT) }
    }

    /// # Errors
    /// The file cannot be read.
    pub fn load(path: &Path, own: IpAddr) -> io::Result<Self> {
        Ok(Self::from_resolv_conf(&std::fs::read_to_string(path)?, own))
    }

    /// Sends the request as it came and gives the answer of the first resolver that has one.
    ///
    /// # Errors
    /// What the last resolver that was asked did wrong.
    pub async fn forward(&self, request: &[u8]) -> Result<Message, ForwardError> {
        let _place = self.places.try_acquire().map_err(|_| ForwardError::TooMany)?;
        tokio::time::timeout(DEADLINE, self.ask_all(request)).await.unwrap_or(Err(ForwardError::Deadline))
    }

    async fn ask_all(&self, request: &[u8]) -> Result<Message, ForwardError> {
        let mut last = ForwardError::NoResolver;
        for server in self.servers.iter().cycle().take(self.servers.len() * ROUNDS) {
            match ask(*server, request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

async fn ask(server: SocketAddr, request: &[u8]) -> Result<Message, ForwardError> {
    let answer = in_time(server, over_udp(server, request)).await?;
    // What does not fit the buffer is cut, whether its sender says so or not.
    if answer.len() < BUFFER {
        let message = parse(server, request, &answer)?;
        if !message.metadata.truncation {
            return Ok(message);
        }
    }
    let answer = in_time(server, over_tcp(server, request)).await?;
    parse(server, request, &answer)
}

fn parse(server: SocketAddr, request: &[u8], answer: &[u8]) -> Result<Message, ForwardError> {
    // The first two bytes are the question's number; an answer to another one may be forged.
    if answer.get(..2) != request.get(..2) {
        return Err(ForwardError::Mismatch { server });
    }
    Message::from_vec(answer).map_err(|source| ForwardError::Answer { server, source })
}

async fn in_time(
    server: SocketAddr,
    exchange: impl Future<Output = io::Result<Vec<u8>>>,
) -> Result<Vec<u8>, ForwardError> {
    let result = match tokio::time::timeout(TIMEOUT, exchange).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    result.map_err(|source| ForwardError::Exchange { server, source })
}

async fn over_udp(server: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(request).await?;
    let mut answer = vec![0; BUFFER];
    loop {
        let length = socket.recv(&mut answer).await?;
        // The first two bytes are the question's number; a late or forged answer to another one is passed over.
        if answer.get(..2) == request.get(..2) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(request.len()).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_u16(length).await?;
    stream.write_all(request).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_and_loops_left_out() {
        let text = "# comment\nsearch example.org\nnameserver 192.0.2.1\n nameserver fd00::1 \n\
                    nameserver 10.96.0.10\nnameserver\t127.0.0.53\nnameserver-of-old 192.0.2.9\n";
        let check = |own: &str, expected: &[&str]| {
            let upstream = Upstream::from_resolv_conf(text, own.parse().unwrap());
            let servers: Vec<String> =
                upstream.servers.iter().map(|server| server.ip().to_string()).collect();
            assert_eq!(servers, expected, "{own}");
        };
        check("10.96.0.10", &["192.0.2.1", "fd00::1", "127.0.0.53"]);
        check("0.0.0.0", &["192.0.2.1", "fd00::1", "10.96.0.10"]);
    }

    /// A question and the answer that says nothing but to be one.
    fn exchange() -> (Vec<u8>, Vec<u8>) {
        use hickory_proto::op::{MessageType, OpCode};
        let question = Message::new(7, MessageType::Query, OpCode::Query).to_vec().unwrap();
        let answer = Message::new(7, MessageType::Response, OpCode::Query).to_vec().unwrap();
        (question, answer)
    }

    #[tokio::test]
    async fn a_forged_answer_is_passed_over() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let upstream = Upstream::new(vec![server.local_addr().unwrap()]);
        let (question, answer) = exchange();
        let serve = async {
            let mut buffer = [0; 512];
            let (_, client) = server.recv_from(&mut buffer).await.unwrap();
            server.send_to(&[0, 8, 0, 0], client).await.unwrap();
            server.send_to(&answer, client).await.unwrap();
        };
        let (got, ()) = tokio::join!(upstream.forward(&question), serve);
        assert_eq!(got.unwrap().metadata.id, 7);
    }

    #[tokio::test]
    async fn a_lost_packet_is_sent_again_and_the_number_of_questions_is_bounded() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let upstream = Upstream::new(vec![server.local_addr().unwrap()]);
        let (question, answer) = exchange();
        let serve = async {
            let mut buffer = [0; 512];
            server.recv_from(&mut buffer).await.unwrap();
            // The first one is lost.
            let (_, client) = server.recv_from(&mut buffer).await.unwrap();
            server.send_to(&answer, client).await.unwrap();
        };
        let (got, ()) = tokio::join!(upstream.forward(&question), serve);
        assert!(got.is_ok());
        let _all = upstream.places.acquire_many(MAX_CONCURRENT as u32).await.unwrap();
        assert!(matches!(upstream.forward(&question).await, Err(ForwardError::TooMany)));
    }
}
