//! ServiceAccount: every pod runs as an existing service account and gets that account's token,
//! unless it or the account declines.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use serde_json::{Value, json};

use super::{Admission, AdmissionRequest, Admitted, Operation};
use crate::observed::{Freshness, Resource};
use crate::pod_references::{is_mirror, secrets, volumes};
use crate::state::{ServiceAccount as Account, State, items, text};
use crate::status::Status;

const DEFAULT: &str = "default";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Upstream's "about an hour", recognizable among tokens asked for on purpose.
const TOKEN_SECONDS: i64 = 3607;
/// How long a pod waits for its namespace's default account, which a controller creates.
const DEFAULT_ACCOUNT_WAIT: Duration = Duration::from_millis(1500);
/// Without vowels and look-alikes, as upstream's generated names.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

pub struct ServiceAccount {
    pub state: Arc<State>,
    pub freshness: Arc<dyn Freshness>,
}

impl ServiceAccount {
    async fn account(&self, request: &AdmissionRequest<'_>, name: &str) -> Result<Arc<Account>, Status> {
        let namespace = request.namespace;
        if let Some(account) = self.state.service_account(namespace, name) {
            return Ok(account);
        }
        self.freshness.catch_up(Resource::ServiceAccounts).await;
        let account = match self.state.service_account(namespace, name) {
            None if name == DEFAULT => {
                let appears = self.state.service_account_appears(namespace, name);
                tokio::time::timeout(DEFAULT_ACCOUNT_WAIT, appears).await.ok()
            }
            found => found,
        };
        account.ok_or_else(|| {
            request.forbidden(format_args!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            ))
        })
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(pod) = request.object.as_deref_mut() else { return Ok(()) };
        if is_mirror(pod) {
            // The kubelet would delete a mirror pod whose spec is not what it wrote.
            return check_mirror(request);
        }
        if !pod["spec"].is_object() {
            return Ok(());
        }
        let name = match text(&pod["spec"]["serviceAccountName"]) {
            "" => {
                pod["spec"]["serviceAccountName"] = json!(DEFAULT);
                pod["spec"]["serviceAccount"] = json!(DEFAULT);
                DEFAULT.to_owned()
            }
            name => name.to_owned(),
        };
        let account = self.account(request, &name).await?;
        let Some(pod) = request.object.as_deref_mut() else { return Ok(()) };
        let automount = pod["spec"]["automountServiceAccountToken"].as_bool().or(account.automount);
        if automount.unwrap_or(true) {
            mount_token(pod);
        }
        if items(&pod["spec"]["imagePullSecrets"]).is_empty() && !account.image_pull_secrets.is_empty() {
            pod["spec"]["imagePullSecrets"] =
                account.image_pull_secrets.iter().map(|name| json!({"name": name})).collect();
        }
        check_references(request, &name, &account)
    }

    async fn check(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(pod) = request.object.as_deref() else { return Ok(()) };
        if request.operation == Operation::Create && is_mirror(pod) {
            return check_mirror(request);
        }
        let name = text(&pod["spec"]["serviceAccountName"]);
        if name.is_empty() {
            return Err(request.forbidden(format_args!(
                "no service account specified for pod {}/{}",
                request.namespace,
                text(&pod["metadata"]["name"])
            )));
        }
        let account = self.account(request, name).await?;
        check_references(request, name, &account)
    }
}

fn check_mirror(request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let Some(pod) = request.object.as_deref() else { return Ok(()) };
    if !text(&pod["spec"]["serviceAccountName"]).is_empty() {
        return Err(request.forbidden("a mirror pod may not reference service accounts"));
    }
    let mut has_secrets = false;
    secrets(pod, |_| has_secrets = true);
    if has_secrets {
        return Err(request.forbidden("a mirror pod may not reference secrets"));
    }
    if crate::pod_references::token_audiences(pod).next().is_some() {
        return Err(request.forbidden("a mirror pod may not use ServiceAccountToken volume projections"));
    }
    Ok(())
}

/// Holds a pod to the secrets its account lists, where the account asks for that.
fn check_references(
    request: &AdmissionRequest<'_>,
    account_name: &str,
    account: &Account,
) -> Result<(), Status> {
    let (Some(mountable), Some(pod)) = (&account.mountable_secrets, request.object.as_deref()) else {
        return Ok(());
    };
    let allowed = |name: &Value| name.as_str().is_none_or(|name| mountable.iter().any(|own| **own == *name));
    let refuse = |what: String| {
        Err(request.forbidden(format_args!(
            "{what} is not allowed because service account {account_name} does not reference that secret"
        )))
    };
    for volume in volumes(pod) {
        let name = &volume["secret"]["secretName"];
        if !allowed(name) {
            return refuse(format!("volume with secret.secretName={:?}", text(name)));
        }
    }
    for (field, what) in [
        ("initContainers", "init container"),
        ("containers", "container"),
        ("ephemeralContainers", "ephemeral container"),
    ] {
        for container in items(&pod["spec"][field]) {
            let container_name = text(&container["name"]);
            for variable in items(&container["env"]) {
                let name = &variable["valueFrom"]["secretKeyRef"]["name"];
                if !allowed(name) {
                    return refuse(format!(
                        "{what} {container_name} with envVar {} referencing secret.secretName={:?}",
                        text(&variable["name"]),
                        text(name)
                    ));
                }
            }
            for source in items(&container["envFrom"]) {
                let name = &source["secretRef"]["name"];
                if !allowed(name) {
                    return refuse(format!(
                        "{what} {container_name} with envFrom referencing secret.secretName={:?}",
                        text(name)
                    ));
                }
            }
        }
    }
    for (index, reference) in items(&pod["spec"]["imagePullSecrets"]).iter().enumerate() {
        let name = text(&reference["name"]);
        if !account.image_pull_secrets.iter().any(|own| **own == *name) {
            return Err(request.forbidden(format_args!(
                "imagePullSecrets[{index}].name={name:?} is not allowed because service account {account_name} does not reference that imagePullSecret"
            )));
        }
    }
    Ok(())
}

fn mount_token(pod: &mut Value) {
    let existing =
        volumes(pod).iter().map(|volume| text(&volume["name"])).find(|name| name.starts_with(VOLUME_PREFIX));
    let has_volume = existing.is_some();
    let volume = existing.map_or_else(
        || {
            let mut random = rand::rng();
            let suffix: String =
                (0..5).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect();
            format!("{VOLUME_PREFIX}{suffix}")
        },
        str::to_owned,
    );
    let mut mounted = false;
    for field in ["initContainers", "containers"] {
        let Some(containers) = pod["spec"].get_mut(field).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            let taken =
                items(&container["volumeMounts"]).iter().any(|mount| mount["mountPath"] == MOUNT_PATH);
            if taken || !container.is_object() {
                continue;
            }
            push(
                container,
                "volumeMounts",
                json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}),
            );
            mounted = true;
        }
    }
    if mounted && !has_volume {
        push(&mut pod["spec"], "volumes", json!({"name": volume, "projected": token_source()}));
    }
}

fn push(object: &mut Value, field: &str, item: Value) {
    match &mut object[field] {
        Value::Array(list) => list.push(item),
        other => *other = json!([item]),
    }
}

/// Token, cluster CA and namespace: what client libraries look for in a pod.
fn token_source() -> Value {
    json!({
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace",
                "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ],
        "defaultMode": 0o644,
    })
}

impl Admission for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn mutate<'a>(&'a self, request: &'a mut AdmissionRequest<'_>) -> Admitted<'a> {
        if request.is("", "pods") && request.subresource.is_empty() && request.operation == Operation::Create
        {
            return Box::pin(self.admit(request));
        }
        super::admitted()
    }

    fn validate<'a>(&'a self, request: &'a AdmissionRequest<'_>) -> Admitted<'a> {
        let checked = match request.operation {
            Operation::Create => request.subresource.is_empty(),
            Operation::Update => request.subresource == "ephemeralcontainers",
            _ => false,
        };
        if request.is("", "pods") && checked {
            return Box::pin(self.check(request));
        }
        super::admitted()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Given, mutate};
    use super::*;
    use crate::observed::{AlwaysFresh, Event, Observer};

    fn plugin() -> ServiceAccount {
        let state = State::default();
        for account in [
            json!({"metadata": {"namespace": "ns", "name": "default"}}),
            json!({"metadata": {"namespace": "ns", "name": "quiet"}, "automountServiceAccountToken": false,
                "imagePullSecrets": [{"name": "registry"}]}),
            json!({"metadata": {"namespace": "ns", "name": "strict",
                "annotations": {"kubernetes.io/enforce-mountable-secrets": "true"}}, "secrets": [{"name": "own"}]}),
        ] {
            state.observe(Resource::ServiceAccounts, Event::Upsert(&account));
        }
        ServiceAccount { state: Arc::new(state), freshness: Arc::new(AlwaysFresh) }
    }

    fn admit(pod: Value) -> Result<Value, Status> {
        let given = Given { kind: "Pod", resource: "pods", namespace: "ns", name: "p", ..Given::default() };
        mutate(&plugin(), &given, pod)
    }

    #[test]
    fn gives_every_container_the_token() {
        let pod = admit(json!({"spec": {"initContainers": [{"name": "i"}],
            "containers": [{"name": "a", "volumeMounts": [{"name": "x", "mountPath": "/x"}]},
                {"name": "b", "volumeMounts": [{"name": "mine", "mountPath": MOUNT_PATH}]}]}}))
        .unwrap();
        let spec = &pod["spec"];
        assert_eq!(
            (&spec["serviceAccountName"], &spec["serviceAccount"]),
            (&json!("default"), &json!("default"))
        );
        let volume = text(&spec["volumes"][0]["name"]);
        let suffix = volume.strip_prefix("kube-api-access-").unwrap();
        assert!(suffix.len() == 5 && suffix.bytes().all(|byte| ALPHABET.contains(&byte)));
        assert_eq!(spec["volumes"][0]["projected"], token_source());
        let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH});
        assert_eq!(spec["initContainers"][0]["volumeMounts"], json!([mount]));
        assert_eq!(spec["containers"][0]["volumeMounts"][1], mount);
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        let again = admit(pod.clone()).unwrap();
        assert_eq!(again, pod);
    }

    #[test]
    fn respects_who_declines() {
        let check = |spec: Value, expected: Value| {
            assert_eq!(admit(json!({"spec": spec})).unwrap()["spec"], expected);
        };
        check(
            json!({"serviceAccountName": "quiet", "containers": [{}]}),
            json!({"serviceAccountName": "quiet", "containers": [{}], "imagePullSecrets": [{"name": "registry"}]}),
        );
        check(
            json!({"serviceAccountName": "default", "automountServiceAccountToken": false, "containers": [{}],
                "imagePullSecrets": [{"name": "own"}]}),
            json!({"serviceAccountName": "default", "automountServiceAccountToken": false, "containers": [{}],
                "imagePullSecrets": [{"name": "own"}]}),
        );
    }

    #[test]
    fn refuses_what_the_account_does_not_allow() {
        let check = |pod: Value, text: &str| {
            let message = admit(pod).unwrap_err().message;
            assert!(message.contains(text), "{message}");
        };
        check(
            json!({"spec": {"serviceAccountName": "gone", "containers": []}}),
            r#"pods "p" is forbidden: error looking up service account ns/gone: serviceaccount "gone" not found"#,
        );
        let strict = |spec: Value| {
            let mut pod = json!({"spec": spec});
            pod["spec"]["serviceAccountName"] = json!("strict");
            pod
        };
        check(
            strict(json!({"volumes": [{"secret": {"secretName": "other"}}]})),
            r#"volume with secret.secretName="other" is not allowed because service account strict does not reference that secret"#,
        );
        check(
            strict(
                json!({"containers": [{"name": "c", "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "o"}}}]}]}),
            ),
            r#"container c with envVar E referencing secret.secretName="o" is not allowed"#,
        );
        assert!(admit(strict(json!({"volumes": [{"secret": {"secretName": "own"}}]}))).is_ok());
        let mirror = |spec: Value| json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": spec});
        check(
            mirror(json!({"serviceAccountName": "default"})),
            "a mirror pod may not reference service accounts",
        );
        check(
            mirror(json!({"volumes": [{"secret": {"secretName": "s"}}]})),
            "a mirror pod may not reference secrets",
        );
        let plain = mirror(json!({"containers": [{"name": "c"}]}));
        assert_eq!(admit(plain.clone()).unwrap(), plain);
    }

    #[tokio::test]
    async fn waits_for_the_default_account() {
        let plugin = Arc::new(ServiceAccount { state: Arc::default(), freshness: Arc::new(AlwaysFresh) });
        let waiting = tokio::spawn({
            let state = plugin.state.clone();
            async move { state.service_account_appears("new", "default").await.uid.clone() }
        });
        tokio::task::yield_now().await;
        let account = json!({"metadata": {"namespace": "new", "name": "default", "uid": "1"}});
        plugin.state.observe(Resource::ServiceAccounts, Event::Upsert(&account));
        assert_eq!(&*waiting.await.unwrap(), "1");
    }
}
