//! The published documents, against the types that they describe.

use super::*;
use crate::resource::{GroupVersionKind, Subresource, Verb};
use std::borrow::Cow;

fn resource(gvk: GroupVersionKind, plural: &'static str, namespaced: bool) -> ApiResource {
    let status = Subresource {
        name: "status".into(),
        kind: gvk.clone(),
        verbs: Cow::Borrowed(&[Verb::Get, Verb::Patch, Verb::Update]),
    };
    ApiResource {
        group: gvk.group,
        version: gvk.version,
        kind: gvk.kind,
        plural: plural.into(),
        singular: plural.trim_end_matches('s').to_owned().into(),
        namespaced,
        short_names: Cow::Borrowed(&[]),
        categories: Cow::Borrowed(&[]),
        verbs: Cow::Borrowed(Verb::ALL),
        subresources: vec![status].into(),
    }
}

fn resources() -> Vec<ApiResource> {
    let mut deployments = resource(GroupVersionKind::new("apps", "v1", "Deployment"), "deployments", true);
    deployments.subresources.to_mut().push(Subresource {
        name: "scale".into(),
        kind: GroupVersionKind::new("autoscaling", "v1", "Scale"),
        verbs: Cow::Borrowed(&[Verb::Get, Verb::Patch, Verb::Update]),
    });
    let mut pods = resource(GroupVersionKind::new("", "v1", "Pod"), "pods", true);
    let connect: &'static [Verb] = &[Verb::Create, Verb::Get];
    for (name, kind, verbs) in [
        ("exec", GroupVersionKind::new("", "v1", "PodExecOptions"), connect),
        ("log", GroupVersionKind::new("", "v1", "Pod"), &connect[1..]),
        ("eviction", GroupVersionKind::new("policy", "v1", "Eviction"), &connect[..1]),
    ] {
        pods.subresources.to_mut().push(Subresource { name: name.into(), kind, verbs: verbs.into() });
    }
    vec![deployments, pods, resource(GroupVersionKind::new("", "v1", "Node"), "nodes", false)]
}

fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn index_names_every_group_version_with_a_hash() {
    let resources = resources();
    let index = parse(&v3_index(&resources, &[]));
    let paths = index["paths"].as_object().unwrap();
    assert_eq!(paths.keys().collect::<Vec<_>>(), ["api/v1", "apis/apps/v1"]);
    let hash = v3_hash(&resources, &[], "apps", "v1").unwrap();
    assert_eq!(paths["apis/apps/v1"]["serverRelativeURL"], format!("/openapi/v3/apis/apps/v1?hash={hash}"));
    assert_eq!(v3_hash(&resources, &[], "nope", "v1"), None);
    assert_eq!(v3_document(&resources, &[], "nope", "v1"), None);
    let fewer = v3_hash(&resources[..2], &[], "", "v1");
    assert_ne!(fewer, v3_hash(&resources, &[], "", "v1"));
}

#[test]
fn v3_of_apps() {
    let document = parse(&v3_document(&resources(), &[], "apps", "v1").unwrap());
    let schemas = &document["components"]["schemas"];
    let check = |pointer: &str, expected: Value| {
        assert_eq!(schemas.pointer(pointer), Some(&expected), "{pointer}");
    };
    check(
        "/io.k8s.api.apps.v1.Deployment/x-kubernetes-group-version-kind",
        json!([{"group": "apps", "kind": "Deployment", "version": "v1"}]),
    );
    check("/io.k8s.api.core.v1.PodSpec/properties/containers/x-kubernetes-list-map-keys", json!(["name"]));
    check("/io.k8s.api.core.v1.PodSpec/properties/containers/x-kubernetes-patch-merge-key", json!("name"));
    check(
        "/io.k8s.api.core.v1.PodSpec/properties/volumes/x-kubernetes-patch-strategy",
        json!("merge,retainKeys"),
    );
    check("/io.k8s.api.core.v1.Container/properties/args/x-kubernetes-list-type", json!("atomic"));
    check("/io.k8s.api.core.v1.ContainerPort/properties/protocol/default", json!("TCP"));
    check("/io.k8s.api.apps.v1.Deployment/properties/spec/default", json!({}));
    check(
        "/io.k8s.api.apps.v1.Deployment/properties/spec/allOf",
        json!([{"$ref": "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"}]),
    );
    check(
        "/io.k8s.apimachinery.pkg.util.intstr.IntOrString/oneOf",
        json!([{"type": "integer"}, {"type": "string"}]),
    );
    check("/io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector/x-kubernetes-map-type", json!("atomic"));
    let description =
        schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["replicas"]["description"].as_str();
    assert!(description.unwrap().contains("desired pods"));
    assert!(schemas.get("io.k8s.api.core.v1.Pod").is_none(), "only what is referred to");

    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    let names: Vec<&str> =
        patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    let scale = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["put"];
    assert_eq!(scale["x-kubernetes-group-version-kind"]["group"], "autoscaling");
    let list = &document["paths"]["/apis/apps/v1/deployments"]["get"];
    assert_eq!(list["operationId"], "listAppsV1DeploymentForAllNamespaces");
}

/// Everything a document refers to is in it.
#[test]
fn references_resolve() {
    fn walk(value: &Value, document: &Value) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    let pointer = target.strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{target}");
                }
                map.values().for_each(|value| walk(value, document));
            }
            Value::Array(list) => list.iter().for_each(|value| walk(value, document)),
            _ => {}
        }
    }
    let resources = resources();
    for document in [
        v2_json(&resources, &[]),
        v3_document(&resources, &[], "", "v1").unwrap(),
        v3_document(&resources, &[], "apps", "v1").unwrap(),
    ] {
        let document = parse(&document);
        walk(&document, &document);
    }
}

#[test]
fn v2_and_its_protobuf_say_the_same() {
    let resources = resources();
    let json = parse(&v2_json(&resources, &[]));
    let document = gnostic::Document::decode(v2_protobuf(&resources, &[]).as_slice()).unwrap();

    let definitions = document.definitions.unwrap().additional_properties;
    let names: Vec<&str> = definitions.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, json["definitions"].as_object().unwrap().keys().collect::<Vec<_>>());
    let schema = |name: &str| definitions.iter().find(|d| d.name == name).unwrap().value.as_ref().unwrap();
    let property = |name: &str, field: &str| {
        let properties = schema(name).properties.as_ref().unwrap();
        properties.additional_properties.iter().find(|p| p.name == field).unwrap().value.clone().unwrap()
    };
    let containers = property("io.k8s.api.core.v1.PodSpec", "containers");
    assert_eq!(containers.kind.unwrap().value, ["array"]);
    assert_eq!(containers.items.unwrap().schema[0].reference, "#/definitions/io.k8s.api.core.v1.Container");
    let extension = |list: &[gnostic::NamedAny], name: &str| {
        list.iter().find(|e| e.name == name).map(|e| e.value.as_ref().unwrap().yaml.clone())
    };
    assert_eq!(extension(&containers.vendor_extension, "x-kubernetes-patch-merge-key").unwrap(), r#""name""#);
    let kinds =
        extension(&schema("io.k8s.api.core.v1.Pod").vendor_extension, "x-kubernetes-group-version-kind");
    assert_eq!(kinds.unwrap(), r#"[{"group":"","kind":"Pod","version":"v1"}]"#);
    assert_eq!(property("io.k8s.api.core.v1.PodSpec", "nodeSelector").kind.unwrap().value, ["object"]);
    let quantity = schema("io.k8s.apimachinery.pkg.api.resource.Quantity");
    assert_eq!(quantity.kind.as_ref().unwrap().value, ["string"]);

    let paths = document.paths.unwrap().path;
    assert_eq!(paths.len(), json["paths"].as_object().unwrap().len());
    let pod = paths.iter().find(|p| p.name == "/api/v1/namespaces/{namespace}/pods/{name}").unwrap();
    let patch = pod.value.as_ref().unwrap().patch.as_ref().unwrap();
    // As clients of any age look for it.
    let inline = patch.parameters.iter().any(|item| {
        let parameter = item.parameter.as_ref().and_then(|parameter| parameter.non_body.as_ref());
        let query = parameter.and_then(|parameter| parameter.query.as_ref());
        query.is_some_and(|query| query.name == "fieldValidation")
    });
    assert!(inline);
    assert_eq!(
        extension(&patch.vendor_extension, "x-kubernetes-group-version-kind").unwrap(),
        r#"{"group":"","kind":"Pod","version":"v1"}"#
    );
    let exec = paths.iter().find(|p| p.name.ends_with("/pods/{name}/exec")).unwrap().value.as_ref().unwrap();
    assert_eq!(exec.post.as_ref().unwrap().operation_id, "connectCoreV1PostNamespacedPodExec");
}

#[test]
fn custom_resources_are_published() {
    let widgets = resource(GroupVersionKind::new("example.com", "v1", "Widget"), "widgets", true);
    let schema = json!({"type": "object", "description": "A widget.", "properties": {"spec": {"type": "object",
        "properties": {"port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}}}}});
    let custom = [Custom { resource: &widgets, schema: Some(&schema) }];
    let document = parse(&v3_document(&[], &custom, "example.com", "v1").unwrap());
    let widget = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(widget["properties"]["spec"]["properties"]["port"]["anyOf"][0]["type"], "integer");
    assert_eq!(widget["x-kubernetes-group-version-kind"][0]["kind"], "Widget");
    assert!(
        document["components"]["schemas"].get("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").is_some()
    );
    let v2 = parse(&v2_json(&[], &custom));
    let port = &v2["definitions"]["com.example.v1.Widget"]["properties"]["spec"]["properties"]["port"];
    assert_eq!(port.get("anyOf"), None);
    let patch = &v2["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"]["patch"];
    assert!(!patch["consumes"].to_string().contains("strategic"));
}
