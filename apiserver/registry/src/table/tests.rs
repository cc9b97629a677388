//! What clients know of each kind, written down a second time, and what must hold for every kind.

use jiff::Timestamp;
use keelson_schema::resource::Verb;
use serde_json::{Value, json};

use super::*;
use crate::Scope;

/// group/version plural singular Kind scope short-names categories subresources; every verb unless `verbs=` says.
const EXPECTED: &str = "
    v1 bindings binding Binding ns - - - verbs=create
    v1 componentstatuses componentstatus ComponentStatus cluster cs - - verbs=get,list
    v1 configmaps configmap ConfigMap ns cm - -
    v1 endpoints endpoints Endpoints ns ep - -
    v1 events event Event ns ev - -
    v1 limitranges limitrange LimitRange ns limits - -
    v1 namespaces namespace Namespace cluster ns - finalize,status verbs=create,delete,get,list,patch,update,watch
    v1 nodes node Node cluster no - proxy,status
    v1 persistentvolumeclaims persistentvolumeclaim PersistentVolumeClaim ns pvc - status
    v1 persistentvolumes persistentvolume PersistentVolume cluster pv - status
    v1 pods pod Pod ns po all \
        attach,binding,ephemeralcontainers,eviction,exec,log,portforward,proxy,resize,status
    v1 podtemplates podtemplate PodTemplate ns - - -
    v1 replicationcontrollers replicationcontroller ReplicationController ns rc all scale,status
    v1 resourcequotas resourcequota ResourceQuota ns quota - status
    v1 secrets secret Secret ns - - -
    v1 serviceaccounts serviceaccount ServiceAccount ns sa - token
    v1 services service Service ns svc all proxy,status
    events.k8s.io/v1 events event Event ns ev - -
    authentication.k8s.io/v1 selfsubjectreviews selfsubjectreview SelfSubjectReview cluster - - - verbs=create
    authentication.k8s.io/v1 tokenreviews tokenreview TokenReview cluster - - - verbs=create
    authorization.k8s.io/v1 localsubjectaccessreviews localsubjectaccessreview LocalSubjectAccessReview ns - - - verbs=create
    authorization.k8s.io/v1 selfsubjectaccessreviews selfsubjectaccessreview SelfSubjectAccessReview cluster - - - verbs=create
    authorization.k8s.io/v1 selfsubjectrulesreviews selfsubjectrulesreview SelfSubjectRulesReview cluster - - - verbs=create
    authorization.k8s.io/v1 subjectaccessreviews subjectaccessreview SubjectAccessReview cluster - - - verbs=create
    apps/v1 controllerrevisions controllerrevision ControllerRevision ns - - -
    apps/v1 daemonsets daemonset DaemonSet ns ds all status
    apps/v1 deployments deployment Deployment ns deploy all scale,status
    apps/v1 replicasets replicaset ReplicaSet ns rs all scale,status
    apps/v1 statefulsets statefulset StatefulSet ns sts all scale,status
    batch/v1 cronjobs cronjob CronJob ns cj all status
    batch/v1 jobs job Job ns - all status
    networking.k8s.io/v1 ingressclasses ingressclass IngressClass cluster - - -
    networking.k8s.io/v1 ingresses ingress Ingress ns ing - status
    networking.k8s.io/v1 networkpolicies networkpolicy NetworkPolicy ns netpol - -
    policy/v1 poddisruptionbudgets poddisruptionbudget PodDisruptionBudget ns pdb - status
    rbac.authorization.k8s.io/v1 clusterrolebindings clusterrolebinding ClusterRoleBinding cluster - - -
    rbac.authorization.k8s.io/v1 clusterroles clusterrole ClusterRole cluster - - -
    rbac.authorization.k8s.io/v1 rolebindings rolebinding RoleBinding ns - - -
    rbac.authorization.k8s.io/v1 roles role Role ns - - -
    storage.k8s.io/v1 storageclasses storageclass StorageClass cluster sc - -
    scheduling.k8s.io/v1 priorityclasses priorityclass PriorityClass cluster pc - -
    coordination.k8s.io/v1 leases lease Lease ns - - -
    discovery.k8s.io/v1 endpointslices endpointslice EndpointSlice ns - - -
";

fn joined<T: ToString>(items: &[T]) -> String {
    let texts: Vec<String> = items.iter().map(T::to_string).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(",") }
}

#[test]
fn kinds_are_what_clients_know() {
    let lines: Vec<String> = kinds()
        .iter()
        .map(|kind| {
            let resource = &kind.resource;
            let subresources: Vec<&str> = resource.subresources.iter().map(|sub| sub.name.as_ref()).collect();
            let verbs = if *resource.verbs == *Verb::ALL {
                String::new()
            } else {
                format!(" verbs={}", joined(&resource.verbs))
            };
            format!(
                "{} {} {} {} {} {} {} {}{verbs}",
                resource.api_version(),
                resource.plural,
                resource.singular,
                resource.kind,
                if resource.namespaced { "ns" } else { "cluster" },
                joined(&resource.short_names),
                joined(&resource.categories),
                joined(&subresources),
            )
        })
        .collect();
    let expected: Vec<&str> = EXPECTED.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(lines, expected);
}

#[test]
fn storage_keys_are_upstreams() {
    fn check(group: &str, plural: &str, expected: Option<&str>) {
        let kind = kind(group, "v1", plural).unwrap_or_else(|| panic!("{group} {plural}"));
        assert_eq!(kind.storage_prefix, expected, "{group} {plural}");
    }
    check("", "nodes", Some("minions"));
    check("", "services", Some("services/specs"));
    check("", "endpoints", Some("services/endpoints"));
    check("", "replicationcontrollers", Some("controllers"));
    check("", "events", Some("events"));
    check("events.k8s.io", "events", Some("events"));
    check("apps", "deployments", Some("deployments"));
    check("authentication.k8s.io", "tokenreviews", None);
    for kind in kinds().iter().filter(|kind| kind.storage_prefix.is_none()) {
        let computed = *kind.resource.verbs == [Verb::Get, Verb::List];
        assert!(computed || *kind.resource.verbs == [Verb::Create], "{}", kind.resource.kind);
    }
}

#[test]
fn rows_fit_columns_and_fields_fit_names() {
    for kind in kinds() {
        for object in odd_objects() {
            assert_eq!(
                kind.row(&object, Timestamp::UNIX_EPOCH).len(),
                kind.columns.len(),
                "{}",
                kind.resource.kind
            );
            let names: Vec<&str> = kind.selectable_fields(&object).iter().map(|(name, _)| *name).collect();
            assert_eq!(names, kind.selectable, "{}", kind.resource.kind);
        }
        if kind.storage_prefix.is_some() {
            assert!(kind.columns.iter().any(|column| column.format == "name"), "{}", kind.resource.kind);
        }
        assert_eq!(kind.scale.is_some(), kind.resource.subresource("scale").is_some());
    }
}

/// Nothing a client can send may make a rule panic.
fn odd_objects() -> Vec<Value> {
    let fields = [
        "spec",
        "status",
        "metadata",
        "template",
        "selector",
        "containers",
        "volumes",
        "ports",
        "data",
        "rules",
        "subjects",
        "endpoints",
        "subsets",
        "roleRef",
        "strategy",
        "jobTemplate",
        "labels",
        "conditions",
        "limits",
    ];
    let leaves = [
        json!(null),
        json!([]),
        json!([null, 1, "é", [], {}]),
        json!({"é": {"é": 1}}),
        json!("é-"),
        json!(-1),
        json!(1.5),
    ];
    let mut objects = vec![json!(null), json!([1]), json!("x"), json!({})];
    for leaf in &leaves {
        let level =
            |inner: &Value| Value::Object(fields.iter().map(|f| ((*f).to_owned(), inner.clone())).collect());
        let one = level(leaf);
        let two = level(&one);
        let outer: serde_json::Map<String, Value> = ["spec", "template", "jobTemplate", "status"]
            .iter()
            .map(|f| ((*f).to_owned(), two.clone()))
            .collect();
        objects.extend([one, json!({"spec": outer}), two]);
    }
    objects
}

#[test]
fn odd_input_never_panics() {
    for kind in kinds() {
        for mut object in odd_objects() {
            let old = object.clone();
            kind.default(&mut object);
            kind.prepare_for_create(&mut object);
            kind.validate_create(&object);
            kind.warnings(&object, None);
            kind.warnings(&object, Some(&old));
            kind.row_conditions(&object);
            kind.grace_period(&object, None);
            kind.has_finalizers(&object);
            kind.mark_deleting(&mut object.clone());
            for scope in
                [Scope::Main, Scope::Status, Scope::Finalize, Scope::EphemeralContainers, Scope::Resize]
            {
                for (new, old) in [(&object, &old), (&old, &object)] {
                    let mut new = new.clone();
                    kind.prepare_for_update(scope, &mut new, old);
                    kind.validate_update(scope, &new, old);
                }
            }
            if let Some(scale) = kind.scale {
                let view = scale.read(&object);
                scale.write(&mut object, &view);
            }
            if let Some(conversion) = kind.conversion {
                (conversion.to_storage)(&mut object);
                (conversion.from_storage)(&mut object);
            }
        }
    }
}

#[test]
fn defaults_are_idempotent() {
    for kind in kinds() {
        for mut object in odd_objects() {
            kind.default(&mut object);
            let once = object.clone();
            kind.default(&mut object);
            assert_eq!(object, once, "{}", kind.resource.kind);
        }
    }
}
