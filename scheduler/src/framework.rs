//! What a scheduling plugin is: a rule that refuses nodes, or one that prefers some over others.
//!
//! Plugins are pure: they see the pod and the snapshot, never a clock or the API.

use std::borrow::Cow;
use std::sync::Arc;

use crate::cache::NodeInfo;
use crate::namespaces::Namespaces;
use crate::pod::PodInfo;
use crate::volumes::Volumes;

/// The highest score that a plugin gives a node.
pub const MAX_SCORE: i64 = 100;

/// Why a node was refused, in upstream's words: they end up in events that people search for.
pub type Reason = Cow<'static, str>;

/// What a filter says to one node; a shortage of several resources has several reasons.
pub type Verdict = Result<(), Vec<Reason>>;

/// A filter prepared for one pod.
pub type Check<'a> = Box<dyn Fn(&NodeInfo) -> Verdict + 'a>;

/// What can be worked out once per pod before nodes are looked at.
pub struct Cycle<'a> {
    pub pod: &'a PodInfo,
    pub nodes: &'a [Arc<NodeInfo>],
    pub namespaces: &'a Namespaces,
    pub volumes: &'a Volumes,
}

/// A rule that refuses nodes.
pub trait Filter: Send + Sync {
    fn name(&self) -> &'static str;

    /// Why the pod can run on no node at all, whichever there are (upstream's PreFilter).
    fn refuse(&self, _cycle: &Cycle<'_>) -> Option<Reason> {
        None
    }

    /// The check for one pod, prepared; `None` where the rule has nothing to say to this pod.
    fn prepare<'a>(&self, cycle: &Cycle<'a>) -> Option<Check<'a>>;
}

/// A rule that prefers nodes.
pub trait Score: Send + Sync {
    fn name(&self) -> &'static str;
    fn weight(&self) -> i64;

    /// Scores of the `feasible` nodes, each from 0 to [`MAX_SCORE`]; `None` where the rule does not
    /// tell nodes apart for this pod.
    fn score(&self, cycle: &Cycle<'_>, feasible: &[Arc<NodeInfo>]) -> Option<Vec<i64>>;
}

/// Stretches counts to 0..=[`MAX_SCORE`], the largest becoming the highest score.
pub fn normalize(counts: &[i64]) -> Option<Vec<i64>> {
    let largest = counts.iter().copied().max().filter(|m| *m > 0)?;
    Some(counts.iter().map(|count| count * MAX_SCORE / largest).collect())
}

/// Like [`normalize`], with the largest count becoming the lowest score.
pub fn normalize_reversed(counts: &[i64]) -> Option<Vec<i64>> {
    Some(normalize(counts)?.into_iter().map(|score| MAX_SCORE - score).collect())
}
