//! Server-side apply: ownership, conflicts, removal, and who owns what after updates.

use super::*;
use crate::types::Schemas;

const NOW: &str = "2024-01-01T00:00:00Z";
const LATER: &str = "2024-01-02T00:00:00Z";

fn ty(group: &str, kind: &str) -> TypeRef<'static> {
    Schemas::builtin().of(group, "v1", kind).unwrap()
}

fn writer(manager: &str) -> Writer<'_> {
    Writer { manager, api_version: "apps/v1", subresource: "", reset_fields: &[&["status"]], now: NOW }
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": spec})
}

fn applied(live: Option<&Value>, spec: Value, by: &str, force: bool) -> Result<Value, String> {
    apply(live, &deployment(spec), ty("apps", "Deployment"), writer(by), force).map_err(|e| e.to_string())
}

/// `manager/operation` to its fields.
fn owners(object: &Value) -> Vec<(String, String)> {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries
        .iter()
        .map(|e| {
            let subresource = e["subresource"].as_str().map_or(String::new(), |s| format!("/{s}"));
            let text = |key: &str| e[key].as_str().unwrap().to_owned();
            (format!("{}/{}{subresource}", text("manager"), text("operation")), e["fieldsV1"].to_string())
        })
        .collect()
}

fn check_owners(object: &Value, expected: &[(&str, &str)]) {
    let owners = owners(object);
    let owners: Vec<(&str, &str)> = owners.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert_eq!(owners, expected);
}

#[test]
fn create_and_reapply() {
    let first = applied(None, json!({"replicas": 1, "paused": true}), "a", false).unwrap();
    assert_eq!(first["spec"], json!({"replicas": 1, "paused": true}));
    check_owners(&first, &[("a/Apply", r#"{"f:spec":{"f:paused":{},"f:replicas":{}}}"#)]);
    assert_eq!(first["metadata"]["managedFields"][0]["time"], NOW);

    let later = Writer { now: LATER, ..writer("a") };
    let same = deployment(json!({"replicas": 1, "paused": true}));
    let again = apply(Some(&first), &same, ty("apps", "Deployment"), later, false).unwrap();
    assert_eq!(again, first, "nothing changes, not even the time");

    // A field that is no longer applied and that nobody else owns is removed.
    let less = applied(Some(&first), json!({"replicas": 2}), "a", false).unwrap();
    assert_eq!(less["spec"], json!({"replicas": 2}));
    check_owners(&less, &[("a/Apply", r#"{"f:spec":{"f:replicas":{}}}"#)]);
}

#[test]
fn conflicts_and_force() {
    let live = applied(None, json!({"replicas": 1, "paused": true}), "a", false).unwrap();
    let shared = applied(Some(&live), json!({"replicas": 1}), "b", false).unwrap();
    check_owners(
        &shared,
        &[
            ("b/Apply", r#"{"f:spec":{"f:replicas":{}}}"#),
            ("a/Apply", r#"{"f:spec":{"f:paused":{},"f:replicas":{}}}"#),
        ],
    );
    let error = applied(Some(&shared), json!({"replicas": 2}), "b", false).unwrap_err();
    assert_eq!(error, r#"Apply failed with 1 conflict: conflict with "a": .spec.replicas"#);
    let error = applied(Some(&live), json!({"replicas": 2, "paused": false}), "b", false).unwrap_err();
    assert_eq!(
        error,
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.paused\n- .spec.replicas"
    );

    let forced = applied(Some(&shared), json!({"replicas": 2}), "b", true).unwrap();
    assert_eq!(forced["spec"], json!({"replicas": 2, "paused": true}));
    check_owners(
        &forced,
        &[("a/Apply", r#"{"f:spec":{"f:paused":{}}}"#), ("b/Apply", r#"{"f:spec":{"f:replicas":{}}}"#)],
    );

    // What another still owns stays when one gives it up.
    let given_up = applied(Some(&shared), json!({}), "b", false).unwrap();
    assert_eq!(given_up["spec"]["replicas"], 1);
}

#[test]
fn conflicts_with_updates_name_their_version() {
    let mut live = deployment(json!({"replicas": 1}));
    track_update(None, &mut live, ty("apps", "Deployment"), writer("kubectl-client-side-apply")).unwrap();
    check_owners(&live, &[("kubectl-client-side-apply/Update", r#"{"f:spec":{"f:replicas":{}}}"#)]);
    let error = applied(Some(&live), json!({"replicas": 2}), "me", false).unwrap_err();
    assert_eq!(
        error,
        r#"Apply failed with 1 conflict: conflict with "kubectl-client-side-apply" using apps/v1: .spec.replicas"#
    );
}

#[test]
fn items_of_keyed_lists() {
    let container = |name: &str, image: &str| json!({"name": name, "image": image});
    let spec = |containers: Value| json!({"template": {"spec": {"containers": containers}}});
    let live = applied(None, spec(json!([container("a", "1"), container("b", "1")])), "x", false).unwrap();
    check_owners(
        &live,
        &[(
            "x/Apply",
            r#"{"f:spec":{"f:template":{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:image":{},"f:name":{}},"k:{\"name\":\"b\"}":{".":{},"f:image":{},"f:name":{}}}}}}}"#,
        )],
    );
    // Another adds a container; the first drops one of its own.
    let live = applied(Some(&live), spec(json!([container("c", "1")])), "y", false).unwrap();
    let live = applied(Some(&live), spec(json!([container("b", "2")])), "x", false).unwrap();
    assert_eq!(live["spec"], spec(json!([container("b", "2"), container("c", "1")])));

    let error = applied(Some(&live), spec(json!([container("c", "9")])), "x", false).unwrap_err();
    assert_eq!(
        error,
        r#"Apply failed with 1 conflict: conflict with "y": .spec.template.spec.containers[name="c"].image"#
    );
    // The default of a key counts as the key.
    let ports = spec(json!([{"name": "p", "ports": [{"containerPort": 80}]}]));
    let live = applied(None, ports, "x", false).unwrap();
    assert!(owners(&live)[0].1.contains(r#"k:{\"containerPort\":80,\"protocol\":\"TCP\"}"#), "{live}");
}

#[test]
fn sets_and_atomic_values() {
    let object = |finalizers: Value, selector: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "finalizers": finalizers}, "spec": {"selector": selector}});
    let writer = |manager| Writer { api_version: "v1", ..writer(manager) };
    let service = ty("", "Service");
    let live =
        apply(None, &object(json!(["a/x"]), json!({"app": "1"})), service, writer("x"), false).unwrap();
    check_owners(
        &live,
        &[("x/Apply", r#"{"f:metadata":{"f:finalizers":{"v:\"a/x\"":{}}},"f:spec":{"f:selector":{}}}"#)],
    );
    let patch =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "finalizers": ["b/y"]}});
    let live = apply(Some(&live), &patch, service, writer("y"), false).unwrap();
    assert_eq!(live["metadata"]["finalizers"], json!(["a/x", "b/y"]));
    // The selector is atomic: another key is a conflict about the whole.
    let other = object(json!(["b/y"]), json!({"tier": "2"}));
    let error = apply(Some(&live), &other, service, writer("y"), false).unwrap_err();
    assert_eq!(error.to_string(), r#"Apply failed with 1 conflict: conflict with "x": .spec.selector"#);
    let live = apply(Some(&live), &other, service, writer("y"), true).unwrap();
    assert_eq!(live["spec"]["selector"], json!({"tier": "2"}));
    check_owners(
        &live,
        &[
            ("x/Apply", r#"{"f:metadata":{"f:finalizers":{"v:\"a/x\"":{}}}}"#),
            ("y/Apply", r#"{"f:metadata":{"f:finalizers":{"v:\"b/y\"":{}}},"f:spec":{"f:selector":{}}}"#),
        ],
    );
}

#[test]
fn updates_are_tracked() {
    let deployment_type = ty("apps", "Deployment");
    let mut live = deployment(json!({"replicas": 1}));
    live["metadata"]["labels"] = json!({"a": "b"});
    live["metadata"]["uid"] = json!("1");
    live["status"] = json!({"replicas": 1});
    track_update(None, &mut live, deployment_type, writer("creator")).unwrap();
    check_owners(
        &live,
        &[("creator/Update", r#"{"f:metadata":{"f:labels":{".":{},"f:a":{}}},"f:spec":{"f:replicas":{}}}"#)],
    );

    // Nothing changes: nor does the time.
    let mut same = live.clone();
    track_update(Some(&live), &mut same, deployment_type, Writer { now: LATER, ..writer("other") }).unwrap();
    assert_eq!(same, live);

    // Status through its subresource.
    let mut new = live.clone();
    new["status"] = json!({"replicas": 2});
    let status = Writer { subresource: "status", reset_fields: &[&["spec"]], ..writer("controller") };
    track_update(Some(&live), &mut new, deployment_type, status).unwrap();
    check_owners(
        &new,
        &[
            ("controller/Update/status", r#"{"f:status":{"f:replicas":{}}}"#),
            ("creator/Update", r#"{"f:metadata":{"f:labels":{".":{},"f:a":{}}},"f:spec":{"f:replicas":{}}}"#),
        ],
    );

    // A client that does not know managed fields drops them; they come from the live object.
    let live = new;
    let mut new = live.clone();
    new["metadata"].as_object_mut().unwrap().shift_remove("managedFields");
    new["spec"]["replicas"] = json!(5);
    track_update(Some(&live), &mut new, deployment_type, Writer { now: LATER, ..writer("scaler") }).unwrap();
    check_owners(
        &new,
        &[
            ("controller/Update/status", r#"{"f:status":{"f:replicas":{}}}"#),
            ("creator/Update", r#"{"f:metadata":{"f:labels":{".":{},"f:a":{}}}}"#),
            ("scaler/Update", r#"{"f:spec":{"f:replicas":{}}}"#),
        ],
    );

    // A reset forgets all, and stays so for updates.
    let mut reset = live.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    track_update(Some(&live), &mut reset, deployment_type, writer("x")).unwrap();
    check_owners(&reset, &[]);
    let mut after = reset.clone();
    after["spec"]["replicas"] = json!(7);
    track_update(Some(&reset), &mut after, deployment_type, writer("x")).unwrap();
    check_owners(&after, &[]);
    // The first apply then finds somebody before it.
    let after = applied(Some(&after), json!({"replicas": 7}), "a", false).unwrap();
    assert_eq!(owners(&after)[0].0, "a/Apply");
    assert_eq!(owners(&after)[1].0, "before-first-apply/Update");
}

#[test]
fn many_updaters_are_merged() {
    let configmap = ty("", "ConfigMap");
    let mut live = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "uid": "1"}, "data": {"k": "v"}});
    track_update(None, &mut live, configmap, Writer { api_version: "v1", ..writer("m00") }).unwrap();
    for i in 1..15 {
        let (name, now) = (format!("m{i:02}"), format!("2024-01-01T00:00:{i:02}Z"));
        let mut new = live.clone();
        new["data"][&name] = json!("x");
        let writer = Writer { api_version: "v1", now: &now, ..writer(&name) };
        track_update(Some(&live), &mut new, configmap, writer).unwrap();
        live = new;
    }
    let owners = owners(&live);
    assert_eq!(owners.len(), 10);
    assert_eq!(owners[0].0, "ancient-changes/Update");
    assert_eq!(
        owners[0].1,
        r#"{"f:data":{".":{},"f:k":{},"f:m01":{},"f:m02":{},"f:m03":{},"f:m04":{},"f:m05":{}}}"#
    );
    assert_eq!(live["metadata"]["managedFields"][0]["time"], "2024-01-01T00:00:05Z");
}

#[test]
fn client_side_apply_is_upgraded() {
    let deployment_type = ty("apps", "Deployment");
    let mut live = deployment(json!({"replicas": 1, "paused": true}));
    let last = deployment(json!({"replicas": 1, "paused": true})).to_string();
    live["metadata"]["annotations"] = json!({LAST_APPLIED: last});
    track_update(None, &mut live, deployment_type, writer("kubectl-client-side-apply")).unwrap();
    let upgraded = applied(Some(&live), json!({"replicas": 3, "paused": true}), "kubectl", false).unwrap();
    assert_eq!(upgraded["spec"], json!({"replicas": 3, "paused": true}));
    let annotation = upgraded["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap();
    assert!(annotation.contains(r#""replicas":3"#), "{annotation}");
    // Only kubectl is upgraded.
    assert!(applied(Some(&live), json!({"replicas": 3}), "helm", false).is_err());
    // What differs from the last applied is somebody else's.
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = json!(9);
    track_update(Some(&live), &mut scaled, deployment_type, writer("hpa")).unwrap();
    let error = applied(Some(&scaled), json!({"replicas": 3, "paused": true}), "kubectl", false).unwrap_err();
    assert_eq!(error, r#"Apply failed with 1 conflict: conflict with "hpa" using apps/v1: .spec.replicas"#);
}

#[test]
fn what_cannot_be_applied() {
    let check = |patch: Value, expected: &str| {
        let error = apply(None, &patch, ty("apps", "Deployment"), writer("a"), false).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(
        deployment(json!({"nope": 1})),
        "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.nope: field not declared in schema",
    );
    check(
        deployment(json!({"replicas": "1"})),
        "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.replicas: expected numeric (int or float), got string",
    );
    check(
        json!({"apiVersion": "apps/v1beta1", "kind": "Deployment"}),
        "Incorrect version specified in apply patch. Specified patch version: apps/v1beta1, expected: apps/v1",
    );
    let mut managed = deployment(json!({}));
    managed["metadata"]["managedFields"] = json!([]);
    check(managed, "metadata.managedFields must be nil");
    let twice = json!({"template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}});
    check(
        deployment(twice),
        "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.template.spec.containers: duplicate entries for key [name=\"a\"]",
    );
}

#[test]
fn order_of_merged_lists() {
    let check = |live: &[&str], config: &[&str], expected: &[&str]| {
        let spec = |names: &[&str]| {
            let containers: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
            json!({"template": {"spec": {"containers": containers}}})
        };
        let live = deployment(spec(live));
        let merged = merge::merge(&live, &deployment(spec(config)), ty("apps", "Deployment")).unwrap();
        assert_eq!(merged["spec"], spec(expected));
    };
    check(&["a", "b", "c"], &["c", "a"], &["b", "c", "a"]);
    check(&["a", "b"], &["c"], &["a", "b", "c"]);
    check(&["a", "b", "c", "d"], &["a", "x", "d"], &["a", "b", "c", "x", "d"]);
    check(&["a"], &["b", "a"], &["b", "a"]);
    check(&[], &["b", "a"], &["b", "a"]);
}

#[test]
fn custom_resources() {
    let gvk = crate::resource::GroupVersionKind::new("example.com", "v1", "Widget");
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
    let schemas = Schemas::custom(&gvk, Some(&schema)).unwrap();
    let widget = schemas.of("example.com", "v1", "Widget").unwrap();
    let object = |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec});
    let writer = |manager| Writer { api_version: "example.com/v1", ..writer(manager) };
    let live = apply(None, &object(json!({"a": {"b": 1}, "l": [1]})), widget, writer("x"), false).unwrap();
    check_owners(&live, &[("x/Apply", r#"{"f:spec":{"f:a":{".":{},"f:b":{}},"f:l":{}}}"#)]);
    let live = apply(Some(&live), &object(json!({"a": {"c": 2}})), widget, writer("y"), false).unwrap();
    assert_eq!(live["spec"], json!({"a": {"b": 1, "c": 2}, "l": [1]}));
    let live = apply(Some(&live), &object(json!({"l": [1]})), widget, writer("x"), false).unwrap();
    assert_eq!(live["spec"], json!({"a": {"c": 2}, "l": [1]}));
}

#[test]
fn scale_shares_the_owners_of_replicas() {
    let parent = applied(None, json!({"replicas": 1, "paused": true}), "a", false).unwrap();
    let replicas = ["spec", "replicas"];
    let fields = managed_fields_of_scale(&parent, &replicas).unwrap();
    let mut scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web", "uid": "1", "managedFields": fields}, "spec": {"replicas": 1}});
    check_owners(&scale, &[("a/Apply", r#"{"f:spec":{"f:replicas":{}}}"#)]);
    let live = scale.clone();
    scale["spec"]["replicas"] = json!(4);
    let scaler =
        Writer { api_version: "autoscaling/v1", subresource: "scale", reset_fields: &[], ..writer("scaler") };
    let scale_type = Schemas::builtin().of("autoscaling", "v1", "Scale").unwrap();
    track_update(Some(&live), &mut scale, scale_type, scaler).unwrap();
    let mut after = parent.clone();
    after["metadata"]["managedFields"] =
        managed_fields_of_parent(&parent, &scale, "apps/v1", &replicas).unwrap();
    check_owners(
        &after,
        &[
            ("a/Apply", r#"{"f:spec":{"f:paused":{}}}"#),
            ("scaler/Update/scale", r#"{"f:spec":{"f:replicas":{}}}"#),
        ],
    );
}

#[test]
fn times_alone_are_no_change() {
    let live = applied(None, json!({"replicas": 1}), "a", false).unwrap();
    let mut new = live.clone();
    new["metadata"]["managedFields"][0]["time"] = json!(LATER);
    ignore_times(&live, &mut new);
    assert_eq!(new, live);
    new["metadata"]["managedFields"][0]["time"] = json!(LATER);
    new["spec"]["replicas"] = json!(2);
    ignore_times(&live, &mut new);
    assert_eq!(new["metadata"]["managedFields"][0]["time"], LATER);
}
