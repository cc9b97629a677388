//! Giving disk back: when the tree takes much more than what is in it, it is built anew beside, and the old one removed.
//!
//! It is the keeper's work, in steps between its other jobs and with pauses, so that neither snapshots nor clients wait.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::apply::State;
use crate::mvcc::{Backend, Rebuild, Step};
use crate::node::Chain;
use crate::trees::Trees;

/// Bytes that have to stay free on the disk when it is done, and meanwhile: sled does not survive a full one.
const LEAVE: u64 = 256 << 20;
const LEAVE_MEANWHILE: u64 = 96 << 20;
/// How long readers of a tree that was replaced may take; after that its directory goes at the next start.
const READERS: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);
/// The last compaction is so long ago that no other follows on it: a smaller excess is worth the work then.
const REST: Duration = Duration::from_secs(3);

/// Bytes that a tree may take besides, while compactions follow each other; at rest a sixteenth of that.
fn slack() -> u64 {
    const SLACK: u64 = 32 << 20;
    // Tests need not write that much.
    fail::fail_point!("shrink_slack", |bytes| bytes
        .and_then(|bytes: String| bytes.parse().ok())
        .unwrap_or(SLACK));
    SLACK
}

/// A tree that is being built.
struct Building {
    rebuild: Rebuild,
    fresh: Arc<dyn Backend>,
    number: u64,
    begun: Instant,
}

/// A tree that is out of use, with its directory; readers may still hold it.
struct Retired {
    tree: Arc<dyn Backend>,
    path: PathBuf,
    since: Instant,
}

pub struct Shrinker {
    trees: Trees,
    building: Option<Building>,
    retired: Vec<Retired>,
    /// What the tree took when it had just been built, and what was in it: it gets no smaller.
    built: (u64, u64),
    /// There was a compaction, and no rest since.
    compacted: bool,
}

/// Why a tree is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    Compacted,
    /// Compacted, and nothing since.
    Rest,
    Asked,
}

/// What a tree may take on an occasion: `in_use` is what is in it, and `least` what it would take at least.
fn bound(occasion: Occasion, in_use: u64, least: u64) -> u64 {
    match occasion {
        Occasion::Compacted => 2 * in_use.max(least) + slack(),
        Occasion::Rest => (in_use + in_use / 2).max(least + least / 8) + slack() / 16,
        Occasion::Asked => in_use + in_use / 2,
    }
}

impl Shrinker {
    pub fn new(trees: Trees) -> Self {
        Self { trees, building: None, retired: Vec::new(), built: (0, 0), compacted: false }
    }

    /// Begins, if it is worth it: for less when somebody asked for it, or when there is time.
    pub fn consider(&mut self, state: &State, occasion: Occasion) {
        self.compacted = occasion == Occasion::Compacted;
        if self.building.is_some() {
            return;
        }
        let (size, in_use) = (state.store.values.backend().size(), state.store.in_use());
        let (built, held) = self.built;
        // Less is in it since then, perhaps.
        let least = match in_use < held {
            true => (u128::from(built) * u128::from(in_use) / u128::from(held)) as u64,
            false => built,
        };
        if size <= bound(occasion, in_use, least) {
            return;
        }
        if !self.trees.has_room(2 * in_use + LEAVE) {
            tracing::warn!(
                size,
                in_use,
                "there is no room to build a smaller tree of values beside this one"
            );
            return;
        }
        tracing::info!(size, in_use, "builds a smaller tree of values beside this one");
        if let Err(error) = self.begin(state) {
            tracing::warn!(error, "cannot build a smaller tree of values");
        }
    }

    fn begin(&mut self, state: &State) -> Result<(), String> {
        let (number, path) = self.trees.begin().map_err(|error| error.to_string())?;
        let opened = self.trees.open_tree(&path).map_err(|error| Chain(&error).to_string());
        let begun = opened.and_then(|fresh| {
            let rebuild = state.store.rebuild(fresh.clone()).map_err(|error| Chain(&error).to_string())?;
            Ok(rebuild.map(|rebuild| Building { rebuild, fresh, number, begun: Instant::now() }))
        });
        if !matches!(begun, Ok(Some(_))) {
            let useless = self.trees.lock().end(number, false);
            self.trees.remove(&self.trees.path(useless));
        }
        self.building = begun?;
        Ok(())
    }

    /// How long until the next step; none: there is nothing to do.
    pub fn pause(&self, took: Duration) -> Option<Duration> {
        match &self.building {
            // At most half of the time, and of the disk.
            Some(_) => Some(took.max(Duration::from_millis(1))),
            None if !self.retired.is_empty() => Some(LOOK),
            None => self.compacted.then_some(REST),
        }
    }

    /// Nothing was to do for as long as [`Self::pause`] said.
    pub fn rest(&mut self, state: &State) {
        if self.compacted && self.building.is_none() && self.retired.is_empty() {
            self.consider(state, Occasion::Rest);
        }
    }

    /// Does a little.
    pub fn step(&mut self, state: &State) {
        self.remove_retired();
        let Some(building) = &mut self.building else { return };
        let mut numbers = self.trees.lock();
        let room = self.trees.has_room(LEAVE_MEANWHILE);
        let done = match if room { building.rebuild.step() } else { Ok(Step::GivenUp) } {
            Ok(Step::More) => return,
            Ok(Step::Done(old)) => Some(old),
            Ok(Step::GivenUp) => None,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "cannot build a smaller tree of values");
                None
            }
        };
        let retired = numbers.end(building.number, done.is_some());
        drop(numbers);
        let Some(Building { rebuild, fresh, begun, .. }) = self.building.take() else { return };
        drop(rebuild);
        if done.is_some() {
            let (took, size, in_use) = (begun.elapsed(), fresh.size(), state.store.in_use());
            self.built = (size, in_use);
            tracing::info!(?took, size, in_use, "a smaller tree of values is in use");
        }
        let (tree, path) = (done.unwrap_or(fresh), self.trees.path(retired));
        self.retired.push(Retired { tree, path, since: Instant::now() });
    }

    fn remove_retired(&mut self) {
        for Retired { tree, path, .. } in self.retired.extract_if(.., |retired| {
            Arc::strong_count(&retired.tree) == 1 || retired.since.elapsed() > READERS
        }) {
            // It closes its files.
            drop(tree);
            self.trees.remove(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_may_take_less_when_there_is_time() {
        const MIB: u64 = 1 << 20;
        for (occasion, in_use, least, expected) in [
            (Occasion::Compacted, 100, 0, 232),
            (Occasion::Compacted, 100, 150, 332),
            (Occasion::Rest, 100, 0, 152),
            (Occasion::Rest, 100, 150, 170),
            (Occasion::Rest, 0, 0, 2),
            (Occasion::Asked, 100, 150, 150),
        ] {
            let found = bound(occasion, in_use * MIB, least * MIB) / MIB;
            assert_eq!(found, expected, "{occasion:?} {in_use} {least}");
        }
    }
}
