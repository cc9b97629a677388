//! Lists: pages at one version, versions that are gone and versions that are not there yet.

use crate::*;

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
