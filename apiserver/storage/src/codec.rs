//! Stored values ↔ objects.
//!
//! A value in the store is the JSON object with `kind` and `apiVersion` first and without
//! `metadata.resourceVersion`, which is the revision of the key. The body in the cache is the same text
//! without `kind` and `apiVersion` and with the version; metadata always comes first. Upstream's protobuf
//! envelope is recognised and refused: guessing at it would lose data.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::object::{Object, TypeMeta};
use crate::resource::ResourceConfig;

/// How upstream's protobuf values begin.
const PROTOBUF_MAGIC: &[u8] = b"k8s\0";

const VERSION_MEMBER: &str = r#""resourceVersion":""#;

/// An object as text, on its way into the store or into the cache.
#[derive(Debug)]
pub(crate) struct Encoded {
    type_meta: Arc<TypeMeta>,
    /// The body without a version.
    text: Vec<u8>,
    /// Where in `text` the version belongs.
    gap: Gap,
}

/// A place between members of `metadata`.
#[derive(Clone, Copy, Debug)]
enum Gap {
    /// Behind a member.
    After(usize),
    /// Before the first member.
    Before(usize),
    /// In an empty object.
    Only(usize),
}

impl Encoded {
    /// What the store keeps.
    pub(crate) fn stored(&self) -> Bytes {
        let head = head(&self.type_meta);
        let mut stored = Vec::with_capacity(head.len() + self.text.len());
        stored.extend_from_slice(head.as_bytes());
        stored.extend_from_slice(&self.text[1..]);
        stored.into()
    }

    /// The body at a version, and where the version's digits begin.
    fn body(&self, version: u64) -> (Bytes, usize) {
        let digits = version.to_string();
        let (at, before, after) = match self.gap {
            Gap::After(at) => (at, ",", "\""),
            Gap::Before(at) => (at, "", "\","),
            Gap::Only(at) => (at, "", "\""),
        };
        let mut body = Vec::with_capacity(
            self.text.len() + before.len() + VERSION_MEMBER.len() + digits.len() + after.len(),
        );
        body.extend_from_slice(&self.text[..at]);
        body.extend_from_slice(before.as_bytes());
        body.extend_from_slice(VERSION_MEMBER.as_bytes());
        let offset = body.len();
        body.extend_from_slice(digits.as_bytes());
        body.extend_from_slice(after.as_bytes());
        body.extend_from_slice(&self.text[at..]);
        (body.into(), offset)
    }
}

/// `{"kind":…,"apiVersion":…,`: what stands before a body without its brace.
pub(crate) fn head(type_meta: &TypeMeta) -> String {
    format!(
        "{{\"kind\":{},\"apiVersion\":{},",
        Value::from(&*type_meta.kind),
        Value::from(&*type_meta.api_version)
    )
}

/// Reads stored bytes; returns the object at its revision and its value (with the version in it).
pub(crate) fn decode(
    config: &ResourceConfig,
    type_meta: &Arc<TypeMeta>,
    key: &str,
    stored: &[u8],
    revision: u64,
) -> Result<(Object, Value), Error> {
    let corrupt = |reason: String| Error::Corrupt { key: key.to_owned(), reason };
    if stored.starts_with(PROTOBUF_MAGIC) {
        return Err(corrupt(
            "it is in upstream's protobuf encoding, which is not read yet; \
             write it as JSON first (kube-apiserver --storage-media-type=application/json)"
                .into(),
        ));
    }
    let mut value: Value = serde_json::from_slice(stored).map_err(|error| corrupt(error.to_string()))?;
    let encoded = encode(type_meta, &value).map_err(|error| corrupt(error.to_string()))?;
    let object = assemble(config, key, &value, &encoded, revision);
    set_version(&mut value, revision);
    Ok((object, value))
}

/// Renders a value. Its version is left out; a missing kind or apiVersion is the resource's.
pub(crate) fn encode(type_meta: &Arc<TypeMeta>, value: &Value) -> Result<Encoded, Error> {
    let unencodable = |reason: &str| Error::Unencodable(reason.to_owned());
    let members = value.as_object().ok_or_else(|| unencodable("not a JSON object"))?;
    let metadata = members
        .get("metadata")
        .and_then(Value::as_object)
        .ok_or_else(|| unencodable("metadata is not a JSON object"))?;
    let mut text = Vec::with_capacity(1024);
    text.extend_from_slice(b"{\"metadata\":{");
    let gap = write_metadata(&mut text, metadata)?;
    text.push(b'}');
    for (name, member) in members {
        if !matches!(name.as_str(), "kind" | "apiVersion" | "metadata") {
            text.push(b',');
            write_member(&mut text, name, member)?;
        }
    }
    text.push(b'}');
    let text_of = |name: &str| members.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let kind = text_of("kind").unwrap_or(&type_meta.kind);
    let api_version = text_of("apiVersion").unwrap_or(&type_meta.api_version);
    let type_meta = if kind == type_meta.kind && api_version == type_meta.api_version {
        type_meta.clone()
    } else {
        Arc::new(TypeMeta { api_version: api_version.to_owned(), kind: kind.to_owned() })
    };
    Ok(Encoded { type_meta, text, gap })
}

fn write_metadata(text: &mut Vec<u8>, metadata: &Map<String, Value>) -> Result<Gap, Error> {
    let start = text.len();
    let mut gap = None;
    let mut empty = true;
    for (name, member) in metadata {
        if name == "resourceVersion" {
            continue;
        }
        if !empty {
            text.push(b',');
        }
        empty = false;
        write_member(text, name, member)?;
        // Upstream's order: name, generateName, namespace, uid, resourceVersion, generation, …
        if matches!(name.as_str(), "name" | "generateName" | "namespace" | "uid") {
            gap = Some(Gap::After(text.len()));
        }
    }
    Ok(gap.unwrap_or(if empty { Gap::Only(start) } else { Gap::Before(start) }))
}

fn write_member(text: &mut Vec<u8>, name: &str, member: &Value) -> Result<(), Error> {
    let unencodable = |error: serde_json::Error| Error::Unencodable(error.to_string());
    serde_json::to_writer(&mut *text, name).map_err(unencodable)?;
    text.push(b':');
    serde_json::to_writer(text, member).map_err(unencodable)
}

/// Makes the object of an encoded value at a revision.
pub(crate) fn assemble(
    config: &ResourceConfig,
    key: &str,
    value: &Value,
    encoded: &Encoded,
    revision: u64,
) -> Object {
    let (body, offset) = encoded.body(revision);
    let metadata = &value["metadata"];
    let mut labels: Vec<(Box<str>, Box<str>)> = metadata["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.as_str().into(), value.as_str()?.into())))
        .collect();
    labels.sort_unstable();
    let fields = config.fields.as_ref().map(|fields_of| fields_of(value)).unwrap_or_default();
    Object {
        namespace_length: key.find('/').filter(|_| config.namespaced).map_or(0, |length| length as u32),
        key: key.into(),
        version_offset: offset as u32,
        resource_version: revision,
        type_meta: encoded.type_meta.clone(),
        uid: metadata["uid"].as_str().unwrap_or_default().into(),
        labels: labels.into(),
        fields: fields.into_iter().map(|(path, value)| (path, value.into_boxed_str())).collect(),
        body,
    }
}

pub(crate) fn set_version(value: &mut Value, revision: u64) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), revision.to_string().into());
    }
}

/// Whether two values are the same object, whatever version they carry.
pub(crate) fn same(left: &Value, right: &Value) -> bool {
    let (Some(left), Some(right)) = (left.as_object(), right.as_object()) else { return left == right };
    left.len() == right.len()
        && left.iter().all(|(name, member)| match right.get(name) {
            Some(other) if name == "metadata" => same_metadata(member, other),
            Some(other) => member == other,
            None => false,
        })
}

fn same_metadata(left: &Value, right: &Value) -> bool {
    let (Some(left), Some(right)) = (left.as_object(), right.as_object()) else { return left == right };
    let counted = |map: &Map<String, Value>| map.len() - usize::from(map.contains_key("resourceVersion"));
    counted(left) == counted(right)
        && left.iter().all(|(name, member)| name == "resourceVersion" || right.get(name) == Some(member))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config() -> ResourceConfig {
        ResourceConfig {
            prefix: "pods".into(),
            name: "pods".into(),
            type_meta: TypeMeta { api_version: "v1".into(), kind: "Pod".into() },
            namespaced: true,
            fields: Some(Arc::new(|value| {
                vec![("spec.nodeName".into(), value["spec"]["nodeName"].as_str().unwrap_or("").into())]
            })),
        }
    }

    fn decoded(stored: &str, revision: u64) -> Result<(Object, Value), Error> {
        let config = config();
        let type_meta = Arc::new(config.type_meta.clone());
        decode(&config, &type_meta, "ns/a", stored.as_bytes(), revision)
    }

    #[test]
    fn bodies_carry_the_version_where_upstream_has_it() {
        fn check(stored: &str, body: &str) {
            let (object, value) = decoded(stored, 42).unwrap();
            assert_eq!(std::str::from_utf8(object.body()).unwrap(), body);
            assert_eq!(value["metadata"]["resourceVersion"], "42");
            let later = object.at_version(1234);
            assert_eq!(
                std::str::from_utf8(later.body()).unwrap(),
                body.replace(r#""resourceVersion":"42""#, r#""resourceVersion":"1234""#)
            );
            assert_eq!(later.value()["kind"], "Pod");
        }
        check(
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","uid":"u","labels":{"x":"y"}},"spec":{}}"#,
            r#"{"metadata":{"name":"a","uid":"u","resourceVersion":"42","labels":{"x":"y"}},"spec":{}}"#,
        );
        // A version that got into the store is not believed; metadata comes first.
        check(
            r#"{"spec":{"a":[1,2.5,"é\n"]},"metadata":{"resourceVersion":"7","labels":null}}"#,
            r#"{"metadata":{"resourceVersion":"42","labels":null},"spec":{"a":[1,2.5,"é\n"]}}"#,
        );
        check(r#"{"metadata":{}}"#, r#"{"metadata":{"resourceVersion":"42"}}"#);
    }

    #[test]
    fn stored_values_have_type_and_no_version() {
        let config = config();
        let type_meta = Arc::new(config.type_meta.clone());
        let value =
            json!({"metadata": {"name": "a", "resourceVersion": "9", "uid": "u"}, "spec": {"nodeName": "n"}});
        let encoded = encode(&type_meta, &value).unwrap();
        assert_eq!(
            encoded.stored(),
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","uid":"u"},"spec":{"nodeName":"n"}}"#
        );
        let (object, back) = decode(&config, &type_meta, "ns/a", &encoded.stored(), 5).unwrap();
        assert!(same(&back, &object.value()));
        assert_eq!(object.field("spec.nodeName"), Some("n"));
        assert_eq!(object.field("metadata.namespace"), Some("ns"));
        assert_eq!(object.field("spec.other"), None);
        assert_eq!((object.namespace(), object.name(), object.uid()), ("ns", "a", "u"));
    }

    #[test]
    fn labels_are_found_by_name() {
        let (object, _) =
            decoded(r#"{"metadata":{"name":"a","labels":{"z":"1","a":"2","m":"3"}}}"#, 1).unwrap();
        assert_eq!(object.label("m"), Some("3"));
        assert_eq!(object.label("b"), None);
        assert_eq!(object.labels().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "m", "z"]);
    }

    #[test]
    fn unreadable_values_are_refused_with_the_reason() {
        fn check(stored: &str, reason: &str) {
            let error = decoded(stored, 1).unwrap_err().to_string();
            assert!(error.contains("ns/a") && error.contains(reason), "{error}");
        }
        check("k8s\0\n\x06", "protobuf");
        check("{", "EOF");
        check("[]", "not a JSON object");
        check("{}", "metadata");
    }

    #[test]
    fn sameness_ignores_versions_and_order() {
        fn check(left: Value, right: Value, expected: bool) {
            assert_eq!(same(&left, &right), expected, "{left} {right}");
            assert_eq!(same(&right, &left), expected, "{right} {left}");
        }
        check(json!({"metadata": {"a": 1, "resourceVersion": "1"}}), json!({"metadata": {"a": 1}}), true);
        check(json!({"a": 1, "b": 2}), json!({"b": 2, "a": 1}), true);
        check(
            json!({"metadata": {"a": 1, "resourceVersion": "1"}}),
            json!({"metadata": {"b": 1, "a": 1}}),
            false,
        );
        check(json!({"metadata": {}, "spec": 1}), json!({"metadata": {}}), false);
    }
}
