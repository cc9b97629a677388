//! Bytes of one connection carried in WebSocket messages of another, or as they are.

use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

/// kubectl's name for SPDY inside WebSocket messages.
pub const PORT_FORWARD: &str = "SPDY/3.1+portforward.k8s.io";

/// Copies both ways until both ends have finished; an error of either ends both.
pub async fn copy<A, B>(mut a: A, mut b: B)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    if let Err(error) = tokio::io::copy_bidirectional(&mut a, &mut b).await {
        tracing::debug!(%error, "a tunnel ends");
    }
}

/// Binary messages are the bytes of `connection`; ends when either end does.
pub async fn websocket<W, S>(client: WebSocketStream<W>, connection: S)
where
    W: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut to_client, mut from_client) = client.split();
    let (mut read, mut write) = tokio::io::split(connection);
    let up = async {
        while let Some(Ok(message)) = from_client.next().await {
            match message {
                Message::Binary(bytes) => write.write_all(&bytes).await?,
                Message::Close(_) => break,
                _ => {}
            }
        }
        write.shutdown().await
    };
    let down = async {
        let mut buffer = bytes::BytesMut::with_capacity(32 << 10);
        while read.read_buf(&mut buffer).await? > 0 {
            let message = Message::Binary(buffer.split().freeze());
            if to_client.send(message).await.is_err() {
                break;
            }
            buffer.reserve(32 << 10);
        }
        let _ = to_client.send(crate::websocket::normal_close()).await;
        Ok::<(), std::io::Error>(())
    };
    tokio::select! {
        result = up => if let Err(error) = result { tracing::debug!(%error, "a WebSocket tunnel ends") },
        result = down => if let Err(error) = result { tracing::debug!(%error, "a WebSocket tunnel ends") },
    }
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    #[tokio::test]
    async fn messages_become_bytes_and_back() {
        let (near, far) = tokio::io::duplex(1024);
        let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        let server = crate::websocket::serve(far).await;
        let (connection, mut end) = tokio::io::duplex(1024);
        let task = tokio::spawn(websocket(server, connection));
        client.send(Message::binary(&b"abc"[..])).await.unwrap();
        let mut got = [0; 3];
        end.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"abc");
        end.write_all(b"xyz").await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(&b"xyz"[..]));
        drop(end);
        assert!(matches!(client.next().await, Some(Ok(Message::Close(_)))));
        drop(client);
        task.await.unwrap();
    }
}
