//! Watches: selections, where they begin, and that replayed they are the list, whatever happens to the store.

use crate::*;

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
