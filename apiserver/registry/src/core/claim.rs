//! PersistentVolumeClaims and PersistentVolumes. Validation is lighter than upstream's: access modes, sizes, classes
//! and immutability are checked; the sources of in-tree drivers are not.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, text, wide},
    diff,
    equality::equal,
    fields::{Fields, Fill},
    kind::{Column, Spec, name, status},
    names,
    quantity::quantity,
    rules,
};

pub(crate) const CLAIM: Spec = Spec {
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    singular: "persistentvolumeclaim",
    short_names: &[name("pvc")],
    subresources: &[status("", "PersistentVolumeClaim")],
    storage_prefix: Some("persistentvolumeclaims"),
    columns: CLAIM_COLUMNS,
    strategy: &Claim,
    ..Spec::STORED
};

pub(crate) const VOLUME: Spec = Spec {
    kind: "PersistentVolume",
    plural: "persistentvolumes",
    singular: "persistentvolume",
    namespaced: false,
    short_names: &[name("pv")],
    subresources: &[status("", "PersistentVolume")],
    storage_prefix: Some("persistentvolumes"),
    columns: VOLUME_COLUMNS,
    strategy: &Volume,
    ..Spec::STORED
};

const CLAIM_COLUMNS: &[Column] = &[
    NAME,
    text("Status", "Phase of the claim."),
    text("Volume", "Volume the claim is bound to."),
    text("Capacity", "Capacity of that volume."),
    text("Access Modes", "How the volume may be mounted."),
    text("StorageClass", "Class the volume comes from."),
    text("VolumeAttributesClass", "Class of the volume's attributes."),
    AGE,
    wide("VolumeMode", "Filesystem or Block."),
];

const VOLUME_COLUMNS: &[Column] = &[
    NAME,
    text("Capacity", "Capacity of the volume."),
    text("Access Modes", "How the volume may be mounted."),
    text("Reclaim Policy", "What becomes of the volume once its claim is gone."),
    text("Status", "Phase of the volume."),
    text("Claim", "Claim the volume is bound to."),
    text("StorageClass", "Class the volume belongs to."),
    text("VolumeAttributesClass", "Class of the volume's attributes."),
    text("Reason", "Why the volume is in its phase."),
    AGE,
    wide("VolumeMode", "Filesystem or Block."),
];

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// Where classes were named before there was a field.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const UNSET: &str = "<unset>";

fn access_modes(holder: &Value) -> String {
    let short = |mode: &str| match mode {
        "ReadWriteOnce" => Some("RWO"),
        "ReadOnlyMany" => Some("ROX"),
        "ReadWriteMany" => Some("RWX"),
        "ReadWriteOncePod" => Some("RWOP"),
        _ => None,
    };
    let modes: Vec<&str> = holder.texts("accessModes").filter_map(short).collect();
    modes.join(",")
}

fn storage_class(object: &Value) -> String {
    let annotation = object.at("metadata").at("annotations").text(CLASS_ANNOTATION).to_owned();
    if annotation.is_empty() { object.at("spec").text("storageClassName").to_owned() } else { annotation }
}

fn or_unset(text: &str) -> String {
    if text.is_empty() { UNSET.to_owned() } else { text.to_owned() }
}

fn check_access_modes(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let modes: Vec<&str> = spec.texts("accessModes").collect();
    if modes.is_empty() {
        causes.required(&path.child("accessModes"), "at least 1 access mode is required");
    }
    for mode in &modes {
        if !ACCESS_MODES.contains(mode) {
            causes.not_supported(&path.child("accessModes"), *mode, ACCESS_MODES);
        }
    }
    if modes.len() > 1 && modes.contains(&"ReadWriteOncePod") {
        causes.forbidden(&path.child("accessModes"), "may not use ReadWriteOncePod with other access modes");
    }
}

fn check_class_and_mode(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    for field in ["storageClassName", "volumeAttributesClassName"] {
        let class = spec.text(field);
        if !class.is_empty() {
            causes.syntax(&path.child(field), class, names::dns_subdomain(class));
        }
    }
    if spec.has("volumeMode") && !matches!(spec.text("volumeMode"), "Block" | "Filesystem") {
        causes.not_supported(&path.child("volumeMode"), spec.text("volumeMode"), &["Block", "Filesystem"]);
    }
}

/// A PersistentVolumeClaimSpec, in a claim or in a template of one.
pub(crate) fn claim_spec(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    check_access_modes(spec, path, causes);
    if spec.has("selector") {
        rules::label_selector(spec.at("selector"), &path.child("selector"), causes);
    }
    let storage = spec.at("resources").at("requests").at("storage");
    let path_of_storage = path.child("resources");
    if storage.is_null() {
        causes.required(&path_of_storage.child("requests").key("storage"), "");
    } else if quantity(storage).is_none_or(|amount| amount.is_negative() || amount.is_zero()) {
        causes.invalid(
            &path_of_storage.child("requests").key("storage"),
            rules::amount_text(storage),
            "must be greater than zero",
        );
    }
    check_class_and_mode(spec, path, causes);
}

/// Defaults of a claim spec.
pub(crate) fn default_claim_spec(spec: &mut Value) {
    spec.fill("volumeMode", "Filesystem");
}

struct Claim;

impl Strategy for Claim {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.section("spec") {
            default_claim_spec(spec);
        }
        if let Some(status) = object.section("status") {
            status.fill_text("phase", "Pending");
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        object.put("status", serde_json::json!({"phase": "Pending"}));
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        claim_spec(object.at("spec"), &Path::new("spec"), &mut causes);
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let path = Path::new("spec");
        claim_spec(new.at("spec"), &path, &mut causes);
        let mut rest = new.at("spec").clone();
        let old_spec = old.at("spec");
        // Binding names the volume, once.
        if old_spec.text("volumeName").is_empty() {
            rest.copy("volumeName", old_spec);
        }
        if class_may_be_set(new, old, &mut causes) {
            rest.copy("storageClassName", old_spec);
        }
        if old.at("status").text("phase") == "Bound" {
            let old_requests = old_spec.at("resources").at("requests");
            if let Some(requests) = rest.part("resources").and_then(|resources| resources.part("requests")) {
                requests.copy("storage", old_requests);
            }
            rest.copy("volumeAttributesClassName", old_spec);
        }
        if !equal(&rest, old_spec) {
            causes.forbidden(
                &path,
                &format!(
                    "spec is immutable after creation except resources.requests and volumeAttributesClassName for \
                     bound claims\n{}",
                    diff::unified(old_spec, &rest)
                ),
            );
        }
        let size = |object: &Value| quantity(object.at("resources").at("requests").at("storage"));
        if size(new.at("spec")) < size(old_spec)
            && size(new.at("spec")) <= quantity(old.at("status").at("capacity").at("storage"))
        {
            causes.forbidden(
                &path.child("resources").child("requests").child("storage"),
                "field can not be less than status.capacity",
            );
        }
        volume_mode(new, old, &mut causes);
        causes.into_vec()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (object.at("spec"), object.at("status"));
        let bound = !spec.text("volumeName").is_empty();
        let capacity = status.at("capacity").at("storage");
        let phase =
            if object.at("metadata").has("deletionTimestamp") { "Terminating" } else { status.text("phase") };
        vec![
            columns::name(object),
            phase.into(),
            spec.text("volumeName").into(),
            if bound && !capacity.is_null() { rules::amount_text(capacity) } else { String::new() }.into(),
            if bound { access_modes(status) } else { String::new() }.into(),
            storage_class(object).into(),
            or_unset(spec.text("volumeAttributesClassName")).into(),
            columns::age(object, now),
            or_unset(spec.text("volumeMode")).into(),
        ]
    }
}

/// A claim without a class may get one: the one that its annotation says, if there is an annotation, which stays then.
fn class_may_be_set(new: &Value, old: &Value, causes: &mut Causes) -> bool {
    let annotation = |claim: &Value| claim.at("metadata").at("annotations").get(CLASS_ANNOTATION).cloned();
    let (class, old_class) = (annotation(new), annotation(old));
    let (spec, old_spec) = (new.at("spec"), old.at("spec"));
    let set = spec.has("storageClassName") && !old_spec.has("storageClassName");
    let as_annotated = old_class.as_ref().is_none_or(|old| old == spec.at("storageClassName"));
    // In exchange for the field the annotation may go.
    if !(set && old_class.is_some() && as_annotated && class.is_none()) {
        let text = |class: Option<Value>| class.unwrap_or_else(|| "".into());
        let (class, old_class) = (text(class), text(old_class));
        if class != old_class {
            let path = Path::new("metadata");
            let path = path.child("annotations");
            causes.invalid(&path.child(CLASS_ANNOTATION), class, "field is immutable");
        }
    }
    set && as_annotated
}

fn volume_mode(new: &Value, old: &Value, causes: &mut Causes) {
    let mode = |object: &Value| object.at("spec").at("volumeMode").clone();
    if mode(new) != mode(old) {
        causes.invalid(&Path::new("volumeMode"), mode(new), "field is immutable");
    }
}

/// What of a volume's spec says where its data is: all that does not say how it may be used.
fn source(volume: &Value) -> Value {
    let mut source = volume.at("spec").clone();
    for field in [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ] {
        source.drop_field(field);
    }
    source
}

struct Volume;

impl Strategy for Volume {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.section("spec") {
            spec.fill_text("persistentVolumeReclaimPolicy", "Retain");
            spec.fill("volumeMode", "Filesystem");
            if let Some(host_path) = spec.part("hostPath") {
                host_path.fill("type", "");
            }
        }
        if let Some(status) = object.section("status") {
            status.fill_text("phase", "Pending");
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        object.put("status", serde_json::json!({"phase": "Pending"}));
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (spec, path) = (object.at("spec"), Path::new("spec"));
        check_access_modes(spec, &path, &mut causes);
        if spec.entries("capacity").is_none_or(serde_json::Map::is_empty) {
            causes.required(&path.child("capacity"), "");
        }
        for (name, amount) in spec.entries("capacity").into_iter().flatten() {
            if name != "storage" {
                causes.not_supported(&path.child("capacity"), name.as_str(), &["storage"]);
            } else if quantity(amount).is_none_or(|amount| amount.is_negative() || amount.is_zero()) {
                causes.invalid(
                    &path.child("capacity").key(name),
                    rules::amount_text(amount),
                    "must be greater than zero",
                );
            }
        }
        let policy = spec.text("persistentVolumeReclaimPolicy");
        if !["Delete", "Recycle", "Retain"].contains(&policy) {
            causes.not_supported(
                &path.child("persistentVolumeReclaimPolicy"),
                policy,
                &["Delete", "Recycle", "Retain"],
            );
        }
        if spec.at("nodeAffinity").has("required") {
            super::pod::node_selector(
                spec.at("nodeAffinity").at("required"),
                &path.child("nodeAffinity").child("required"),
                &mut causes,
            );
        }
        check_class_and_mode(spec, &path, &mut causes);
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        causes.extend(self.validate_create(new));
        let (mut source, old_source) = (source(new), source(old));
        // A driver that learns to expand volumes may be given the secret for it.
        if !old_source.at("csi").has("controllerExpandSecretRef")
            && let Some(driver) = source.part("csi")
        {
            driver.drop_field("controllerExpandSecretRef");
        }
        if !equal(&source, &old_source) {
            causes.forbidden(
                &Path::new("spec").child("persistentvolumesource"),
                &format!(
                    "spec.persistentvolumesource is immutable after creation\n{}",
                    diff::unified(&old_source, &source)
                ),
            );
        }
        volume_mode(new, old, &mut causes);
        causes.into_vec()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (object.at("spec"), object.at("status"));
        let claim = spec.at("claimRef");
        let claim = match claim.text("name") {
            "" => String::new(),
            name => format!("{}/{name}", claim.text("namespace")),
        };
        let phase =
            if object.at("metadata").has("deletionTimestamp") { "Terminating" } else { status.text("phase") };
        let capacity = spec.at("capacity").at("storage");
        vec![
            columns::name(object),
            if capacity.is_null() { String::new() } else { rules::amount_text(capacity) }.into(),
            access_modes(spec).into(),
            spec.text("persistentVolumeReclaimPolicy").into(),
            phase.into(),
            claim.into(),
            storage_class(object).into(),
            or_unset(spec.text("volumeAttributesClassName")).into(),
            status.text("reason").into(),
            columns::age(object, now),
            or_unset(spec.text("volumeMode")).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The first line of each cause.
    #[track_caller]
    fn check(kind: &Spec, old: &Value, change: impl FnOnce(&mut Value), expected: &[&str]) {
        let mut new = old.clone();
        change(&mut new);
        let causes = kind.strategy.validate_update(&new, old);
        let texts: Vec<String> = causes.iter().map(Cause::to_string).collect();
        let lines: Vec<&str> = texts.iter().filter_map(|text| text.lines().next()).collect();
        assert_eq!(lines, expected, "{texts:?}");
    }

    #[test]
    fn claims_stay_as_they_are() {
        let mut claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}, "limits": {"storage": "4Gi"}}, "volumeMode": "Filesystem"},
            "status": {"phase": "Pending"}});
        let immutable = "spec: Forbidden: spec is immutable after creation except resources.requests and \
                         volumeAttributesClassName for bound claims";
        let resize = |claim: &mut Value| claim["spec"]["resources"]["requests"]["storage"] = json!("2Gi");
        check(&CLAIM, &claim, |_| (), &[]);
        check(&CLAIM, &claim, |claim| claim["spec"]["volumeName"] = json!("v"), &[]);
        check(&CLAIM, &claim, |claim| claim["spec"]["storageClassName"] = json!("fast"), &[]);
        check(&CLAIM, &claim, resize, &[immutable]);
        check(
            &CLAIM,
            &claim,
            |claim| claim["spec"]["volumeMode"] = json!("Block"),
            &[immutable, "volumeMode: Invalid value: \"Block\": field is immutable"],
        );
        let causes = {
            let mut new = claim.clone();
            new["spec"]["accessModes"] = json!(["ReadOnlyMany"]);
            Claim.validate_update(&new, &claim)
        };
        assert!(
            causes[0].message.contains("\n-    \"ReadWriteOnce\"\n+    \"ReadOnlyMany\"\n"),
            "{causes:?}"
        );
        claim["status"]["phase"] = json!("Bound");
        claim["spec"]["volumeName"] = json!("v");
        check(&CLAIM, &claim, resize, &[]);
        check(
            &CLAIM,
            &claim,
            |claim| claim["spec"]["resources"]["limits"]["storage"] = json!("8Gi"),
            &[immutable],
        );
        check(&CLAIM, &claim, |claim| claim["spec"]["volumeName"] = json!("w"), &[immutable]);
        claim["metadata"]["annotations"] = json!({CLASS_ANNOTATION: "slow"});
        let to =
            |class: &'static str| move |claim: &mut Value| claim["spec"]["storageClassName"] = class.into();
        check(&CLAIM, &claim, to("slow"), &[]);
        check(&CLAIM, &claim, to("fast"), &[immutable]);
        let moved = |claim: &mut Value| {
            to("slow")(claim);
            claim["metadata"]["annotations"] = json!({});
        };
        check(&CLAIM, &claim, moved, &[]);
        check(
            &CLAIM,
            &claim,
            |claim| claim["metadata"]["annotations"] = json!({}),
            &[
                "metadata.annotations.volume.beta.kubernetes.io/storage-class: Invalid value: \"\": field is immutable",
            ],
        );
    }

    #[test]
    fn volumes_stay_where_their_data_is() {
        let volume = json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"}, "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem",
            "csi": {"driver": "d", "volumeHandle": "h"}}});
        let immutable =
            "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation";
        check(&VOLUME, &volume, |volume| volume["spec"]["capacity"]["storage"] = json!("2Gi"), &[]);
        check(&VOLUME, &volume, |volume| volume["spec"]["claimRef"] = json!({"name": "c"}), &[]);
        check(&VOLUME, &volume, |volume| volume["spec"]["csi"]["volumeHandle"] = json!("i"), &[immutable]);
        check(
            &VOLUME,
            &volume,
            |volume| {
                volume["spec"]["csi"]["controllerExpandSecretRef"] = json!({"name": "s", "namespace": "n"})
            },
            &[],
        );
        check(
            &VOLUME,
            &volume,
            |volume| volume["spec"]["volumeMode"] = json!("Block"),
            &["volumeMode: Invalid value: \"Block\": field is immutable"],
        );
    }
}
