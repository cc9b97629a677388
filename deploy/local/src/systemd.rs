//! The same processes as units, on machines whose first process is systemd.
//!
//! Invariant: a unit's name starts with the cluster's own prefix, so that stopping a cluster never
//! touches anybody else's units.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::command::{self, CommandError};
use crate::supervisor::Process;

const UNITS: &str = "/etc/systemd/system";

/// Every process that a host may have.
const DAEMONS: [&str; 8] = [
    "kube-store",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "containerd",
    "kubelet",
    "kube-proxy",
    "keelson-network",
];

/// Whether systemd runs this machine.
pub fn is_first_process() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// Why a unit could not be managed.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("systemd refused")]
    Command(#[from] CommandError),
}

/// The units of one host of one cluster.
#[derive(Debug, Clone)]
pub struct Units {
    prefix: String,
}

impl Units {
    pub fn new(cluster: &str, host: &str) -> Self {
        // The machine's own cluster has short names: keelson-kubelet.service.
        let prefix =
            if cluster == "keelson" { "keelson-".to_owned() } else { format!("keelson-{cluster}-{host}-") };
        Self { prefix }
    }

    fn unit(&self, name: &str) -> String {
        format!("{}{name}.service", self.prefix)
    }

    pub fn is_running(&self, name: &str) -> bool {
        command::run("systemctl", ["is-active", "--quiet", &self.unit(name)]).is_ok()
    }

    /// Writes the unit and starts it, unless it runs. Returns whether it was started.
    pub fn start(&self, process: &Process, log: &Path) -> Result<bool, UnitError> {
        if self.is_running(&process.name) {
            return Ok(false);
        }
        let unit = self.unit(&process.name);
        let path = Path::new(UNITS).join(&unit);
        fs::write(&path, text(process, log)).map_err(|source| UnitError::Write { path, source })?;
        command::run("systemctl", ["daemon-reload"])?;
        command::run("systemctl", ["enable", "--quiet", &unit])?;
        command::run("systemctl", ["start", &unit])?;
        Ok(true)
    }

    /// Stops the unit and removes it. One that does not exist is no error.
    pub fn stop(&self, name: &str) -> Result<(), UnitError> {
        let unit = self.unit(name);
        let path = Path::new(UNITS).join(&unit);
        if !path.exists() {
            return Ok(());
        }
        command::run("systemctl", ["disable", "--quiet", "--now", &unit])?;
        fs::remove_file(&path).map_err(|source| UnitError::Write { path, source })?;
        command::run("systemctl", ["daemon-reload"])?;
        Ok(())
    }

    /// Names of the processes that have a unit.
    pub fn known(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(UNITS) else { return Vec::new() };
        let files = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let name = |file: String| Some(file.strip_prefix(&self.prefix)?.strip_suffix(".service")?.to_owned());
        // The short prefix is also how units of other clusters begin; only a daemon's name is ours.
        files.filter_map(name).filter(|name| DAEMONS.contains(&name.as_str())).collect()
    }
}

fn text(process: &Process, log: &Path) -> String {
    let command: Vec<String> = process.command.iter().map(|word| quoted(word)).collect();
    // containerd's shims and the pods outlive a restart of their daemon.
    format!(
        "[Unit]\n\
         Description=Keelson {name}\n\
         After=network-online.target\n\
         Wants=network-online.target\n\
         StartLimitIntervalSec=0\n\n\
         [Service]\n\
         ExecStart={command}\n\
         Restart=always\n\
         RestartSec=1\n\
         KillMode=process\n\
         Delegate=yes\n\
         LimitNOFILE=1048576\n\
         StandardOutput=append:{log}\n\
         StandardError=inherit\n\n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        name = process.name,
        command = command.join(" "),
        log = log.display(),
    )
}

/// A word of ExecStart: systemd expands `%` and `$`, and splits at spaces.
fn quoted(word: &str) -> String {
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_unit_are_taken_literally() {
        let process = Process {
            name: "kubelet".into(),
            command: vec!["/bin/kubelet".into(), "--root-dir=/a b/100%$HOME".into()],
        };
        let text = text(&process, Path::new("/var/log/kubelet.log"));
        assert!(text.contains("ExecStart=\"/bin/kubelet\" \"--root-dir=/a b/100%%$$HOME\"\n"), "{text}");
    }

    #[test]
    fn only_the_clusters_own_units_are_named() {
        assert_eq!(Units::new("keelson", "host").unit("kubelet"), "keelson-kubelet.service");
        assert_eq!(
            Units::new("1234abcd", "node-1").unit("kubelet"),
            "keelson-1234abcd-node-1-kubelet.service"
        );
    }
}
