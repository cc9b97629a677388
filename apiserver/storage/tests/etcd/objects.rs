//! Single objects: what a write does, what an update decides on, what expires, what cannot be read.

use crate::*;

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
