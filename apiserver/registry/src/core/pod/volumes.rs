//! Validation of a pod's volumes. Storage drivers that upstream has removed from its tree are checked only for being
//! the one source of their volume.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{
    containers::{field_reference, resource_field},
    defaults::VOLUME_SOURCES,
};
use crate::{
    cause::{Causes, Path},
    fields::Fields,
    names,
    quantity::{Quantity, quantity},
    rules,
};

const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Validates the volumes and returns those that containers may mount, by name.
pub(super) fn volumes<'a>(
    spec: &'a Value,
    pod_name: &str,
    path: &Path<'_>,
    causes: &mut Causes,
) -> HashMap<&'a str, &'a Value> {
    let mut valid = HashMap::new();
    let volumes = spec.list("volumes");
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        let name = volume.text("name");
        let before = causes.len();
        source(volume, &path, causes);
        if name.is_empty() {
            causes.required(&path.child("name"), "");
        } else {
            causes.syntax(&path.child("name"), name, names::dns_label(name));
        }
        if valid.contains_key(name) {
            causes.duplicate(&path.child("name"), name);
        }
        if causes.len() == before {
            valid.insert(name, volume);
        }
        let claim = volume.at("persistentVolumeClaim").text("claimName");
        let created = |other: &Value| {
            other.has("ephemeral")
                && !pod_name.is_empty()
                && claim == format!("{pod_name}-{}", other.text("name"))
        };
        if !claim.is_empty() && volumes.iter().any(created) {
            causes.invalid(
                &path.child("persistentVolumeClaim").child("claimName"),
                claim,
                "must not reference a PVC that gets created for an ephemeral volume",
            );
        }
    }
    valid
}

fn source(volume: &Value, path: &Path<'_>, causes: &mut Causes) {
    let mut found = false;
    for kind in VOLUME_SOURCES.iter().filter(|kind| volume.has(kind)) {
        let (source, path) = (volume.at(kind), path.child(kind));
        if found {
            causes.forbidden(&path, "may not specify more than 1 volume type");
            continue;
        }
        found = true;
        match *kind {
            "emptyDir" if quantity(source.at("sizeLimit")).is_some_and(Quantity::is_negative) => {
                causes
                    .forbidden(&path.child("sizeLimit"), "SizeLimit field must be a valid resource quantity");
            }
            "hostPath" => host_path(source, &path, causes),
            "secret" => {
                required(source, "secretName", &path, causes);
                default_mode(source, &path, causes);
                items(source, &path, causes);
            }
            "configMap" => {
                required(source, "name", &path, causes);
                default_mode(source, &path, causes);
                items(source, &path, causes);
            }
            "downwardAPI" => {
                default_mode(source, &path, causes);
                downward_items(source, &path, causes);
            }
            "projected" => {
                default_mode(source, &path, causes);
                projected(source, &path, causes);
            }
            "persistentVolumeClaim" => required(source, "claimName", &path, causes),
            "nfs" => {
                required(source, "server", &path, causes);
                required(source, "path", &path, causes);
                if !source.text("path").is_empty() && !source.text("path").starts_with('/') {
                    causes.invalid(&path.child("path"), source.text("path"), "must be an absolute path");
                }
            }
            "csi" => required(source, "driver", &path, causes),
            "gitRepo" => {
                required(source, "repository", &path, causes);
                rules::local_descending_path(source.text("directory"), &path.child("directory"), causes);
            }
            "ephemeral" => {
                if !source.has("volumeClaimTemplate") {
                    causes.required(&path.child("volumeClaimTemplate"), "");
                } else {
                    crate::core::claim_spec(
                        source.at("volumeClaimTemplate").at("spec"),
                        &path.child("volumeClaimTemplate").child("spec"),
                        causes,
                    );
                }
            }
            "image" => {
                required(source, "reference", &path, causes);
                rules::one_of(
                    source.text("pullPolicy"),
                    &["Always", "IfNotPresent", "Never"],
                    &path.child("pullPolicy"),
                    causes,
                );
            }
            _ => {}
        }
    }
    if !found {
        causes.required(path, "must specify a volume type");
    }
}

fn required(source: &Value, field: &str, path: &Path<'_>, causes: &mut Causes) {
    if source.text(field).is_empty() {
        causes.required(&path.child(field), "");
    }
}

fn mode(holder: &Value, field: &str, path: &Path<'_>, causes: &mut Causes) {
    if let Some(mode) = holder.int(field).filter(|mode| !(0..=0o777).contains(mode)) {
        causes.invalid(
            &path.child(field),
            mode,
            "must be a number between 0 and 0777 (octal), both inclusive",
        );
    }
}

fn default_mode(source: &Value, path: &Path<'_>, causes: &mut Causes) {
    mode(source, "defaultMode", path, causes);
}

fn host_path(source: &Value, path: &Path<'_>, causes: &mut Causes) {
    required(source, "path", path, causes);
    rules::no_backsteps(source.text("path"), &path.child("path"), causes);
    let kind = source.text("type");
    if !HOST_PATH_TYPES.contains(&kind) {
        causes.not_supported(&path.child("type"), kind, HOST_PATH_TYPES);
    }
}

fn items(source: &Value, path: &Path<'_>, causes: &mut Causes) {
    for (index, item) in source.list("items").iter().enumerate() {
        let path = path.child("items");
        let path = path.index(index);
        required(item, "key", &path, causes);
        required(item, "path", &path, causes);
        rules::local_non_reserved_path(item.text("path"), &path.child("path"), causes);
        mode(item, "mode", &path, causes);
    }
}

fn downward_items(source: &Value, path: &Path<'_>, causes: &mut Causes) {
    for item in source.list("items") {
        if item.text("path").is_empty() {
            causes.required(&path.child("path"), "");
        }
        rules::local_non_reserved_path(item.text("path"), &path.child("path"), causes);
        if item.has("fieldRef") {
            field_reference(item.at("fieldRef"), VOLUME_FIELDS, &path.child("fieldRef"), causes);
            if item.has("resourceFieldRef") {
                causes.invalid(
                    path,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
        } else if item.has("resourceFieldRef") {
            resource_field(item.at("resourceFieldRef"), true, &path.child("resourceFieldRef"), causes);
        } else {
            causes.required(path, "one of fieldRef and resourceFieldRef is required");
        }
        mode(item, "mode", path, causes);
    }
}

fn projected(source: &Value, path: &Path<'_>, causes: &mut Causes) {
    let mut paths = HashSet::new();
    for (index, source) in source.list("sources").iter().enumerate() {
        let path_of_list = path.child("sources");
        let path = path_of_list.index(index);
        let mut found = false;
        for kind in [
            "secret",
            "configMap",
            "downwardAPI",
            "serviceAccountToken",
            "clusterTrustBundle",
            "podCertificate",
        ] {
            let projection = source.at(kind);
            if projection.is_null() {
                continue;
            }
            let path = path.child(kind);
            if found {
                causes.forbidden(&path, "may not specify more than 1 volume type per source");
                continue;
            }
            found = true;
            match kind {
                "secret" | "configMap" => {
                    required(projection, "name", &path, causes);
                    items(projection, &path, causes);
                }
                "downwardAPI" => downward_items(projection, &path, causes),
                "serviceAccountToken" => service_account_token(projection, &path, causes),
                _ => {}
            }
            let written: Vec<&str> = match kind {
                "serviceAccountToken" | "clusterTrustBundle" => vec![projection.text("path")],
                _ => projection.list("items").iter().map(|item| item.text("path")).collect(),
            };
            for file in written.into_iter().filter(|file| !file.is_empty()) {
                if !paths.insert(file) {
                    causes.invalid(&path, file, "conflicting duplicate paths");
                }
            }
        }
        if !found {
            causes.required(&path, "must specify a volume type");
        }
    }
}

fn service_account_token(token: &Value, path: &Path<'_>, causes: &mut Causes) {
    let seconds = token.int("expirationSeconds").unwrap_or(0);
    if seconds < 600 {
        causes.invalid(
            &path.child("expirationSeconds"),
            seconds,
            "may not specify a duration less than 10 minutes",
        );
    } else if seconds > 1 << 32 {
        causes.invalid(
            &path.child("expirationSeconds"),
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        );
    }
    if token.text("path").is_empty() {
        causes.required(&path.child("path"), "");
    } else {
        rules::local_non_reserved_path(token.text("path"), &path.child("path"), causes);
    }
}
