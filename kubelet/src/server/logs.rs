//! `/containerLogs/<namespace>/<pod>/<container>`: a container's log, followed by inotify where that is asked.

use std::{
    io::SeekFrom,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use inotify::{Inotify, WatchMask};
use jiff::{SignedDuration, Timestamp};
use keelson_component_base::serve::Body;
use keelson_proto::cri;
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
    sync::mpsc,
};

use super::{
    Refusal, Server, bare_id,
    line::{Filter, Options},
    query,
};
use crate::runtime::Runtime;

const CHUNK: usize = 32 << 10;
/// A container that writes nothing is asked this often whether it still runs.
const STILL_RUNNING: Duration = Duration::from_millis(500);

/// Answers with the log as a stream.
pub async fn serve(server: Server, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let parts = query::segments(request.uri().path(), "/containerLogs/");
    let [namespace, pod, container] = parts.as_slice() else {
        return Err(Refusal::BadRequest(r#"{"message": "Missing podID or containerName."}"#.to_owned()));
    };
    let options = options(request.uri().query().unwrap_or_default(), Timestamp::now())?;
    let found = server.container(namespace, pod, None, container)?;
    let id = container_id(&found, pod, options.previous)?;
    let runtime = server.kubelet.runtime.clone();
    let status = runtime
        .container_status(cri::ContainerStatusRequest { container_id: id.clone(), verbose: false })
        .await
        .map_err(|error| {
            Refusal::NotFound(format!("unable to retrieve container logs for containerd://{id}: {error}"))
        })?;
    let path = PathBuf::from(status.status.map(|status| status.log_path).unwrap_or_default());
    let file = open(&path, options.tail).await.map_err(|error| {
        Refusal::Internal(format!("failed to try resolving symlinks in path {path:?}: {error}"))
    })?;
    let (sender, receiver) = mpsc::channel::<Bytes>(4);
    tokio::spawn(async move {
        if let Err(error) = send(file, &path, &id, options, &runtime, &sender).await {
            tracing::debug!(?path, %error, "sending a log");
        }
    });
    let frames = tokio_stream::wrappers::ReceiverStream::new(receiver)
        .map(|bytes| Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Frame::data(bytes)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    Ok(response)
}

fn options(text: &str, now: Timestamp) -> Result<Options, Refusal> {
    let pairs = query::pairs(text);
    let invalid = |name: &str, value: &str| {
        Refusal::BadRequest(format!("{{\"message\": \"invalid {name} {value:?}\"}}"))
    };
    let number = |name: &str, least: u64| -> Result<Option<u64>, Refusal> {
        match query::value(&pairs, name) {
            None => Ok(None),
            Some(value) => match value.parse::<u64>() {
                Ok(number) if number >= least => Ok(Some(number)),
                _ => Err(invalid(name, value)),
            },
        }
    };
    let since_time = match query::value(&pairs, "sinceTime") {
        None => None,
        Some(value) => Some(value.parse::<Timestamp>().map_err(|_| invalid("sinceTime", value))?),
    };
    let since_seconds = number("sinceSeconds", 1)?;
    if since_time.is_some() && since_seconds.is_some() {
        return Err(Refusal::BadRequest(
            "at most one of `sinceTime` or `sinceSeconds` may be specified".to_owned(),
        ));
    }
    let ago = since_seconds
        .and_then(|seconds| i64::try_from(seconds).ok())
        .and_then(|seconds| now.checked_sub(SignedDuration::from_secs(seconds)).ok());
    let stream = match query::value(&pairs, "stream") {
        None | Some("" | "All") => None,
        Some("Stdout") => Some("stdout"),
        Some("Stderr") => Some("stderr"),
        Some(other) => return Err(invalid("stream", other)),
    };
    Ok(Options {
        follow: query::flag(&pairs, "follow"),
        previous: query::flag(&pairs, "previous"),
        timestamps: query::flag(&pairs, "timestamps"),
        tail: match query::value(&pairs, "tailLines") {
            Some("all") => None,
            _ => number("tailLines", 0)?,
        },
        limit: number("limitBytes", 1)?,
        since: since_time.or(ago),
        stream,
    })
}

/// The container whose log is meant; the sentences are upstream's.
fn container_id(
    status: &k8s_openapi::api::core::v1::ContainerStatus,
    pod: &str,
    previous: bool,
) -> Result<String, Refusal> {
    let name = &status.name;
    let state = status.state.clone().unwrap_or_default();
    let last = status.last_state.as_ref().and_then(|state| state.terminated.clone());
    let ended = |terminated: Option<k8s_openapi::api::core::v1::ContainerStateTerminated>| {
        terminated.and_then(|terminated| terminated.container_id).filter(|id| !id.is_empty())
    };
    if previous {
        return ended(last).map(|id| bare_id(&id).to_owned()).ok_or_else(|| {
            Refusal::BadRequest(format!("previous terminated container {name:?} in pod {pod:?} not found"))
        });
    }
    let current = status.container_id.clone().filter(|id| !id.is_empty());
    let id = if state.running.is_some() {
        current
    } else if state.terminated.is_some() {
        ended(state.terminated).or(current)
    } else if let Some(id) = ended(last) {
        Some(id)
    } else {
        let reason = state.waiting.and_then(|waiting| waiting.reason).unwrap_or_default();
        let why = match reason.as_str() {
            "ErrImagePull" => {
                format!("container {name:?} in pod {pod:?} is waiting to start: image can't be pulled")
            }
            "ImagePullBackOff" => {
                format!(
                    "container {name:?} in pod {pod:?} is waiting to start: trying and failing to pull image"
                )
            }
            reason => format!("container {name:?} in pod {pod:?} is waiting to start: {reason}"),
        };
        return Err(Refusal::BadRequest(why));
    };
    id.map(|id| bare_id(&id).to_owned())
        .ok_or_else(|| Refusal::BadRequest(format!("container {name:?} in pod {pod:?} is not available")))
}

/// Opens the log at the first of its last `tail` lines.
async fn open(path: &Path, tail: Option<u64>) -> std::io::Result<File> {
    let mut file = File::open(path).await?;
    if let Some(lines) = tail {
        let start = tail_start(&mut file, lines).await?;
        file.seek(SeekFrom::Start(start)).await?;
    }
    Ok(file)
}

async fn tail_start(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let end = file.metadata().await?.len();
    if lines == 0 {
        return Ok(end);
    }
    let (mut at, mut newlines, mut buffer) = (end, 0, vec![0; CHUNK]);
    while at > 0 {
        let length = usize::try_from(at).unwrap_or(usize::MAX).min(CHUNK);
        at -= u64::try_from(length).unwrap_or(0);
        file.seek(SeekFrom::Start(at)).await?;
        let Some(chunk) = buffer.get_mut(..length) else { break };
        file.read_exact(chunk).await?;
        for (index, byte) in chunk.iter().enumerate().rev() {
            let position = at + u64::try_from(index).unwrap_or(0);
            // The newline that ends the last line starts none.
            if *byte == b'\n' && position + 1 < end {
                newlines += 1;
                if newlines == lines {
                    return Ok(position + 1);
                }
            }
        }
    }
    Ok(0)
}

async fn send(
    mut file: File,
    path: &Path,
    id: &str,
    options: Options,
    runtime: &Runtime,
    to: &mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    let follow = options.follow;
    let mut changes = if follow { Some(watch(path)?) } else { None };
    let (mut filter, mut pending) = (Filter::new(options), BytesMut::with_capacity(CHUNK));
    let (mut last_look, mut successor) = (false, None);
    loop {
        pending.reserve(CHUNK);
        if file.read_buf(&mut pending).await? > 0 {
            let mut out = Vec::new();
            let go_on = take_lines(&mut pending, &mut filter, &mut out);
            if !out.is_empty() && to.send(Bytes::from(out)).await.is_err() {
                return Ok(());
            }
            if !go_on {
                return Ok(());
            }
            continue;
        }
        let Some(changes) = &mut changes else { return Ok(()) };
        // The file was rotated, and what was written to it before that has been read.
        if let Some(next) = successor.take() {
            file = next;
            continue;
        }
        if let Some(next) = rotated(path, &file).await {
            // Once there is a successor nothing more is written to this one: it is read to its end first.
            successor = Some(next);
            continue;
        }
        if last_look {
            return Ok(());
        }
        let waited = tokio::select! {
            change = changes.next() => change.is_some(),
            () = tokio::time::sleep(STILL_RUNNING) => false,
            () = to.closed() => return Ok(()),
        };
        if !waited {
            last_look = !running(runtime, id).await;
        }
    }
}

/// The file that has taken this one's name, if one has.
async fn rotated(path: &Path, current: &File) -> Option<File> {
    let next = File::open(path).await.ok()?;
    let (new, ours) = (next.metadata().await.ok()?, current.metadata().await.ok()?);
    (new.ino() != ours.ino()).then_some(next)
}

fn take_lines(pending: &mut BytesMut, filter: &mut Filter, out: &mut Vec<u8>) -> bool {
    while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
        let line = pending.split_to(end + 1);
        if !filter.push(line.get(..end).unwrap_or_default(), out) {
            return false;
        }
    }
    true
}

/// Changes in the log's directory, where rotation can be seen too.
fn watch(path: &Path) -> std::io::Result<inotify::EventStream<[u8; 4096]>> {
    let inotify = Inotify::init()?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    inotify.watches().add(directory, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO)?;
    inotify.into_event_stream([0; 4096])
}

async fn running(runtime: &Runtime, id: &str) -> bool {
    let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    match runtime.container_status(request).await {
        Ok(response) => {
            response.status.is_some_and(|status| status.state() == cri::ContainerState::ContainerRunning)
        }
        Err(error) => !error.is_not_found(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let check =
            |text: &str, expected: Option<Options>| assert_eq!(options(text, now).ok(), expected, "{text}");
        check("", Some(Options::default()));
        let tail = Options { follow: true, tail: Some(0), ..Options::default() };
        check("follow=true&tailLines=0", Some(tail));
        let since = Some("2026-01-01T00:00:50Z".parse().unwrap());
        check("sinceSeconds=10", Some(Options { since, ..Options::default() }));
        check("tailLines=-1", None);
        check("limitBytes=0", None);
        check("sinceTime=yesterday", None);
        check("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", None);
    }

    #[tokio::test]
    async fn a_rotated_log_has_a_successor_once_the_runtime_wrote_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, "old").unwrap();
        let current = open(&path, None).await.unwrap();
        assert!(rotated(&path, &current).await.is_none());
        std::fs::rename(&path, directory.path().join("log.1")).unwrap();
        assert!(rotated(&path, &current).await.is_none());
        std::fs::write(&path, "new").unwrap();
        let mut text = String::new();
        rotated(&path, &current).await.unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "new");
    }

    #[tokio::test]
    async fn tails() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let line = format!("{}\n", "x".repeat(20_000));
        std::fs::write(&path, format!("a\n{line}{line}{line}b\nc\n")).unwrap();
        let check = async |lines: u64, expected: usize| {
            let mut text = String::new();
            open(&path, Some(lines)).await.unwrap().read_to_string(&mut text).await.unwrap();
            assert_eq!(text.lines().count(), expected, "{lines}");
        };
        check(0, 0).await;
        check(1, 1).await;
        check(3, 3).await;
        check(6, 6).await;
        check(99, 6).await;
    }
}
