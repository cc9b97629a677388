//! raft-rs logs through slog; this drain hands its lines to tracing.

use std::fmt::Write as _;

use slog::{Drain, KV as _, Level, Logger, Never, OwnedKVList, Record, o};

struct Tracing;

struct Fields(String);

impl slog::Serializer for Fields {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(|_| slog::Error::Other)
    }
}

impl Drain for Tracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        // raft-rs is chatty at "info": role changes are logged by the node, in the store's words.
        let wanted = match record.level() {
            Level::Critical | Level::Error => tracing::enabled!(target: "raft", tracing::Level::ERROR),
            Level::Warning => tracing::enabled!(target: "raft", tracing::Level::WARN),
            _ => tracing::enabled!(target: "raft", tracing::Level::TRACE),
        };
        if !wanted {
            return Ok(());
        }
        let mut fields = Fields(String::new());
        if record.kv().serialize(record, &mut fields).is_err() {
            fields.0.push_str(" (fields left out)");
        }
        let (message, fields) = (record.msg(), fields.0);
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{message}{fields}"),
            Level::Warning => tracing::warn!(target: "raft", "{message}{fields}"),
            _ => tracing::trace!(target: "raft", "{message}{fields}"),
        }
        Ok(())
    }
}

pub(crate) fn logger() -> Logger {
    Logger::root(Tracing, o!())
}
