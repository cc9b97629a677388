//! Removes images that no container uses when their disk is nearly full (imageGCHigh/LowThresholdPercent).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use keelson_proto::cri;
use tokio_util::sync::CancellationToken;

use crate::context::Kubelet;

const PERIOD: Duration = Duration::from_secs(300);

/// When each image was first seen and last used.
pub type Seen = HashMap<String, (Instant, Option<Instant>)>;

/// Runs until cancelled.
pub async fn run(kubelet: Arc<Kubelet>, cancel: CancellationToken) {
    loop {
        if let Err(error) = collect(&kubelet).await {
            tracing::warn!(%error, "image garbage collection");
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// Removes images if their disk is fuller than it should be.
async fn collect(kubelet: &Kubelet) -> crate::runtime::Result<()> {
    let candidates = unused(kubelet).await?;
    let Some(filesystem) =
        kubelet.runtime.image_fs_info(cri::ImageFsInfoRequest {}).await?.image_filesystems.pop()
    else {
        return Ok(());
    };
    let Some(mountpoint) = filesystem.fs_id.map(|id| id.mountpoint) else { return Ok(()) };
    let Some((capacity, available)) = crate::node::capacity::filesystem(std::path::Path::new(&mountpoint))
    else {
        return Ok(());
    };
    let percent = 100 - available.saturating_mul(100) / capacity.max(1);
    if percent < u64::from(kubelet.config.image_gc_high_threshold_percent) {
        return Ok(());
    }
    let keep = u64::from(100 - kubelet.config.image_gc_low_threshold_percent);
    free(kubelet, candidates, (capacity / 100 * keep).saturating_sub(available)).await;
    Ok(())
}

/// Removes every image that nothing uses; the bytes that this frees.
pub async fn remove_unused(kubelet: &Kubelet) -> crate::runtime::Result<u64> {
    let candidates = unused(kubelet).await?;
    Ok(free(kubelet, candidates, u64::MAX).await)
}

/// Images that may go, the one that was used longest ago first; pinned, used and young ones stay.
async fn unused(kubelet: &Kubelet) -> crate::runtime::Result<Vec<cri::Image>> {
    let mut seen = kubelet.images.seen.lock().await;
    let images = kubelet.runtime.list_images(cri::ListImagesRequest::default()).await?.images;
    let containers = kubelet.runtime.list_containers(cri::ListContainersRequest::default()).await?.containers;
    let used: HashSet<String> = containers.into_iter().map(|container| container.image_ref).collect();
    let now = Instant::now();
    seen.retain(|id, _| images.iter().any(|image| image.id == *id));
    for image in &images {
        let entry = seen.entry(image.id.clone()).or_insert((now, None));
        let tagged = image.repo_digests.iter().chain(&image.repo_tags).any(|name| used.contains(name));
        if used.contains(&image.id) || tagged {
            entry.1 = Some(now);
        }
    }
    let mut candidates: Vec<_> = images
        .into_iter()
        .filter(|image| !image.pinned)
        .filter_map(|image| seen.get(&image.id).map(|(first, last)| (last.unwrap_or(*first), *first, image)))
        .filter(|(last, first, _)| *last != now && first.elapsed() >= kubelet.config.image_minimum_gc_age)
        .collect();
    candidates.sort_by_key(|(last, ..)| *last);
    Ok(candidates.into_iter().map(|(_, _, image)| image).collect())
}

/// Removes images until so many bytes are free; one that cannot be removed keeps none of the others.
async fn free(kubelet: &Kubelet, candidates: Vec<cri::Image>, to_free: u64) -> u64 {
    let mut freed = 0_u64;
    for image in candidates {
        if freed >= to_free {
            break;
        }
        tracing::info!(image = image.id, size = image.size, "removing an image to free space");
        let spec = cri::ImageSpec { image: image.id.clone(), ..Default::default() };
        match kubelet.runtime.remove_image(cri::RemoveImageRequest { image: Some(spec) }).await {
            Ok(_) => freed = freed.saturating_add(image.size),
            Err(error) => tracing::warn!(image = image.id, %error, "removing an image"),
        }
    }
    freed
}
