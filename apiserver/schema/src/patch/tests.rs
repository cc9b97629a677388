//! The patch types, by tables of document, patch and outcome.

use super::*;
use crate::types::{Schemas, TypeRef};
use serde_json::json;

fn ty(group: &str, kind: &str) -> TypeRef<'static> {
    Schemas::builtin().of(group, "v1", kind).unwrap()
}

#[test]
fn json_patches() {
    let original = json!({"metadata":{"name":"a","labels":{"x":"1"}},"list":[1,2]});
    let check = |patch: Value, expected: Result<Value, (u16, &str)>| {
        let result = json(&original, patch.to_string().as_bytes());
        let expected = expected.map_err(|(code, text)| (code, text.to_owned()));
        assert_eq!(result.map_err(|e| (e.code(), e.to_string())), expected, "{patch}");
    };
    check(
        json!([{"op":"test","path":"/metadata/name","value":"a"},{"op":"replace","path":"/metadata/labels/x","value":"2"}]),
        Ok(json!({"metadata":{"name":"a","labels":{"x":"2"}},"list":[1,2]})),
    );
    check(
        json!([{"op":"add","path":"/list/-","value":3},{"op":"remove","path":"/metadata"}]),
        Ok(json!({"list":[1,2,3]})),
    );
    check(json!([{"op":"test","path":"/nothing","value":null}]), Ok(original.clone()));
    check(
        json!([{"op":"test","path":"/metadata/name","value":"b"}]),
        Err((422, "testing value /metadata/name failed: test failed")),
    );
    check(
        json!([{"op":"remove","path":"/metadata/nothing"}]),
        Err((
            422,
            "error in remove for path: '/metadata/nothing': Unable to remove nonexistent key: nothing: missing value",
        )),
    );
    check(
        json!([{"op":"add","path":"/a/b","value":1}]),
        Err((422, "add operation does not apply: doc is missing path: \"/a/b\": missing value")),
    );
    assert_eq!(json(&original, b"{}").unwrap_err().code(), 400);
    let many: Vec<Value> = vec![json!({"op":"test","path":"/x","value":null}); 10_001];
    assert_eq!(json(&original, Value::from(many).to_string().as_bytes()).unwrap_err().code(), 413);
}

#[test]
fn json_patches_are_bounded() {
    let doubling: Vec<Value> =
        (0..40).map(|i| json!({"op":"copy","from":"","path":format!("/x{i}")})).collect();
    let error = json(&json!({"a":"b"}), Value::from(doubling).to_string().as_bytes()).unwrap_err();
    assert_eq!(error.code(), 422);

    let mut deep = json!({});
    for _ in 0..100 {
        deep = json!({"a": deep});
    }
    let path = "/a".repeat(100);
    let mut operations = vec![json!({"op":"add","path":"/x","value":{}})];
    for _ in 0..1000 {
        operations.push(json!({"op":"add","path":"/t","value":deep}));
        operations.push(json!({"op":"move","from":"/x","path":format!("/t{path}/a")}));
        operations.push(json!({"op":"move","from":"/t","path":"/x"}));
    }
    let error = json(&json!({}), Value::from(operations).to_string().as_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "the patched object is nested too deeply");
}

#[test]
fn merge_patches() {
    let check = |original: Value, patch: Value, expected: Value| {
        assert_eq!(merge(&original, patch.to_string().as_bytes()).unwrap(), expected, "{patch}");
    };
    // RFC 7396, appendix A.
    check(json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"}));
    check(json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"}));
    check(json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"}));
    check(json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"}));
    check(json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}}));
    check(json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}}));
    assert_eq!(merge(&json!({}), b"[1]").unwrap_err().code(), 400);
    assert_eq!(merge(&json!({}), b"{").unwrap_err().code(), 400);
}

fn check_strategic(group: &str, kind: &str, original: Value, patch: Value, expected: Value) {
    let result = strategic(&original, patch.to_string().as_bytes(), ty(group, kind));
    assert_eq!(result.as_ref(), Ok(&expected), "{patch}");
}

#[test]
fn strategic_lists_by_key() {
    let pod = json!({"spec":{"containers":[{"name":"a","image":"1","env":[{"name":"X","value":"1"}]},{"name":"b","image":"1"}]}});
    let check = |patch: Value, expected: Value| {
        check_strategic(
            "",
            "Pod",
            pod.clone(),
            json!({"spec":{"containers":patch}}),
            json!({"spec":{"containers":expected}}),
        );
    };
    // The documentation's example: a container is added, others stay. New ones come first, as upstream has it.
    check(
        json!([{"name":"c","image":"9"}]),
        json!([{"name":"c","image":"9"},{"name":"a","image":"1","env":[{"name":"X","value":"1"}]},{"name":"b","image":"1"}]),
    );
    check(
        json!([{"name":"b","image":"2"}]),
        json!([{"name":"a","image":"1","env":[{"name":"X","value":"1"}]},{"name":"b","image":"2"}]),
    );
    check(
        json!([{"name":"a","env":[{"name":"Y","value":"2"},{"name":"X","$patch":"delete"}]}]),
        json!([{"name":"a","image":"1","env":[{"name":"Y","value":"2"}]},{"name":"b","image":"1"}]),
    );
    check(json!([{"name":"a","$patch":"delete"}]), json!([{"name":"b","image":"1"}]));
    check(json!([{"$patch":"replace"},{"name":"z"}]), json!([{"name":"z"}]));
    check(json!([{"name":"a","env":null}]), json!([{"name":"a","image":"1"},{"name":"b","image":"1"}]));
}

#[test]
fn strategic_order() {
    let pod = json!({"spec":{"containers":[{"name":"a"},{"name":"b"},{"name":"c"}]}});
    check_strategic(
        "",
        "Pod",
        pod.clone(),
        json!({"spec":{"$setElementOrder/containers":[{"name":"c"},{"name":"a"}],"containers":[{"name":"c","image":"x"}]}}),
        json!({"spec":{"containers":[{"name":"b"},{"name":"c","image":"x"},{"name":"a"}]}}),
    );
    check_strategic(
        "",
        "Pod",
        pod.clone(),
        json!({"spec":{"$setElementOrder/containers":[{"name":"new"},{"name":"a"},{"name":"b"},{"name":"c"}],"containers":[{"name":"new"}]}}),
        json!({"spec":{"containers":[{"name":"new"},{"name":"a"},{"name":"b"},{"name":"c"}]}}),
    );
    let wrong = json!({"spec":{"$setElementOrder/containers":[{"name":"a"}],"containers":[{"name":"b"}]}});
    let error = strategic(&pod, wrong.to_string().as_bytes(), ty("", "Pod")).unwrap_err();
    assert!(error.to_string().contains("doesn't match $setElementOrder list"), "{error}");
}

#[test]
fn strategic_primitive_lists() {
    let object = json!({"metadata":{"finalizers":["a","b","c"]}});
    let check = |patch: Value, expected: Value| {
        check_strategic(
            "",
            "Pod",
            object.clone(),
            json!({"metadata":patch}),
            json!({"metadata":{"finalizers":expected}}),
        );
    };
    check(json!({"finalizers":["d"]}), json!(["d", "a", "b", "c"]));
    check(json!({"finalizers":["b"]}), json!(["a", "b", "c"]));
    check(json!({"$deleteFromPrimitiveList/finalizers":["b"]}), json!(["a", "c"]));
    check(
        json!({"$deleteFromPrimitiveList/finalizers":["b"],"$setElementOrder/finalizers":["c","a"]}),
        json!(["c", "a"]),
    );
}

#[test]
fn strategic_maps() {
    let deployment = json!({"spec":{"strategy":{"type":"RollingUpdate","rollingUpdate":{"maxSurge":1}}}});
    check_strategic(
        "apps",
        "Deployment",
        deployment.clone(),
        json!({"spec":{"strategy":{"$retainKeys":["type"],"type":"Recreate"}}}),
        json!({"spec":{"strategy":{"type":"Recreate"}}}),
    );
    check_strategic(
        "apps",
        "Deployment",
        deployment.clone(),
        json!({"spec":{"strategy":{"$patch":"replace","type":"Recreate"}}}),
        json!({"spec":{"strategy":{"type":"Recreate"}}}),
    );
    check_strategic(
        "apps",
        "Deployment",
        deployment.clone(),
        json!({"spec":{"strategy":{"$patch":"delete"}}}),
        json!({"spec":{"strategy":{}}}),
    );
    check_strategic("apps", "Deployment", deployment.clone(), json!({"spec":null}), json!({}));
    check_strategic(
        "apps",
        "Deployment",
        deployment.clone(),
        json!({"metadata":{"labels":{"a":"b","c":null}}}),
        json!({"spec":{"strategy":{"type":"RollingUpdate","rollingUpdate":{"maxSurge":1}}},"metadata":{"labels":{"a":"b"}}}),
    );
    check_strategic(
        "policy",
        "PodDisruptionBudget",
        json!({"spec":{"selector":{"matchLabels":{"a":"b"}}}}),
        json!({"spec":{"selector":{"matchLabels":{"c":"d"}}}}),
        json!({"spec":{"selector":{"matchLabels":{"c":"d"}}}}),
    );
    // A volume's source is exchanged by retained keys.
    check_strategic(
        "",
        "Pod",
        json!({"spec":{"volumes":[{"name":"v","emptyDir":{}}]}}),
        json!({"spec":{"volumes":[{"$retainKeys":["name","hostPath"],"name":"v","hostPath":{"path":"/"}}]}}),
        json!({"spec":{"volumes":[{"name":"v","hostPath":{"path":"/"}}]}}),
    );
    // Lists without a strategy are replaced.
    check_strategic(
        "",
        "Pod",
        json!({"spec":{"tolerations":[{"key":"a"}]}}),
        json!({"spec":{"tolerations":[{"key":"b"}]}}),
        json!({"spec":{"tolerations":[{"key":"b"}]}}),
    );
}

#[test]
fn strategic_errors() {
    let check = |patch: Value, code: u16, text: &str| {
        let pod = json!({"spec":{"containers":[{"name":"a"}],"volumes":[{"name":"v"}]}});
        let error = strategic(&pod, patch.to_string().as_bytes(), ty("", "Pod")).unwrap_err();
        assert_eq!((error.code(), error.to_string().as_str()), (code, text));
    };
    check(json!([]), 400, "invalid JSON document");
    check(json!({"$retainKeys":1}), 400, "invalid patch format of retainKeys");
    check(json!({"spec":{"$retainKeys":["a"],"b":1}}), 400, "invalid patch format of retainKeys");
    check(json!({"spec":{"$deleteFromPrimitiveList":["a"]}}), 400, "invalid patch format of primitive list");
    check(json!({"spec":{"$setElementOrder":["a"]}}), 400, "invalid patch format of setElementOrder list");
    check(
        json!({"spec":{"containers":[{"image":"x"}]}}),
        500,
        r#"map: {"image":"x"} does not contain declared merge key: name"#,
    );
    check(
        json!({"spec":{"$patch":"nonsense"}}),
        500,
        r#"unknown patch type: "nonsense" in map: {"$patch":"nonsense"}"#,
    );
}
