//! Hashes that become labels and names: `pod-template-hash` and the revision hash of controllers.
//!
//! FNV-1a (32 bits) over JSON with sorted keys and without nulls, so that neither the order of fields nor a field
//! that is absent rather than null changes it. Upstream hashes a dump of Go's memory, which nothing else can
//! reproduce: hashes of objects made by upstream differ, and controllers must find them by their labels.

use serde::Serialize;
use serde_json::Value;

use crate::names::safe_encode;

/// FNV-1a, 32 bits.
#[derive(Debug, Clone)]
pub struct Fnv32a(u32);

impl Default for Fnv32a {
    fn default() -> Self {
        Self(0x811c_9dc5)
    }
}

impl Fnv32a {
    pub fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }

    #[must_use]
    pub fn finish(&self) -> u32 {
        self.0
    }
}

/// The hash of a pod template; `collision_count` (of the Deployment's status) gives another hash when two templates
/// have the same. For the `pod-template-hash` label and the ReplicaSet's name.
#[must_use]
pub fn pod_template_hash(template: &impl Serialize, collision_count: Option<i32>) -> String {
    object_hash(template, collision_count)
}

/// The hash of a ControllerRevision's data, for its name and the `controller-revision-hash` label.
#[must_use]
pub fn controller_revision_hash(data: &impl Serialize, collision_count: Option<i32>) -> String {
    object_hash(data, collision_count)
}

fn object_hash(object: &impl Serialize, collision_count: Option<i32>) -> String {
    let mut hash = Fnv32a::default();
    // API types always serialize: their maps have string keys and none of them fails by hand.
    write_canonical(&serde_json::to_value(object).unwrap_or_default(), &mut hash);
    if let Some(count) = collision_count {
        hash.write(&u64::try_from(count).unwrap_or(0).to_le_bytes());
    }
    safe_encode(&hash.finish().to_string())
}

fn write_canonical(value: &Value, hash: &mut Fnv32a) {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().filter(|(_, value)| !value.is_null()).collect();
            fields.sort_unstable_by_key(|(key, _)| *key);
            hash.write(b"{");
            for (key, value) in fields {
                hash.write(Value::from(key.as_str()).to_string().as_bytes());
                hash.write(b":");
                write_canonical(value, hash);
                hash.write(b",");
            }
            hash.write(b"}");
        }
        Value::Array(items) => {
            hash.write(b"[");
            for item in items {
                write_canonical(item, hash);
                hash.write(b",");
            }
            hash.write(b"]");
        }
        scalar => hash.write(scalar.to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fnv_has_its_published_values() {
        for (input, expected) in [("", 0x811c_9dc5), ("a", 0xe40c_292c), ("foobar", 0xbf9c_f968)] {
            let mut hash = Fnv32a::default();
            hash.write(input.as_bytes());
            assert_eq!(hash.finish(), expected);
        }
    }

    #[test]
    fn hashes_are_stable() {
        let template = json!({"spec": {"containers": [{"name": "a", "image": "b"}]}});
        let reordered = json!({"metadata": null, "spec": {"containers": [{"image": "b", "name": "a"}]}});
        let hash = pod_template_hash(&template, None);
        assert_eq!(hash, pod_template_hash(&reordered, None));
        // Fixed: a new release must not roll every Deployment out anew.
        assert_eq!(hash, "64c9c99867");
        assert_ne!(hash, pod_template_hash(&template, Some(1)));
        assert_ne!(pod_template_hash(&template, Some(1)), pod_template_hash(&template, Some(2)));
        assert_ne!(
            hash,
            pod_template_hash(&json!({"spec": {"containers": [{"name": "a", "image": "c"}]}}), None)
        );
    }
}
