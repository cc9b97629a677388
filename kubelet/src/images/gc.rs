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
type Seen = HashMap<String, (Instant, Option<Instant>)>;

/// Runs until cancelled.
pub async fn run(kubelet: Arc<Kubelet>, cancel: CancellationToken) {
    let mut seen = Seen::new();
    loop {
        if let Err(error) = collect(&kubelet, &mut seen).await {
            tracing::warn!(%error, "image garbage collection");
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = cancel.cancelled() => return,
        }
    }
}

async fn collect(kubelet: &Kubelet, seen: &mut Seen) -> crate::runtime::Result<()> {
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
    let mut to_free = (capacity / 100 * keep).saturating_sub(available);
    // Least recently used first; pinned, used and young ones stay.
    let mut candidates: Vec<_> = images
        .iter()
        .filter(|image| !image.pinned)
        .filter_map(|image| seen.get(&image.id).map(|(first, last)| (last.unwrap_or(*first), *first, image)))
        .filter(|(last, first, _)| *last != now && first.elapsed() >= kubelet.config.image_minimum_gc_age)
        .collect();
    candidates.sort_by_key(|(last, ..)| *last);
    for (_, _, image) in candidates {
        if to_free == 0 {
            break;
        }
        tracing::info!(image = image.id, size = image.size, "removing an image to free space");
        let spec = cri::ImageSpec { image: image.id.clone(), ..Default::default() };
        kubelet.runtime.remove_image(cri::RemoveImageRequest { image: Some(spec) }).await?;
        to_free = to_free.saturating_sub(image.size);
    }
    Ok(())
}
