//! Static pods: manifests in a directory, YAML or JSON, one pod to a file.
//!
//! A file that does not parse is reported and left out; the others run. Names get the node's name appended, and the
//! uid is a hash of content and place, so that an edited manifest is another pod.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};
use k8s_openapi::api::core::v1::{Pod, Toleration};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::{
    pod::Source,
    pods::{FILE, Pods},
    runtime::names,
};

/// Why a manifest is left out.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{0}: reading")]
    Read(PathBuf, #[source] std::io::Error),
    #[error("{0} is not a pod manifest")]
    Parse(PathBuf, #[source] serde_yaml::Error),
    #[error("{path}: {what}")]
    Invalid { path: PathBuf, what: String },
}

/// Runs until cancelled: reads at once, then on every change and every `period`.
pub async fn run(
    directory: PathBuf,
    node_name: String,
    period: Duration,
    pods: Arc<Pods>,
    cancel: CancellationToken,
) {
    let mut watch = watch(&directory);
    loop {
        sync(&directory, &node_name, &pods);
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(period) => if watch.is_none() { watch = self::watch(&directory) },
            event = next(&mut watch) => if event.is_none() { watch = None },
        }
    }
}

type Changes = inotify::EventStream<[u8; 4096]>;

fn watch(directory: &Path) -> Option<Changes> {
    let inotify = Inotify::init().ok()?;
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
    inotify.watches().add(directory, mask).ok()?;
    inotify.into_event_stream([0; 4096]).ok()
}

async fn next(watch: &mut Option<Changes>) -> Option<()> {
    match watch {
        Some(changes) => changes.next().await.map(|_| ()),
        None => std::future::pending().await,
    }
}

fn sync(directory: &Path, node_name: &str, pods: &Arc<Pods>) {
    let mut listed = HashSet::new();
    for path in manifests(directory) {
        match read(&path, node_name) {
            Ok(pod) => {
                listed.extend(pod.metadata.uid.clone());
                pods.update(Source::File, Arc::new(pod));
            }
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, source, "a static pod manifest is left out");
            }
        }
    }
    pods.retain(Source::File, &listed);
    pods.source_ready(FILE);
}

fn manifests(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            path.is_file() && !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
        })
        .collect();
    paths.sort();
    paths
}

/// Reads one manifest.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn read(path: &Path, node_name: &str) -> Result<Pod, ManifestError> {
    let text = std::fs::read_to_string(path).map_err(|error| ManifestError::Read(path.into(), error))?;
    parse(&text, path, node_name)
}

fn parse(text: &str, path: &Path, node_name: &str) -> Result<Pod, ManifestError> {
    let mut pod: Pod =
        serde_yaml::from_str(text).map_err(|error| ManifestError::Parse(path.into(), error))?;
    let invalid = |what: &str| Err(ManifestError::Invalid { path: path.into(), what: what.to_owned() });
    let Some(name) = pod.metadata.name.clone().filter(|name| !name.is_empty()) else {
        return invalid("metadata.name is missing");
    };
    let Some(spec) = &mut pod.spec else { return invalid("spec is missing") };
    if spec.containers.is_empty() {
        return invalid("spec.containers is empty");
    }
    // A static pod must not depend on the API server.
    let references =
        spec.volumes.iter().flatten().any(|volume| volume.secret.is_some() || volume.config_map.is_some());
    if references || spec.service_account_name.as_ref().is_some_and(|name| !name.is_empty()) {
        return invalid("a static pod may not refer to secrets, config maps or service accounts");
    }
    let mut hash = Sha256::new();
    hash.update(text.as_bytes());
    hash.update(path.as_os_str().as_encoded_bytes());
    hash.update(node_name.as_bytes());
    let digest = hash.finalize();
    let hash =
        format!("{}{}", names::short_hex(&digest), names::short_hex(digest.get(8..).unwrap_or_default()));
    spec.node_name = Some(node_name.to_owned());
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    spec.security_context.get_or_insert_default();
    spec.scheduler_name.get_or_insert_with(|| "default-scheduler".to_owned());
    // Nothing that happens to the node drives a static pod away.
    let everything = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&everything) {
        tolerations.push(everything);
    }
    let init = spec.init_containers.iter_mut().flatten();
    for container in spec.containers.iter_mut().chain(init) {
        let image = container.image.clone().unwrap_or_default();
        container
            .image_pull_policy
            .get_or_insert_with(|| crate::images::reference::default_policy(&image).to_owned());
        container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".to_owned());
        container.termination_message_policy.get_or_insert_with(|| "File".to_owned());
    }
    pod.metadata.name = Some(format!("{name}-{}", node_name.to_lowercase()));
    pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    pod.metadata.uid = Some(hash.clone());
    let annotations: &mut BTreeMap<String, String> = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(names::CONFIG_HASH.to_owned(), hash);
    annotations.insert(names::CONFIG_SOURCE.to_owned(), "file".to_owned());
    Ok(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_become_pods_of_this_node() {
        let text =
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: 'b:1'}]}\n";
        let pod = parse(text, Path::new("/x/a.yaml"), "Node").unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("a-node"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("Node"));
        assert_eq!(spec.containers[0].image_pull_policy.as_deref(), Some("IfNotPresent"));
        let other = parse(&text.replace("b:1", "b:2"), Path::new("/x/a.yaml"), "Node").unwrap();
        assert_ne!(other.metadata.uid, pod.metadata.uid, "an edited manifest is another pod");
    }

    #[test]
    fn bad_manifests_are_refused_by_name() {
        let check = |text: &str, part: &str| {
            let error = parse(text, Path::new("/x/a.yaml"), "n").unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("/x/a.yaml"), "{error}");
        };
        check("metadata: {name: a}", "spec is missing");
        check("spec: {containers: [{name: c}]}", "metadata.name is missing");
        check("metadata: {name: a}\nspec: {containers: []}", "containers is empty");
        check(
            "metadata: {name: a}\nspec: {serviceAccountName: x, containers: [{name: c}]}",
            "service accounts",
        );
        check("[", "not a pod manifest");
    }
}
