//! Asking services over the network as a node of the shared cluster, or as the machine beside it.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use keelson_local::host::Host;
use nix::sched::{CloneFlags, setns};

/// How long one question may take before it is asked again.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Runs `work` in the network of a host, on a thread of its own.
#[expect(clippy::expect_used, reason = "a test that cannot stand on its host has failed")]
pub fn on_host<T: Send>(host: &Host, work: impl FnOnce() -> T + Send) -> T {
    let namespace = host.namespace.as_ref().map(|name| format!("/run/netns/{name}"));
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            if let Some(path) = namespace {
                let file = File::open(path).expect("the host's network namespace");
                // Only this thread changes its network; it ends with its work.
                setns(file, CloneFlags::CLONE_NEWNET).expect("entering the host's network");
            }
            work()
        });
        worker.join().expect("the work on the host ends")
    })
}

/// The body of `GET /` over HTTP/1.0.
pub fn http_get(address: SocketAddr) -> Result<String, String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| format!("{address}: {error}"))?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(answer),
    }
}

/// Whether a TCP connection is refused: not timed out, not accepted.
pub fn refused(address: SocketAddr) -> Result<(), String> {
    match TcpStream::connect_timeout(&address, TIMEOUT) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(format!("{address}: {error}")),
        Ok(_) => Err(format!("{address} accepts")),
    }
}

/// Sends a datagram and gives the answer.
pub fn udp_ask(address: SocketAddr, text: &str) -> Result<String, String> {
    let ask = || -> std::io::Result<String> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.connect(address)?;
        socket.send(text.as_bytes())?;
        let mut buffer = [0; 1500];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    ask().map_err(|error| format!("{address}: {error}"))
}

/// A UDP server on the machine's side of the cluster's bridge: it answers each datagram with its name
/// and what it was sent, until it is dropped.
pub struct UdpEcho {
    pub address: SocketAddr,
    stop: UdpSocket,
    worker: Option<std::thread::JoinHandle<()>>,
}

const STOP: &[u8] = b"\0stop";

#[expect(clippy::expect_used, reason = "a test without its server can only fail")]
impl UdpEcho {
    /// Listens on the address that nodes of the shared cluster reach the machine under.
    pub fn start(name: &'static str) -> Self {
        let IpAddr::V4(node) = crate::shared_cluster().hosts[0].address else {
            unreachable!("hosts of a cluster of its own have IPv4 addresses")
        };
        let [a, b, c, _] = node.octets();
        let machine = IpAddr::from([a, b, c, 1]);
        let socket = UdpSocket::bind((machine, 0)).expect("the machine is on the cluster's bridge");
        let address = socket.local_addr().expect("a bound socket has an address");
        let stop = UdpSocket::bind((machine, 0)).expect("a second socket");
        let worker = std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let text = &buffer[..length];
                if text == STOP {
                    break;
                }
                // Whoever asked may be gone again.
                let _ = socket.send_to(format!("{name}: {}", String::from_utf8_lossy(text)).as_bytes(), from);
            }
        });
        Self { address, stop, worker: Some(worker) }
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        if self.stop.send_to(STOP, self.address).is_ok()
            && let Some(worker) = self.worker.take()
        {
            let _ = worker.join();
        }
    }
}
