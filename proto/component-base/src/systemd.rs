//! Tells the service manager about the life of this process over `$NOTIFY_SOCKET` (sd_notify(3)).
//! Outside systemd every call does nothing.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Reports that start-up is complete (`READY=1`).
pub fn notify_ready() {
    notify("READY=1");
}

/// Reports that the process drains and will end (`STOPPING=1`).
pub fn notify_stopping() {
    notify("STOPPING=1");
}

fn notify(state: &str) {
    if let Some(path) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(&path, state)
    {
        tracing::warn!(socket = ?path, %error, "Could not notify the service manager");
    }
}

fn send(path: &OsString, state: &str) -> io::Result<()> {
    let bytes = path.as_bytes();
    let address = match bytes.split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reaches_path_and_abstract_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("keelson-component-base-{}", std::process::id());
        let at_path = UnixDatagram::bind(&path).unwrap();
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let at_name = UnixDatagram::bind_addr(&abstract_name).unwrap();
        for (address, socket) in [(path.into_os_string(), at_path), (format!("@{name}").into(), at_name)] {
            send(&address, "READY=1").unwrap();
            let mut buffer = [0; 16];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        }
    }
}
