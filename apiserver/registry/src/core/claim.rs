//! PersistentVolumeClaims and PersistentVolumes. Validation is lighter than upstream's: access modes, sizes, classes
//! and immutability are checked; the sources of in-tree drivers are not.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, text, wide},
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
    let annotation =
        object.at("metadata").at("annotations").text("volume.beta.kubernetes.io/storage-class").to_owned();
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
        if old_spec.text("volumeName").is_empty() {
            rest.copy("volumeName", old_spec);
        }
        if !old_spec.has("storageClassName") {
            rest.copy("storageClassName", old_spec);
        }
        if old.at("status").text("phase") == "Bound" {
            rest.copy("resources", old_spec);
            rest.copy("volumeAttributesClassName", old_spec);
        }
        if !equal(&rest, old_spec) {
            causes.forbidden(
                &path,
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for \
                 bound claims",
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

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        self.validate_create(new)
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
