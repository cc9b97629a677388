//! The machine's own cluster as units, where systemd is the first process.
//!
//! Only the cluster at the default root has units: every other one lives in network namespaces, which
//! do not outlive a reboot. Invariant: a unit's name starts with the prefix of ours and ends with a
//! daemon's name, so that stopping the cluster never touches anybody else's units.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::command::{self, CommandError};
use crate::supervisor::Process;

const UNITS: &str = "/etc/systemd/system";
const PREFIX: &str = "keelson-";

/// Stands for the pods of the machine: it has no process, but is stopped when the machine is.
pub const PODS: &str = "pods";

/// Every unit that the machine may have.
const NAMES: [&str; 9] = [
    "kube-store",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "containerd",
    "kubelet",
    "kube-proxy",
    "keelson-network",
    PODS,
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

/// The unit of a daemon: keelson-kubelet.service, and not keelson-keelson-network.service.
pub fn unit(name: &str) -> String {
    format!("{PREFIX}{}.service", name.strip_prefix(PREFIX).unwrap_or(name))
}

pub fn is_running(name: &str) -> bool {
    command::run("systemctl", ["is-active", "--quiet", &unit(name)]).is_ok()
}

/// Writes a daemon's unit and starts it, unless it runs as it should. Returns whether it was started.
pub fn start(process: &Process, oom_score_is_restricted: bool) -> Result<bool, UnitError> {
    // What runs with other arguments (the machine has another address), or from a program that was
    // built anew, is started again.
    let text = daemon(process, oom_score_is_restricted);
    ensure(&process.name, &text, program_is_replaced(&process.name), "restart")
}

/// Has `stop` run when the machine goes down, after the kubelet and before the runtime end.
pub fn stop_pods_with_the_machine(stop: &[String]) -> Result<bool, UnitError> {
    // Not restarted when it reads otherwise: that would stop the pods.
    ensure(PODS, &pods(stop), false, "start")
}

fn ensure(name: &str, text: &str, replaced: bool, verb: &str) -> Result<bool, UnitError> {
    let unit = unit(name);
    let path = Path::new(UNITS).join(&unit);
    let same = fs::read_to_string(&path).is_ok_and(|old| old == text);
    if same && !replaced && is_running(name) {
        return Ok(false);
    }
    fs::write(&path, text).map_err(|source| UnitError::Write { path, source })?;
    command::run("systemctl", ["daemon-reload"])?;
    command::run("systemctl", ["enable", "--quiet", &unit])?;
    command::run("systemctl", [verb, &unit])?;
    Ok(true)
}

/// Whether the file that the daemon was started from is not there any more.
fn program_is_replaced(name: &str) -> bool {
    let Ok(pid) = command::run("systemctl", ["show", "--property=MainPID", "--value", &unit(name)]) else {
        return false;
    };
    let program = fs::read_link(format!("/proc/{}/exe", pid.trim()));
    program.is_ok_and(|path| path.to_string_lossy().ends_with(" (deleted)"))
}

/// Stops the unit and removes it. One that does not exist is no error.
pub fn stop(name: &str) -> Result<(), UnitError> {
    let unit = unit(name);
    let path = Path::new(UNITS).join(&unit);
    if !path.exists() {
        return Ok(());
    }
    command::run("systemctl", ["disable", "--quiet", "--now", &unit])?;
    fs::remove_file(&path).map_err(|source| UnitError::Write { path, source })?;
    command::run("systemctl", ["daemon-reload"])?;
    // A unit that failed last is remembered without its file.
    let _ = command::run("systemctl", ["reset-failed", "--quiet", &unit]);
    Ok(())
}

/// Names of the processes that have a unit.
pub fn known() -> Vec<String> {
    let there = |name: &&str| Path::new(UNITS).join(unit(name)).exists();
    NAMES.into_iter().filter(there).map(str::to_owned).collect()
}

fn daemon(process: &Process, oom_score_is_restricted: bool) -> String {
    // The runtime's shims and the pods outlive a restart of their daemon, and count as its tasks. The
    // kernel takes a pod before a daemon, as upstream has it; a container that runs systemd may not
    // ask for that.
    let score = if oom_score_is_restricted { "" } else { "OOMScoreAdjust=-999\n" };
    // Stopped before what it needs is: first the kubelet, then the pods, then the runtime.
    let after = match process.name.as_str() {
        "kubelet" => format!(" {}", unit(PODS)),
        _ => String::new(),
    };
    format!(
        "[Unit]\n\
         Description=Keelson {name}\n\
         After=network-online.target{after}\n\
         Wants=network-online.target\n\
         StartLimitIntervalSec=0\n\n\
         [Service]\n\
         ExecStart={command}\n\
         SyslogIdentifier={name}\n\
         Restart=always\n\
         RestartSec=1\n\
         KillMode=process\n\
         Delegate=yes\n\
         LimitNOFILE=1048576\n\
         TasksMax=infinity\n\
         {score}\n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        name = process.name,
        command = line(&process.command),
    )
}

fn pods(stop: &[String]) -> String {
    format!(
        "[Unit]\n\
         Description=Keelson pods\n\
         After={runtime}\n\n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStart=/bin/true\n\
         ExecStop={stop}\n\
         SyslogIdentifier=pods\n\
         TimeoutStopSec=60\n\n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        runtime = unit("containerd"),
        stop = line(stop),
    )
}

fn line(command: &[String]) -> String {
    command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A word of ExecStart: systemd expands `%` and `$`, and splits at spaces.
fn quoted(word: &str) -> String {
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubelet() -> Process {
        Process {
            name: "kubelet".into(),
            command: vec!["/bin/kubelet".into(), "--root-dir=/a b/100%$HOME".into()],
        }
    }

    #[test]
    fn words_of_a_unit_are_taken_literally() {
        let text = daemon(&kubelet(), false);
        assert!(text.contains("ExecStart=\"/bin/kubelet\" \"--root-dir=/a b/100%%$$HOME\"\n"), "{text}");
    }

    #[test]
    fn a_score_is_asked_for_only_where_it_is_allowed() {
        assert!(daemon(&kubelet(), false).contains("\nOOMScoreAdjust=-999\n"));
        assert!(!daemon(&kubelet(), true).contains("OOMScoreAdjust"));
    }

    #[test]
    fn units_have_short_names() {
        assert_eq!(unit("kubelet"), "keelson-kubelet.service");
        assert_eq!(unit("keelson-network"), "keelson-network.service");
    }

    #[test]
    fn pods_end_after_the_kubelet_and_before_the_runtime() {
        let after = |text: &str| text.lines().find(|l| l.starts_with("After=")).unwrap().to_owned();
        assert!(after(&daemon(&kubelet(), false)).ends_with(" keelson-pods.service"));
        assert_eq!(after(&pods(&["/bin/stop".into()])), "After=keelson-containerd.service");
    }
}
