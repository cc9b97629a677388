//! What the bytes of every connection pass, inside of TLS: clients' are counted, as HTTP/2 has them (etcd counts the messages
//! in them), and the first of them are repaired if need be ([`crate::authority`]).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::authority::Scanner;
use crate::metrics::Metrics;

/// A connection. To count its bytes is one relaxed addition for each read and write of the socket.
pub struct Traffic<I> {
    io: I,
    scanner: Scanner,
    /// None: they are not counted.
    metrics: Option<Arc<Metrics>>,
}

impl<I> Traffic<I> {
    pub fn new(io: I, metrics: Option<Arc<Metrics>>) -> Self {
        Self { io, scanner: Scanner::default(), metrics }
    }

    fn sent(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Some(metrics), Poll::Ready(Ok(count))) = (&self.metrics, &written) {
            metrics.client_sent.inc_by(*count as u64);
        }
        written
    }
}

impl<I: AsyncRead + Unpin> Traffic<I> {
    fn receive(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        let count = buffer.filled().len() - before;
        if let Some(metrics) = self.metrics.as_ref().filter(|_| count > 0) {
            metrics.client_received.inc_by(count as u64);
        }
        Poll::Ready(Ok(count))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Traffic<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while !this.scanner.is_done() {
            if this.scanner.hand_on(buffer) > 0 || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let mut space = [0; 4096];
            let mut read = ReadBuf::new(&mut space);
            ready!(this.receive(context, &mut read))?;
            this.scanner.look(read.filled());
        }
        this.receive(context, buffer).map_ok(drop)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Traffic<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.sent(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, bytes);
        self.sent(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use keelson_component_base::metrics::Registry;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn all_bytes_pass_and_are_counted_once() {
        // Not HTTP/2, HTTP/2 that goes on, and HTTP/2 that ends within its preface.
        for sent in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04", b"PRI *", b""]
        {
            let metrics = Metrics::new(&Registry::new());
            let (mut client, server) = tokio::io::duplex(7);
            let mut traffic = Traffic::new(server, Some(metrics.clone()));
            let client = async {
                client.write_all(sent).await.unwrap();
                client.shutdown().await.unwrap();
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).await.unwrap();
                answer
            };
            let server = async {
                let mut found = Vec::new();
                traffic.read_to_end(&mut found).await.unwrap();
                traffic.write_all(b"answer").await.unwrap();
                drop(traffic);
                found
            };
            let (answer, found) = tokio::join!(client, server);
            assert_eq!((&found[..], &answer[..]), (sent, &b"answer"[..]));
            let counted = (metrics.client_received.get(), metrics.client_sent.get());
            assert_eq!(counted, (sent.len() as u64, 6), "{sent:?}");
        }
    }
}
