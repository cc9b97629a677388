//! Creates, gets, lists and watches of ConfigMaps in a namespace of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use keelson_client::raw;
use kube::client::Client;
use serde_json::{Value, json};

use super::stats::Latencies;
use super::{BenchError, Row, Section};

const LISTS: usize = 15;
const JSON: Option<&str> = Some("application/json");

/// How much of everything.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Objects that are created, got and listed.
    pub objects: usize,
    /// Requests at a time.
    pub concurrency: usize,
    pub watchers: usize,
    /// Writes that each watcher is told of.
    pub writes: usize,
}

/// Makes a namespace, measures in it, and deletes it.
pub async fn run(client: &Client, plan: &Plan) -> Result<Section, BenchError> {
    let namespace = format!("keelson-bench-{}", std::process::id());
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    call(client, Method::POST, "/api/v1/namespaces", &object).await?;
    let measured = measure(client, plan, &format!("/api/v1/namespaces/{namespace}/configmaps")).await;
    // Also after a failure; the first error is the one to tell.
    let deleted = call(client, Method::DELETE, &format!("/api/v1/namespaces/{namespace}"), &json!({})).await;
    let rows = measured?;
    deleted?;
    Ok(Section { title: "API server".to_owned(), peer: None, rows })
}

async fn measure(client: &Client, plan: &Plan, all: &str) -> Result<Vec<Row>, BenchError> {
    let Plan { objects, concurrency, .. } = *plan;
    let mut rows = Vec::new();
    let mut requests = |what: &str, (rate, mut latencies): (f64, Latencies)| {
        let what = format!("{what} × {objects}, {concurrency} at a time");
        rows.push(Row::new(what.clone(), "1/s", rate));
        rows.push(Row::new(format!("{what}, p50"), "ms", latencies.percentile(50)));
        rows.push(Row::new(format!("{what}, p99"), "ms", latencies.percentile(99)));
    };
    let path = all.to_owned();
    let created = load(client, objects, concurrency, move |client, number| {
        let path = path.clone();
        async move { call(&client, Method::POST, &path, &config_map(number)).await.map(drop) }
    });
    requests("create", created.await?);
    let path = all.to_owned();
    let got = load(client, objects, concurrency, move |client, number| {
        let path = format!("{path}/{}", name(number));
        async move { raw::get(&client, &path).await.map(drop).map_err(BenchError::from) }
    });
    requests("get", got.await?);

    for (what, query) in
        [("consistent", ""), ("from the cache", "?resourceVersion=0"), ("in pages of 500", "?limit=500")]
    {
        let mut latencies = Latencies::default();
        let mut bytes = 0;
        for _ in 0..LISTS {
            let started = Instant::now();
            bytes = list(client, all, query).await?;
            latencies.push(started.elapsed());
        }
        let what = format!("list of {objects}, {what}");
        if query.is_empty() {
            rows.push(Row::new(format!("{what}, size"), "MiB", bytes as f64 / f64::from(1 << 20)));
        }
        rows.push(Row::new(format!("{what}, p50"), "ms", latencies.percentile(50)));
        rows.push(Row::new(format!("{what}, p99"), "ms", latencies.percentile(99)));
    }
    rows.extend(fan_out(client, plan, all).await?);
    Ok(rows)
}

fn name(number: usize) -> String {
    format!("object-{number:06}")
}

fn config_map(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name(number), "labels": {"app": "bench", "number": number.to_string()}},
        "data": {"text": "x".repeat(512)},
    })
}

/// Sends JSON and reads the whole answer.
pub async fn call(client: &Client, method: Method, path: &str, body: &Value) -> Result<Bytes, BenchError> {
    let response = raw::stream(client, method, path, JSON, body.to_string()).await?;
    Ok(response.into_body().collect().await?.to_bytes())
}

/// Reads a list, page by page where it has more than one; its size in bytes.
async fn list(client: &Client, all: &str, query: &str) -> Result<usize, BenchError> {
    let mut bytes = 0;
    let mut next = String::new();
    loop {
        let path =
            if next.is_empty() { format!("{all}{query}") } else { format!("{all}{query}&continue={next}") };
        let page = raw::get(client, &path).await?;
        bytes += page.len();
        // The list's metadata comes before its items; reading the page as JSON would measure us.
        let head = String::from_utf8_lossy(&page[..page.len().min(1024)]);
        next = head
            .split_once("\"continue\":\"")
            .and_then(|(_, rest)| rest.split_once('"'))
            .map(|(token, _)| token.to_owned())
            .unwrap_or_default();
        if next.is_empty() {
            return Ok(bytes);
        }
    }
}

/// `concurrency` tasks that together make `requests` requests; requests per second and latencies.
async fn load<F, Fut>(
    client: &Client,
    requests: usize,
    concurrency: usize,
    ask: F,
) -> Result<(f64, Latencies), BenchError>
where
    F: Fn(Client, usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<(), BenchError>> + Send,
{
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let tasks: Vec<_> = (0..concurrency)
        .map(|_| {
            let (next, ask, client) = (Arc::clone(&next), ask.clone(), client.clone());
            tokio::spawn(async move {
                let mut latencies = Latencies::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= requests {
                        return Ok::<_, BenchError>(latencies);
                    }
                    let asked = Instant::now();
                    ask(client.clone(), number).await?;
                    latencies.push(asked.elapsed());
                }
            })
        })
        .collect();
    let mut latencies = Latencies::default();
    for task in tasks {
        latencies.extend(task.await??);
    }
    Ok((requests as f64 / started.elapsed().as_secs_f64(), latencies))
}

/// Writes as fast as they are taken, each seen by every watcher.
async fn fan_out(client: &Client, plan: &Plan, all: &str) -> Result<Vec<Row>, BenchError> {
    let epoch = Instant::now();
    let mut watched = config_map(0);
    watched["metadata"]["name"] = json!("watched");
    let created: Value = serde_json::from_slice(&call(client, Method::POST, all, &watched).await?)
        .map_err(|error| BenchError::Unexpected(error.to_string()))?;
    let version = created["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let query = format!("{all}?watch=true&resourceVersion={version}&fieldSelector=metadata.name%3Dwatched");
    let writes = plan.writes;
    let mut watchers = Vec::new();
    for _ in 0..plan.watchers {
        let response = raw::stream(client, Method::GET, &query, None, Bytes::new()).await?;
        watchers.push(tokio::spawn(async move {
            let mut body = response.into_body();
            let mut latencies = Latencies::default();
            let mut line: Vec<u8> = Vec::new();
            while latencies.len() < writes {
                let Some(frame) = body.frame().await else { break };
                let Ok(data) = frame?.into_data() else { continue };
                for piece in data.split_inclusive(|byte| *byte == b'\n') {
                    line.extend_from_slice(piece);
                    if line.ends_with(b"\n") {
                        latencies.extend(since_sent(&line, epoch));
                        line.clear();
                    }
                }
            }
            Ok::<_, BenchError>(latencies)
        }));
    }
    let started = Instant::now();
    let path = format!("{all}/watched");
    for _ in 0..writes {
        let sent = epoch.elapsed().as_nanos().to_string();
        let patch = json!({"metadata": {"annotations": {"sent": sent}}}).to_string();
        raw::stream(client, Method::PATCH, &path, Some("application/merge-patch+json"), patch).await?;
    }
    let mut latencies = Latencies::default();
    for watcher in watchers {
        let received = tokio::time::timeout(Duration::from_secs(60), watcher).await.map_err(|_| {
            BenchError::Unexpected("a watcher did not get all events within 60 s".to_owned())
        })???;
        if received.len() < writes {
            return Err(BenchError::Unexpected(format!(
                "a watch ended after {} of {writes} events",
                received.len()
            )));
        }
        latencies.extend(received);
    }
    let events = latencies.len() as f64 / started.elapsed().as_secs_f64();
    let what = format!("{} watchers, {writes} writes", plan.watchers);
    Ok(vec![
        Row::new(format!("{what}, events"), "1/s", events),
        Row::new(format!("{what}, write to event p50"), "ms", latencies.percentile(50)),
        Row::new(format!("{what}, write to event p99"), "ms", latencies.percentile(99)),
    ])
}

/// The time since the write that an event tells of was sent, by the annotation that it carries.
fn since_sent(line: &[u8], epoch: Instant) -> Latencies {
    let mut latencies = Latencies::default();
    let text = String::from_utf8_lossy(line);
    let sent = text.split_once("\"sent\":\"").and_then(|(_, rest)| rest.split_once('"'));
    if let Some(nanoseconds) = sent.and_then(|(number, _)| number.parse().ok()) {
        latencies.push(epoch.elapsed().saturating_sub(Duration::from_nanos(nanoseconds)));
    }
    latencies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_without_a_time_do_not_count() {
        let epoch = Instant::now();
        let check = |line: &str, expected: usize| {
            assert_eq!(since_sent(line.as_bytes(), epoch).len(), expected, "{line}")
        };
        check(r#"{"type":"MODIFIED","object":{"metadata":{"annotations":{"sent":"12"}}}}"#, 1);
        check(r#"{"type":"BOOKMARK","object":{}}"#, 0);
        check(r#"{"annotations":{"sent":"soon"}}"#, 0);
    }
}
