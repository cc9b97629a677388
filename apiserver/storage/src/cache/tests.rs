//! The cache fed with synthetic changes: what watchers, subscribers and readers then see.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use super::*;
use crate::options::{ReadVersion, WatchOptions, WatchStart};
use crate::subscription::{Notice, Subscription};
use crate::watch::{Watch, WatchEvent};

/// A cache with its own idea of the store's progress.
struct Fed {
    cache: Arc<ResourceCache>,
    progress: watch::Sender<u64>,
}

fn text(name: &str, labels: &str) -> Bytes {
    format!(r#"{{"metadata":{{"name":"{name}","labels":{{"tier":"{labels}"}}}}}}"#).into()
}

impl Fed {
    fn new(window_bytes: usize) -> Self {
        let config = ResourceConfig {
            prefix: "pods".into(),
            name: "pods".into(),
            type_meta: TypeMeta { api_version: "v1".into(), kind: "Pod".into() },
            namespaced: true,
            fields: None,
        };
        let cache = Arc::new(ResourceCache::new(config, window_bytes, CacheMetrics::default()));
        Self { cache, progress: watch::Sender::new(0) }
    }

    fn filled(window_bytes: usize, revision: u64, entries: &[(&str, u64)]) -> Self {
        let fed = Self::new(window_bytes);
        fed.fill(revision, entries);
        fed
    }

    fn fill(&self, revision: u64, entries: &[(&str, u64)]) -> bool {
        let mut listing = Listing::default();
        for (key, mod_revision) in entries {
            self.cache.list_entry(&mut listing, key, *mod_revision, &text(key, "x"));
        }
        let filling = self.cache.read().signal.filling;
        let done = self.cache.fill(filling, revision, listing);
        self.progress.send_replace(revision);
        done
    }

    fn change(&self, revision: u64, key: &str, value: Option<Bytes>) {
        self.cache.apply(vec![StoreChange { key: key.into(), revision, value }]);
        self.progress.send_replace(revision);
    }

    fn put(&self, revision: u64, key: &str) {
        self.change(revision, key, Some(text(key, "x")));
    }

    fn watch(&self, options: WatchOptions) -> Result<Watch, Error> {
        Watch::start(self.cache.clone(), self.progress.subscribe(), options)
    }

    fn after(&self, version: u64) -> Watch {
        self.watch(options(WatchStart::After(version))).unwrap()
    }

    fn state(&self) -> BTreeMap<String, u64> {
        self.cache.read().objects().map(|object| (object.key.to_string(), object.resource_version)).collect()
    }
}

fn options(start: WatchStart) -> WatchOptions {
    WatchOptions { scope: Scope::All, filter: None, start, bookmarks: false, timeout: None }
}

fn state_options(scope: Scope) -> WatchOptions {
    let start = WatchStart::State { version: ReadVersion::Any, mark_end: false };
    WatchOptions { scope, ..options(start) }
}

/// Events that are there now, as text.
fn drain(watch: &mut Watch) -> Vec<String> {
    use futures::FutureExt;
    let mut events = Vec::new();
    while let Some(event) = watch.next().now_or_never() {
        events.push(match event {
            None => "END".into(),
            Some(WatchEvent::Added(object)) => format!("+{}@{}", object.key, object.resource_version),
            Some(WatchEvent::Modified(object)) => format!("~{}@{}", object.key, object.resource_version),
            Some(WatchEvent::Deleted(object)) => format!("-{}@{}", object.key, object.resource_version),
            Some(WatchEvent::Bookmark { resource_version, .. }) => format!("b@{resource_version}"),
            Some(WatchEvent::Expired { message }) => message,
        });
        if events.last().is_some_and(|event| event == "END") {
            break;
        }
    }
    events
}

#[tokio::test]
async fn watchers_see_changes_in_order() {
    let fed = Fed::filled(1 << 20, 10, &[("ns/a", 3), ("ns/b", 9)]);
    let mut from_ten = fed.after(10);
    let mut state = fed.watch(state_options(Scope::All)).unwrap();
    fed.put(11, "ns/c");
    fed.put(12, "ns/a");
    fed.change(13, "ns/b", None);
    fed.change(14, "ns/unknown", None);
    assert_eq!(drain(&mut from_ten), ["+ns/c@11", "~ns/a@12", "-ns/b@13"]);
    assert_eq!(drain(&mut state), ["+ns/a@3", "+ns/b@9", "+ns/c@11", "~ns/a@12", "-ns/b@13"]);
    assert_eq!(drain(&mut fed.after(11)), ["~ns/a@12", "-ns/b@13"]);
    assert_eq!(drain(&mut fed.after(13)), Vec::<String>::new());
    let error = fed.watch(options(WatchStart::After(9))).unwrap_err();
    assert_eq!(error.to_string(), "too old resource version: 9 (10)");
}

#[tokio::test]
async fn scopes_are_exact() {
    let entries = [("a/x", 1), ("ab/x", 2), ("a/xy", 3), ("a.b/x", 4)];
    let fed = Fed::filled(1 << 20, 10, &entries);
    let check = |scope: Scope, expected: &[&str]| {
        let state = fed.cache.read();
        let listed: Vec<&str> = state.range(&scope, "").map(|object| &*object.key).collect();
        assert_eq!(listed, expected, "{scope:?}");
        drop(state);
        let watched = drain(&mut fed.watch(state_options(scope.clone())).unwrap());
        assert_eq!(watched.len(), expected.len(), "{scope:?}");
        let mut later = fed.watch(WatchOptions { scope: scope.clone(), ..options(WatchStart::Now) }).unwrap();
        let revision = *fed.progress.borrow();
        for (at, (key, _)) in entries.iter().enumerate() {
            fed.put(revision + 1 + at as u64, key);
        }
        assert_eq!(drain(&mut later).len(), expected.len(), "{scope:?}");
    };
    check(Scope::All, &["a.b/x", "a/x", "a/xy", "ab/x"]);
    check(Scope::Namespace("a".into()), &["a/x", "a/xy"]);
    check(Scope::Object { namespace: "a".into(), name: "x".into() }, &["a/x"]);
    check(Scope::Object { namespace: "a".into(), name: "none".into() }, &[]);
}

#[tokio::test]
async fn slow_watchers_are_ended_not_skipped() {
    let fed = Fed::filled(4096, 10, &[]);
    let mut slow = fed.after(10);
    for revision in 11..200 {
        fed.put(revision, "ns/a");
    }
    let events = drain(&mut slow);
    let [message, end] = &events[..] else { panic!("{events:?}") };
    assert!(message.starts_with("too old resource version: 10 (1"), "{message}");
    assert_eq!(end, "END");
    let state = fed.cache.read();
    assert!(state.window.len() < 50 && state.window.len() > 1, "{}", state.window.len());
}

#[tokio::test]
async fn one_event_is_always_kept() {
    let fed = Fed::filled(1, 10, &[("ns/a", 1)]);
    let mut watch = fed.after(10);
    for revision in 11..14 {
        fed.put(revision, "ns/a");
        assert_eq!(drain(&mut watch), [format!("~ns/a@{revision}")]);
    }
}

#[tokio::test]
async fn changes_wait_for_the_filling() {
    let fed = Fed::new(1 << 20);
    assert!(matches!(fed.watch(options(WatchStart::Now)), Err(Error::NotReady)));
    fed.put(4, "ns/old");
    fed.put(6, "ns/new");
    fed.fill(5, &[("ns/old", 4)]);
    fed.progress.send_replace(6);
    assert_eq!(fed.state(), BTreeMap::from([("ns/old".into(), 4), ("ns/new".into(), 6)]));
    assert_eq!(drain(&mut fed.after(5)), ["+ns/new@6"]);
    // The feed may be behind the listing.
    let fed = Fed::filled(1 << 20, 8, &[("ns/a", 7)]);
    fed.change(7, "ns/a", Some(text("ns/a", "x")));
    assert_eq!(drain(&mut fed.after(8)), Vec::<String>::new());
}

#[tokio::test]
async fn a_refill_ends_watches_and_reconciles_subscribers() {
    let fed = Fed::filled(1 << 20, 10, &[("ns/a", 1), ("ns/b", 2), ("ns/c", 3)]);
    let mut watch = fed.after(10);
    let mut subscription = Subscription::new(fed.cache.clone());
    let told = |subscription: &mut Subscription| {
        let mut told = Vec::new();
        while let Some(notice) = subscription.try_next() {
            told.push(match notice {
                Notice::Upsert(object) => format!("+{}@{}", object.key, object.resource_version),
                Notice::Delete(object) => format!("-{}", object.key),
                Notice::Synced => "synced".into(),
            });
        }
        told
    };
    assert_eq!(told(&mut subscription), ["+ns/a@1", "+ns/b@2", "+ns/c@3", "synced"]);
    fed.put(11, "ns/b");
    assert_eq!(told(&mut subscription), ["+ns/b@11"]);

    let stale = fed.cache.read().signal.filling;
    fed.cache.start_filling();
    assert_eq!(told(&mut subscription), Vec::<String>::new());
    assert!(!fed.cache.fill(stale, 12, Listing::default()), "an older filling is not believed");
    // The store went back: lower versions than before.
    fed.fill(5, &[("ns/a", 1), ("ns/c", 4), ("ns/d", 5)]);
    assert!(fed.cache.ready() && fed.cache.signal().borrow().phase == Phase::Ready);
    assert_eq!(drain(&mut watch).last().unwrap(), "END");
    assert_eq!(told(&mut subscription), ["-ns/b", "+ns/c@4", "+ns/d@5"]);
    fed.put(6, "ns/e");
    assert_eq!(told(&mut subscription), ["+ns/e@6"]);
    fed.cache.close();
    assert!(subscription.next().await.is_none());
}

#[tokio::test]
async fn deletions_show_the_last_state_at_their_version() {
    let fed = Fed::filled(1 << 20, 99, &[("ns/a", 9)]);
    let mut watch = fed.after(99);
    fed.change(100, "ns/a", None);
    let Some(WatchEvent::Deleted(object)) = watch.next().await else { panic!("no deletion") };
    assert_eq!(object.value()["metadata"]["resourceVersion"], "100");
    assert_eq!(object.value()["metadata"]["name"], "ns/a");
    // All watchers share one copy.
    let Some(WatchEvent::Deleted(again)) = fed.after(99).next().await else { panic!("no deletion") };
    assert!(Arc::ptr_eq(&object, &again));
}

#[tokio::test(start_paused = true)]
async fn quiet_watches_tell_how_far_they_are() {
    let fed = Fed::filled(1 << 20, 10, &[]);
    let bookmarked = WatchOptions {
        bookmarks: true,
        timeout: Some(std::time::Duration::from_secs(150)),
        ..options(WatchStart::After(10))
    };
    let mut watch = fed.watch(bookmarked).unwrap();
    let start = Instant::now();
    // Other resources move on.
    fed.progress.send_replace(50);
    let mut seen = Vec::new();
    while let Some(event) = watch.next().await {
        let WatchEvent::Bookmark { resource_version, initial_events_end: false } = event else {
            panic!("{event:?}")
        };
        seen.push((start.elapsed().as_secs(), resource_version));
        fed.progress.send_modify(|reached| *reached += 1);
    }
    assert_eq!(seen, [(60, 50), (120, 51), (150, 52)]);
}

#[tokio::test(start_paused = true)]
async fn old_events_leave_the_window() {
    let fed = Fed::filled(1 << 20, 10, &[]);
    fed.put(11, "ns/a");
    fed.put(12, "ns/a");
    tokio::time::advance(std::time::Duration::from_secs(400)).await;
    fed.cache.trim();
    assert_eq!(fed.cache.read().window.len(), 1);
    assert!(fed.watch(options(WatchStart::After(10))).is_err());
    assert_eq!(drain(&mut fed.after(11)), ["~ns/a@12"]);
}

/// Whatever happens, a watch replayed onto the state it began with gives the state at its end.
#[tokio::test]
async fn replayed_watches_equal_the_state() {
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..50 {
        let window = random.random_range(1..20_000);
        let fed = Fed::filled(window, 1, &[]);
        let selected = |object: &Object| object.label("tier") == Some("front");
        let scopes = [Scope::All, Scope::Namespace("n0".into()), Scope::Namespace("n1".into())];
        let mut watches: Vec<(usize, bool, Watch, BTreeMap<String, u64>)> = Vec::new();
        let mut revision = 1;
        for _ in 0..random.random_range(1..300) {
            revision += random.random_range(1..3);
            let key = format!("n{}/o{}", random.random_range(0..2), random.random_range(0..6));
            let tier = if random.random_bool(0.5) { "front" } else { "back" };
            fed.change(revision, &key, random.random_bool(0.7).then(|| text(&key, tier)));
            if random.random_bool(0.05) {
                let (scope, filtered) = (random.random_range(0..scopes.len()), random.random_bool(0.5));
                let mut options = state_options(scopes[scope].clone());
                options.filter = filtered.then(|| Arc::new(selected) as Arc<_>);
                watches.push((scope, filtered, fed.watch(options).unwrap(), BTreeMap::new()));
            }
            for (_, _, watch, replayed) in &mut watches {
                // Some read seldom.
                if random.random_bool(0.2) {
                    replay(watch, replayed);
                }
            }
        }
        for (scope, filtered, mut watch, mut replayed) in watches {
            let whole = replay(&mut watch, &mut replayed);
            let state = fed.cache.read();
            let expected: BTreeMap<String, u64> = state
                .range(&scopes[scope], "")
                .filter(|object| !filtered || selected(object))
                .map(|object| (object.key.to_string(), object.resource_version))
                .collect();
            // A watch that fell behind ended; it never pretended.
            assert!(!whole || replayed == expected, "seed {seed}: {replayed:?} {expected:?}");
            assert!(whole || window < 20_000, "seed {seed}");
        }
    }
}

/// Applies what a watch has to tell; false if it was ended.
fn replay(watch: &mut Watch, state: &mut BTreeMap<String, u64>) -> bool {
    for event in drain(watch) {
        let Some((key, version)) = event[1..].split_once('@') else { return false };
        let version = version.parse().unwrap();
        match &event[..1] {
            "+" => assert_eq!(state.insert(key.into(), version), None, "{event}"),
            "~" => assert!(state.insert(key.into(), version).is_some_and(|old| old < version), "{event}"),
            "-" => assert!(state.remove(key).is_some_and(|old| old < version), "{event}"),
            _ => return false,
        }
    }
    true
}
