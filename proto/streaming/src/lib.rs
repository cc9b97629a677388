//! Streams of exec, attach and port-forward: SPDY/3.1 as container runtimes speak it, WebSocket channels as kubectl
//! speaks them, and the bytes of either passed through.
//!
//! - [`spdy`]: framing and a client session.
//! - [`upgrade`]: asks an HTTP server to switch protocols and gives the connection.
//! - [`websocket`]: the server's side of a WebSocket handshake.
//! - [`remote_command`]: `v4.channel.k8s.io` and `v5.channel.k8s.io` over WebSocket ↔ SPDY streams.
//! - [`tunnel`]: SPDY bytes inside WebSocket messages (port-forward), and plain copying.
//!
//! Nothing here knows pods, authorization or URLs of Kubernetes.

pub mod headers;
pub mod remote_command;
pub mod spdy;
pub mod tunnel;
pub mod upgrade;
pub mod websocket;
