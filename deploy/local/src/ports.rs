//! The ports of a daemon: before the machine's own cluster is started, somebody else's program on one
//! of them is named, instead of a daemon that ends again and again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use crate::command;

/// What a daemon listens on, on a host with this address.
fn of(daemon: &str, address: IpAddr) -> Vec<SocketAddr> {
    let every = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let own = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let listed: &[(IpAddr, u16)] = match daemon {
        "kube-store" => &[(own, 2379), (address, 2379), (address, 2380), (own, 2381), (address, 2381)],
        "kube-apiserver" => &[(every, 6443)],
        "kube-controller-manager" => &[(every, 10257)],
        "kube-scheduler" => &[(every, 10259)],
        "kubelet" => &[(every, 10250), (own, 10248)],
        "kube-proxy" => &[(every, 10249), (every, 10256)],
        "keelson-network" => &[(every, 10254)],
        _ => &[],
    };
    listed.iter().map(|&place| SocketAddr::from(place)).collect()
}

/// The first port of a daemon that somebody listens on, and who that is, as far as `ss` can tell.
pub fn taken(daemon: &str, address: IpAddr) -> Option<(u16, String)> {
    of(daemon, address).into_iter().find(|place| is_taken(*place)).map(|place| {
        let port = place.port();
        let listing = command::run("ss", ["-ltnpH", &format!("sport = :{port}")]).unwrap_or_default();
        (port, holder(&listing).unwrap_or_else(|| "another program".to_owned()))
    })
}

fn is_taken(place: SocketAddr) -> bool {
    // The standard library sets SO_REUSEADDR, so connections that are just closing do not count. An
    // address that the host does not have is for the daemon to complain about.
    TcpListener::bind(place).is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}

/// `LISTEN 0 128 0.0.0.0:6443 0.0.0.0:* users:(("nginx",pid=812,fd=9))` → `nginx (pid 812)`
fn holder(listing: &str) -> Option<String> {
    let users = listing.split("users:((\"").nth(1)?;
    let (program, rest) = users.split_once("\",pid=")?;
    let pid: u32 = rest.split(',').next()?.parse().ok()?;
    Some(format!("{program} (pid {pid})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_seen_at_its_own_and_at_every_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = listener.local_addr().unwrap();
        assert!(is_taken(place));
        assert!(is_taken(SocketAddr::from((Ipv4Addr::UNSPECIFIED, place.port()))));
        drop(listener);
        assert!(!is_taken(place));
    }

    #[test]
    fn holders_are_read_from_ss() {
        let line =
            "LISTEN 0 128 0.0.0.0:6443 0.0.0.0:* users:((\"nginx\",pid=812,fd=9),(\"nginx\",pid=813,fd=9))";
        assert_eq!(holder(line).as_deref(), Some("nginx (pid 812)"));
        assert_eq!(holder("LISTEN 0 128 0.0.0.0:6443 0.0.0.0:*"), None);
        assert_eq!(holder(""), None);
    }

    #[test]
    fn every_daemon_with_a_port_is_listed() {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for daemon in ["kube-store", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"]
        {
            assert!(!of(daemon, address).is_empty(), "{daemon}");
        }
    }
}
