//! Health over plain HTTP, with etcd's paths, parameters and answers: `/health` for people and load balancers, `/livez`
//! and `/readyz` with their single checks for probes.
//!
//! Alarms are of `/health` alone: a member that is out of space is alive and serves reads, and no probe must end it.

use std::time::Duration;

use http::StatusCode;
use keelson_proto::etcd::etcdserverpb::{AlarmType, RangeRequest};

use crate::grpc::Server;

/// How long a linearizable read may take.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
}

const LIVEZ: &[Check] = &[Check::SerializableRead];
const READYZ: &[Check] = &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead];

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
        }
    }

    async fn run(self, server: &Server) -> Result<(), String> {
        match self {
            // What this member alone finds damaged ends its process.
            Check::DataCorruption => match server.state.alarms.read().any(AlarmType::Corrupt) {
                true => Err("alarm activated: CORRUPT".to_owned()),
                false => Ok(()),
            },
            Check::SerializableRead => read(server, true).await,
            Check::LinearizableRead => read(server, false).await,
        }
    }
}

/// Reads a key as a client would.
async fn read(server: &Server, serializable: bool) -> Result<(), String> {
    if !serializable {
        match tokio::time::timeout(PATIENCE, server.confirm()).await {
            Ok(answer) => answer.map_err(|status| status.message().to_owned())?,
            Err(_) => return Err("etcdserver: request timed out".to_owned()),
        }
    }
    let request = RangeRequest { key: vec![0].into(), limit: 1, keys_only: true, ..RangeRequest::default() };
    server.state.store.range(&request).map(|_| ()).map_err(|error| error.to_string())
}

/// The values of a parameter; an empty one for a parameter without a value.
fn values<'q>(query: &'q str, name: &str) -> impl Iterator<Item = &'q str> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter_map(move |(key, value)| (key == name).then_some(value))
}

/// The answer to a path of health; none if it is none of them.
pub async fn answer(server: &Server, path: &str, query: &str) -> Option<(StatusCode, String)> {
    if path == "/health" {
        let reason = ill(server, query).await;
        let health = serde_json::json!({ "health": reason.is_empty().to_string(), "reason": reason });
        return Some(match reason.is_empty() {
            true => (StatusCode::OK, health.to_string()),
            false => (StatusCode::SERVICE_UNAVAILABLE, format!("{health}\n")),
        });
    }
    let (checks, rest) = match path.strip_prefix("/livez") {
        Some(rest) => (LIVEZ, rest),
        None => (READYZ, path.strip_prefix("/readyz")?),
    };
    let chosen: Vec<Check> = match rest.strip_prefix('/') {
        Some(name) => vec![*checks.iter().find(|check| check.name() == name)?],
        None if !rest.is_empty() => return None,
        None => {
            let excluded = |check: &&Check| values(query, "exclude").any(|name| name == check.name());
            checks.iter().filter(|check| !excluded(check)).copied().collect()
        }
    };
    let (mut failed, mut lines) = (false, String::new());
    for check in chosen {
        let name = check.name();
        match check.run(server).await {
            Ok(()) => lines += &format!("[+]{name} ok\n"),
            Err(reason) => {
                failed = true;
                lines += &format!("[-]{name} failed: {reason}\n");
            }
        }
    }
    if failed {
        // As Go's http.Error ends it.
        return Some((StatusCode::SERVICE_UNAVAILABLE, lines + "\n"));
    }
    let verbose = values(query, "verbose").next().is_some();
    Some((StatusCode::OK, if verbose { lines + "ok\n" } else { "ok\n".to_owned() }))
}

/// Why `/health` says that this member is not; empty if it is.
async fn ill(server: &Server, query: &str) -> String {
    let serializable = values(query, "serializable").next() == Some("true");
    for alarm in server.alarms(AlarmType::None) {
        let name = alarm.alarm().as_str_name();
        if !values(query, "exclude").any(|excluded| excluded == name) {
            return format!("ALARM {name}");
        }
    }
    if !serializable && server.shared.leader() == 0 {
        return "RAFT NO LEADER".to_owned();
    }
    match read(server, serializable).await {
        Ok(()) => String::new(),
        Err(error) => format!("RANGE ERROR:{error}"),
    }
}
