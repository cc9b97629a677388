//! Registry credentials from image pull secrets. Pure; a secret that does not parse gives none.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use keelson_proto::cri;
use serde::Deserialize;

use super::reference;

#[derive(Debug, Deserialize, Default)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

#[derive(Deserialize)]
struct Document {
    auths: BTreeMap<String, Entry>,
}

/// The credentials that fit the image's registry, most specific first.
pub fn for_image(secrets: &[Arc<Secret>], image: &str) -> Vec<cri::AuthConfig> {
    let wanted = reference::registry_path(image);
    let mut found: Vec<(usize, cri::AuthConfig)> = Vec::new();
    for (server, entry) in secrets.iter().flat_map(|secret| entries(secret)) {
        let place = normalize(&server);
        if matches(&place, &wanted) {
            found.push((place.len(), auth(entry, server)));
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn entries(secret: &Secret) -> BTreeMap<String, Entry> {
    let data =
        |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
    if let Some(document) = data(".dockerconfigjson") {
        return serde_json::from_slice::<Document>(document)
            .map(|document| document.auths)
            .unwrap_or_default();
    }
    data(".dockercfg").and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
}

fn auth(entry: Entry, server_address: String) -> cri::AuthConfig {
    let decoded = STANDARD.decode(&entry.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let (username, password) = match decoded.as_deref().and_then(|text| text.split_once(':')) {
        Some((user, password)) => (user.to_owned(), password.to_owned()),
        None => (entry.username, entry.password),
    };
    cri::AuthConfig {
        username,
        password,
        identity_token: entry.identity_token,
        server_address,
        ..Default::default()
    }
}

fn normalize(server: &str) -> String {
    let place = server.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let place = place.trim_end_matches("/v1").trim_end_matches("/v2");
    match place {
        "index.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

/// Host parts may be globs (`*.example.com`); a path is a prefix.
fn matches(place: &str, wanted: &str) -> bool {
    let (place_host, place_path) = place.split_once('/').unwrap_or((place, ""));
    let (host, path) = wanted.split_once('/').unwrap_or((wanted, ""));
    let globs: Vec<&str> = place_host.split('.').collect();
    let parts: Vec<&str> = host.split('.').collect();
    let host_fits =
        globs.len() == parts.len() && globs.iter().zip(&parts).all(|(glob, part)| fits(glob, part));
    let path_fits =
        place_path.is_empty() || path == place_path || path.starts_with(&format!("{place_path}/"));
    host_fits && path_fits
}

fn fits(glob: &str, part: &str) -> bool {
    match glob.split_once('*') {
        None => glob == part,
        Some((before, after)) => {
            part.strip_prefix(before).is_some_and(|rest| after.is_empty() || rest.ends_with(after))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_most_specific() {
        let document = serde_json::json!({"auths": {
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:1")},
            "*.example.com": {"username": "any", "password": "2"},
            "r.example.com/team": {"username": "team", "password": "3"}}});
        let secret: Secret = serde_json::from_value(serde_json::json!({
            "data": {".dockerconfigjson": STANDARD.encode(document.to_string())}}))
        .unwrap();
        let secrets = [Arc::new(secret)];
        let check = |image: &str, expected: &[&str]| {
            let users: Vec<String> =
                for_image(&secrets, image).into_iter().map(|auth| auth.username).collect();
            assert_eq!(users, expected, "{image}");
        };
        check("busybox", &["hub"]);
        check("r.example.com/team/app:1", &["team", "any"]);
        check("r.example.com/teams/app", &["any"]);
        check("other.org/x", &[]);
    }
}
