//! Running the machine's own tools (`ip`, `ctr`, `kubectl`, `nft`) and saying what failed.

use std::process::{Command, Stdio};

/// A tool that could not be run, or that failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("cannot run {program}")]
    Start { program: String, source: std::io::Error },
    #[error("`{line}` failed ({status}): {message}")]
    Failed { line: String, status: std::process::ExitStatus, message: String },
}

/// Runs `program` with `arguments` and returns what it printed.
pub fn run<I, S>(program: &str, arguments: I) -> Result<String, CommandError>
where
    I: IntoIterator<Item = S>,
    S: AsRef<std::ffi::OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output =
        command.output().map_err(|source| CommandError::Start { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    Err(CommandError::Failed {
        line: format!("{program} {}", arguments.join(" ")),
        status: output.status,
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Runs a whole line of words without spaces in them: `ip("link set lo up")`.
pub fn ip(line: &str) -> Result<String, CommandError> {
    run("ip", line.split_whitespace())
}
