//! Secrets: `stringData` folded into `data`, keys that a type requires, and immutability.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::configmap::{decoded_length, immutable};
use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, integer, text},
    fields::{Fields, Fill},
    kind::{Column, Spec},
    names,
};

pub(crate) const KIND: Spec = Spec {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    storage_prefix: Some("secrets"),
    columns: COLUMNS,
    selectable: &["type"],
    strategy: &Secret,
    ..Spec::STORED
};

const COLUMNS: &[Column] =
    &[NAME, text("Type", "What the secret is for."), integer("Data", "Number of entries."), AGE];

const SIZE_MAX: usize = 1 << 20;

struct Secret;

impl Strategy for Secret {
    fn default(&self, object: &mut Value) {
        object.fill_text("type", "Opaque");
        // Write only: what is stored and shown is `data`.
        let Some(Value::Object(texts)) =
            object.as_object_mut().and_then(|map| map.shift_remove("stringData"))
        else {
            return;
        };
        if let Some(data) = object.section("data") {
            for (key, value) in texts {
                data.put(&key, STANDARD.encode(value.as_str().unwrap_or_default()));
            }
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let path = Path::new("data");
        let mut size = 0;
        for (key, value) in object.entries("data").into_iter().flatten() {
            causes.syntax(&path.key(key), key, names::config_key(key));
            size += value.as_str().map_or(0, decoded_length);
        }
        if size > SIZE_MAX {
            causes.too_long(&path, SIZE_MAX);
        }
        required_keys(object, &path, &mut causes);
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        if new.text("type") != old.text("type") {
            causes.invalid(&Path::new("type"), new.text("type"), "field is immutable");
        }
        immutable(new, old, &["data"], &mut causes);
        causes.extend(self.validate_create(new));
        causes.into_vec()
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("type", object.text("type").to_owned())]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            columns::name(object),
            object.text("type").into(),
            object.entries("data").map_or(0, Map::len).into(),
            columns::age(object, now),
        ]
    }
}

fn required_keys(secret: &Value, path: &Path<'_>, causes: &mut Causes) {
    const ACCOUNT: &str = "kubernetes.io/service-account.name";
    let data = secret.at("data");
    let missing = |key: &str| data.get(key).is_none();
    let require = |key: &str, causes: &mut Causes| causes.required(&path.key(key), "");
    match secret.text("type") {
        "kubernetes.io/service-account-token"
            if secret.at("metadata").at("annotations").text(ACCOUNT).is_empty() =>
        {
            let path = Path::new("metadata");
            causes.required(&path.child("annotations").key(ACCOUNT), "");
        }
        "kubernetes.io/dockercfg" => docker_config(data, ".dockercfg", path, causes),
        "kubernetes.io/dockerconfigjson" => docker_config(data, ".dockerconfigjson", path, causes),
        "kubernetes.io/basic-auth" if missing("username") && missing("password") => {
            require("username", causes);
            require("password", causes);
        }
        "kubernetes.io/ssh-auth" if data.text("ssh-privatekey").is_empty() => {
            require("ssh-privatekey", causes)
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if missing(key) {
                    require(key, causes);
                }
            }
        }
        _ => {}
    }
}

fn docker_config(data: &Value, key: &str, path: &Path<'_>, causes: &mut Causes) {
    let Some(encoded) = data.get(key) else {
        causes.required(&path.key(key), "");
        return;
    };
    let decoded = STANDARD.decode(encoded.as_str().unwrap_or_default()).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<Map<String, Value>>(&decoded) {
        causes.invalid(&path.key(key), "<secret contents redacted>", error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn string_data_is_folded_in() {
        let mut object = json!({"data": {"a": "eA=="}, "stringData": {"b": "y", "a": "z"}});
        Secret.default(&mut object);
        assert_eq!(object, json!({"data": {"a": "eg==", "b": "eQ=="}, "type": "Opaque"}));
    }

    #[test]
    fn types() {
        fn check(kind: &str, data: Value, expected: &[&str]) {
            let causes = Secret.validate_create(&json!({"type": kind, "data": data}));
            let texts: Vec<&str> = causes.iter().map(|cause| cause.field.as_str()).collect();
            assert_eq!(texts, expected, "{kind}");
        }
        check("Opaque", json!({}), &[]);
        check("Opaque", json!({"a/b": ""}), &["data[a/b]"]);
        check("kubernetes.io/tls", json!({"tls.crt": ""}), &["data[tls.key]"]);
        check("kubernetes.io/basic-auth", json!({}), &["data[username]", "data[password]"]);
        check("kubernetes.io/basic-auth", json!({"username": ""}), &[]);
        check("kubernetes.io/ssh-auth", json!({"ssh-privatekey": ""}), &["data[ssh-privatekey]"]);
        check("kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": "e30="}), &[]);
        check(
            "kubernetes.io/dockerconfigjson",
            json!({".dockerconfigjson": "eA=="}),
            &["data[.dockerconfigjson]"],
        );
        check(
            "kubernetes.io/service-account-token",
            json!({}),
            &["metadata.annotations[kubernetes.io/service-account.name]"],
        );
    }

    #[test]
    fn updates() {
        let old = json!({"type": "Opaque", "immutable": true, "data": {"a": ""}});
        let new = json!({"type": "Other", "immutable": true, "data": {}});
        let fields: Vec<String> = Secret.validate_update(&new, &old).into_iter().map(|c| c.field).collect();
        assert_eq!(fields, ["type", "data"]);
    }
}
