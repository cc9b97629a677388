//! SPDY/3.1 framing, and a client session with several streams over one connection.
//!
//! As much of it as container runtimes (moby/spdystream) speak: they neither send nor heed window updates, so the
//! connection's own flow control is the only one; a stream that is not read holds up the others.

use std::{collections::HashMap, sync::Arc};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

use crate::headers::{Compressor, Decompressor, HeaderError, Headers};

const VERSION: u16 = 3;
const FIN: u8 = 1;
/// Larger frames are not sent by any runtime.
const MAX_FRAME: usize = 1 << 20;
const QUEUE: usize = 16;

/// What ended a session.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    #[error("connection")]
    Io(#[from] std::io::Error),
    #[error("headers")]
    Headers(#[from] HeaderError),
    #[error("a frame of {0} bytes")]
    FrameTooLarge(usize),
    #[error("a frame that is cut short")]
    Malformed,
    #[error("SPDY version {0}")]
    Version(u16),
    #[error("the other end refused the stream with status {0}")]
    Refused(u32),
    #[error("the session has ended")]
    Closed,
}

/// A frame as it arrives.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        id: u32,
        headers: Headers,
        fin: bool,
    },
    SynReply {
        id: u32,
        headers: Headers,
        fin: bool,
    },
    Data {
        id: u32,
        bytes: Bytes,
        fin: bool,
    },
    Reset {
        id: u32,
        status: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// Headers, settings, window updates: nothing depends on them here.
    Other,
}

/// Cuts frames out of bytes; keeps the decompressor.
#[derive(Default)]
pub struct Reader {
    buffer: BytesMut,
    headers: Decompressor,
}

impl Reader {
    /// The next frame, if it is there completely.
    ///
    /// # Errors
    /// What cannot be a frame; the session is over then.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, SpdyError> {
        let Some((head, _)) = self.buffer.split_first_chunk::<8>() else { return Ok(None) };
        let head = *head;
        let length =
            usize::try_from(u32::from_be_bytes([0, head[5], head[6], head[7]])).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(SpdyError::FrameTooLarge(length));
        }
        if self.buffer.len() < 8 + length {
            self.buffer.reserve(8 + length - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(8);
        let body = self.buffer.split_to(length).freeze();
        let (first, flags) = (u32::from_be_bytes([head[0], head[1], head[2], head[3]]), head[4]);
        let fin = flags & FIN != 0;
        if first & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data { id: first, bytes: body, fin }));
        }
        let version = u16::from_be_bytes([head[0] & 0x7f, head[1]]);
        if version != VERSION {
            return Err(SpdyError::Version(version));
        }
        self.control(u16::from_be_bytes([head[2], head[3]]), body, fin).map(Some)
    }

    fn control(&mut self, kind: u16, mut body: Bytes, fin: bool) -> Result<Frame, SpdyError> {
        let word = |body: &mut Bytes| body.try_get_u32().map_err(|_| SpdyError::Malformed);
        match kind {
            1 => {
                let id = word(&mut body)? & 0x7fff_ffff;
                word(&mut body)?;
                body.try_get_u16().map_err(|_| SpdyError::Malformed)?;
                Ok(Frame::SynStream { id, headers: self.headers.decode(&body)?, fin })
            }
            2 => {
                let id = word(&mut body)? & 0x7fff_ffff;
                Ok(Frame::SynReply { id, headers: self.headers.decode(&body)?, fin })
            }
            3 => Ok(Frame::Reset { id: word(&mut body)? & 0x7fff_ffff, status: word(&mut body)? }),
            6 => Ok(Frame::Ping { id: word(&mut body)? }),
            7 => Ok(Frame::GoAway),
            8 => {
                // Not used, but the decompressor must see every block.
                word(&mut body)?;
                self.headers.decode(&body)?;
                Ok(Frame::Other)
            }
            _ => Ok(Frame::Other),
        }
    }

    /// Reads until there is a frame; none at the connection's end.
    pub async fn read<R: AsyncRead + Unpin>(&mut self, from: &mut R) -> Result<Option<Frame>, SpdyError> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(Some(frame));
            }
            if from.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(SpdyError::Malformed) };
            }
        }
    }
}

/// Writes frames; keeps the compressor.
#[derive(Default)]
pub struct Writer {
    headers: Compressor,
}

impl Writer {
    /// Opens a stream; a client's ids are odd and grow.
    pub fn syn_stream(&mut self, id: u32, headers: &[(&str, &str)]) -> Bytes {
        let block = self.headers.encode(headers);
        let mut frame = control(1, 0, 10 + block.len());
        frame.put_u32(id);
        frame.put_u32(0);
        frame.put_u16(0);
        frame.extend_from_slice(&block);
        frame.freeze()
    }

    /// Accepts a stream.
    pub fn syn_reply(&mut self, id: u32, headers: &[(&str, &str)]) -> Bytes {
        let block = self.headers.encode(headers);
        let mut frame = control(2, 0, 4 + block.len());
        frame.put_u32(id);
        frame.extend_from_slice(&block);
        frame.freeze()
    }

    /// The head of a data frame of so many bytes.
    pub fn data(id: u32, length: usize, fin: bool) -> [u8; 8] {
        let [a, b, c, d] = (id & 0x7fff_ffff).to_be_bytes();
        let [_, x, y, z] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        [a, b, c, d, u8::from(fin), x, y, z]
    }

    pub fn reset(id: u32, status: u32) -> Bytes {
        let mut frame = control(3, 0, 8);
        frame.put_u32(id);
        frame.put_u32(status);
        frame.freeze()
    }

    pub fn ping(id: u32) -> Bytes {
        let mut frame = control(6, 0, 4);
        frame.put_u32(id);
        frame.freeze()
    }
}

fn control(kind: u16, flags: u8, length: usize) -> BytesMut {
    let mut frame = BytesMut::with_capacity(8 + length);
    frame.put_u16(0x8000 | VERSION);
    frame.put_u16(kind);
    let length = u32::try_from(length).unwrap_or(u32::MAX) & 0x00ff_ffff;
    frame.put_u32((u32::from(flags) << 24) | length);
    frame
}

enum Outgoing {
    Open {
        headers: Vec<(String, String)>,
        incoming: mpsc::Sender<Bytes>,
        opened: oneshot::Sender<Result<u32, SpdyError>>,
    },
    Data {
        id: u32,
        bytes: Bytes,
        fin: bool,
    },
    Ping {
        id: u32,
    },
}

/// A stream that waits for its reply.
type Opening = (mpsc::Sender<Bytes>, oneshot::Sender<Result<u32, SpdyError>>);

#[derive(Default)]
struct Table {
    opening: HashMap<u32, Opening>,
    open: HashMap<u32, mpsc::Sender<Bytes>>,
    closed: bool,
}

/// The client's end of a session; the connection ends when it is dropped.
pub struct Session {
    outgoing: mpsc::Sender<Outgoing>,
    tasks: [AbortHandle; 2],
}

impl Drop for Session {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// The sending half of a stream.
#[derive(Clone)]
pub struct Sender {
    id: u32,
    outgoing: mpsc::Sender<Outgoing>,
}

/// The receiving half of a stream.
pub struct Receiver(mpsc::Receiver<Bytes>);

impl Receiver {
    /// The next bytes; none once the other end has finished.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.0.recv().await
    }
}

impl Sender {
    /// Sends bytes.
    ///
    /// # Errors
    /// When the session has ended.
    pub async fn send(&self, bytes: Bytes) -> Result<(), SpdyError> {
        self.put(bytes, false).await
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// When the session has ended.
    pub async fn finish(&self) -> Result<(), SpdyError> {
        self.put(Bytes::new(), true).await
    }

    async fn put(&self, bytes: Bytes, fin: bool) -> Result<(), SpdyError> {
        self.outgoing.send(Outgoing::Data { id: self.id, bytes, fin }).await.map_err(|_| SpdyError::Closed)
    }
}

impl Session {
    /// A session over a connection that has switched to SPDY/3.1.
    pub fn client<S>(connection: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(connection);
        let (outgoing, queue) = mpsc::channel(QUEUE);
        let table = Arc::new(Mutex::new(Table::default()));
        let reader = tokio::spawn(receive(read, table.clone(), outgoing.clone()));
        let writer = tokio::spawn(transmit(write, table, queue));
        Self { outgoing, tasks: [reader.abort_handle(), writer.abort_handle()] }
    }

    /// Opens a stream and waits until the other end has accepted it.
    ///
    /// # Errors
    /// When it is refused or the session ends.
    pub async fn open(&self, headers: &[(&str, &str)]) -> Result<(Sender, Receiver), SpdyError> {
        let (incoming, receiver) = mpsc::channel(QUEUE);
        let (opened, answer) = oneshot::channel();
        let headers =
            headers.iter().map(|(name, value)| (name.to_lowercase(), (*value).to_owned())).collect();
        let open = Outgoing::Open { headers, incoming, opened };
        self.outgoing.send(open).await.map_err(|_| SpdyError::Closed)?;
        let id = answer.await.map_err(|_| SpdyError::Closed)??;
        Ok((Sender { id, outgoing: self.outgoing.clone() }, Receiver(receiver)))
    }
}

async fn transmit<W: AsyncWrite + Unpin>(
    mut write: W,
    table: Arc<Mutex<Table>>,
    mut queue: mpsc::Receiver<Outgoing>,
) {
    let (mut writer, mut next_id) = (Writer::default(), 1_u32);
    while let Some(outgoing) = queue.recv().await {
        let result = match outgoing {
            Outgoing::Open { headers, incoming, opened } => {
                let id = next_id;
                next_id += 2;
                {
                    let mut table = table.lock();
                    if table.closed {
                        continue;
                    }
                    table.opening.insert(id, (incoming, opened));
                }
                let headers: Vec<(&str, &str)> =
                    headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                write.write_all(&writer.syn_stream(id, &headers)).await
            }
            Outgoing::Data { id, bytes, fin } => {
                async {
                    // The length of a frame has 24 bits; what is sent here never comes near it.
                    write.write_all(&Writer::data(id, bytes.len(), fin)).await?;
                    write.write_all(&bytes).await
                }
                .await
            }
            Outgoing::Ping { id } => write.write_all(&Writer::ping(id)).await,
        };
        if result.is_err() || write.flush().await.is_err() {
            return;
        }
    }
}

async fn receive<R: AsyncRead + Unpin>(
    mut read: R,
    table: Arc<Mutex<Table>>,
    outgoing: mpsc::Sender<Outgoing>,
) {
    let mut reader = Reader::default();
    loop {
        let frame = match reader.read(&mut read).await {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "a SPDY session ends");
                break;
            }
        };
        match frame {
            Frame::SynReply { id, fin, .. } => {
                let mut table = table.lock();
                if let Some((incoming, opened)) = table.opening.remove(&id) {
                    if !fin {
                        table.open.insert(id, incoming);
                    }
                    let _ = opened.send(Ok(id));
                }
            }
            Frame::Data { id, bytes, fin } => {
                let incoming = table.lock().open.get(&id).cloned();
                if let Some(incoming) = incoming
                    && !bytes.is_empty()
                {
                    // Nobody listening is no error: the stream's data is dropped.
                    let _ = incoming.send(bytes).await;
                }
                if fin {
                    table.lock().open.remove(&id);
                }
            }
            Frame::Reset { id, status } => {
                let mut table = table.lock();
                table.open.remove(&id);
                if let Some((_, opened)) = table.opening.remove(&id) {
                    let _ = opened.send(Err(SpdyError::Refused(status)));
                }
            }
            // Even ids are the server's: it wants an answer.
            Frame::Ping { id } if id % 2 == 0 => {
                let _ = outgoing.send(Outgoing::Ping { id }).await;
            }
            Frame::GoAway => break,
            Frame::Ping { .. } | Frame::SynStream { .. } | Frame::Other => {}
        }
    }
    let mut table = table.lock();
    table.closed = true;
    table.open.clear();
    table.opening.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn streams_open_carry_data_and_end() {
        let (client, mut server) = tokio::io::duplex(4096);
        let session = Session::client(client);
        let serve = tokio::spawn(async move {
            let (mut reader, mut writer) = (Reader::default(), Writer::default());
            loop {
                match reader.read(&mut server).await.unwrap() {
                    Some(Frame::SynStream { id, headers, .. }) => {
                        let refuse =
                            headers.iter().any(|(name, value)| name == "streamtype" && value == "bad");
                        let frame = if refuse { Writer::reset(id, 3) } else { writer.syn_reply(id, &[]) };
                        server.write_all(&Writer::ping(2)).await.unwrap();
                        server.write_all(&frame).await.unwrap();
                    }
                    Some(Frame::Data { id, bytes, fin }) => {
                        server.write_all(&Writer::data(id, bytes.len(), fin)).await.unwrap();
                        server.write_all(&bytes).await.unwrap();
                    }
                    Some(Frame::Ping { id }) => assert_eq!(id, 2),
                    Some(other) => panic!("{other:?}"),
                    None => return,
                }
            }
        });
        let (one, mut from_one) = session.open(&[("streamType", "stdin")]).await.unwrap();
        let (two, mut from_two) = session.open(&[("streamType", "stdout")]).await.unwrap();
        one.send(Bytes::from_static(b"first")).await.unwrap();
        two.send(Bytes::from_static(b"second")).await.unwrap();
        two.finish().await.unwrap();
        assert_eq!(from_one.next().await, Some(Bytes::from_static(b"first")));
        assert_eq!(from_two.next().await, Some(Bytes::from_static(b"second")));
        assert_eq!(from_two.next().await, None);
        assert!(matches!(session.open(&[("streamType", "bad")]).await, Err(SpdyError::Refused(3))));
        drop((session, one, two));
        serve.await.unwrap();
    }

    #[test]
    fn malformed_frames_are_errors() {
        let check = |bytes: &[u8]| {
            let mut reader = Reader::default();
            reader.buffer.extend_from_slice(bytes);
            assert!(reader.next_frame().is_err(), "{bytes:?}");
        };
        check(&[0x80, 2, 0, 1, 0, 0, 0, 0]);
        check(&[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0]);
        check(&[0x80, 3, 0, 6, 0, 0, 0, 1, 0]);
        check(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff]);
    }
}
