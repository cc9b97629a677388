//! Probes that run a command in the container.

use std::time::Duration;

use crate::runtime::Runtime;

/// What of a command's output goes into an event.
const OUTPUT_LIMIT: usize = 10 << 10;

/// Passes if the command exits with 0 in time.
pub async fn probe(runtime: &Runtime, id: &str, command: Vec<String>, limit: Duration) -> Result<(), String> {
    let shown = command.join(" ");
    let result = match runtime.exec_sync(id, command, limit).await {
        Ok(result) => result,
        Err(error) if error.code.0 == tonic::Code::DeadlineExceeded => {
            return Err(format!("command timed out: {shown:?} timed out after {}s", limit.as_secs()));
        }
        Err(error) => return Err(error.to_string()),
    };
    if result.exit_code == 0 {
        return Ok(());
    }
    let mut output = [result.stdout, result.stderr].concat();
    output.truncate(OUTPUT_LIMIT);
    Err(String::from_utf8_lossy(&output).into_owned())
}
