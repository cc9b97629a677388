//! Decoding: unknown and duplicate fields, wrong types, and the messages that name them.

use super::*;
use crate::types::Schemas;
use serde_json::json;

fn ty(group: &str, kind: &str) -> TypeRef<'static> {
    Schemas::builtin().of(group, "v1", kind).unwrap()
}

/// Without empty objects: most tests are not about those that are always written.
fn bare(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .map(|(key, value)| (key, bare(value)))
            .filter(|(_, value)| *value != json!({}))
            .collect(),
        Value::Array(list) => list.into_iter().map(bare).collect(),
        other => other,
    }
}

#[test]
fn present_objects() {
    let check = |group, kind, input: Value, expected: Value| {
        assert_eq!(decode_value(input, ty(group, kind)).unwrap().value, expected);
    };
    check("", "ConfigMap", json!({}), json!({"metadata": {}}));
    check("", "Service", json!({}), json!({"metadata": {}, "spec": {}, "status": {"loadBalancer": {}}}));
    check(
        "",
        "Pod",
        json!({"spec": {"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {}}]}}),
        json!({"metadata": {}, "spec": {
            "containers": [{"name": "a", "resources": {}}], "volumes": [{"name": "v", "emptyDir": {}}]}, "status": {}}),
    );
}

#[test]
fn deployments() {
    let check = |input: &str, expected: Result<Value, &str>| {
        let result = decode(input.as_bytes(), Format::Json, ty("apps", "Deployment"));
        match (result, expected) {
            (Ok(decoded), Ok(value)) => assert_eq!(bare(decoded.value), bare(value), "{input}"),
            (Err(error), Err(text)) => assert_eq!(error.to_string(), text, "{input}"),
            (result, _) => panic!("{input}: {result:?}"),
        }
    };
    check(r#"{"spec":{"replicas":3}}"#, Ok(json!({"spec":{"replicas":3}})));
    check(r#"{"spec":{"replicas":null,"paused":false}}"#, Ok(json!({"spec":{"paused":false}})));
    check(
        r#"{"spec":{"replicas":"3"}}"#,
        Err("json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"),
    );
    check(
        r#"{"spec":{"replicas":1.0}}"#,
        Err(
            "json: cannot unmarshal number 1.0 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
    );
    check(
        r#"{"spec":{"replicas":3000000000}}"#,
        Err(
            "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
    );
    check(
        r#"{"metadata":{"labels":{"a":1}}}"#,
        Err("json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"),
    );
    check(
        r#"{"spec":{"template":{"spec":{"containers":{"name":"x"}}}}}"#,
        Err(
            "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
        ),
    );
    check(
        r#"{"spec":{"template":{"spec":{"containers":[{"name":1}]}}}}"#,
        Err(
            "json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.name of type string",
        ),
    );
    check(r#"[]"#, Err("json: cannot unmarshal array into Go value of type v1.Deployment"));
    check(
        r#"{"spec":{"template":{"spec":{"containers":[{"resources":{"limits":{"cpu":0.5,"memory":"1024Mi"}}}]}}}}"#,
        Ok(
            json!({"spec":{"template":{"spec":{"containers":[{"resources":{"limits":{"cpu":"500m","memory":"1Gi"}}}]}}}}),
        ),
    );
    check(
        r#"{"spec":{"strategy":{"rollingUpdate":{"maxSurge":"25%","maxUnavailable":1}}}}"#,
        Ok(json!({"spec":{"strategy":{"rollingUpdate":{"maxSurge":"25%","maxUnavailable":1}}}})),
    );
    check(
        r#"{"spec":{"strategy":{"rollingUpdate":{"maxSurge":true}}}}"#,
        Err("json: cannot unmarshal bool into Go value of type int32"),
    );
    check(
        r#"{"metadata":{"creationTimestamp":"x"}}"#,
        Err(r#"parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006""#),
    );
    check(
        r#"{"metadata":{"annotations":{"a":null},"finalizers":[]}}"#,
        Ok(json!({"metadata":{"annotations":{"a":""}}})),
    );
    let managed =
        decode(br#"{"metadata":{"managedFields":[{}]}}"#, Format::Json, ty("apps", "Deployment")).unwrap();
    assert_eq!(managed.value["metadata"]["managedFields"], json!([{}]));
}

#[test]
fn strictness() {
    let check = |input: &str, format, complaints: &str, value: Value| {
        let decoded = decode(input.as_bytes(), format, ty("", "Pod")).unwrap();
        assert_eq!(decoded.strict_error().unwrap_or_default(), complaints, "{input}");
        assert_eq!(bare(decoded.value), bare(value), "{input}");
    };
    check(
        r#"{"spec":{"foo":{"a":[1]},"hostNetwork":true}}"#,
        Format::Json,
        r#"strict decoding error: unknown field "spec.foo""#,
        json!({"spec":{"hostNetwork":true}}),
    );
    check(
        r#"{"spec":{"containers":[{"name":"a","name":"b","Image":"x"}]}}"#,
        Format::Json,
        r#"strict decoding error: duplicate field "spec.containers[0].name", unknown field "spec.containers[0].Image""#,
        json!({"spec":{"containers":[{"name":"b"}]}}),
    );
    check(
        "metadata:\n  labels:\n    a: b\n    a: c\nspec:\n  nodename: x\n",
        Format::Yaml,
        r#"strict decoding error: duplicate field "metadata.labels.a", unknown field "spec.nodename""#,
        json!({"metadata":{"labels":{"a":"c"}},"spec":{}}),
    );
    check(
        "spec:\n  containers:\n  - name: x\n    args: [\"1\", yes]\n    resources: {limits: {cpu: 2}}\n",
        Format::Yaml,
        "",
        json!({"spec":{"containers":[{"name":"x","args":["1","yes"],"resources":{"limits":{"cpu":"2"}}}]}}),
    );
}

#[test]
fn schemas_inside_definitions_are_lenient() {
    let input = json!({"spec":{"versions":[{"name":"v1","schema":{"openAPIV3Schema":{"type":"object","properties":{
        "a":{"type":"array","items":{"type":"string","nope":1}},
        "b":{"additionalProperties":true},
        "c":{"default":{"any":[1,null]},"enum":[1,"x",null]},
        "d":{"nope":1}}}}}]}});
    let decoded = decode_value(input, ty("apiextensions.k8s.io", "CustomResourceDefinition")).unwrap();
    assert_eq!(
        decoded.unknown,
        [r#"unknown field "spec.versions[0].schema.openAPIV3Schema.properties.d.nope""#]
    );
    let properties = &decoded.value["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    assert_eq!(
        *properties,
        json!({"a":{"type":"array","items":{"type":"string"}},"b":{"additionalProperties":true},
            "c":{"default":{"any":[1,null]},"enum":[1,"x",null]},"d":{}})
    );
}

#[test]
fn messages() {
    let error = decode(br#"{"spec":[]}"#, Format::Json, ty("apps", "Deployment")).unwrap_err();
    assert_eq!(
        error.cannot_be_handled("v1", "Deployment"),
        "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal array into Go struct \
         field Deployment.spec of type v1.DeploymentSpec"
    );
}

#[test]
fn depth_is_bounded() {
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let body = format!(r#"{{"data":{deep}}}"#);
    assert!(decode(body.as_bytes(), Format::Json, ty("apps", "ControllerRevision")).is_err());
    let mut value = json!({});
    for _ in 0..300 {
        value = json!({"a": value});
    }
    let error = decode_value(json!({"data": value}), ty("apps", "ControllerRevision")).unwrap_err();
    assert_eq!(error.to_string(), "exceeded max depth");
}

#[test]
fn type_metas() {
    let check = |input: &str, format, expected: Option<(&str, &str)>| {
        let found = type_meta(input.as_bytes(), format).ok();
        let expected = expected.map(|(v, k)| TypeMeta { api_version: v.to_owned(), kind: k.to_owned() });
        assert_eq!(found, expected, "{input}");
    };
    check(r#"{"kind":"Pod","apiVersion":"v1","spec":{"x":[1]}}"#, Format::Json, Some(("v1", "Pod")));
    check(r#"{"kind":"Pod","kind":"Node"}"#, Format::Json, Some(("", "Node")));
    check("apiVersion: apps/v1\nkind: Deployment\n", Format::Yaml, Some(("apps/v1", "Deployment")));
    check(r#"{"kind":null}"#, Format::Json, Some(("", "")));
    check(r#"{"kind":1}"#, Format::Json, None);
    check("{", Format::Json, None);
    check("[]", Format::Json, None);
}

#[test]
fn custom_values_keep_what_was_sent() {
    let gvk = crate::resource::GroupVersionKind::new("example.com", "v1", "Widget");
    let schema = json!({"type":"object","properties":{"spec":{"type":"object","properties":{
        "a":{"type":"string","nullable":true},"l":{"type":"array","items":{"type":"string"}}}}}});
    let schemas = Schemas::custom(&gvk, Some(&schema)).unwrap();
    let widget = schemas.of("example.com", "v1", "Widget").unwrap();
    let input = br#"{"metadata":{"creationTimestamp":null,"labels":{}},"spec":{"a":null,"l":[],"x":1}}"#;
    let decoded = decode(input, Format::Json, widget).unwrap();
    assert_eq!(decoded.value, json!({"metadata":{},"spec":{"a":null,"l":[]}}));
    assert_eq!(decoded.unknown, [r#"unknown field "spec.x""#]);
}
