//! The storage against a real etcd: Debian's, or the one that `KEELSON_TEST_ETCD` names; and once more against
//! kube-store, which takes the same flags.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod connection;
mod lists;
mod objects;
mod server;
mod watches;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keelson_storage::{
    Change, Error, Key, ListOptions, ListVersion, Notice, Preconditions, ReadVersion, Resource,
    ResourceConfig, Scope, Storage, StoreConfig, StoreTls, SwapError, TypeMeta, UpdateError, Updated, Watch,
    WatchEvent, WatchOptions, WatchStart,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use server::Server;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

struct Setup {
    storage: Storage,
    maps: Arc<Resource>,
    server: Server,
    _stop: tokio_util::sync::DropGuard,
}

fn config_maps() -> ResourceConfig {
    ResourceConfig {
        prefix: "configmaps".into(),
        name: "configmaps".into(),
        type_meta: TypeMeta { api_version: "v1".into(), kind: "ConfigMap".into() },
        namespaced: true,
        fields: None,
    }
}

async fn setup() -> Setup {
    let server = Server::start().await;
    let stop = CancellationToken::new();
    let storage = Storage::connect(StoreConfig::new(vec![server.endpoint()]), stop.clone()).unwrap();
    let maps = storage.resource(config_maps());
    timely(storage.wait_ready()).await;
    Setup { storage, maps, server, _stop: stop.drop_guard() }
}

async fn timely<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("took too long")
}

fn map(name: &str, data: u64) -> Value {
    json!({"metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}")}, "data": {"n": data.to_string()}})
}

fn key(name: &str) -> Key<'_> {
    Key::new("ns", name)
}

fn never(_: &keelson_storage::Current) -> Result<(), std::convert::Infallible> {
    Ok(())
}

fn watch_from(start: WatchStart) -> WatchOptions {
    WatchOptions { scope: Scope::All, filter: None, start, bookmarks: false, timeout: None }
}

fn names(list: &keelson_storage::List) -> Vec<&str> {
    list.items.iter().map(|object| object.name()).collect()
}

/// The next event that is not a bookmark.
async fn next(watch: &mut Watch) -> Option<(&'static str, String, u64)> {
    loop {
        let (kind, object) = match timely(watch.next()).await? {
            WatchEvent::Added(object) => ("ADDED", object),
            WatchEvent::Modified(object) => ("MODIFIED", object),
            WatchEvent::Deleted(object) => ("DELETED", object),
            WatchEvent::Bookmark { .. } => continue,
            WatchEvent::Expired { message } => return Some(("ERROR", message, 0)),
        };
        assert_eq!(object.value()["metadata"]["resourceVersion"], object.resource_version().to_string());
        return Some((kind, object.name().to_owned(), object.resource_version()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_is_measured_under_upstreams_names() {
    let Setup { maps, storage, .. } = &setup().await;
    let registry = keelson_component_base::metrics::Registry::new();
    storage.metrics().register(&registry);
    let created = maps.create(key("a"), map("a", 0), None).await.unwrap().resource_version();
    timely(maps.get(key("a"), ReadVersion::AtLeast(created))).await.unwrap();
    timely(maps.list(ListOptions::default())).await.unwrap();
    let text = registry.encode();
    for line in [
        r#"etcd_request_duration_seconds_count{operation="create",type="configmaps"} 1"#,
        r#"etcd_requests_total{operation="create",type="configmaps"} 1"#,
        r#"apiserver_storage_objects{resource="configmaps"} 1"#,
        r#"apiserver_watch_cache_events_received_total{resource="configmaps"} 1"#,
        r#"apiserver_watch_cache_initializations_total{resource="configmaps"} 1"#,
        r#"apiserver_watch_cache_consistent_read_total{resource="configmaps",success="true",fallback="false"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_can_come_and_go() {
    let Setup { maps, storage, .. } = &setup().await;
    for n in 0..1200 {
        storage
            .raw()
            .put(
                &format!("things/t{n:04}"),
                Bytes::from(format!(r#"{{"metadata":{{"name":"t{n:04}"}}}}"#)),
                None,
            )
            .await
            .unwrap();
    }
    let config = ResourceConfig {
        prefix: "things".into(),
        name: "things".into(),
        type_meta: TypeMeta { api_version: "a.io/v1".into(), kind: "Thing".into() },
        namespaced: false,
        fields: None,
    };
    let things = storage.resource(config.clone());
    timely(storage.wait_ready()).await;
    assert_eq!(things.count(), 1200);
    let list = timely(things.list(ListOptions { version: ListVersion::Any, limit: 1, ..Default::default() }));
    assert_eq!(list.await.unwrap().items.len(), 1200, "a limit is ignored for any version");
    let thing = timely(things.get(Key::cluster("t0007"), ReadVersion::Latest)).await.unwrap();
    assert_eq!(thing.value()["apiVersion"], "a.io/v1");
    assert!(Arc::ptr_eq(
        &storage.resource(config).cached(Key::cluster("t0007")).unwrap(),
        &things.cached(Key::cluster("t0007")).unwrap()
    ));
    let mut watch = things.watch(watch_from(WatchStart::Now)).await.unwrap();
    storage.remove("things");
    assert_eq!(next(&mut watch).await, None);
    assert!(maps.ready());
}

/// Runs all other tests against kube-store.
#[test]
fn kube_store_serves_as_well() {
    const SELF: &str = "kube_store_serves_as_well";
    let this = std::env::current_exe().unwrap();
    // target/<profile>/deps/etcd-<hash> → target/<profile>/kube-store
    let store = this.ancestors().nth(2).unwrap().join("kube-store");
    assert!(store.exists(), "{} is not there: cargo build -p kube-store", store.display());
    let output = std::process::Command::new(this)
        .env(server::BINARY, &store)
        .args(["--skip", SELF, "--test-threads", "4"])
        .output()
        .unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("test result: ok"), "{text}\n{errors}");
}
