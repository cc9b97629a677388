//! Background processes with a pid file and a log file each, for machines without systemd.
//!
//! Every daemon has a supervisor of its own: a process in its own session that starts the daemon,
//! starts it again with a growing delay when it ends, and passes SIGTERM on. `<name>.pid` has the daemon's pid,
//! for people; `<name>.supervisor` the supervisor's, which is what we go by. Invariants: it is trusted only if the
//! process it names is a supervisor of that name, so that a stale file never makes us signal a stranger; and a
//! daemon ends with its supervisor, so that none runs that nobody knows of.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tokio::signal::unix;

use crate::layout::HostLayout;

/// First pause before a daemon that ended is started again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A daemon that ran for this long is taken to be well: its next pause is the first again.
const WELL_AFTER: Duration = Duration::from_secs(30);
/// How long a daemon may take to end before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// A process to keep running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// Why a supervised process could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("cannot prepare {path}")]
    Prepare { path: PathBuf, source: io::Error },
    #[error("cannot start the supervisor of {name}")]
    Start { name: String, source: io::Error },
    #[error("cannot signal the supervisor of {name} (pid {pid})")]
    Signal { name: String, pid: i32, source: Errno },
    #[error("{name} (pid {pid}) did not end within {} s of SIGTERM", STOP_TIMEOUT.as_secs() + 5)]
    StillRunning { name: String, pid: i32 },
}

/// How the names of the files with supervisors' pids end.
const SUPERVISOR: &str = "supervisor";

fn supervisor_file(host: &HostLayout, name: &str) -> PathBuf {
    host.run().join(format!("{name}.{SUPERVISOR}"))
}

/// The file with the daemon's pid, beside that with its supervisor's.
fn pid_file(supervisor_file: &Path) -> PathBuf {
    supervisor_file.with_extension("pid")
}

pub fn log_file(host: &HostLayout, name: &str) -> PathBuf {
    host.logs().join(format!("{name}.log"))
}

/// The pid of the running supervisor of `name`, if there is one.
pub fn running(host: &HostLayout, name: &str) -> Option<Pid> {
    let path = supervisor_file(host, name);
    let pid: i32 = fs::read_to_string(&path).ok()?.trim().parse().ok()?;
    let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let ours =
        words.contains(&b"supervise".as_slice()) && words.contains(&path.as_os_str().as_encoded_bytes());
    ours.then(|| Pid::from_raw(pid))
}

/// The pid of the process that the supervisor of `name` keeps running; none between an end and the
/// next start.
pub fn daemon(host: &HostLayout, name: &str) -> Option<Pid> {
    let supervisor = running(host, name)?;
    // The supervisor has one thread, and one child.
    let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
}

/// Starts a supervisor for `process` unless one runs already. `supervisor` is the program that
/// has the `supervise` subcommand (this crate's own binary). Returns whether it was started.
pub fn start(supervisor: &Path, host: &HostLayout, process: &Process) -> Result<bool, SupervisorError> {
    if running(host, &process.name).is_some() {
        return Ok(false);
    }
    for directory in [host.run(), host.logs()] {
        fs::create_dir_all(&directory)
            .map_err(|source| SupervisorError::Prepare { path: directory, source })?;
    }
    let supervisor_file = supervisor_file(host, &process.name);
    let log = log_file(host, &process.name);
    let log_error = |source| SupervisorError::Prepare { path: log.clone(), source };
    let output = File::options().create(true).append(true).open(&log).map_err(log_error)?;
    let mut command = Command::new(supervisor);
    command
        .args(["supervise", "--file"])
        .arg(&supervisor_file)
        .arg("--")
        .args(&process.command)
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(log_error)?)
        .stderr(output)
        .current_dir("/");
    detach(&mut command);
    let start_error = |source| SupervisorError::Start { name: process.name.clone(), source };
    let child = command.spawn().map_err(start_error)?;
    fs::write(&supervisor_file, child.id().to_string())
        .map_err(|source| SupervisorError::Prepare { path: supervisor_file, source })?;
    Ok(true)
}

/// Puts the child into a session of its own, so that it outlives the terminal.
#[allow(unsafe_code, reason = "Command::pre_exec is the only way to call setsid in the child")]
fn detach(command: &mut Command) {
    // SAFETY: setsid is async-signal-safe and touches no memory of the parent.
    unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from)) };
}

/// Stops `name` and waits until it is gone. Not running is no error.
pub fn stop(host: &HostLayout, name: &str) -> Result<(), SupervisorError> {
    let Some(pid) = running(host, name) else {
        remove_files(host, name);
        return Ok(());
    };
    match signal::kill(pid, Signal::SIGTERM) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(source) => {
            return Err(SupervisorError::Signal { name: name.to_owned(), pid: pid.as_raw(), source });
        }
    }
    let deadline = Instant::now() + STOP_TIMEOUT + Duration::from_secs(5);
    while running(host, name).is_some() {
        if Instant::now() > deadline {
            return Err(SupervisorError::StillRunning { name: name.to_owned(), pid: pid.as_raw() });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    remove_files(host, name);
    Ok(())
}

/// What is not there need not be removed, and what cannot be is not trusted anyway.
fn remove_files(host: &HostLayout, name: &str) {
    let file = supervisor_file(host, name);
    let _ = fs::remove_file(pid_file(&file));
    let _ = fs::remove_file(file);
}

/// The names of all processes that have a supervisor's file on this host.
pub fn known(host: &HostLayout) -> Vec<String> {
    let Ok(entries) = fs::read_dir(host.run()) else { return Vec::new() };
    let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
    names.filter_map(|n| n.strip_suffix(SUPERVISOR)?.strip_suffix('.').map(str::to_owned)).collect()
}

/// The body of the `supervise` subcommand: runs `command` until told to stop. `file`: where this supervisor's pid is.
pub async fn supervise(file: &Path, command: &[String]) -> io::Result<()> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no command to supervise"));
    };
    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    let mut interrupt = unix::signal(unix::SignalKind::interrupt())?;
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let mut daemon = tokio::process::Command::new(program);
        daemon.args(arguments).stdin(Stdio::null());
        end_with_this_process(&mut daemon);
        let mut child = daemon.spawn()?;
        if let Some(pid) = child.id()
            && let Err(error) = fs::write(pid_file(file), pid.to_string())
        {
            eprintln!("supervisor: cannot write the pid of {program}: {error}");
        }
        let status = tokio::select! {
            status = child.wait() => status?,
            _ = terminate.recv() => return end(&mut child).await,
            _ = interrupt.recv() => return end(&mut child).await,
        };
        if started.elapsed() > WELL_AFTER {
            pause = FIRST_PAUSE;
        }
        eprintln!("supervisor: {program} ended with {status}; starting it again in {} ms", pause.as_millis());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Has the kernel kill the daemon when its supervisor is killed: another would be started beside it, and `down` would
/// not know of it. (It is the end of the thread that counts: `supervise` runs on the main thread alone.)
#[allow(unsafe_code, reason = "Command::pre_exec is the only way to call prctl in the child")]
fn end_with_this_process(command: &mut tokio::process::Command) {
    let supervisor = nix::unistd::getpid();
    let bind = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // It may have ended before.
        if nix::unistd::getppid() == supervisor { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: prctl and getppid are async-signal-safe and touch no memory of the parent.
    unsafe { command.pre_exec(bind) };
}

/// Asks the child to end, and kills it if it does not.
async fn end(child: &mut tokio::process::Child) -> io::Result<()> {
    if let Some(pid) = child.id() {
        // The child is not collected yet, so its pid cannot be a stranger's.
        let _ = signal::kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
    }
    match tokio::time::timeout(STOP_TIMEOUT, child.wait()).await {
        Ok(status) => status.map(drop),
        Err(_) => child.kill().await,
    }
}
