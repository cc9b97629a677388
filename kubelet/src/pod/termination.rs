//! Messages that containers leave when they end: from the termination file, or the end of the log.

use std::{
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use crate::runtime::{
    names,
    observe::{Container, State},
};

/// Upstream's limits: of the file, and of what is taken from the log.
const MAX_FILE: u64 = 4096;
const MAX_LOG_BYTES: usize = 2048;
const MAX_LOG_LINES: usize = 80;
/// Enough of the log's end to find that many lines in.
const LOG_WINDOW: u64 = 64 << 10;

/// The host's file behind the container's terminationMessagePath.
pub fn file(container_directory: &Path, restart_count: u32) -> PathBuf {
    container_directory.join(format!("termination-{restart_count}"))
}

/// Makes an empty file that any user of the container may write to.
pub fn prepare(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, b"")?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
}

/// The message of a container that ended; empty if it left none.
pub fn message(container: &Container, container_directory: &Path) -> String {
    let State::Exited { exit_code, reason, message, .. } = &container.state else { return String::new() };
    let own = read(&file(container_directory, container.restart_count), MAX_FILE).unwrap_or_default();
    let policy = container.annotations.get(names::TERMINATION_POLICY).map(String::as_str);
    let mut text = String::from_utf8_lossy(&own).into_owned();
    let failed = *exit_code != 0 || reason == "OOMKilled" || reason == "ContainerCannotRun";
    if text.is_empty() && failed && policy == Some("FallbackToLogsOnError") {
        text = log_end(Path::new(&container.log_path)).unwrap_or_default();
    }
    match (message.is_empty(), text.is_empty()) {
        (true, _) => text,
        (false, true) => message.clone(),
        (false, false) => format!("{message}: {text}"),
    }
}

fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn log_end(path: &Path) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_WINDOW)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.len().saturating_sub(MAX_LOG_LINES);
    let mut message = String::new();
    for line in lines.get(last..).unwrap_or_default() {
        // <time> <stream> <tags> <text>; only a line's last part ends with a newline.
        let mut fields = line.splitn(4, ' ').skip(2);
        let (tag, content) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        message.push_str(content);
        if tag.starts_with('F') {
            message.push('\n');
        }
    }
    let mut cut = message.len().saturating_sub(MAX_LOG_BYTES);
    while !message.is_char_boundary(cut) {
        cut += 1;
    }
    Ok(message.split_off(cut))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn file_first_then_log() {
        let check = |file_text: &str, policy: &str, exit_code: i32, expected: &str| {
            let directory = tempfile::tempdir().unwrap();
            let log = directory.path().join("0.log");
            std::fs::write(&log, "t stdout F one\nt stderr P tw\nt stderr F o\n").unwrap();
            std::fs::write(file(directory.path(), 0), file_text).unwrap();
            let container = Container {
                id: "i".into(),
                name: "c".into(),
                hash: String::new(),
                image: String::new(),
                image_id: String::new(),
                restart_count: 0,
                sandbox_id: String::new(),
                created_at: 0,
                state: State::Exited {
                    started_at: 0,
                    finished_at: 0,
                    exit_code,
                    reason: "Error".into(),
                    message: String::new(),
                },
                annotations: HashMap::from([(names::TERMINATION_POLICY.to_owned(), policy.to_owned())]),
                log_path: log.to_string_lossy().into_owned(),
                user: None,
            };
            assert_eq!(message(&container, directory.path()), expected);
        };
        check("bye", "File", 1, "bye");
        check("", "File", 1, "");
        check("", "FallbackToLogsOnError", 1, "one\ntwo\n");
        check("", "FallbackToLogsOnError", 0, "");
        check("bye", "FallbackToLogsOnError", 1, "bye");
    }
}
