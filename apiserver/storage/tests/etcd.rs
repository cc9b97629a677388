//! The storage against a real etcd: Debian's, or the one that `KEELSON_TEST_ETCD` names. Where kube-store
//! has been built, which takes the same flags, all of it runs once more against that.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod server;

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

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_created_read_updated_and_deleted() {
    let Setup { storage, maps, .. } = &setup().await;
    let created = maps.create(key("a"), map("a", 1), None).await.unwrap();
    let version = created.resource_version();
    let read = timely(maps.get(key("a"), ReadVersion::Latest)).await.unwrap();
    assert_eq!(read.body(), created.body());
    assert_eq!(read.value()["kind"], "ConfigMap");
    assert_eq!(read.value()["metadata"]["resourceVersion"], version.to_string());

    match maps.create(key("a"), map("a", 2), None).await {
        Err(Error::AlreadyExists { current, .. }) => assert_eq!(current.resource_version(), version),
        other => panic!("{other:?}"),
    }
    assert!(matches!(maps.get(key("b"), ReadVersion::Latest).await, Err(Error::NotFound { .. })));
    assert!(matches!(maps.get(Key::new("ns", "a/b"), ReadVersion::Latest).await, Err(Error::InvalidKey(_))));

    // The stored text is upstream's: under its key, with a type, without a version.
    let raw = storage.raw().get("configmaps/ns/a").await.unwrap().unwrap();
    assert_eq!(raw.mod_revision, version);
    let stored = std::str::from_utf8(&raw.value).unwrap();
    assert!(stored.starts_with(r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"#), "{stored}");
    assert!(!stored.contains("resourceVersion"), "{stored}");

    let set = |n: u64| {
        move |current: &keelson_storage::Current| {
            let mut value = current.value.clone();
            value["data"]["n"] = n.to_string().into();
            Ok::<_, std::convert::Infallible>(Change::Write(value))
        }
    };
    let updated = maps.update(key("a"), &Preconditions::default(), set(7)).await.unwrap();
    let Updated::Written(written) = &updated else { panic!("{updated:?}") };
    assert!(written.resource_version() > version);
    let again = maps.update(key("a"), &Preconditions::default(), set(7)).await.unwrap();
    assert!(
        matches!(&again, Updated::Unchanged(object) if object.resource_version() == written.resource_version())
    );

    let wrong = Preconditions { uid: Some("other".into()), resource_version: None };
    match maps.delete(key("a"), &wrong, never).await {
        Err(UpdateError::Storage(error @ Error::Precondition { .. })) => assert_eq!(
            error.to_string(),
            "StorageError: invalid object, Code: 4, Key: /registry/configmaps/ns/a, ResourceVersion: 0, \
             AdditionalErrorMsg: Precondition failed: UID in precondition: other, UID in object meta: uid-a"
        ),
        other => panic!("{other:?}"),
    }
    match maps.delete(key("a"), &Preconditions::default(), |_| Err("not today")).await {
        Err(UpdateError::Caller(reason)) => assert_eq!(reason, "not today"),
        other => panic!("{other:?}"),
    }
    let right = Preconditions {
        uid: Some("uid-a".into()),
        resource_version: Some(written.resource_version().to_string()),
    };
    let deleted = maps.delete(key("a"), &right, never).await.unwrap();
    assert!(deleted.resource_version() > written.resource_version());
    assert_eq!(deleted.value()["data"]["n"], "7");
    assert!(matches!(timely(maps.get(key("a"), ReadVersion::Latest)).await, Err(Error::NotFound { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_updates_lose_nothing() {
    let Setup { maps, .. } = &setup().await;
    maps.create(key("count"), map("count", 0), None).await.unwrap();
    let writers = (0..8).map(|_| {
        let maps = maps.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                let updated = maps
                    .update(key("count"), &Preconditions::default(), |current| {
                        let mut value = current.value.clone();
                        let n: u64 = value["data"]["n"].as_str().unwrap().parse().unwrap();
                        value["data"]["n"] = (n + 1).to_string().into();
                        Ok::<_, std::convert::Infallible>(Change::Write(value))
                    })
                    .await
                    .unwrap();
                assert!(matches!(updated, Updated::Written(_)));
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        timely(writer).await.unwrap();
    }
    let last = timely(maps.get(key("count"), ReadVersion::Latest)).await.unwrap();
    assert_eq!(last.value()["data"]["n"], "80");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_decides_on_the_stores_state() {
    let Setup { storage, maps, .. } = &setup().await;
    maps.create(key("a"), map("a", 1), None).await.unwrap();
    let stale = maps.current(key("a"), true).await.unwrap();
    maps.update(key("a"), &Preconditions::default(), |_| Ok::<_, ()>(Change::Write(map("a", 2))))
        .await
        .unwrap();
    assert!(maps.swap(&stale, Change::Write(map("a", 3))).await.unwrap().is_none());
    assert!(maps.swap(&stale, Change::Keep).await.unwrap().is_none());
    assert!(maps.swap(&stale, Change::Delete).await.unwrap().is_none());
    let fresh = maps.current(key("a"), true).await.unwrap();
    assert!(matches!(
        maps.swap(&fresh, Change::Write(map("a", 3))).await.unwrap(),
        Some(Updated::Written(_))
    ));

    // Behind the server's back, so that the cache may not know it yet: a decision on the cached object
    // (an error, or nothing to do) does not count.
    let entry = storage.raw().get("configmaps/ns/a").await.unwrap().unwrap();
    let text = String::from_utf8(entry.value.to_vec()).unwrap().replace(r#""n":"3""#, r#""n":"4""#);
    storage.raw().swap("configmaps/ns/a", entry.mod_revision, Bytes::from(text)).await.unwrap();
    let result = maps
        .update(key("a"), &Preconditions::default(), |current| {
            if current.value["data"]["n"] == "4" { Ok(Change::Delete) } else { Err("stale") }
        })
        .await
        .unwrap();
    assert!(matches!(result, Updated::Deleted(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_paged_at_one_version() {
    let Setup { maps, .. } = &setup().await;
    for name in ["a", "b", "c", "d", "e"] {
        maps.create(key(name), map(name, 0), None).await.unwrap();
    }
    maps.create(Key::new("other", "z"), json!({"metadata": {"name": "z", "namespace": "other"}}), None)
        .await
        .unwrap();
    let scope = Scope::Namespace("ns".into());
    let page = |token: Option<String>| ListOptions {
        scope: scope.clone(),
        limit: 2,
        continue_token: token,
        ..Default::default()
    };
    let first = timely(maps.list(page(None))).await.unwrap();
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first.remaining, Some(3));

    // Unchanged since: from the cache. Then changed: from the store, as it was.
    for change in [false, true] {
        if change {
            maps.delete(key("c"), &Preconditions::default(), never).await.unwrap();
            maps.create(key("bb"), map("bb", 0), None).await.unwrap();
            let now =
                timely(maps.list(ListOptions { scope: scope.clone(), ..Default::default() })).await.unwrap();
            assert_eq!(names(&now), ["a", "b", "bb", "d", "e"]);
        }
        let second = timely(maps.list(page(first.continue_token.clone()))).await.unwrap();
        assert_eq!(names(&second), ["c", "d"]);
        assert_eq!((second.resource_version, second.remaining), (first.resource_version, Some(1)));
        let third = timely(maps.list(page(second.continue_token.clone()))).await.unwrap();
        assert_eq!(names(&third), ["e"]);
        assert_eq!((third.continue_token, third.remaining), (None, None));
    }

    let exact = ListOptions { version: ListVersion::Exact(first.resource_version), ..Default::default() };
    let then = timely(maps.list(exact)).await.unwrap();
    assert_eq!(names(&then), ["a", "b", "c", "d", "e", "z"]);
    assert_eq!(then.resource_version, first.resource_version);

    let odd = |object: &keelson_storage::Object| object.name() != "b";
    let filtered = ListOptions { filter: Some(Arc::new(odd)), limit: 2, ..Default::default() };
    let filtered = timely(maps.list(filtered)).await.unwrap();
    assert_eq!(names(&filtered), ["a", "bb"]);
    assert!(filtered.continue_token.is_some() && filtered.remaining.is_none());

    let one = ListOptions {
        scope: Scope::Object { namespace: "ns".into(), name: "b".into() },
        ..Default::default()
    };
    assert_eq!(names(&timely(maps.list(one)).await.unwrap()), ["b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn compacted_versions_are_expired() {
    let Setup { maps, server, storage, .. } = &setup().await;
    for name in ["a", "b", "c"] {
        maps.create(key(name), map(name, 0), None).await.unwrap();
    }
    let page = |token: Option<String>| ListOptions { limit: 1, continue_token: token, ..Default::default() };
    let first = timely(maps.list(page(None))).await.unwrap();
    maps.delete(key("b"), &Preconditions::default(), never).await.unwrap();
    server.compact(storage.current_revision().await.unwrap()).await;

    let expired = timely(maps.list(page(first.continue_token.clone()))).await.unwrap_err();
    let Error::Expired { message, continue_token: Some(token) } = expired else { panic!("{expired:?}") };
    assert!(message.starts_with("The provided continue parameter is too old"), "{message}");
    let rest = timely(maps.list(page(Some(token)))).await.unwrap();
    assert_eq!(names(&rest), ["c"]);

    let exact = ListOptions { version: ListVersion::Exact(first.resource_version), ..Default::default() };
    let expired = timely(maps.list(exact)).await.unwrap_err();
    assert_eq!(expired.to_string(), "The resourceVersion for the provided list is too old.");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_ahead_are_too_large() {
    let Setup { maps, storage, .. } = &setup().await;
    let ahead = storage.current_revision().await.unwrap() + 1000;
    let check = |error: Error| match error {
        Error::TooLarge { requested, current } => assert!(requested == ahead && current < ahead),
        other => panic!("{other:?}"),
    };
    let (get, list, exact) = tokio::join!(
        maps.get(key("a"), ReadVersion::AtLeast(ahead)),
        maps.list(ListOptions { version: ListVersion::AtLeast(ahead), ..Default::default() }),
        maps.list(ListOptions { version: ListVersion::Exact(ahead), ..Default::default() }),
    );
    check(get.unwrap_err());
    check(list.unwrap_err());
    check(exact.unwrap_err());
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
async fn watches_follow_selections() {
    let Setup { maps, .. } = &setup().await;
    let labelled = |name: &str, tier: &str| json!({"metadata": {"name": name, "namespace": "ns", "labels": {"tier": tier}}});
    let none = Preconditions::default();
    let write = |name: &'static str, tier: &'static str| {
        maps.update(key(name), &none, move |_| Ok::<_, ()>(Change::Write(labelled(name, tier))))
    };
    let a = maps.create(key("a"), labelled("a", "front"), None).await.unwrap();
    let selected: keelson_storage::Filter = Some(Arc::new(|object| object.label("tier") == Some("front")));
    let mut watch = maps
        .watch(WatchOptions {
            filter: selected,
            bookmarks: true,
            ..watch_from(WatchStart::State { version: ReadVersion::Latest, mark_end: true })
        })
        .await
        .unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), ("ADDED", "a".into(), a.resource_version()));
    match timely(watch.next()).await {
        Some(WatchEvent::Bookmark { resource_version, initial_events_end: true }) => {
            assert!(resource_version >= a.resource_version());
        }
        other => panic!("{other:?}"),
    }
    maps.create(key("b"), labelled("b", "back"), None).await.unwrap();
    let entered = write("b", "front").await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), ("ADDED", "b".into(), entered.object().resource_version()));
    let left = write("a", "back").await.unwrap();
    let event = timely(watch.next()).await;
    let Some(WatchEvent::Deleted(parting)) = event else { panic!("{event:?}") };
    assert_eq!(parting.resource_version(), left.object().resource_version());
    assert_eq!(parting.label("tier"), Some("front"), "the last state that was selected");
    maps.delete(key("a"), &Preconditions::default(), never).await.unwrap();
    let deleted = maps.delete(key("b"), &Preconditions::default(), never).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), ("DELETED", "b".into(), deleted.resource_version()));
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_begin_where_they_are_told() {
    let Setup { maps, .. } = &setup().await;
    let a = maps.create(key("a"), map("a", 0), None).await.unwrap().resource_version();
    let b = maps.create(key("b"), map("b", 0), None).await.unwrap().resource_version();
    timely(maps.get(key("b"), ReadVersion::AtLeast(b))).await.unwrap();

    let mut after = maps.watch(watch_from(WatchStart::After(a))).await.unwrap();
    assert_eq!(next(&mut after).await.unwrap(), ("ADDED", "b".into(), b));
    let mut now = maps.watch(watch_from(WatchStart::Now)).await.unwrap();
    let c = maps.create(key("c"), map("c", 0), None).await.unwrap().resource_version();
    assert_eq!(next(&mut now).await.unwrap(), ("ADDED", "c".into(), c));
    assert_eq!(next(&mut after).await.unwrap(), ("ADDED", "c".into(), c));

    // A version that is not there yet.
    let mut ahead = maps.watch(watch_from(WatchStart::After(c + 1))).await.unwrap();
    maps.create(key("d"), map("d", 0), None).await.unwrap();
    let e = maps.create(key("e"), map("e", 0), None).await.unwrap().resource_version();
    assert_eq!(next(&mut ahead).await.unwrap(), ("ADDED", "e".into(), e));

    match maps.watch(watch_from(WatchStart::After(0))).await {
        Err(Error::Expired { message, .. }) => {
            assert!(message.starts_with("too old resource version: 0 ("), "{message}")
        }
        other => panic!("{other:?}"),
    }

    let mut ending = maps
        .watch(WatchOptions {
            bookmarks: true,
            timeout: Some(Duration::from_millis(20)),
            ..watch_from(WatchStart::Now)
        })
        .await
        .unwrap();
    match timely(ending.next()).await {
        Some(WatchEvent::Bookmark { resource_version, initial_events_end: false }) => {
            assert!(resource_version >= e)
        }
        other => panic!("{other:?}"),
    }
    assert!(timely(ending.next()).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_survives_a_restart_of_the_store() {
    let Setup { maps, server, storage, .. } = &mut setup().await;
    let mut subscription = maps.subscribe();
    assert!(matches!(timely(subscription.next()).await, Some(Notice::Synced)));
    let a = maps.create(key("a"), map("a", 0), None).await.unwrap().resource_version();
    let mut watch = maps.watch(watch_from(WatchStart::After(a))).await.unwrap();
    // The cache knows of it, or a cached read could rightly miss it while the store is away.
    let seen = timely(subscription.next()).await;
    assert!(matches!(&seen, Some(Notice::Upsert(object)) if object.name() == "a"), "{seen:?}");

    server.kill().await;
    assert!(matches!(maps.get(key("a"), ReadVersion::Latest).await, Err(Error::Store(_))));
    let cached = timely(maps.get(key("a"), ReadVersion::Any)).await.unwrap();
    assert_eq!(cached.resource_version(), a);
    server.restart().await;

    let b = timely(maps.create(key("b"), map("b", 0), None)).await.unwrap().resource_version();
    assert_eq!(next(&mut watch).await.unwrap(), ("ADDED", "b".into(), b), "the watch goes on");

    // What the server misses while the store compacts cannot be resumed: watches end, nothing is lost.
    server.kill().await;
    server.restart_elsewhere().await;
    server.put("/registry/configmaps/ns/c", r#"{"metadata":{"name":"c","namespace":"ns"}}"#).await;
    server.delete("/registry/configmaps/ns/a").await;
    let revision = server.put("/registry/other", "x").await;
    server.compact(revision).await;
    server.kill().await;
    server.restart().await;
    assert_eq!(next(&mut watch).await, None, "watches of the lost history end");
    timely(storage.wait_ready()).await;
    let list = timely(maps.list(ListOptions::default())).await.unwrap();
    assert_eq!(names(&list), ["b", "c"]);
    let mut state = BTreeMap::from([("a".to_owned(), a)]);
    while state.keys().ne(["b", "c"].iter()) {
        match timely(subscription.next()).await.unwrap() {
            Notice::Upsert(object) => state.insert(object.name().to_owned(), object.resource_version()),
            Notice::Delete(object) => state.remove(object.name()),
            Notice::Synced => panic!("only once"),
        };
    }
    assert!(matches!(maps.watch(watch_from(WatchStart::After(a))).await, Err(Error::Expired { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_with_a_time_expire() {
    let Setup { maps, storage, .. } = &setup().await;
    let mut watch = maps.watch(watch_from(WatchStart::Now)).await.unwrap();
    maps.create(key("brief"), map("brief", 0), Some(Duration::from_secs(1))).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().0, "ADDED");
    assert_eq!(next(&mut watch).await.unwrap().0, "DELETED");
    storage.raw().put("leases/x", Bytes::from_static(b"1"), Some(1)).await.unwrap();
    let entry = storage.raw().get("leases/x").await.unwrap().unwrap();
    assert_eq!((entry.key.as_str(), &entry.value[..]), ("leases/x", &b"1"[..]));
}

/// Many writers, watchers that come at any time: each ends with what a list then says.
#[tokio::test(flavor = "multi_thread")]
async fn watches_replayed_are_the_list() {
    let Setup { maps, .. } = &setup().await;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let maps = maps.clone();
            let mut random = StdRng::seed_from_u64(seed + writer);
            tokio::spawn(async move {
                for n in 0..60 {
                    let name = format!("o{}", random.random_range(0..8));
                    let none = Preconditions::default();
                    if random.random_bool(0.4) {
                        let _ = maps.create(key(&name), map(&name, n), None).await;
                    } else if random.random_bool(0.5) {
                        let _ = maps
                            .update(key(&name), &none, |_| Ok::<_, ()>(Change::Write(map(&name, n))))
                            .await;
                    } else {
                        let _ = maps.delete(key(&name), &none, never).await;
                    }
                }
            })
        })
        .collect();
    let watchers: Vec<_> = (0..6)
        .map(|watcher| {
            let maps = maps.clone();
            let mut random = StdRng::seed_from_u64(seed ^ watcher);
            tokio::spawn(async move {
                for _ in 0..random.random_range(0..200) {
                    tokio::task::yield_now().await;
                }
                let start = WatchStart::State { version: ReadVersion::Latest, mark_end: false };
                let mut watch = maps.watch(watch_from(start)).await.unwrap();
                let mut state = BTreeMap::new();
                loop {
                    let (kind, name, version) = next(&mut watch).await.unwrap();
                    match kind {
                        "ADDED" => assert_eq!(state.insert(name.clone(), version), None),
                        "MODIFIED" => assert!(state.insert(name.clone(), version).unwrap() < version),
                        "DELETED" => assert!(state.remove(&name).unwrap() < version),
                        other => panic!("{other}: {name}"),
                    }
                    if name == "the-end" {
                        return state;
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        timely(writer).await.unwrap();
    }
    // Behind everything else in order of versions.
    maps.create(key("the-end"), map("the-end", 0), None).await.unwrap();
    let list = timely(maps.list(ListOptions::default())).await.unwrap();
    let expected: BTreeMap<String, u64> =
        list.items.iter().map(|object| (object.name().to_owned(), object.resource_version())).collect();
    for watcher in watchers {
        assert_eq!(timely(watcher).await.unwrap(), expected, "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_versions_are_compacted() {
    let server = Server::start().await;
    let config = StoreConfig {
        compaction_interval: Some(Duration::from_millis(50)),
        ..StoreConfig::new(vec![server.endpoint()])
    };
    let storage = Storage::connect(config, CancellationToken::new()).unwrap();
    let maps = storage.resource(config_maps());
    let first = timely(maps.create(key("a"), map("a", 0), None)).await.unwrap().resource_version();
    maps.update(key("a"), &Preconditions::default(), |_| Ok::<_, ()>(Change::Write(map("a", 1))))
        .await
        .unwrap();
    timely(async {
        loop {
            let exact = ListOptions { version: ListVersion::Exact(first), ..Default::default() };
            if let Err(Error::Expired { .. }) = maps.list(exact).await {
                return;
            }
        }
    })
    .await;
    assert_eq!(timely(maps.get(key("a"), ReadVersion::Latest)).await.unwrap().value()["data"]["n"], "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_keys_are_swapped() {
    let raw = setup().await;
    let store = raw.storage.raw();
    assert_eq!(store.get("ranges/x").await.unwrap(), None);
    let first = store.swap("ranges/x", 0, Bytes::from_static(b"1")).await.unwrap();
    match store.swap("ranges/x", 0, Bytes::from_static(b"2")).await {
        Err(SwapError::Conflict(Some(entry))) => {
            assert_eq!((&entry.value[..], entry.mod_revision), (&b"1"[..], first))
        }
        other => panic!("{other:?}"),
    }
    let second = store.swap("ranges/x", first, Bytes::from_static(b"2")).await.unwrap();
    assert_eq!(store.list("ranges/").await.unwrap().len(), 1);
    assert!(matches!(store.remove("ranges/x", first).await, Err(SwapError::Conflict(Some(_)))));
    store.remove("ranges/x", second).await.unwrap();
    assert!(matches!(store.remove("ranges/x", second).await, Err(SwapError::Conflict(None))));
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_values_hide_nothing() {
    let Setup { maps, storage, .. } = &setup().await;
    let raw = storage.raw();
    let at = raw.put("configmaps/ns/bad", Bytes::from_static(b"k8s\0\x0a\x02"), None).await.unwrap();
    timely(maps.get(key("bad"), ReadVersion::AtLeast(at))).await.unwrap_err();
    assert!(matches!(maps.get(key("bad"), ReadVersion::Any).await, Err(Error::Corrupt { .. })));
    assert!(matches!(timely(maps.list(ListOptions::default())).await, Err(Error::Corrupt { .. })));
    let elsewhere = ListOptions { scope: Scope::Namespace("other".into()), ..Default::default() };
    assert!(timely(maps.list(elsewhere)).await.unwrap().items.is_empty());
    raw.remove("configmaps/ns/bad", at).await.unwrap();
    assert!(timely(maps.list(ListOptions::default())).await.unwrap().items.is_empty());
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

#[tokio::test]
async fn an_unreachable_store_is_an_error_in_time() {
    let unused = server::free_address();
    let storage =
        Storage::connect(StoreConfig::new(vec![format!("http://{unused}")]), CancellationToken::new())
            .unwrap();
    let maps = storage.resource(config_maps());
    assert!(matches!(timely(storage.ping()).await, Err(keelson_storage::StoreError::Unavailable(_))));
    assert!(matches!(timely(maps.create(key("a"), map("a", 0), None)).await, Err(Error::Store(_))));
    assert!(matches!(timely(maps.get(key("a"), ReadVersion::Any)).await, Err(Error::Store(_))));
    assert!(!storage.ready());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_is_reached_over_tls() {
    keelson_component_base::tls::install_provider();
    let directory = tempfile::Builder::new().prefix("keelson-storage-").tempdir().unwrap();
    let tls = certificates(directory.path());
    let server = Server::start_with_tls(directory.path()).await;
    let connect = |tls: Option<StoreTls>| {
        let config = StoreConfig { tls, ..StoreConfig::new(vec![server.endpoint()]) };
        Storage::connect(config, CancellationToken::new())
    };
    let storage = connect(Some(tls.clone())).unwrap();
    let maps = storage.resource(config_maps());
    timely(storage.wait_ready()).await;
    let created = timely(maps.create(key("a"), map("a", 0), None)).await.unwrap();
    assert_eq!(timely(maps.get(key("a"), ReadVersion::Latest)).await.unwrap().body(), created.body());

    for refused in [
        None,
        Some(StoreTls { client: None, ..tls.clone() }),
        Some(StoreTls { ca_file: None, ..tls.clone() }),
    ] {
        let error = timely(connect(refused.clone()).unwrap().ping()).await.unwrap_err();
        assert!(matches!(error, keelson_storage::StoreError::Unavailable(_)), "{refused:?}: {error:?}");
    }
    let missing = StoreTls { ca_file: Some("/nowhere/ca.crt".into()), client: None };
    let error = connect(Some(missing)).err().unwrap().to_string();
    assert!(error.contains("/nowhere/ca.crt"), "{error}");
}

/// An authority, a server for 127.0.0.1 and a client, as files.
fn certificates(directory: &std::path::Path) -> StoreTls {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_file = write("ca.crt", ca.self_signed(&ca_key).unwrap().pem());
    let issuer = Issuer::new(ca, ca_key);
    let issue = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        (write(&format!("{name}.crt"), certificate.pem()), write(&format!("{name}.key"), key.serialize_pem()))
    };
    issue("server");
    StoreTls { ca_file: Some(ca_file), client: Some(issue("client")) }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_endpoint_serves_when_one_is_gone() {
    let server = Server::start().await;
    let endpoints = vec![format!("http://{}", server::free_address()), server.endpoint()];
    let storage = Storage::connect(StoreConfig::new(endpoints), CancellationToken::new()).unwrap();
    let maps = storage.resource(config_maps());
    timely(storage.wait_ready()).await;
    maps.create(key("a"), map("a", 0), None).await.unwrap();
    assert_eq!(timely(maps.get(key("a"), ReadVersion::Latest)).await.unwrap().name(), "a");
}

/// Runs this file's other tests against kube-store, if it has been built.
#[test]
fn kube_store_serves_as_well() {
    const SELF: &str = "kube_store_serves_as_well";
    let this = std::env::current_exe().unwrap();
    // target/<profile>/deps/etcd-<hash> → target/<profile>/kube-store
    let store = this.ancestors().nth(2).unwrap().join("kube-store");
    if std::env::var_os(server::BINARY).is_some() || !store.exists() {
        eprintln!("{} is not there", store.display());
        return;
    }
    let output = std::process::Command::new(this)
        .env(server::BINARY, &store)
        .args(["--skip", SELF, "--test-threads", "4"])
        .output()
        .unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("test result: ok"), "{text}\n{errors}");
}
