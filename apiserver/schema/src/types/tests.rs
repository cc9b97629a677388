//! The schemas of built-in types and what is known of their lists and keys.

use super::*;
use crate::resource::GroupVersionKind;
use serde_json::json;

#[test]
fn builtin_is_made_quickly() {
    let start = std::time::Instant::now();
    let schemas = builtin::schemas();
    let fields: usize =
        schemas.shapes.iter().map(|s| if let Shape::Object(o) = s { o.fields.len() } else { 0 }).sum();
    println!(
        "{} shapes, {fields} fields, {} kinds in {:?}; {} KiB of shapes, {} KiB of fields",
        schemas.shapes.len(),
        schemas.kinds.len(),
        start.elapsed(),
        schemas.shapes.capacity() * size_of::<Shape>() / 1024,
        fields * size_of::<Field>() / 1024,
    );
    assert!(fields > 2500);
}

#[test]
fn shapes_of_well_known_fields() {
    let check = |gvk: (&str, &str, &str), path: &[&str], expected: &str| {
        let ty = Schemas::builtin().of(gvk.0, gvk.1, gvk.2).unwrap().path(path);
        let text = ty.map_or("none".to_owned(), |ty| match ty.shape() {
            Shape::Object(o) => format!("{}{}", o.definition, if o.atomic { " atomic" } else { "" }),
            Shape::List(l) => format!("list {:?}", l.kind),
            Shape::Map(m) => format!("map atomic={}", m.atomic),
            other => format!("{other:?}"),
        });
        assert_eq!(text, expected, "{gvk:?} {path:?}");
    };
    let deployment = ("apps", "v1", "Deployment");
    let pod = ("", "v1", "Pod");
    check(deployment, &["spec", "replicas"], "Int32");
    check(deployment, &["spec", "template", "spec", "containers"], r#"list Map(["name"])"#);
    check(
        deployment,
        &["spec", "template", "spec", "containers", "ports"],
        r#"list Map(["containerPort", "protocol"])"#,
    );
    check(deployment, &["spec", "selector"], "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector atomic");
    check(deployment, &["metadata", "managedFields", "fieldsV1"], "Any { granular: true }");
    check(deployment, &["metadata", "finalizers"], "list Set");
    check(pod, &["spec", "nodeSelector"], "map atomic=true");
    check(pod, &["metadata", "labels"], "map atomic=false");
    check(pod, &["spec", "containers", "args"], "list Atomic");
    check(pod, &["spec", "containers", "resources", "limits", "cpu"], "Quantity");
    check(pod, &["status", "startTime"], "Time");
    check(pod, &["spec", "containers", "livenessProbe", "httpGet", "port"], "IntOrString");
    check(("", "v1", "Secret"), &["data", "x"], "Bytes");
    check(("", "v1", "PersistentVolume"), &["spec", "claimRef"], "io.k8s.api.core.v1.ObjectReference");
    check(("", "v1", "Binding"), &["target"], "io.k8s.api.core.v1.ObjectReference atomic");
    check(("", "v1", "PodList"), &["items", "spec", "hostNetwork"], "Boolean");
    check(("coordination.k8s.io", "v1", "Lease"), &["spec", "renewTime"], "MicroTime");
    check(("apps", "v1", "DeleteOptions"), &["gracePeriodSeconds"], "Int64");
    check(("apiregistration.k8s.io", "v1", "APIService"), &["spec", "caBundle"], "Bytes");
    check(pod, &["spec", "nonsense"], "none");
}

#[test]
fn custom_schemas() {
    let gvk = GroupVersionKind::new("example.com", "v1", "Widget");
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "size": {"type": "integer", "format": "int32", "default": 1},
            "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
                "items": {"type": "object", "properties": {"id": {"type": "string"}}}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }},
    }});
    let schemas = Schemas::custom(&gvk, Some(&schema)).unwrap();
    let widget = schemas.of("example.com", "v1", "Widget").unwrap();
    assert!(matches!(widget.path(&["spec", "size"]).unwrap().shape(), Shape::Int32));
    assert!(matches!(widget.path(&["spec", "free", "a", "b"]).unwrap().shape(), Shape::Any { .. }));
    assert!(matches!(widget.path(&["metadata", "labels", "a"]).unwrap().shape(), Shape::String));
    assert!(
        schemas.of("example.com", "v1", "WidgetList").unwrap().path(&["items", "spec", "size"]).is_some()
    );

    let any = Schemas::custom(&gvk, None).unwrap();
    assert!(any.of("example.com", "v1", "Widget").unwrap().path(&["spec", "x"]).is_some());

    let bad = json!({"type": "object", "properties": {"spec": {"type": "text"}}});
    let error = Schemas::custom(&gvk, Some(&bad)).unwrap_err();
    assert_eq!(error.to_string(), r#"openAPIV3Schema.properties[spec]: unknown type "text""#);
}
