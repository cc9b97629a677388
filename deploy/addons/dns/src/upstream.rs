//! Forwarding questions that are not about the cluster to the resolvers in resolv.conf.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// How long one resolver has for its answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Why no resolver gave an answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("no upstream resolver is configured")]
    NoResolver,
    #[error("{server} did not answer")]
    Exchange { server: SocketAddr, source: io::Error },
    #[error("{server} gave a malformed answer")]
    Answer { server: SocketAddr, source: hickory_proto::serialize::binary::DecodeError },
    #[error("{server} answered another question")]
    Mismatch { server: SocketAddr },
}

/// The resolvers to ask, in order.
#[derive(Debug, Clone, Default)]
pub struct Upstream {
    servers: Vec<SocketAddr>,
}

impl Upstream {
    /// The `nameserver` lines of a resolv.conf, without `own` addresses, which would be a loop.
    pub fn from_resolv_conf(text: &str, own: &[IpAddr]) -> Self {
        let addresses = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        let addresses = addresses.filter_map(|rest| rest.trim().parse::<IpAddr>().ok());
        Self { servers: addresses.filter(|a| !own.contains(a)).map(|a| SocketAddr::new(a, 53)).collect() }
    }

    /// # Errors
    /// The file cannot be read.
    pub fn load(path: &Path, own: &[IpAddr]) -> io::Result<Self> {
        Ok(Self::from_resolv_conf(&std::fs::read_to_string(path)?, own))
    }

    /// Sends the request as it came and gives the answer of the first resolver that has one.
    ///
    /// # Errors
    /// What the last resolver that was asked did wrong.
    pub async fn forward(&self, request: &[u8]) -> Result<Message, ForwardError> {
        let mut last = ForwardError::NoResolver;
        for server in &self.servers {
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
    let message = parse(server, request, &answer)?;
    if !message.metadata.truncation {
        return Ok(message);
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
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
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
        let text = "# comment\nsearch example.org\nnameserver 192.0.2.1\n nameserver fd00::1\nnameserver 10.96.0.10\n";
        let upstream = Upstream::from_resolv_conf(text, &["10.96.0.10".parse().unwrap()]);
        assert_eq!(upstream.servers, ["192.0.2.1:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()]);
    }
}
