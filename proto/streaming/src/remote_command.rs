//! exec and attach over WebSocket (`v4.channel.k8s.io`, `v5.channel.k8s.io`) ↔ the SPDY streams of a runtime.
//!
//! A message is a channel's number and its bytes. v5 adds channel 255: its byte names a channel that the client has
//! finished with, which is how a client ends stdin without ending the connection.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _, stream::SplitSink};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use crate::spdy::{Receiver, Sender, Session, SpdyError};

pub const V5: &str = "v5.channel.k8s.io";
pub const V4: &str = "v4.channel.k8s.io";
/// What is spoken here, newest first.
pub const PROTOCOLS: &[&str] = &[V5, V4];
/// What the runtime is spoken to with: its error stream carries a Status.
pub const RUNTIME_PROTOCOL: &str = V4;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Which streams there are, as the request's query says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Streams {
    /// From `stdin=true&tty=1…`; a terminal has no stderr of its own.
    pub fn from_query(query: &str) -> Self {
        let on = |names: &[&str]| {
            query.split('&').filter_map(|pair| pair.split_once('=')).any(|(name, value)| {
                names.contains(&name) && matches!(value, "1" | "true" | "True" | "TRUE" | "t" | "T")
            })
        };
        let tty = on(&["tty"]);
        Self {
            stdin: on(&["stdin", "input"]),
            stdout: on(&["stdout", "output"]),
            stderr: on(&["stderr", "error"]) && !tty,
            tty,
        }
    }
}

/// What a runtime makes of the end of stdin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StdinEnd {
    /// The command reads to the end of its input: it is told at once.
    OfInput,
    /// The command's input stays open and the client is detached, whatever the command was about to say: it is told
    /// once there has been no output for so long.
    OfAttachment(Duration),
}

struct Opened {
    session: Session,
    stdin: Option<Sender>,
    resize: Option<Sender>,
    outputs: Vec<(u8, Receiver)>,
}

/// Error first, as upstream's client opens them; the runtime waits for exactly these.
async fn open(session: Session, streams: Streams) -> Result<Opened, SpdyError> {
    let stream = async |kind: &str| session.open(&[("streamType", kind)]).await;
    let mut outputs = vec![(ERROR, stream("error").await?.1)];
    let stdin = if streams.stdin { Some(stream("stdin").await?.0) } else { None };
    if streams.stdout {
        outputs.push((STDOUT, stream("stdout").await?.1));
    }
    if streams.stderr {
        outputs.push((STDERR, stream("stderr").await?.1));
    }
    let resize = if streams.tty { Some(stream("resize").await?.0) } else { None };
    Ok(Opened { session, stdin, resize, outputs })
}

type Sink<W> = SplitSink<WebSocketStream<W>, Message>;

async fn send<W>(sink: &mut Sink<W>, channel: u8, bytes: &[u8]) -> bool
where
    W: AsyncRead + AsyncWrite + Unpin,
{
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(channel);
    message.extend_from_slice(bytes);
    sink.send(Message::Binary(message.freeze())).await.is_ok()
}

/// Translates until the command has ended and all was said, or the client has gone.
pub async fn translate<W, S>(
    client: WebSocketStream<W>,
    runtime: S,
    streams: Streams,
    stdin_end: StdinEnd,
    protocol: &str,
) where
    W: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut to_client, mut from_client) = client.split();
    let Opened { session, stdin, resize, outputs } = match open(Session::client(runtime), streams).await {
        Ok(opened) => opened,
        Err(error) => {
            let status = format!(
                "{{\"metadata\":{{}},\"status\":\"Failure\",\"message\":\"opening the runtime's streams: {error}\",\
                 \"reason\":\"InternalError\",\"code\":500}}"
            );
            send(&mut to_client, ERROR, status.as_bytes()).await;
            let _ = to_client.send(crate::websocket::normal_close()).await;
            return;
        }
    };
    // Upstream's first message: it tells the client that the streams are there.
    let first = if streams.stdout {
        STDOUT
    } else if streams.stderr {
        STDERR
    } else {
        ERROR
    };
    if !send(&mut to_client, first, &[]).await {
        return;
    }
    let output = Notify::new();
    let up = async {
        let (mut stdin, resize) = (stdin, resize);
        let mut detaching = None;
        loop {
            let message = tokio::select! {
                message = from_client.next() => message,
                () = silence(&output, detaching.unwrap_or_default()), if detaching.is_some() => {
                    detaching = None;
                    if let Some(stdin) = stdin.take() {
                        // A session that has ended is seen by its outputs.
                        let _ = stdin.finish().await;
                    }
                    continue;
                }
            };
            let bytes: Bytes = match message {
                Some(Ok(Message::Binary(bytes))) => bytes,
                Some(Ok(Message::Text(text))) => Bytes::from(text),
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => continue,
            };
            let Some((&channel, rest)) = bytes.split_first() else { continue };
            let result = match channel {
                STDIN => match &stdin {
                    Some(stdin) if !rest.is_empty() => stdin.send(bytes.slice(1..)).await,
                    _ => Ok(()),
                },
                RESIZE => match &resize {
                    Some(resize) => resize.send(bytes.slice(1..)).await,
                    None => Ok(()),
                },
                CLOSE if protocol == V5 && rest.first() == Some(&STDIN) => match stdin_end {
                    StdinEnd::OfAttachment(quiet) => {
                        detaching = stdin.is_some().then_some(quiet);
                        Ok(())
                    }
                    StdinEnd::OfInput => match stdin.take() {
                        Some(stdin) => stdin.finish().await,
                        None => Ok(()),
                    },
                },
                _ => Ok(()),
            };
            if result.is_err() {
                // The command has ended; its last words are still on their way to the client.
                std::future::pending::<()>().await;
            }
        }
    };
    let down = async {
        let merged = futures::stream::select_all(outputs.into_iter().map(|(channel, receiver)| {
            Box::pin(futures::stream::unfold(receiver, move |mut receiver| async move {
                receiver.next().await.map(|bytes| ((channel, bytes), receiver))
            }))
        }));
        let mut merged = std::pin::pin!(merged);
        // The error stream's word is the last: clients stop reading at it.
        let mut verdict = BytesMut::new();
        while let Some((channel, bytes)) = merged.next().await {
            output.notify_one();
            if channel == ERROR {
                verdict.extend_from_slice(&bytes);
            } else if !send(&mut to_client, channel, &bytes).await {
                return;
            }
        }
        if !verdict.is_empty() {
            send(&mut to_client, ERROR, &verdict).await;
        }
        let _ = to_client.send(crate::websocket::normal_close()).await;
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
    drop(session);
}

/// Until there has been no output for so long.
async fn silence(output: &Notify, quiet: Duration) {
    while tokio::time::timeout(quiet, output.notified()).await.is_ok() {}
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;
    use crate::spdy::{Frame, Reader, Writer};

    #[test]
    fn queries() {
        let check = |query: &str, expected: (bool, bool, bool, bool)| {
            let got = Streams::from_query(query);
            assert_eq!((got.stdin, got.stdout, got.stderr, got.tty), expected, "{query}");
        };
        check("command=sh&stdin=true&stdout=true&stderr=true", (true, true, true, false));
        check("stdout=1&stderr=1&tty=1", (false, true, false, true));
        check("input=1&output=1&error=1", (true, true, true, false));
        check("", (false, false, false, false));
    }

    /// A runtime that echoes stdin to stdout, and says Success once stdin has ended.
    async fn runtime(mut connection: tokio::io::DuplexStream) {
        let (mut reader, mut writer) = (Reader::default(), Writer::default());
        let mut ids = std::collections::HashMap::new();
        loop {
            match reader.read(&mut connection).await.unwrap() {
                Some(Frame::SynStream { id, headers, .. }) => {
                    ids.insert(headers[0].1.clone(), id);
                    connection.write_all(&writer.syn_reply(id, &[])).await.unwrap();
                }
                Some(Frame::Data { id, bytes, fin }) if ids.get("stdin") == Some(&id) => {
                    connection.write_all(&Writer::data(ids["stdout"], bytes.len(), fin)).await.unwrap();
                    connection.write_all(&bytes).await.unwrap();
                    if fin {
                        connection.write_all(&Writer::data(ids["error"], 2, true)).await.unwrap();
                        connection.write_all(b"OK").await.unwrap();
                    }
                }
                Some(other) => panic!("{other:?}"),
                None => return,
            }
        }
    }

    #[tokio::test]
    async fn a_command_from_stdin_to_its_verdict() {
        let (near, far) = tokio::io::duplex(4096);
        let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        let server = crate::websocket::serve(far).await;
        let (left, right) = tokio::io::duplex(4096);
        tokio::spawn(runtime(right));
        let streams = Streams { stdin: true, stdout: true, stderr: false, tty: false };
        let task = tokio::spawn(translate(server, left, streams, StdinEnd::OfInput, V5));
        let expect = async |client: &mut WebSocketStream<_>, expected: &[u8]| {
            let message: Message = client.next().await.unwrap().unwrap();
            assert_eq!(message, Message::binary(expected.to_vec()));
        };
        expect(&mut client, &[STDOUT]).await;
        client.send(Message::binary(&b"\x00hello"[..])).await.unwrap();
        expect(&mut client, b"\x01hello").await;
        client.send(Message::binary(&[CLOSE, STDIN][..])).await.unwrap();
        expect(&mut client, b"\x03OK").await;
        assert!(matches!(client.next().await, Some(Ok(Message::Close(_)))));
        drop(client);
        task.await.unwrap();
    }

    /// A runtime that says all of this at once when stdin has ended, each on its stream.
    async fn speaking_runtime(
        mut connection: tokio::io::DuplexStream,
        words: Vec<(&'static str, &'static str)>,
    ) {
        let (mut reader, mut writer) = (Reader::default(), Writer::default());
        let mut ids = std::collections::HashMap::new();
        loop {
            match reader.read(&mut connection).await.unwrap() {
                Some(Frame::SynStream { id, headers, .. }) => {
                    ids.insert(headers[0].1.clone(), id);
                    connection.write_all(&writer.syn_reply(id, &[])).await.unwrap();
                }
                Some(Frame::Data { fin, .. }) => {
                    assert!(fin, "nothing was sent to stdin");
                    let mut said = Vec::new();
                    for (stream, word) in &words {
                        said.extend_from_slice(&Writer::data(ids[*stream], word.len(), false));
                        said.extend_from_slice(word.as_bytes());
                    }
                    for stream in ["stdout", "stderr", "error"] {
                        said.extend_from_slice(&Writer::data(ids[stream], 0, true));
                    }
                    connection.write_all(&said).await.unwrap();
                }
                Some(other) => panic!("{other:?}"),
                None => return,
            }
        }
    }

    #[tokio::test]
    async fn a_client_hears_a_command_in_the_order_of_its_words_and_the_verdict_last() {
        let check = async |words: &[(&'static str, &'static str)], expected: &[&[u8]]| {
            let (near, far) = tokio::io::duplex(4096);
            let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
            let server = crate::websocket::serve(far).await;
            let (left, right) = tokio::io::duplex(4096);
            tokio::spawn(speaking_runtime(right, words.to_vec()));
            let streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };
            let task = tokio::spawn(translate(server, left, streams, StdinEnd::OfInput, V5));
            let first = client.next().await.unwrap().unwrap();
            assert_eq!(first, Message::binary(vec![STDOUT]), "the streams are there");
            client.send(Message::binary(&[CLOSE, STDIN][..])).await.unwrap();
            let mut got = Vec::new();
            while let Some(Ok(Message::Binary(bytes))) = client.next().await {
                got.push(bytes);
            }
            assert_eq!(got, expected, "{words:?}");
            drop(client);
            task.await.unwrap();
        };
        // What tar says of a file that is not there: clients such as kubectl cp end at the end of the archive.
        check(
            &[("stderr", "no such file"), ("stdout", "end of archive"), ("error", "exit code 1")],
            &[b"\x02no such file", b"\x01end of archive", b"\x03exit code 1"],
        )
        .await;
        check(
            &[("stdout", "one"), ("stderr", "two"), ("stdout", "three"), ("error", "OK")],
            &[b"\x01one", b"\x02two", b"\x01three", b"\x03OK"],
        )
        .await;
        check(&[("error", "exit code 1"), ("stdout", "late")], &[b"\x01late", b"\x03exit code 1"]).await;
    }

    /// As containerd's attach without stdinOnce: the client is detached at the end of its stdin.
    async fn detaching_runtime(mut connection: tokio::io::DuplexStream, thinks: Duration) {
        let (mut reader, mut writer) = (Reader::default(), Writer::default());
        let mut ids = std::collections::HashMap::new();
        let mut words = Vec::new();
        loop {
            let answering = !words.is_empty();
            tokio::select! {
                biased;
                frame = reader.read(&mut connection) => match frame.unwrap() {
                    Some(Frame::SynStream { id, headers, .. }) => {
                        ids.insert(headers[0].1.clone(), id);
                        connection.write_all(&writer.syn_reply(id, &[])).await.unwrap();
                    }
                    Some(Frame::Data { fin: false, bytes, .. }) => words.push(bytes),
                    Some(Frame::Data { fin: true, .. }) => {
                        for id in ids.values() {
                            connection.write_all(&Writer::data(*id, 0, true)).await.unwrap();
                        }
                    }
                    Some(other) => panic!("{other:?}"),
                    None => return,
                },
                () = tokio::time::sleep(thinks), if answering => {
                    let word = words.remove(0);
                    connection.write_all(&Writer::data(ids["stdout"], word.len(), false)).await.unwrap();
                    connection.write_all(&word).await.unwrap();
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_detached_once_the_command_is_silent() {
        const QUIET: Duration = Duration::from_secs(1);
        let check = async |stdin_end: StdinEnd, expected: &[&[u8]]| {
            let (near, far) = tokio::io::duplex(4096);
            let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
            let server = crate::websocket::serve(far).await;
            let (left, right) = tokio::io::duplex(4096);
            tokio::spawn(detaching_runtime(right, QUIET * 2 / 3));
            let streams = Streams { stdin: true, stdout: true, stderr: false, tty: false };
            let task = tokio::spawn(translate(server, left, streams, stdin_end, V5));
            for message in [&b"\x00one"[..], b"\x00two", &[CLOSE, STDIN]] {
                client.send(Message::binary(message)).await.unwrap();
            }
            let mut got = Vec::new();
            while let Some(Ok(Message::Binary(bytes))) = client.next().await {
                got.push(bytes);
            }
            assert_eq!(got, expected, "{stdin_end:?}");
            drop(client);
            task.await.unwrap();
        };
        check(StdinEnd::OfAttachment(QUIET), &[&[STDOUT], b"\x01one", b"\x01two"]).await;
        check(StdinEnd::OfInput, &[&[STDOUT]]).await;
    }
}
