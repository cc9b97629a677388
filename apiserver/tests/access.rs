//! Who may do what, and what a role is not good for, against the real binary and a real store.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod harness;

use harness::{Cluster, User};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, data: Value) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": data})
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_do_what() {
    let cluster = Cluster::start().await;
    let anonymous = cluster.send(User::Nobody, "GET", "/api/v1/pods", &[], "").await;
    assert_eq!(
        (anonymous.code, anonymous.message().as_str()),
        (
            403,
            r#"pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group "" at the cluster scope"#
        )
    );
    let bad =
        cluster.send(User::Nobody, "GET", "/api/v1/pods", &[("authorization", "Bearer nonsense")], "").await;
    assert_eq!((bad.code, bad.message().as_str()), (401, "Unauthorized"));
    let stranger = cluster.send(User::Stranger, "GET", MAPS, &[], "").await;
    assert_eq!((stranger.code, stranger.message().as_str()), (401, "Unauthorized"));
    assert_eq!(cluster.send(User::Jane, "GET", MAPS, &[], "").await.code, 403);
    let as_jane = cluster.send(User::Admin, "GET", MAPS, &[("impersonate-user", "jane")], "").await;
    assert_eq!(as_jane.code, 403);

    cluster
        .post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "robot"}}))
        .await
        .ok();
    let request = json!({"spec": {"expirationSeconds": 600}});
    let token = cluster.post("/api/v1/namespaces/default/serviceaccounts/robot/token", &request).await.ok();
    let bearer = format!("Bearer {}", token["status"]["token"].as_str().unwrap());
    let robot = cluster.send(User::Nobody, "GET", MAPS, &[("authorization", &bearer)], "").await;
    assert_eq!(robot.code, 403);
    assert!(robot.message().contains("system:serviceaccount:default:robot"), "{}", robot.message());
}

/// What a role in one namespace, or a role to change things, must not be good for.
#[tokio::test(flavor = "multi_thread")]
async fn no_way_around_a_role() {
    let cluster = Cluster::start().await;
    cluster.post("/api/v1/namespaces", &json!({"metadata": {"name": "team"}})).await.ok();
    let rbac = |namespace: &str, plural: &str| {
        format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/{plural}")
    };
    let bind = async |namespace: &str, name: &str, rules: Value| {
        cluster
            .post(&rbac(namespace, "roles"), &json!({"metadata": {"name": name}, "rules": rules}))
            .await
            .ok();
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name});
        let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]);
        let binding = json!({"metadata": {"name": name}, "roleRef": role, "subjects": subjects});
        cluster.post(&rbac(namespace, "rolebindings"), &binding).await.ok();
    };
    bind("team", "all", json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}])).await;
    let rules = json!([
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "patch", "update"]},
        {"apiGroups": [""], "resources": ["pods/exec", "pods"], "verbs": ["get", "list", "watch"]},
    ]);
    bind("default", "change", rules).await;
    let jane = async |method: &str, path: &str, headers: &[(&str, &str)], body: &str, code: u16| {
        let answer = cluster.send(User::Jane, method, path, headers, body).await;
        assert_eq!(answer.code, code, "{method} {path}: {}", String::from_utf8_lossy(&answer.bytes));
    };
    let team = "/api/v1/namespaces/team";
    // The server has seen the bindings: what they are good for.
    for _ in 0..1000 {
        let own = cluster.send(User::Jane, "GET", &format!("{team}/configmaps"), &[], "").await;
        let default = cluster.send(User::Jane, "GET", "/api/v1/namespaces/default/pods", &[], "").await;
        if own.code == 200 && default.code == 200 {
            break;
        }
    }
    jane("GET", team, &[], "", 200).await;
    // A namespace inside of a namespace would be another one.
    jane("GET", &format!("{team}/namespaces/default"), &[], "", 404).await;
    jane("DELETE", &format!("{team}/namespaces/kube-node-lease"), &[], "", 404).await;
    jane("GET", &format!("{team}/namespaces"), &[], "", 404).await;
    jane("POST", &format!("{team}/namespaces"), &[], r#"{"metadata":{"name":"mine"}}"#, 404).await;
    jane("POST", team, &[], r#"{"metadata":{"name":"mine"}}"#, 405).await;
    assert_eq!(cluster.get("/api/v1/namespaces/mine").await.code, 404);
    // Who may change may not create.
    let apply = &[("content-type", "application/apply-patch+yaml")];
    let new = format!("{MAPS}/new");
    let body = r#"{"apiVersion":"v1","kind":"ConfigMap"}"#;
    jane("PATCH", &format!("{new}?fieldManager=m"), apply, body, 403).await;
    cluster.post(MAPS, &map("old", json!({}))).await.ok();
    jane("PATCH", &format!("{MAPS}/old?fieldManager=m"), apply, body, 200).await;
    // Nor does reading open tunnels, by whatever verb.
    let pod = "pods/p/exec?command=sh&stdout=1";
    jane("GET", &format!("/api/v1/namespaces/default/{pod}"), &[], "", 403).await;
    jane("GET", &format!("/api/v1/watch/namespaces/default/{pod}"), &[], "", 404).await;
    // Collections are deleted in one namespace at a time.
    let all = cluster.send(User::Admin, "DELETE", "/api/v1/configmaps", &[], "").await;
    assert_eq!(all.code, 405);
    // What anybody can make up is not remembered.
    cluster.send(User::Nobody, "GET", "/apis/no-such-group/v1/x", &[], "").await;
    let paths = cluster.get("/metrics").await;
    assert!(!String::from_utf8_lossy(&paths.bytes).contains("no-such-group"));
}
