//! Rotates container logs that outgrow containerLogMaxSize: rename, tell the runtime, keep containerLogMaxFiles.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_proto::cri;
use tokio_util::sync::CancellationToken;

use crate::{context::Kubelet, pod::resources};

const PERIOD: Duration = Duration::from_secs(10);

/// Runs until cancelled.
pub async fn run(kubelet: Arc<Kubelet>, cancel: CancellationToken) {
    let limit =
        resources::units(&Quantity(kubelet.config.container_log_max_size.clone())).unwrap_or(10 << 20);
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = cancel.cancelled() => return,
        }
        if limit > 0
            && let Err(error) = rotate_all(&kubelet, limit.unsigned_abs()).await
        {
            tracing::warn!(%error, "rotating container logs");
        }
    }
}

async fn rotate_all(kubelet: &Kubelet, limit: u64) -> crate::runtime::Result<()> {
    let running = cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning as i32 };
    let filter = cri::ContainerFilter { state: Some(running), ..Default::default() };
    let containers =
        kubelet.runtime.list_containers(cri::ListContainersRequest { filter: Some(filter) }).await?;
    for container in containers.containers {
        let request = cri::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
        let Ok(response) = kubelet.runtime.container_status(request).await else { continue };
        let Some(path) = response.status.map(|status| PathBuf::from(status.log_path)) else { continue };
        if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > limit) {
            let rotated = rotate(&path, kubelet.config.container_log_max_files);
            let Ok(rotated) = rotated.inspect_err(|error| tracing::warn!(?path, %error, "rotating a log"))
            else {
                continue;
            };
            let request = cri::ReopenContainerLogRequest { container_id: container.id };
            if let Err(error) = kubelet.runtime.reopen_container_log(request).await {
                // The runtime still writes to the renamed file: give it its name back. Others can be rotated.
                let _ = std::fs::rename(&rotated, &path);
                tracing::warn!(?path, %error, "reopening a log");
            }
        }
    }
    Ok(())
}

/// What earlier rotations left of a log.
fn rotated(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let directory = path.parent().unwrap_or(Path::new("/"));
    Ok(std::fs::read_dir(directory)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{name}.")))
        .map(|entry| entry.path())
        .collect())
}

/// Removes the log of a container that is gone, rotated parts and all.
pub fn remove(path: &Path) {
    if path.as_os_str().is_empty() {
        return;
    }
    for path in rotated(path).unwrap_or_default().into_iter().chain([path.to_path_buf()]) {
        let _ = std::fs::remove_file(path);
    }
}

/// Renames the log and removes the oldest ones; the new name.
fn rotate(path: &Path, keep: u32) -> std::io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut old = rotated(path)?;
    old.sort();
    // The one being made and the one being written count too.
    let excess = (old.len() + 2).saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
    for path in old.iter().take(excess) {
        std::fs::remove_file(path)?;
    }
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S%.3f").to_string();
    let rotated = directory.join(format!("{name}.{stamp}"));
    std::fs::rename(path, &rotated)?;
    Ok(rotated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_so_many_files() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        for old in ["20200101-000000", "20200102-000000", "20200103-000000"] {
            std::fs::write(directory.path().join(format!("0.log.{old}")), "x").unwrap();
        }
        std::fs::write(&log, "new").unwrap();
        let rotated = rotate(&log, 3).unwrap();
        assert_eq!(std::fs::read_to_string(&rotated).unwrap(), "new");
        assert!(!log.exists());
        let left = std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 2, "with the log that the runtime opens next there are three");
        assert!(directory.path().join("0.log.20200103-000000").exists());
    }
}
