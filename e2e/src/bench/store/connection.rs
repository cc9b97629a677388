//! A gRPC client that costs little next to the server: HTTP/2 by `h2`, messages encoded by whoever calls.
//!
//! tonic's client takes more CPU for a request than a store's server does, and both share the machine.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use keelson_component_base::tls;
use prost::Message;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::bench::BenchError;

/// The length prefix of a gRPC message, with its flag of compression.
const PREFIX: usize = 5;
/// Enough that flow control never stalls a list.
const WINDOW: u32 = 16 << 20;
const CONNECT: Duration = Duration::from_secs(5);

/// How to reach a store that runs already.
#[derive(Debug, Clone, Default)]
pub struct Access {
    pub endpoints: Vec<String>,
    pub ca: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

impl Access {
    pub fn plain(endpoints: Vec<String>) -> Self {
        Self { endpoints, ..Self::default() }
    }

    fn tls(&self) -> Result<Option<Arc<ClientConfig>>, BenchError> {
        let Some(ca) = &self.ca else { return Ok(None) };
        let identity = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some((std::fs::read(certificate)?, std::fs::read(key)?)),
            _ => None,
        };
        let identity = identity.as_ref().map(|(certificate, key)| (&certificate[..], &key[..]));
        let mut config = tls::client_config(&std::fs::read(ca)?, identity)
            .map_err(|error| BenchError::Unexpected(format!("the store's certificates: {error}")))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(Arc::new(config)))
    }

    /// So many connections, spread over the endpoints.
    pub async fn connect(&self, count: usize) -> Result<Vec<Connection>, BenchError> {
        let tls = self.tls()?;
        let mut connections = Vec::new();
        for endpoint in self.endpoints.iter().cycle().take(count) {
            connections.push(Connection::open(endpoint, tls.clone()).await?);
        }
        match connections.is_empty() {
            true => Err(BenchError::Unexpected("no endpoint".to_owned())),
            false => Ok(connections),
        }
    }

    /// A connection to each endpoint.
    pub async fn each(&self) -> Result<Vec<Connection>, BenchError> {
        self.connect(self.endpoints.len()).await
    }
}

/// What a call asks for.
#[derive(Debug, Clone)]
pub struct Call {
    uri: Uri,
}

macro_rules! calls {
    ($($name:ident $path:literal)*) => {
        impl Call { $(
            pub fn $name() -> Self {
                Self { uri: Uri::from_static(concat!("http://store/etcdserverpb.", $path)) }
            }
        )* }
    };
}

calls! {
    put "KV/Put"
    range "KV/Range"
    delete_range "KV/DeleteRange"
    txn "KV/Txn"
    compact "KV/Compact"
    watch "Watch/Watch"
    status "Maintenance/Status"
    move_leader "Maintenance/MoveLeader"
}

/// One HTTP/2 connection; its clones share it.
#[derive(Clone)]
pub struct Connection {
    sender: SendRequest<Bytes>,
    headers: HeaderMap,
}

/// A message as it goes over the wire.
pub fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(length as u32);
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

fn broken(error: h2::Error) -> BenchError {
    BenchError::File(io::Error::other(error))
}

impl Connection {
    async fn open(endpoint: &str, tls: Option<Arc<ClientConfig>>) -> Result<Self, BenchError> {
        let uri: Uri = endpoint
            .parse()
            .map_err(|error| BenchError::Unexpected(format!("{endpoint} is no URL: {error}")))?;
        let host = uri.host().unwrap_or("127.0.0.1").trim_matches(['[', ']']).to_owned();
        let address = (host.as_str(), uri.port_u16().unwrap_or(2379));
        let stream = tokio::time::timeout(CONNECT, TcpStream::connect(address))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let sender = match tls {
            Some(config) => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|error| BenchError::Unexpected(format!("{host}: {error}")))?;
                let stream = TlsConnector::from(config).connect(name, stream).await?;
                let (sender, connection) = builder.handshake(stream).await.map_err(broken)?;
                tokio::spawn(connection);
                sender
            }
            None => {
                let (sender, connection) = builder.handshake(stream).await.map_err(broken)?;
                tokio::spawn(connection);
                sender
            }
        };
        let headers = HeaderMap::from_iter([
            (http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
            (http::header::TE, HeaderValue::from_static("trailers")),
        ]);
        Ok(Self { sender, headers })
    }

    async fn begin(
        &self,
        call: &Call,
        message: Bytes,
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), BenchError> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = call.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let mut sender = self.sender.clone().ready().await.map_err(broken)?;
        let (answer, mut body) = sender.send_request(request, false).map_err(broken)?;
        body.send_data(message, end).map_err(broken)?;
        Ok((answer, body))
    }

    /// Makes one call; gives the answer's message as it came.
    pub async fn call(&self, call: &Call, message: Bytes) -> Result<Bytes, BenchError> {
        let (answer, _body) = self.begin(call, message, true).await?;
        let answer = answer.await.map_err(broken)?;
        check(answer.headers())?;
        let mut body = answer.into_body();
        let mut whole = BytesMut::new();
        while let Some(piece) = body.data().await {
            let piece = piece.map_err(broken)?;
            let _ = body.flow_control().release_capacity(piece.len());
            whole.extend_from_slice(&piece);
        }
        if let Some(trailers) = body.trailers().await.map_err(broken)? {
            check(&trailers)?;
        }
        Ok(whole.freeze())
    }

    /// Makes one call and reads its answer.
    pub async fn ask<A: Message + Default>(
        &self,
        call: &Call,
        message: &impl Message,
    ) -> Result<A, BenchError> {
        decode(&self.call(call, frame(message)).await?)
    }

    /// Opens a stream whose answers come as they are made.
    pub async fn stream(&self, call: &Call, first: &impl Message) -> Result<Answers, BenchError> {
        let (answer, requests) = self.begin(call, frame(first), false).await?;
        let answer = answer.await.map_err(broken)?;
        check(answer.headers())?;
        Ok(Answers { body: answer.into_body(), requests, buffer: BytesMut::new() })
    }
}

/// A stream of answers.
pub struct Answers {
    body: h2::RecvStream,
    requests: h2::SendStream<Bytes>,
    buffer: BytesMut,
}

impl Answers {
    pub fn send(&mut self, message: &impl Message) -> Result<(), BenchError> {
        self.requests.send_data(frame(message), false).map_err(broken)
    }

    /// The next answer as it came; none: the stream has ended.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BenchError> {
        loop {
            if let Some(header) = self.buffer.get(1..PREFIX) {
                let length = header.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
                if self.buffer.len() >= PREFIX + length {
                    return Ok(Some(self.buffer.split_to(PREFIX + length).freeze()));
                }
            }
            match self.body.data().await {
                Some(piece) => {
                    let piece = piece.map_err(broken)?;
                    let _ = self.body.flow_control().release_capacity(piece.len());
                    self.buffer.extend_from_slice(&piece);
                }
                None => return Ok(None),
            }
        }
    }
}

/// The message of an answer.
pub fn decode<A: Message + Default>(framed: &Bytes) -> Result<A, BenchError> {
    let message = framed.get(PREFIX..).unwrap_or_default();
    A::decode(message).map_err(|error| BenchError::Unexpected(format!("an answer does not parse: {error}")))
}

/// Refuses an answer that says it is an error.
fn check(headers: &HeaderMap) -> Result<(), BenchError> {
    let Some(code) = headers.get("grpc-status").filter(|code| *code != "0") else { return Ok(()) };
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let code = tonic::Code::from_bytes(code.as_bytes());
    let message = headers.get("grpc-message").map(text).unwrap_or_default();
    Err(tonic::Status::new(code, message).into())
}
