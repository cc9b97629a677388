//! The CNI configuration file of this host, which container runtimes watch.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::plan::Range;

/// The one file that this add-on owns in the CNI configuration directory.
const FILE: &str = "10-keelson.conflist";

/// Where CNI things are on this host.
#[derive(Debug, Clone)]
pub struct CniPaths {
    pub configuration: PathBuf,
    /// Where the host-local plugin records the addresses given out.
    pub state: PathBuf,
    /// Directory of the plugins' binaries.
    pub plugins: PathBuf,
}

/// The configuration: each pod on a point-to-point link, so that all its traffic is routed and meets
/// the rules of kube-proxy, also between two pods of one host.
fn configuration(paths: &CniPaths, ranges: &[Range], host_ports: bool) -> Value {
    let ranges_of_family: Vec<Value> = ranges.iter().map(|r| json!([{ "subnet": r.to_string() }])).collect();
    let mut default_routes = Vec::new();
    for (ipv4, destination) in [(true, "0.0.0.0/0"), (false, "::/0")] {
        if ranges.iter().any(|r| r.address.is_ipv4() == ipv4) {
            default_routes.push(json!({ "dst": destination }));
        }
    }
    let mut plugins = vec![json!({
        "type": "ptp",
        "ipMasq": false,
        "ipam": {
            "type": "host-local",
            "dataDir": paths.state,
            "ranges": ranges_of_family,
            "routes": default_routes,
        },
    })];
    if host_ports {
        plugins.push(json!({ "type": "portmap", "capabilities": { "portMappings": true } }));
    }
    json!({ "cniVersion": "0.4.0", "name": "keelson", "plugins": plugins })
}

/// Debian's portmap plugin writes its rules with iptables: without that program every pod would fail,
/// so host ports are offered only where it is installed.
fn host_ports_work(paths: &CniPaths) -> bool {
    let iptables = ["/usr/sbin/iptables", "/sbin/iptables"].iter().any(|path| Path::new(path).exists());
    iptables && paths.plugins.join("portmap").exists()
}

/// Writes the configuration if it is not what is there. Returns whether it was written.
pub fn ensure(paths: &CniPaths, ranges: &[Range]) -> io::Result<bool> {
    let text = format!("{:#}\n", configuration(paths, ranges, host_ports_work(paths)));
    let path = paths.configuration.join(FILE);
    if fs::read_to_string(&path).is_ok_and(|existing| existing == text) {
        return Ok(false);
    }
    fs::create_dir_all(&paths.configuration)?;
    fs::create_dir_all(&paths.state)?;
    // The runtime reads the directory at any moment: the file appears whole.
    let temporary = paths.configuration.join(".10-keelson.new");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, &path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_written_once_per_change() {
        let directory = tempfile::tempdir().unwrap();
        let paths = CniPaths {
            configuration: directory.path().join("net.d"),
            state: directory.path().join("state"),
            plugins: directory.path().join("bin"),
        };
        let range: Range = "10.244.1.0/24".parse().unwrap();
        assert!(ensure(&paths, &[range]).unwrap());
        assert!(!ensure(&paths, &[range]).unwrap());
        assert!(ensure(&paths, &[range, "fd01::/64".parse().unwrap()]).unwrap());
        let value: Value =
            serde_json::from_slice(&fs::read(paths.configuration.join(FILE)).unwrap()).unwrap();
        let ipam = &value["plugins"][0]["ipam"];
        assert_eq!(ipam["ranges"], json!([[{ "subnet": "10.244.1.0/24" }], [{ "subnet": "fd01::/64" }]]));
        assert_eq!(ipam["routes"], json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]));
    }
}
