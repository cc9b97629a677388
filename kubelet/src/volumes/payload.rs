//! What files a configMap, secret, downwardAPI or projected volume has. Pure over the fetched objects.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};

use super::atomic::{File, Payload};
use crate::pod::{env, resources};

/// Bytes by key, whichever object they came from.
pub fn config_map_data(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    text.chain(binary).collect()
}

pub fn secret_data(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

/// The files of an object: all keys, or the items asked for.
pub fn select(
    data: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
    kind: &str,
) -> Result<Payload, String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(data.into_iter().map(|(key, data)| (key, File { data, mode, owner: None })).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(data) => {
                let mode = item.mode.map_or(mode, i32::cast_unsigned);
                payload.insert(clean(&item.path), File { data: data.clone(), mode, owner: None });
            }
            None if optional => {}
            None => return Err(format!("{kind} references non-existent config key: {}", item.key)),
        }
    }
    Ok(payload)
}

/// The files of the downward API.
pub fn downward(
    items: &[DownwardAPIVolumeFile],
    pod: &Pod,
    mode: u32,
    node: resources::Amounts,
) -> Result<Payload, String> {
    let spec = pod.spec.as_ref();
    let mut payload = Payload::new();
    for item in items {
        let value = if let Some(field) = &item.field_ref {
            env::field_path(pod, &field.field_path)
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            let container = spec
                .into_iter()
                .flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
                .find(|container| container.name == name)
                .ok_or_else(|| format!("container {name} not found"))?;
            env::resource_value(selector, container, spec, node)
        } else {
            continue;
        };
        let data = value.map_err(|error| error.to_string())?.into_bytes();
        let mode = item.mode.map_or(mode, i32::cast_unsigned);
        payload.insert(clean(&item.path), File { data, mode, owner: None });
    }
    Ok(payload)
}

/// `./a//b` as `a/b`; what leaves the volume is refused when it is written.
pub fn clean(path: &str) -> String {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_and_modes() {
        let data = || BTreeMap::from([("k".to_owned(), b"v".to_vec()), ("l".to_owned(), b"w".to_vec())]);
        let item = |key: &str, path: &str, mode| KeyToPath { key: key.into(), path: path.into(), mode };
        let check = |items: Option<&[KeyToPath]>, optional, expected: Result<&[(&str, u32)], &str>| {
            let got = select(data(), items, 0o644, optional, "configmap");
            let got = got.map(|p| p.into_iter().map(|(path, file)| (path, file.mode)).collect::<Vec<_>>());
            let expected = expected.map(|l| l.iter().map(|(p, m)| ((*p).to_owned(), *m)).collect::<Vec<_>>());
            assert_eq!(got, expected.map_err(str::to_owned));
        };
        check(None, false, Ok(&[("k", 0o644), ("l", 0o644)]));
        check(Some(&[item("k", "./a//b", Some(0o400))]), false, Ok(&[("a/b", 0o400)]));
        check(Some(&[item("x", "a", None)]), true, Ok(&[]));
        check(Some(&[item("x", "a", None)]), false, Err("configmap references non-existent config key: x"));
    }
}
