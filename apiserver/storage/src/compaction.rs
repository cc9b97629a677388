//! The API servers let the store forget old versions; the store does not do so by itself.
//!
//! All servers share one key, as upstream does: who moves its version on at the end of an interval
//! compacts to where the store was one interval ago; the others saw it move and wait. So a version lives
//! for one to two intervals, however many servers there are.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, StoreError, Swapped, Write};

/// Outside of the objects' prefix, upstream's name.
const KEY: &str = "compact_rev_key";

/// What one server remembers between two intervals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Revision of the key's last write; 0: never written.
    key: u64,
    /// The store's revision then.
    store: u64,
}

pub(crate) async fn run(client: Client, interval: Duration, shutdown: CancellationToken) {
    let work = async {
        let mut seen = Seen::default();
        loop {
            sleep(interval).await;
            match round(&client, seen).await {
                Ok(next) => seen = next,
                Err(error) => tracing::warn!(%error, "Could not compact the store"),
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
}

/// The end of one interval.
pub(crate) async fn round(client: &Client, seen: Seen) -> Result<Seen, StoreError> {
    // The value is what upstream writes: the revision that is compacted next.
    let value = Bytes::from(seen.store.to_string());
    match client.swap(KEY, seen.key, Write::Put { value, lease: 0 }).await? {
        Swapped::Done(revision) => {
            if seen.store > 0 {
                client.compact(seen.store).await?;
            }
            Ok(Seen { key: revision, store: revision })
        }
        Swapped::Conflict(found) => {
            let key = found.map_or(0, |entry| entry.mod_revision.max(0) as u64);
            Ok(Seen { key, store: client.revision(KEY).await? })
        }
    }
}
