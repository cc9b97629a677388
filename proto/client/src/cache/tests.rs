//! A scripted API server, and what a cache makes of it.

use std::time::Duration;

use super::*;
use crate::fake;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Hands each watch request its events, and records the requests.
#[derive(Clone)]
struct Server {
    watches: Arc<Mutex<std::collections::VecDeque<mpsc::UnboundedReceiver<Value>>>>,
    requests: Arc<Mutex<Vec<String>>>,
    /// Watches that are to go on are refused.
    expired: Arc<Mutex<bool>>,
    streaming_lists: bool,
}

impl Server {
    fn new(streaming_lists: bool) -> Self {
        Self { watches: Arc::default(), requests: Arc::default(), expired: Arc::default(), streaming_lists }
    }

    fn script(&self) -> mpsc::UnboundedSender<Value> {
        let (send, receive) = mpsc::unbounded_channel();
        self.watches.lock().push_back(receive);
        send
    }

    fn client(&self) -> kube::Client {
        let server = self.clone();
        fake::client(move |_, path, _| {
            server.requests.lock().push(path.to_owned());
            if path.contains("sendInitialEvents=true") && !server.streaming_lists {
                return fake::failure(422, "Invalid");
            }
            if *server.expired.lock() && !path.contains("sendInitialEvents=true") {
                return fake::failure(410, "Expired");
            }
            if !path.contains("watch=true") {
                let items = json!([object("a", "1", "red")]);
                let list = json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "5"}, "items": items});
                return fake::json(200, &list);
            }
            let next = server.watches.lock().pop_front();
            match next {
                Some(events) => fake::watch(events),
                // Nothing scripted: a server that is down.
                None => fake::failure(503, "ServiceUnavailable"),
            }
        })
    }

    fn start(&self) -> (Arc<Cache<Projected>>, mpsc::UnboundedReceiver<String>) {
        let indexer: Indexer<Projected> = Box::new(|projected| vec![projected.color.clone()]);
        let cache = start(Api::all(self.client()), config(), project, vec![("color", indexer)]);
        let (send, events) = mpsc::unbounded_channel();
        cache.subscribe(move |event| {
            let text = match event {
                Event::Applied { old: None, new } => format!("+{}", new.name),
                Event::Applied { old: Some(old), new } => {
                    format!("{} {}>{}", new.name, old.color, new.color)
                }
                Event::Deleted(last) => format!("-{}", last.name),
                Event::Synced => "synced".to_owned(),
            };
            let _ = send.send(text);
        });
        (cache, events)
    }
}

#[derive(Debug)]
struct Projected {
    name: String,
    color: String,
}

fn project(object: ConfigMap) -> Projected {
    let color = object.data.unwrap_or_default().remove("color").unwrap_or_default();
    Projected { name: object.metadata.name.unwrap_or_default(), color }
}

fn object(name: &str, version: &str, color: &str) -> Value {
    json!({
        "kind": "ConfigMap", "apiVersion": "v1", "data": {"color": color},
        "metadata": {"name": name, "namespace": "ns", "resourceVersion": version},
    })
}

fn event(kind: &str, object: Value) -> Value {
    json!({"type": kind, "object": object})
}

fn bookmark(version: &str, initial_done: bool) -> Value {
    let mut metadata = json!({"resourceVersion": version});
    if initial_done {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    event("BOOKMARK", json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata}))
}

async fn expect(events: &mut mpsc::UnboundedReceiver<String>, expected: &[&str]) {
    for text in expected {
        let next = tokio::time::timeout(Duration::from_secs(300), events.recv()).await;
        assert_eq!(next.ok().flatten().as_deref(), Some(*text));
    }
}

fn names(objects: &[Arc<Projected>]) -> Vec<&str> {
    let mut names: Vec<&str> = objects.iter().map(|object| object.name.as_str()).collect();
    names.sort_unstable();
    names
}

#[tokio::test(start_paused = true)]
async fn follows_a_streaming_list_and_its_indexes() {
    let server = Server::new(true);
    let script = server.script();
    let (cache, mut events) = server.start();
    assert!(!cache.has_synced());
    script.send(event("ADDED", object("a", "1", "red"))).unwrap();
    script.send(event("ADDED", object("b", "2", "red"))).unwrap();
    script.send(bookmark("2", true)).unwrap();
    expect(&mut events, &["+a", "+b", "synced"]).await;
    cache.wait_synced().await;
    assert_eq!(names(&cache.indexed("color", "red")), ["a", "b"]);
    script.send(event("MODIFIED", object("a", "3", "blue"))).unwrap();
    script.send(event("DELETED", object("b", "4", "red"))).unwrap();
    expect(&mut events, &["a red>blue", "-b"]).await;
    assert!(cache.indexed("color", "red").is_empty());
    assert_eq!(names(&cache.indexed("color", "blue")), ["a"]);
    assert_eq!(names(&cache.list_in("ns")), ["a"]);
    assert_eq!(cache.get("ns", "a").unwrap().color, "blue");
    assert!(cache.get("ns", "b").is_none() && cache.get("other", "a").is_none() && cache.len() == 1);

    let (send, mut late) = mpsc::unbounded_channel();
    cache.subscribe(move |event| {
        let _ = send.send(match event {
            Event::Applied { old, new } => format!("+{} {}", new.name, old.is_none()),
            Event::Deleted(_) => "deleted".into(),
            Event::Synced => "synced".into(),
        });
    });
    expect(&mut late, &["+a true", "synced"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_gap_delivers_only_the_differences() {
    let server = Server::new(true);
    let script = server.script();
    let (cache, mut events) = server.start();
    for name in ["kept", "changed", "gone"] {
        script.send(event("ADDED", object(name, "1", "red"))).unwrap();
    }
    script.send(bookmark("1", true)).unwrap();
    expect(&mut events, &["+kept", "+changed", "+gone", "synced"]).await;

    let again = server.script();
    again.send(event("ADDED", object("kept", "1", "red"))).unwrap();
    again.send(event("ADDED", object("changed", "7", "blue"))).unwrap();
    again.send(event("ADDED", object("new", "8", "red"))).unwrap();
    again.send(bookmark("8", true)).unwrap();
    script.send(event("ERROR", fake::status_value(410, "Expired"))).unwrap();
    expect(&mut events, &["changed red>blue", "+new", "-gone"]).await;
    assert_eq!(names(&cache.list()), ["changed", "kept", "new"]);
}

#[tokio::test(start_paused = true)]
async fn a_successor_is_told_of_as_another_object() {
    let server = Server::new(true);
    let script = server.script();
    let (_cache, mut events) = server.start();
    let of = |version: &str, uid: u128| {
        let mut object = object("a", version, "red");
        object["metadata"]["uid"] = json!(Uuid::from_u128(uid).to_string());
        object
    };
    script.send(event("ADDED", of("1", 1))).unwrap();
    script.send(bookmark("1", true)).unwrap();
    expect(&mut events, &["+a", "synced"]).await;
    let again = server.script();
    again.send(event("ADDED", of("7", 2))).unwrap();
    again.send(bookmark("7", true)).unwrap();
    script.send(event("ERROR", fake::status_value(410, "Expired"))).unwrap();
    expect(&mut events, &["-a", "+a"]).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_410_brings_a_new_list() {
    let server = Server::new(true);
    let script = server.script();
    let (_cache, mut events) = server.start();
    script.send(bookmark("1", true)).unwrap();
    expect(&mut events, &["synced"]).await;
    *server.expired.lock() = true;
    drop(script);
    let again = server.script();
    again.send(event("ADDED", object("a", "7", "red"))).unwrap();
    again.send(bookmark("7", true)).unwrap();
    expect(&mut events, &["+a"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_down_is_asked_again_with_growing_pauses() {
    let server = Server::new(true);
    let (cache, mut events) = server.start();
    tokio::time::sleep(Duration::from_secs(120)).await;
    let asked = server.requests.lock().len();
    assert!((10..60).contains(&asked), "asked {asked} times in two minutes");
    assert!(!cache.has_synced());
    let script = server.script();
    script.send(bookmark("1", true)).unwrap();
    expect(&mut events, &["synced"]).await;
    // A watch that just ends goes on from where it was, without a new list.
    let next = server.script();
    next.send(event("ADDED", object("a", "9", "red"))).unwrap();
    drop(script);
    expect(&mut events, &["+a"]).await;
    let last = server.requests.lock().last().cloned().unwrap();
    assert!(last.contains("resourceVersion=1") && !last.contains("sendInitialEvents"), "{last}");
}

#[tokio::test(start_paused = true)]
async fn without_streaming_lists_it_lists_in_pages() {
    let server = Server::new(false);
    let script = server.script();
    let (_cache, mut events) = server.start();
    expect(&mut events, &["+a", "synced"]).await;
    script.send(event("ADDED", object("b", "6", "red"))).unwrap();
    expect(&mut events, &["+b"]).await;
}

#[tokio::test]
async fn dropping_the_cache_ends_its_watch() {
    let server = Server::new(true);
    let script = server.script();
    let (cache, mut events) = server.start();
    script.send(bookmark("1", true)).unwrap();
    expect(&mut events, &["synced"]).await;
    drop(cache);
    script.closed().await;
}

#[test]
fn fixed_caches_for_tests() {
    let objects = ["a", "b"].map(|name| serde_json::from_value(object(name, "1", "red")).unwrap());
    let cache = Cache::fixed(objects, project, Vec::new());
    assert!(cache.has_synced());
    assert_eq!(names(&cache.list()), ["a", "b"]);
}
