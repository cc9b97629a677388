//! The verbs against the real binary and a real store.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod harness;

use harness::{Cluster, Events, User};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, data: Value) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": data})
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_from_create_to_delete() {
    let cluster = Cluster::start().await;
    let created = cluster.post(MAPS, &map("a", json!({"k": "v"}))).await;
    assert_eq!(created.code, 201);
    let created = created.ok();
    assert_eq!(created["metadata"]["namespace"], "default");
    assert!(created["metadata"]["uid"].as_str().unwrap().len() == 36);
    let path = format!("{MAPS}/a");
    assert_eq!(cluster.get(&path).await.ok(), created);
    let again = cluster.post(MAPS, &map("a", json!({}))).await;
    assert_eq!((again.code, again.message().as_str()), (409, r#"configmaps "a" already exists"#));

    // Optimistic concurrency.
    let mut newer = created.clone();
    newer["data"]["k"] = "w".into();
    let updated = cluster.put(&path, &newer).await.ok();
    assert_ne!(updated["metadata"]["resourceVersion"], created["metadata"]["resourceVersion"]);
    let stale = cluster.put(&path, &newer).await;
    assert_eq!(stale.code, 409);
    assert_eq!(stale.json()["reason"], "Conflict");
    // An update that changes nothing writes nothing.
    assert_eq!(cluster.put(&path, &updated).await.ok()["metadata"], updated["metadata"]);

    for (kind, body, expected) in [
        ("application/json-patch+json", r#"[{"op":"add","path":"/data/j","value":"1"}]"#, "j"),
        ("application/merge-patch+json", r#"{"data":{"m":"1"}}"#, "m"),
        ("application/strategic-merge-patch+json", r#"{"data":{"s":"1"}}"#, "s"),
    ] {
        assert_eq!(cluster.patch(&path, kind, body).await.ok()["data"][expected], "1", "{kind}");
    }
    let dry = cluster
        .patch(&format!("{path}?dryRun=All"), "application/merge-patch+json", r#"{"data":null}"#)
        .await;
    assert_eq!(dry.ok().get("data"), None);
    assert_eq!(cluster.get(&path).await.ok()["data"]["k"], "w");

    let generated = json!({"metadata": {"generateName": "g-"}});
    let name = cluster.post(MAPS, &generated).await.ok()["metadata"]["name"].as_str().unwrap().to_string();
    assert!(name.starts_with("g-") && name.len() == 7, "{name}");

    let list = cluster.get(&format!("{MAPS}?limit=1")).await.ok();
    assert_eq!(list["kind"], "ConfigMapList");
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0].get("kind"), None);
    let token = list["metadata"]["continue"].as_str().unwrap();
    let rest = cluster.get(&format!("{MAPS}?limit=10&continue={token}")).await.ok();
    assert_eq!(rest["items"][0]["metadata"]["name"], name);
    assert_eq!(rest["metadata"]["resourceVersion"], list["metadata"]["resourceVersion"]);

    let deleted = cluster.delete(&path).await.ok();
    assert_eq!((&deleted["kind"], &deleted["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(cluster.get(&path).await.code, 404);
    assert_eq!(cluster.send(User::Admin, "DELETE", MAPS, &[], "").await.code, 200);
    assert_eq!(cluster.get(MAPS).await.ok()["items"], json!([]));
    let nothing = cluster.get(&format!("{MAPS}?fieldSelector=metadata.name%3D..%2Fa")).await.ok();
    assert_eq!(nothing["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_and_how() {
    let cluster = Cluster::start().await;
    let check =
        async |method: &str, path: &str, headers: &[(&str, &str)], body: &str, code: u16, message: &str| {
            let answer = cluster.send(User::Admin, method, path, headers, body).await;
            let text = String::from_utf8_lossy(&answer.bytes).into_owned();
            assert_eq!(answer.code, code, "{method} {path}: {text}");
            let found = if text.starts_with('{') { answer.message() } else { text };
            assert!(found.contains(message), "{method} {path}: {found}");
        };
    let json = &[("content-type", "application/json")];
    check("GET", "/api/v1/nothing", &[], "", 404, "404 page not found").await;
    check("GET", "/nothing", &[], "", 404, "404 page not found").await;
    check("GET", "/api/v1/namespaces/default/nodes", &[], "", 404, "404 page not found").await;
    check("GET", "/api/v1/pods/x", &[], "", 404, "404 page not found").await;
    check("GET", &format!("{MAPS}/x"), &[], "", 404, r#"configmaps "x" not found"#).await;
    check("POST", &format!("{MAPS}/x"), json, "{}", 405, "does not allow this method").await;
    check("PUT", MAPS, &[], "{}", 405, "does not allow this method").await;
    check("GET", "/api/v1/namespaces/default/finalize", &[], "", 405, "does not allow this method").await;
    check("POST", MAPS, json, "{", 400, "parse error: unexpected end of JSON input ({)").await;
    check("POST", MAPS, json, "", 400, "unrecognized (must be of type ConfigMap)").await;
    check("GET", &format!("{MAPS}?resourceVersion=5&continue=x"), &[], "", 400, "not allowed when using")
        .await;
    check("POST", MAPS, json, r#"{"kind":"Pod","apiVersion":"v1"}"#, 400, "cannot be handled as a ConfigMap")
        .await;
    check("POST", MAPS, json, "{}", 422, "name or generateName is required").await;
    check("POST", MAPS, json, r#"{"metadata":{"name":"A_B"}}"#, 422, "a lowercase RFC 1123 subdomain").await;
    check(
        "POST",
        MAPS,
        json,
        r#"{"metadata":{"name":"a","namespace":"other"}}"#,
        400,
        "does not match the namespace sent on the request",
    )
    .await;
    check(
        "POST",
        "/api/v1/namespaces/none/configmaps",
        json,
        r#"{"metadata":{"name":"a"}}"#,
        404,
        r#"namespaces "none" not found"#,
    )
    .await;
    check(
        "POST",
        &format!("{MAPS}?fieldValidation=Strict"),
        json,
        r#"{"metadata":{"name":"a"},"dat":{}}"#,
        400,
        r#"unknown field "dat""#,
    )
    .await;
    check("POST", MAPS, &[("content-type", "application/cbor")], "x", 415, "application/json").await;
    check("POST", MAPS, json, &" ".repeat(4 << 20), 413, "Request entity too large").await;
    check("GET", MAPS, &[("accept", "application/vnd.kubernetes.protobuf")], "", 406, "application/json")
        .await;
    check("GET", &format!("{MAPS}?labelSelector=a%20like%20b"), &[], "", 400, "unable to parse requirement")
        .await;
    check("GET", &format!("{MAPS}?labelSelector=a%3Db%3Dc"), &[], "", 400, "found '=', expected: ','").await;
    check(
        "GET",
        "/api/v1/pods?fieldSelector=spec.color%3Dred",
        &[],
        "",
        400,
        "field label not supported: spec.color",
    )
    .await;
    check("GET", &format!("{MAPS}?resourceVersion=x"), &[], "", 422, "resourceVersion").await;
    check("GET", &format!("{MAPS}/x?resourceVersion=99999999"), &[], "", 504, "Too large resource version")
        .await;
    check("PATCH", &format!("{MAPS}/x"), json, "{}", 415, "application/merge-patch+json").await;
    check(
        "PATCH",
        &format!("{MAPS}/x"),
        &[("content-type", "application/apply-patch+yaml")],
        "{}",
        422,
        "is required for apply patch",
    )
    .await;
    check("DELETE", &format!("{MAPS}/x?propagationPolicy=Sideways"), &[], "", 422, "propagationPolicy").await;
    let apply = &[("content-type", "application/apply-patch+yaml")];
    let fields = r#"{"apiVersion":"v1","kind":"ConfigMap","bogus":1}"#;
    check("PATCH", &format!("{MAPS}/x?fieldManager=a"), apply, fields, 500, ".bogus: field not declared")
        .await;
    check("PATCH", &format!("{MAPS}/x?fieldManager=a"), apply, r#"{"kind":"Pod"}"#, 400, "ConfigMap").await;

    let privileged = json!({"metadata": {"name": "p"}, "spec": {"containers": [
        {"name": "c", "image": "i", "securityContext": {"privileged": true}},
    ]}});
    cluster
        .post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}}))
        .await
        .ok();
    let privileged = cluster.post("/api/v1/namespaces/default/pods", &privileged).await;
    assert_eq!(privileged.code, 422);
    assert!(
        privileged.message().contains(
            "spec.containers[0].securityContext.privileged: Forbidden: disallowed by cluster policy"
        ),
        "{}",
        privileged.message()
    );

    let warned = cluster.post(MAPS, &json!({"metadata": {"name": "w"}, "dat": {}})).await;
    assert_eq!(warned.code, 201);
    assert_eq!(warned.headers["warning"], r#"299 - "unknown field \"dat\"""#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sees_every_change_once() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, &map("before", json!({}))).await.ok();
    let mut events = Events::open(
        &cluster,
        &format!(
            "{MAPS}?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        ),
    )
    .await;
    assert_eq!(events.named().await, ("ADDED".into(), "before".into()));
    let bookmark = events.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    cluster.post(MAPS, &map("a", json!({"k": "v"}))).await.ok();
    assert_eq!(events.named().await, ("ADDED".into(), "a".into()));
    cluster.patch(&format!("{MAPS}/a"), "application/merge-patch+json", r#"{"data":{"k":"w"}}"#).await.ok();
    let modified = events.next().await.unwrap();
    assert_eq!((&modified["type"], &modified["object"]["data"]["k"]), (&json!("MODIFIED"), &json!("w")));
    assert_eq!(modified["object"]["kind"], "ConfigMap");
    cluster.delete(&format!("{MAPS}/a")).await.ok();
    assert_eq!(events.named().await, ("DELETED".into(), "a".into()));

    // Events come at once to a client that accepts gzip, as Go's do.
    let mut packed =
        Events::open_with(&cluster, &format!("{MAPS}?watch=1"), &[("accept-encoding", "gzip")]).await;
    assert_eq!(packed.named().await, ("ADDED".into(), "before".into()));

    let mut tables = {
        let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
        let response = cluster
            .stream(
                0,
                User::Admin,
                (http::Method::GET, &format!("{MAPS}?watch=1&timeoutSeconds=1")),
                &accept,
                "",
            )
            .await
            .unwrap();
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap().lines().map(str::to_string).collect::<Vec<_>>()
    };
    let first: Value = serde_json::from_str(&tables.remove(0)).unwrap();
    assert_eq!(first["object"]["kind"], "Table");
    assert_eq!(first["object"]["rows"][0]["cells"][0], "before");
}

#[tokio::test(flavor = "multi_thread")]
async fn representations() {
    let cluster = Cluster::start().await;
    for index in 0..20 {
        let filler = "x".repeat(20_000);
        cluster.post(MAPS, &map(&format!("m{index:02}"), json!({"k": filler}))).await.ok();
    }
    let accept = async |accept: &str, path: &str| {
        cluster.send(User::Admin, "GET", path, &[("accept", accept)], "").await
    };
    let table = accept("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", MAPS).await.ok();
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    assert_eq!(table["rows"][0]["cells"][0], "m00");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let partial = accept("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", MAPS).await.ok();
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(partial["items"].as_array().unwrap().len(), 20);
    assert_eq!(partial["items"][0].get("data"), None);
    let yaml = accept("application/yaml", &format!("{MAPS}/m01")).await;
    assert_eq!(yaml.headers["content-type"], "application/yaml");
    assert!(yaml.bytes.starts_with(b"kind: ConfigMap\n"));

    let packed = cluster.send(User::Admin, "GET", MAPS, &[("accept-encoding", "gzip")], "").await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    assert!(packed.bytes.len() < 100_000, "{}", packed.bytes.len());
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed.bytes[..]), &mut unpacked).unwrap();
    let list: Value = serde_json::from_slice(&unpacked).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 20);
    let small =
        cluster.send(User::Admin, "GET", &format!("{MAPS}/m01"), &[("accept-encoding", "gzip")], "").await;
    assert!(!small.headers.contains_key("content-encoding"));
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_has_owners() {
    let cluster = Cluster::start().await;
    let apply = async |manager: &str, value: &str, force: bool| {
        let path = format!("{MAPS}/a?fieldManager={manager}&force={force}");
        let body = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {{k: {value}}}\n");
        cluster.patch(&path, "application/apply-patch+yaml", &body).await
    };
    assert_eq!(apply("one", "v", false).await.code, 201);
    assert_eq!(apply("one", "w", false).await.code, 200);
    let conflict = apply("two", "x", false).await;
    assert_eq!(conflict.code, 409);
    let cause = &conflict.json()["details"]["causes"][0];
    assert_eq!((&cause["reason"], &cause["field"]), (&json!("FieldManagerConflict"), &json!(".data.k")));
    assert_eq!(apply("two", "x", true).await.ok()["data"]["k"], "x");

    // What is owned is what was sent, not what decoding and defaulting add.
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }});
    let path = "/apis/apps/v1/namespaces/default/deployments/d?fieldManager=one";
    let applied = cluster.patch(path, "application/apply-patch+yaml", &deployment.to_string()).await.ok();
    assert_eq!(
        applied["metadata"]["managedFields"][0]["fieldsV1"],
        json!({"f:spec": {"f:selector": {}, "f:template": {
            "f:metadata": {"f:labels": {"f:a": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}}}},
        }}})
    );
    let unfit = cluster
        .patch(
            "/apis/apps/v1/namespaces/default/deployments/d",
            "application/json-patch+json",
            r#"[{"op":"remove","path":"/spec/nothing"}]"#,
        )
        .await;
    assert_eq!((unfit.code, &unfit.json()["details"]), (422, &json!({})));
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_waits_for_finalizers() {
    let cluster = Cluster::start().await;
    let path = format!("{MAPS}/a");
    let mut object = map("a", json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.post(MAPS, &object).await.ok();
    let uid = json!({"preconditions": {"uid": "other"}}).to_string();
    assert_eq!(cluster.send(User::Admin, "DELETE", &path, &[], &uid).await.code, 409);
    let pending = cluster.delete(&path).await.ok();
    assert!(pending["metadata"]["deletionTimestamp"].is_string());
    let again = cluster.post(MAPS, &map("a", json!({}))).await;
    assert_eq!(
        (again.code, again.message().as_str()),
        (409, r#"object is being deleted: configmaps "a" already exists"#)
    );
    let added = cluster
        .patch(
            &path,
            "application/merge-patch+json",
            r#"{"metadata":{"finalizers":["example.com/hold","example.com/new"]}}"#,
        )
        .await;
    assert_eq!(added.code, 422);
    let last =
        cluster.patch(&path, "application/merge-patch+json", r#"{"metadata":{"finalizers":null}}"#).await;
    assert_eq!(last.code, 200);
    assert_eq!(cluster.get(&path).await.code, 404);

    cluster.post(MAPS, &map("b", json!({}))).await.ok();
    let path = format!("{MAPS}/b");
    let foreground = cluster.delete(&format!("{path}?propagationPolicy=Foreground")).await;
    assert_eq!(foreground.code, 200);
    assert_eq!(cluster.get(&path).await.ok()["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    cluster.delete(&format!("{path}?propagationPolicy=Background")).await.ok();
    assert_eq!(cluster.get(&path).await.code, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_bound_and_evicted() {
    let cluster = Cluster::start().await;
    let default = "/api/v1/namespaces/default";
    cluster.post(&format!("{default}/serviceaccounts"), &json!({"metadata": {"name": "default"}})).await;
    let pod = json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    cluster.post(&format!("{default}/pods"), &pod).await.ok();
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let dry = cluster.post(&format!("{default}/bindings?dryRun=All"), &binding).await;
    assert_eq!(dry.code, 201);
    assert_eq!(cluster.post(&format!("{default}/bindings"), &binding).await.code, 201);
    let again = cluster.post(&format!("{default}/pods/p/binding"), &binding).await;
    assert_eq!((again.code, &again.json()["reason"]), (409, &json!("Conflict")));

    // A running pod that is ready falls under its budget; what is not ready does not, once the budget is met.
    let status = async |ready: &str| {
        let status =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}});
        let path = format!("{default}/pods/p/status");
        cluster.patch(&path, "application/merge-patch+json", &status.to_string()).await.ok();
    };
    status("True").await;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}});
    cluster.post(budgets, &budget).await.ok();
    let eviction = json!({"metadata": {"name": "p"}});
    let evict = async || cluster.post(&format!("{default}/pods/p/eviction"), &eviction).await;
    let unseen = evict().await;
    assert_eq!(unseen.code, 429);
    assert!(String::from_utf8_lossy(&unseen.bytes).contains("still being processed by the server"));
    let seen = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 1,
        "desiredHealthy": 1, "expectedPods": 1}});
    let path = format!("{budgets}/b/status");
    cluster.patch(&path, "application/merge-patch+json", &seen.to_string()).await.ok();
    let refused = evict().await;
    assert_eq!(refused.code, 429);
    assert!(String::from_utf8_lossy(&refused.bytes).contains("needs 1 healthy pods and has 1 currently"));
    status("False").await;
    let mut events = Events::open(&cluster, &format!("{default}/pods?watch=1")).await;
    assert_eq!(evict().await.code, 201);
    loop {
        let pod = events.next().await.unwrap()["object"].clone();
        if pod["metadata"].get("deletionTimestamp").is_some() {
            let conditions = pod["status"]["conditions"].to_string();
            assert!(conditions.contains("EvictionByEvictionAPI"), "{conditions}");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_selected_by_either_name() {
    let cluster = Cluster::start().await;
    let core = "/api/v1/namespaces/default/events";
    for name in ["a", "b"] {
        let about = json!({"kind": "Pod", "namespace": "default", "name": name});
        let event =
            json!({"metadata": {"name": name}, "involvedObject": about, "reason": "R", "type": "Normal"});
        cluster.post(core, &event).await.ok();
    }
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    for path in [
        format!("{core}?fieldSelector=involvedObject.name%3Db"),
        format!("{events}?fieldSelector=regarding.name%3Db"),
    ] {
        let items = cluster.get(&path).await.ok()["items"].clone();
        let names: Vec<&Value> =
            items.as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
        assert_eq!(names, ["b"], "{path}");
    }
}

/// Every number that a client may send is one that the server can add to.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_numbers_are_numbers() {
    let cluster = Cluster::start().await;
    let default = "/api/v1/namespaces/default";
    cluster.post(&format!("{default}/serviceaccounts"), &json!({"metadata": {"name": "default"}})).await;
    let spec = json!({"nodeName": "n", "terminationGracePeriodSeconds": i64::MAX,
        "containers": [{"name": "c", "image": "i"}]});
    cluster.post(&format!("{default}/pods"), &json!({"metadata": {"name": "p"}, "spec": spec})).await.ok();
    let pod = format!("{default}/pods/p");
    let pending = cluster.delete(&pod).await.ok();
    assert_eq!(pending["metadata"]["deletionGracePeriodSeconds"], i64::MAX);
    assert!(pending["metadata"]["deletionTimestamp"].as_str().unwrap().starts_with("9999-"));
    let shorter = cluster.delete(&format!("{pod}?gracePeriodSeconds=7")).await.ok();
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 7);

    let held = json!({"metadata": {"name": "g", "generation": i64::MAX, "finalizers": ["example.com/hold"]}});
    cluster.post(MAPS, &held).await.ok();
    assert_eq!(cluster.delete(&format!("{MAPS}/g")).await.ok()["metadata"]["generation"], i64::MAX);
    let watch = format!("{MAPS}?watch=1&timeoutSeconds={}", i64::MAX);
    assert_eq!(Events::open(&cluster, &watch).await.named().await, ("ADDED".into(), "g".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_never_give_the_same_address() {
    let mut cluster = Cluster::start().await;
    cluster.add_api(&[]).await;
    let services = "/api/v1/namespaces/default/services";
    let body = |index: usize| {
        json!({"metadata": {"name": format!("s{index}")}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}}).to_string()
    };
    let made = futures::future::join_all((0..40).map(|index| {
        let (cluster, body) = (&cluster, body(index));
        async move {
            let response = cluster
                .stream(index % 2, User::Admin, (http::Method::POST, services), &[], &body)
                .await
                .unwrap();
            let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
            serde_json::from_slice::<Value>(&bytes).unwrap()
        }
    }))
    .await;
    let distinct = |pointer: &str| {
        let mut all: Vec<String> =
            made.iter().map(|service| service.pointer(pointer).expect("allocated").to_string()).collect();
        all.sort();
        all.dedup();
        all.len()
    };
    assert_eq!(distinct("/spec/clusterIP"), 40);
    assert_eq!(distinct("/spec/ports/0/nodePort"), 40);

    // A deleted service gives back what it had; a taken address is refused.
    let address = made[0]["spec"]["clusterIP"].as_str().unwrap();
    let wanted = |name: &str| json!({"metadata": {"name": name}, "spec": {"clusterIP": address, "ports": [{"port": 80}]}});
    let taken = cluster.post(services, &wanted("t")).await;
    assert_eq!(taken.code, 422);
    assert!(taken.message().contains("provided IP is already allocated"), "{}", taken.message());
    cluster.delete(&format!("{services}/s0")).await.ok();
    cluster.post(services, &wanted("t")).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_leaves_the_endpoints() {
    let mut cluster = Cluster::start().await;
    cluster.add_api(&["--advertise-address", "10.99.0.2"]).await;
    let addresses = async |cluster: &Cluster| {
        let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
        let endpoints = cluster.get(slice).await.ok()["endpoints"].as_array().cloned().unwrap_or_default();
        endpoints.iter().map(|endpoint| endpoint["addresses"][0].clone()).collect::<Vec<_>>()
    };
    assert_eq!(addresses(&cluster).await, ["10.99.0.1", "10.99.0.2"]);
    let (cluster, status) = tokio::task::spawn_blocking(move || {
        let status = cluster.terminate(1);
        (cluster, status)
    })
    .await
    .unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(addresses(&cluster).await, ["10.99.0.1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_agrees_on_the_protocol() {
    let cluster = Cluster::start().await;
    for (alpn, version) in [(&b"h2"[..], http::Version::HTTP_2), (&b"http/1.1"[..], http::Version::HTTP_11)] {
        let tls = cluster.tls(0, User::Admin, &[alpn]).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(alpn));
        let io = hyper_util::rt::TokioIo::new(tls);
        let executor = hyper_util::rt::TokioExecutor::new();
        let request = http::Request::get("https://localhost/version").header("host", "localhost");
        let request = request.body(String::new()).unwrap();
        let answer = if version == http::Version::HTTP_2 {
            let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        };
        assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_metrics_and_a_drain() {
    let mut cluster = Cluster::start().await;
    let ready = cluster.get("/readyz?verbose").await;
    assert!(String::from_utf8_lossy(&ready.bytes).contains("[+]etcd-readiness ok"));
    let version = cluster.get("/version").await;
    assert!(version.bytes.starts_with(b"{\n  \"major\": \"1\",\n"), "{version:?}");
    let version = version.ok();
    assert!(version["gitVersion"].as_str().unwrap().starts_with("v1.36."));
    let metrics = cluster.get("/metrics").await;
    let text = String::from_utf8_lossy(&metrics.bytes);
    assert!(text.contains("apiserver_request_duration_seconds_bucket"), "{text}");
    let components = cluster.get("/api/v1/componentstatuses").await;
    assert_eq!(components.headers["warning"], "299 - \"v1 ComponentStatus is deprecated in v1.19+\"");
    let etcd = components.ok()["items"][2].clone();
    assert_eq!(
        (&etcd["metadata"]["name"], &etcd["conditions"][0]["message"]),
        (&json!("etcd-0"), &json!("ok"))
    );
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = cluster.send(User::Admin, "GET", "/api/v1/componentstatuses/etcd-0", &accept, "").await.ok();
    assert_eq!(table["rows"][0]["cells"], json!(["etcd-0", "Healthy", "ok", ""]));
    let groups = cluster.get("/apis").await;
    let etag = groups.headers["etag"].to_str().unwrap();
    let unchanged = cluster.send(User::Admin, "GET", "/apis", &[("if-none-match", etag)], "").await;
    assert_eq!(unchanged.code, 304);

    let mut events = Events::open(&cluster, &format!("{MAPS}?watch=1")).await;
    let status = tokio::task::spawn_blocking(move || cluster.terminate(0)).await.unwrap();
    assert!(status.success(), "{status}");
    // The watch ended instead of being cut off.
    assert_eq!(events.next().await, None);
}

/// kubectl looks for a kind that it does not know among the custom ones, and then says that there is none.
#[tokio::test(flavor = "multi_thread")]
async fn there_are_no_custom_resource_definitions() {
    const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let cluster = Cluster::start().await;
    let made = cluster.post(MAPS, &map("a", json!({}))).await.ok();
    let version = |object: &Value| -> u64 {
        object["metadata"]["resourceVersion"].as_str().unwrap().parse().expect("a number")
    };
    let list = cluster.get(&format!("{DEFINITIONS}?limit=500")).await;
    assert_eq!((list.code, &list.headers["content-type"]), (200, &"application/json".parse().unwrap()));
    let list = list.json();
    assert_eq!(
        (&list["kind"], &list["apiVersion"], &list["items"]),
        (&json!("CustomResourceDefinitionList"), &json!("apiextensions.k8s.io/v1"), &json!([]))
    );
    assert!(version(&list) >= version(&made), "{list}");
    assert_eq!(cluster.send(User::Jane, "GET", DEFINITIONS, &[], "").await.code, 403);
    for (query, code) in [
        ("resourceVersion=0", 200),
        ("resourceVersion=x", 422),
        ("resourceVersion=999999999", 504),
        ("labelSelector=a%20like%20b", 400),
        ("watch=1", 404),
    ] {
        assert_eq!(cluster.get(&format!("{DEFINITIONS}?{query}")).await.code, code, "{query}");
    }
    for (method, path) in [
        ("GET", format!("{DEFINITIONS}/a")),
        ("POST", DEFINITIONS.into()),
        ("DELETE", DEFINITIONS.into()),
        ("GET", "/apis/apiextensions.k8s.io/v1/namespaces/default/customresourcedefinitions".into()),
        ("GET", "/apis/apiextensions.k8s.io/v1beta1/customresourcedefinitions".into()),
        ("GET", "/apis/apiextensions.k8s.io/v1".into()),
        ("GET", "/apis/apiextensions.k8s.io".into()),
    ] {
        assert_eq!(cluster.send(User::Admin, method, &path, &[], "{}").await.code, 404, "{method} {path}");
    }
    assert!(!cluster.get("/apis").await.ok().to_string().contains("apiextensions"));
}
