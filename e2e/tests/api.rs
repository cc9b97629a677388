//! What the API promises its clients, asked over the wire.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's own functions fail as it does"
)]

use std::time::Duration;

use e2e::api::Api;
use e2e::kubectl::Kubectl;
use e2e::wait::until;
use http::Method;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(30);

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

fn config_maps(kubectl: &Kubectl) -> String {
    format!("/api/v1/namespaces/{}/configmaps", kubectl.namespace)
}

#[test]
fn a_write_with_an_old_resource_version_is_a_conflict() {
    let (kubectl, api) = (Kubectl::shared("conflict"), Api::admin());
    let all = config_maps(&kubectl);
    let path = format!("{all}/c");
    let first = api.create(&all, &config_map("c"));
    let mut second = first.clone();
    second["data"]["a"] = json!("2");
    let stored = api.request(Method::PUT, &path, Some(&second)).ok();
    assert_ne!(stored["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);

    let mut late = first.clone();
    late["data"]["a"] = json!("3");
    let message = api.request(Method::PUT, &path, Some(&late)).refused(409, "Conflict");
    assert!(message.contains("the object has been modified; please apply your changes to"), "{message}");
    let precondition = json!({"preconditions": {"resourceVersion": first["metadata"]["resourceVersion"]}});
    api.request(Method::DELETE, &path, Some(&precondition)).refused(409, "Conflict");
    let precondition = json!({"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}});
    let message = api.request(Method::DELETE, &path, Some(&precondition)).refused(409, "Conflict");
    assert!(message.contains("UID in precondition"), "{message}");

    // Writing what is there already changes nothing, not even the version.
    let again = api.request(Method::PUT, &path, Some(&stored)).ok();
    assert_eq!(again["metadata"]["resourceVersion"], stored["metadata"]["resourceVersion"]);
    assert_eq!(again["data"]["a"], "2");
}

#[test]
fn generate_name_makes_names_that_differ() {
    let (kubectl, api) = (Kubectl::shared("generate"), Api::admin());
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "part-"}});
    let name = || {
        let created = api.create(&config_maps(&kubectl), &object);
        assert_eq!(created["metadata"]["generateName"], "part-");
        created["metadata"]["name"].as_str().unwrap().to_owned()
    };
    let (first, second) = (name(), name());
    assert_ne!(first, second);
    for name in [first, second] {
        let suffix = name.strip_prefix("part-").unwrap();
        assert_eq!(suffix.len(), 5, "{name}");
        assert!(suffix.chars().all(|c| "bcdfghjklmnpqrstvwxz2456789".contains(c)), "{name}");
    }
}

#[test]
fn finalizers_hold_an_object_until_they_are_taken_off() {
    let (kubectl, api) = (Kubectl::shared("finalizer"), Api::admin());
    let all = config_maps(&kubectl);
    let mut object = config_map("held");
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    let created = api.create(&all, &object);
    let path = format!("{all}/held");
    let deleted = api.request(Method::DELETE, &path, None);
    assert_eq!(deleted.code, 200);
    let held = api.get(&path).unwrap();
    assert!(held["metadata"]["deletionTimestamp"].is_string(), "{held}");
    assert_eq!(held["metadata"]["uid"], created["metadata"]["uid"]);
    // No finalizer may come once deletion has begun.
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/late"]}});
    api.request(Method::PATCH, &path, Some(&more)).refused(422, "Invalid");
    api.request(Method::PATCH, &path, Some(&json!({"metadata": {"finalizers": null}}))).ok();
    api.request(Method::GET, &path, None).refused(404, "NotFound");
}

/// A ConfigMap `child` that belongs to a ConfigMap `owner`, both new.
fn family(api: &Api, all: &str, owner: &str, child: &str) {
    let parent = api.create(all, &config_map(owner));
    let mut object = config_map(child);
    object["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": parent["metadata"]["uid"],
        "blockOwnerDeletion": true,
    }]);
    api.create(all, &object);
}

fn until_gone(api: &Api, path: &str) {
    until(&format!("{path} is gone"), LONG, || {
        let answer = api.request(Method::GET, path, None);
        if answer.code == 404 { Ok(()) } else { Err(answer.json()["metadata"].to_string()) }
    });
}

#[test]
fn owned_objects_follow_the_propagation_policy() {
    let (kubectl, api) = (Kubectl::shared("owners"), Api::admin());
    let all = config_maps(&kubectl);
    let delete = |owner: &str, policy: &str| {
        let options = json!({"propagationPolicy": policy});
        assert_eq!(api.request(Method::DELETE, &format!("{all}/{owner}"), Some(&options)).code, 200);
    };

    family(&api, &all, "background", "background-child");
    delete("background", "Background");
    api.request(Method::GET, &format!("{all}/background"), None).refused(404, "NotFound");
    until_gone(&api, &format!("{all}/background-child"));

    family(&api, &all, "foreground", "foreground-child");
    let child = format!("{all}/foreground-child");
    api.request(Method::PATCH, &child, Some(&json!({"metadata": {"finalizers": ["example.com/hold"]}}))).ok();
    delete("foreground", "Foreground");
    until("the child is being deleted", LONG, || {
        let child = api.get(&child)?;
        if child["metadata"]["deletionTimestamp"].is_string() { Ok(()) } else { Err(child.to_string()) }
    });
    let owner = api.get(&format!("{all}/foreground")).unwrap();
    assert_eq!(owner["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    api.request(Method::PATCH, &child, Some(&json!({"metadata": {"finalizers": null}}))).ok();
    until_gone(&api, &child);
    until_gone(&api, &format!("{all}/foreground"));

    family(&api, &all, "orphan", "orphan-child");
    delete("orphan", "Orphan");
    until_gone(&api, &format!("{all}/orphan"));
    let orphan = api.get(&format!("{all}/orphan-child")).unwrap();
    assert!(orphan["metadata"]["ownerReferences"].is_null(), "{orphan}");
    assert!(orphan["metadata"]["deletionTimestamp"].is_null(), "{orphan}");

    // An owner that never was: the collector takes what names it.
    let mut stray = config_map("stray");
    stray["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "nobody", "uid": "5d4c1bd0-0000-4000-8000-000000000000",
    }]);
    api.create(&all, &stray);
    until_gone(&api, &format!("{all}/stray"));
}

#[test]
fn lists_come_in_pages_of_one_revision() {
    let (kubectl, api) = (Kubectl::shared("pages"), Api::admin());
    let all = config_maps(&kubectl);
    for index in 0..5 {
        let mut object = config_map(&format!("c{index}"));
        object["metadata"]["labels"] = json!({"test": "pages"});
        api.create(&all, &object);
    }
    let query = format!("{all}?labelSelector=test%3Dpages&limit=2");
    let first = api.get(&query).unwrap();
    assert_eq!(first["items"].as_array().unwrap().len(), 2);
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    // What comes and goes between two pages is not in the later ones.
    api.create(&all, &config_map("c9"));
    api.request(Method::DELETE, &format!("{all}/c4"), None).ok();

    let mut names: Vec<Value> =
        vec![first["items"][0]["metadata"]["name"].clone(), first["items"][1]["metadata"]["name"].clone()];
    let mut next = token;
    while !next.is_empty() {
        let page = api.get(&format!("{query}&continue={next}")).unwrap();
        assert_eq!(page["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
        names.extend(page["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].clone()));
        next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    }
    assert_eq!(json!(names), json!(["c0", "c1", "c2", "c3", "c4"]));
    api.request(Method::GET, &format!("{all}?limit=2&continue=garbage"), None).refused(400, "BadRequest");
}

#[test]
fn watches_carry_every_change_from_their_version_on() {
    let (kubectl, api) = (Kubectl::shared("watch"), Api::admin());
    let all = config_maps(&kubectl);
    let created = api.create(&all, &config_map("before"));
    let version = created["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch = api.watch(&format!(
        "{all}?watch=true&resourceVersion={version}&allowWatchBookmarks=true&fieldSelector=metadata.name%3Dc"
    ));
    api.create(&all, &config_map("c"));
    api.request(Method::PATCH, &format!("{all}/c"), Some(&json!({"data": {"a": "2"}}))).ok();
    api.request(Method::DELETE, &format!("{all}/c"), None).ok();
    let mut last = 0;
    for expected in ["ADDED", "MODIFIED", "DELETED"] {
        let (kind, object) = watch.event(LONG);
        assert_eq!(kind, expected, "{object}");
        assert_eq!(object["kind"], "ConfigMap");
        let version: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        assert!(version > last);
        last = version;
    }

    // Without a version: what is there first, then a bookmark that ends it where it was asked for.
    let mut initial = api.watch(&format!(
        "{all}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    ));
    let mut names = Vec::new();
    loop {
        let event = initial.next(LONG).expect("the bookmark that ends the initial events");
        let object = &event["object"];
        if event["type"] == "BOOKMARK" {
            assert_eq!(object["metadata"]["annotations"]["k8s.io/initial-events-end"], "true", "{event}");
            break;
        }
        assert_eq!(event["type"], "ADDED");
        names.push(object["metadata"]["name"].as_str().unwrap().to_owned());
    }
    assert!(names.iter().any(|name| name == "before"), "{names:?}");

    // A selector sees an object leave it as a deletion.
    let mut blue =
        api.watch(&format!("{all}?watch=true&labelSelector=color%3Dblue&resourceVersion={version}"));
    let label = |value: Value| json!({"metadata": {"labels": {"color": value}}});
    api.request(Method::PATCH, &format!("{all}/before"), Some(&label(json!("blue")))).ok();
    assert_eq!(blue.event(LONG).0, "ADDED");
    api.request(Method::PATCH, &format!("{all}/before"), Some(&label(Value::Null))).ok();
    assert_eq!(blue.event(LONG).0, "DELETED");
}

#[test]
fn a_watch_that_times_out_ends_cleanly() {
    let (kubectl, api) = (Kubectl::shared("timeout"), Api::admin());
    let mut watch = api.watch(&format!("{}?watch=true&timeoutSeconds=1", config_maps(&kubectl)));
    let deadline = std::time::Instant::now() + LONG;
    while watch.next(LONG).is_some() {}
    assert!(std::time::Instant::now() < deadline, "the watch did not end within its second");
}

#[test]
fn errors_are_statuses_that_name_what_is_wrong() {
    let (kubectl, api) = (Kubectl::shared("status"), Api::admin());
    let all = config_maps(&kubectl);
    let post = |body: &[u8]| api.send(Method::POST, &all, "application/json", body.to_vec());

    let message = post(b"{\"apiVersion\": \"v1\", ").refused(400, "BadRequest");
    assert!(!message.is_empty());
    let message =
        post(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}).to_string().as_bytes())
            .refused(400, "BadRequest");
    assert!(message.contains("Secret"), "{message}");
    let answer = post(config_map("Not_A_Name").to_string().as_bytes());
    answer.refused(422, "Invalid");
    let status = answer.json();
    assert_eq!(status["details"]["causes"][0]["field"], "metadata.name", "{status}");
    assert_eq!(status["details"]["causes"][0]["reason"], "FieldValueInvalid", "{status}");

    let answer = api.request(Method::GET, &format!("{all}/absent"), None);
    assert_eq!(answer.refused(404, "NotFound"), "configmaps \"absent\" not found");
    assert_eq!(answer.json()["details"], json!({"name": "absent", "kind": "configmaps"}));
    api.create(&all, &config_map("twice"));
    let message = api.request(Method::POST, &all, Some(&config_map("twice"))).refused(409, "AlreadyExists");
    assert_eq!(message, "configmaps \"twice\" already exists");
    // A path that nothing serves gets no Status, as upstream has it.
    let answer = api.request(Method::GET, "/api/v1/nothings", None);
    assert_eq!((answer.code, answer.body.as_ref()), (404, b"404 page not found\n".as_slice()));
    api.request(Method::PUT, &all, Some(&config_map("c"))).refused(405, "MethodNotAllowed");
    api.send(Method::POST, &all, "text/plain", b"hello".to_vec()).refused(415, "UnsupportedMediaType");

    let large = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "large"},
        "data": {"a": "x".repeat(4 << 20)}});
    api.request(Method::POST, &all, Some(&large)).refused(413, "RequestEntityTooLarge");
    let over = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "over"},
        "data": {"a": "x".repeat((1 << 20) + 1)}});
    let message = api.request(Method::POST, &all, Some(&over)).refused(422, "Invalid");
    assert!(message.contains("Too long"), "{message}");
}

#[test]
fn unknown_fields_warn_fail_or_pass_as_asked() {
    let (kubectl, api) = (Kubectl::shared("fields"), Api::admin());
    let all = config_maps(&kubectl);
    let object = |name: &str| {
        let mut object = config_map(name);
        object["dat"] = json!({});
        object
    };
    let post = |name: &str, validation: &str| {
        api.request(Method::POST, &format!("{all}?fieldValidation={validation}"), Some(&object(name)))
    };
    let message = post("strict", "Strict").refused(400, "BadRequest");
    assert!(message.contains("strict decoding error: unknown field \"dat\""), "{message}");
    let warned = post("warn", "Warn");
    assert_eq!(warned.code, 201);
    let warning = warned.headers.get("warning").map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(warning.as_deref(), Some("299 - \"unknown field \\\"dat\\\"\""));
    assert!(warned.json()["dat"].is_null());
    let ignored = post("ignore", "Ignore");
    assert_eq!(ignored.code, 201);
    assert!(ignored.headers.get("warning").is_none());
    let twice = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"{}\"}},\"data\":{{\"a\":\"1\",\"a\":\"2\"}}}}",
        "twice"
    );
    let message = api
        .send(Method::POST, &format!("{all}?fieldValidation=Strict"), "application/json", twice.into_bytes())
        .refused(400, "BadRequest");
    assert!(message.contains("duplicate field \"data.a\""), "{message}");
}

#[test]
fn nobody_gets_in_without_rights() {
    let (kubectl, api) = (Kubectl::shared("access"), Api::admin());
    let namespace = &kubectl.namespace;
    let anonymous = Api::anonymous();
    // Health and version are open to all; the rest asks who is there.
    assert_eq!(anonymous.request(Method::GET, "/readyz", None).code, 200);
    assert_eq!(anonymous.request(Method::GET, "/version", None).code, 200);
    let message = anonymous.request(Method::GET, "/api/v1/namespaces", None).refused(403, "Forbidden");
    assert!(message.contains("User \"system:anonymous\" cannot list resource \"namespaces\""), "{message}");
    // A kubelet knows no anonymous: it wants a certificate or a token.
    let cluster = e2e::shared_cluster();
    let kubelet = Api::anonymous_at(&format!("https://{}:10250", cluster.hosts[0].address));
    assert_eq!(kubelet.request(Method::GET, "/pods", None).code, 401);
    Api::with_token("not-a-token").request(Method::GET, "/api", None).refused(401, "Unauthorized");

    until("the default service account comes", LONG, || {
        api.get(&format!("/api/v1/namespaces/{namespace}/serviceaccounts/default"))
    });
    let account = Api::with_token(&api.token_for(namespace, "default"));
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let message = account.request(Method::GET, &pods, None).refused(403, "Forbidden");
    assert_eq!(
        message,
        format!(
            "pods is forbidden: User \"system:serviceaccount:{namespace}:default\" cannot list resource \
             \"pods\" in API group \"\" in the namespace \"{namespace}\""
        )
    );
    kubectl.run(&[
        "create",
        "rolebinding",
        "view",
        "--clusterrole=view",
        &format!("--serviceaccount={namespace}:default"),
    ]);
    until("the binding holds", LONG, || account.get(&pods));
    account.request(Method::POST, &config_maps(&kubectl), Some(&config_map("c"))).refused(403, "Forbidden");
    // A right that one does not have cannot be given away.
    kubectl.run(&["create", "role", "binder", "--verb=create", "--resource=roles.rbac.authorization.k8s.io"]);
    kubectl.run(&[
        "create",
        "rolebinding",
        "binder",
        "--role=binder",
        &format!("--serviceaccount={namespace}:default"),
    ]);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "more"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]});
    let roles = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles");
    until("escalation is what is refused", LONG, || {
        let message = account.request(Method::POST, &roles, Some(&role)).refused(403, "Forbidden");
        if message.contains("attempting to grant RBAC permissions not currently held") {
            Ok(())
        } else {
            Err(message)
        }
    });
}

#[test]
fn a_node_may_change_only_what_is_its_own() {
    let cluster = e2e::shared_cluster();
    let kubectl = Kubectl::shared("node");
    e2e::pods::sleeper(&kubectl, "elsewhere", Some("node-2"));
    let kubeconfig = cluster.layout().kubeconfigs().join("kubelet-node-1.conf");
    let node = Api::with_kubeconfig(&kubeconfig);
    node.get("/api/v1/nodes/node-1").unwrap();
    let label = json!({"metadata": {"labels": {"test": "node"}}});
    node.request(Method::PATCH, "/api/v1/nodes/node-2", Some(&label)).refused(403, "Forbidden");
    let taints = json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    node.request(Method::PATCH, "/api/v1/nodes/node-1", Some(&taints)).refused(403, "Forbidden");
    let pod = format!("/api/v1/namespaces/{}/pods/elsewhere", kubectl.namespace);
    node.request(Method::DELETE, &pod, None).refused(403, "Forbidden");
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    node.request(Method::GET, secrets, None).refused(403, "Forbidden");
}

#[test]
fn deleting_a_namespace_deletes_all_that_is_in_it() {
    let (kubectl, api) = (Kubectl::shared("doomed"), Api::admin());
    let all = config_maps(&kubectl);
    e2e::pods::sleeper(&kubectl, "p", None);
    let mut held = config_map("held");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    api.create(&all, &held);
    kubectl.run(&["create", "deployment", "d", "--image=localhost/busybox:latest", "--", "sleep", "3600"]);

    let path = format!("/api/v1/namespaces/{}", kubectl.namespace);
    let phase = api.request(Method::DELETE, &path, None).ok();
    assert_eq!(phase["status"]["phase"], "Terminating");
    let message = api.request(Method::POST, &all, Some(&config_map("late"))).refused(403, "Forbidden");
    assert!(message.contains("because it is being terminated"), "{message}");
    until_gone(&api, &format!("{path}/pods/p"));
    until("the condition names what is left", LONG, || {
        let namespace = api.get(&path)?;
        let conditions = namespace["status"]["conditions"].to_string();
        if conditions.contains("example.com/hold") { Ok(()) } else { Err(conditions) }
    });
    api.request(Method::PATCH, &format!("{all}/held"), Some(&json!({"metadata": {"finalizers": null}}))).ok();
    until("the namespace is gone", LONG * 2, || match api.request(Method::GET, &path, None).code {
        404 => Ok(()),
        code => Err(format!("{code}")),
    });
}
