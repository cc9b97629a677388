//! Probes that open a TCP connection.

use std::time::Duration;

/// Passes if something accepts the connection in time.
pub async fn probe(host: &str, port: u16, limit: Duration) -> Result<(), String> {
    let address = super::join(host, port);
    match tokio::time::timeout(limit, tokio::net::TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => {
            // A reset instead of a lingering TIME_WAIT: there are many of these.
            let _ = stream.set_zero_linger();
            Ok(())
        }
        Ok(Err(error)) => Err(super::dial_error(&address, &error)),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}
