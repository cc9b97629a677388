//! The server's side of a WebSocket handshake (RFC 6455), for connections that hyper has upgraded.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message, Utf8Bytes,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

/// As upstream's readers: a larger message is not kubectl's.
const MAX_MESSAGE: usize = 1 << 20;

/// The subprotocols a client offers, in its order of preference.
pub fn offered(headers: &HeaderMap) -> Vec<String> {
    let values =
        headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|word| word.trim().to_owned())
        .filter(|word| !word.is_empty())
        .collect()
}

/// The first of what the client offers that we speak; none if nothing fits.
pub fn choose<'a>(headers: &HeaderMap, spoken: &[&'a str]) -> Option<&'a str> {
    offered(headers).iter().find_map(|offer| spoken.iter().find(|name| *name == offer).copied())
}

/// The answer that switches to WebSocket; none if the request is no proper handshake.
pub fn accept<B: Default>(headers: &HeaderMap, protocol: Option<&str>) -> Option<Response<B>> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    if headers.get(header::SEC_WEBSOCKET_VERSION)?.as_bytes() != b"13" {
        return None;
    }
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let map = response.headers_mut();
    map.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    map.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    map.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok()?);
    if let Some(protocol) = protocol {
        map.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(protocol).ok()?);
    }
    Some(response)
}

/// Messages over a connection whose handshake is done.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(connection: S) -> WebSocketStream<S> {
    let config =
        WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await
}

/// The last message: Go clients take a close without a code for an error.
pub(crate) fn normal_close() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes() {
        let mut headers = HeaderMap::new();
        assert!(accept::<()>(&headers, None).is_none(), "no key");
        headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.append(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("v9, v5.channel.k8s.io"));
        headers.append(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("v4.channel.k8s.io"));
        let check =
            |spoken: &[&'static str], expected: Option<&str>| assert_eq!(choose(&headers, spoken), expected);
        check(&["v4.channel.k8s.io", "v5.channel.k8s.io"], Some("v5.channel.k8s.io"));
        check(&["v4.channel.k8s.io"], Some("v4.channel.k8s.io"));
        check(&["v1"], None);
        let response = accept::<()>(&headers, Some("v5.channel.k8s.io")).unwrap();
        // The example of RFC 6455 §1.3.
        assert_eq!(response.headers()[header::SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
