//! The pods that wait: ready to be tried, pausing after a failure, or waiting for the cluster to change.
//!
//! Invariants: a pod is in one place only; the pod of highest priority that is ready comes first, among
//! equals the one that waited longest; nothing waits for ever, since leftovers are tried again in time.
//! Time is given by the caller.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pod::{PodInfo, PodKey};

const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A pod that nothing woke is tried again after this time (upstream: five minutes).
const LONGEST_WAIT: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active,
    /// Pausing until then.
    Backoff(Instant),
    /// Did not fit; waits for a change since then.
    Unschedulable(Instant),
    /// Being decided or bound. A change meanwhile is remembered, since the decision did not see it.
    InFlight {
        changed: bool,
    },
}

#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    place: Place,
    attempts: u32,
    /// When the pod was first seen: its place among equals.
    since: Instant,
    order: u64,
}

/// A pod to try, with what metrics need.
#[derive(Debug)]
pub struct Attempt {
    pub pod: Arc<PodInfo>,
    pub attempts: u32,
    pub since: Instant,
}

/// How many pods wait, by upstream's names for the places.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
pub struct Pending {
    pub active: usize,
    pub backoff: usize,
    pub unschedulable: usize,
}

#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<PodKey, Entry>,
    /// Candidates for being active; an entry that no longer matches is passed over.
    active: BinaryHeap<(i32, Reverse<u64>, Reverse<PodKey>)>,
    /// Wake-up times; likewise checked against the entry.
    pausing: BTreeMap<(Instant, u64), PodKey>,
    next_order: u64,
}

impl Queue {
    /// A pending pod was seen, new or changed.
    pub fn add(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let key = pod.key.clone();
        match self.entries.get_mut(&key) {
            Some(entry) if entry.pod.uid == pod.uid => {
                let changed = entry.pod != pod;
                entry.pod = pod;
                match &mut entry.place {
                    Place::InFlight { changed: noted } => *noted |= changed,
                    // Its own change (fewer requests, a toleration) may let it fit.
                    Place::Unschedulable(_) if changed => self.wake(&key, now),
                    _ => {}
                }
            }
            _ => {
                self.next_order += 1;
                let order = self.next_order;
                let entry = Entry { pod, place: Place::Active, attempts: 0, since: now, order };
                self.entries.insert(key.clone(), entry);
                self.activate(&key);
            }
        }
    }

    pub fn remove(&mut self, key: &PodKey) {
        self.entries.remove(key);
    }

    /// This pod was bound. Another that took its name in the meantime still waits.
    pub fn bound(&mut self, key: &PodKey, uid: &str) {
        if self.entries.get(key).is_some_and(|entry| *entry.pod.uid == *uid) {
            self.entries.remove(key);
        }
    }

    /// The next pod to try, which is then in flight until [`Queue::failed`], [`Queue::bound`] or [`Queue::remove`].
    pub fn pop(&mut self, now: Instant) -> Option<Attempt> {
        self.expire(now);
        while let Some((_, Reverse(order), Reverse(key))) = self.active.pop() {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            if entry.place != Place::Active || entry.order != order {
                continue;
            }
            entry.place = Place::InFlight { changed: false };
            entry.attempts += 1;
            return Some(Attempt { pod: entry.pod.clone(), attempts: entry.attempts, since: entry.since });
        }
        None
    }

    /// The pod did not fit (`waits_for_change`), or its binding failed (try again after a pause). Says nothing of
    /// another pod that took its name in the meantime. False: the pod is not here any more.
    pub fn failed(&mut self, key: &PodKey, uid: &str, waits_for_change: bool, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| *entry.pod.uid == *uid) else {
            return false;
        };
        let changed = matches!(entry.place, Place::InFlight { changed: true });
        if waits_for_change && !changed {
            entry.place = Place::Unschedulable(now);
        } else {
            self.pause(key, now);
        }
        true
    }

    /// The cluster changed so that pods that did not fit may fit now.
    pub fn cluster_changed(&mut self, now: Instant) {
        self.wake_those(|_| true, now);
    }

    /// A pod was placed: only pods that look at other pods can gain by it.
    pub fn pod_placed(&mut self, now: Instant) {
        self.wake_those(|pod| pod.wishes.affinity.is_some() || !pod.wishes.spread.is_empty(), now);
    }

    /// A claim is new or has changed: only pods that use it can gain by it.
    pub fn claim_changed(&mut self, namespace: &str, name: &str, now: Instant) {
        self.wake_those(|pod| pod.uses_claim(namespace, name), now);
    }

    /// A volume or a class of volumes is new or has changed.
    pub fn volumes_changed(&mut self, now: Instant) {
        self.wake_those(|pod| !pod.wishes.claims.is_empty(), now);
    }

    fn wake_those(&mut self, concerned: impl Fn(&PodInfo) -> bool, now: Instant) {
        let mut waiting = Vec::new();
        for (key, entry) in self.entries.iter_mut().filter(|(_, entry)| concerned(&entry.pod)) {
            match &mut entry.place {
                Place::Unschedulable(_) => waiting.push(key.clone()),
                Place::InFlight { changed } => *changed = true,
                Place::Active | Place::Backoff(_) => {}
            }
        }
        for key in waiting {
            self.wake(&key, now);
        }
    }

    /// When [`Queue::pop`] may have something; `None` while all is quiet.
    pub fn next_wake(&self, now: Instant) -> Option<Instant> {
        if !self.active.is_empty() {
            return Some(now);
        }
        let pausing = self.pausing.keys().next().map(|(at, _)| *at);
        let waiting = self.entries.values().filter_map(|entry| match entry.place {
            Place::Unschedulable(since) => Some(since + LONGEST_WAIT),
            _ => None,
        });
        pausing.into_iter().chain(waiting.min()).min().map(|at| at.max(now))
    }

    pub fn pending(&self) -> Pending {
        let mut pending = Pending::default();
        for entry in self.entries.values() {
            match entry.place {
                Place::Active => pending.active += 1,
                Place::Backoff(_) => pending.backoff += 1,
                Place::Unschedulable(_) => pending.unschedulable += 1,
                Place::InFlight { .. } => {}
            }
        }
        pending
    }

    /// Back to active, or to what is left of its pause.
    fn wake(&mut self, key: &PodKey, now: Instant) {
        let Some(entry) = self.entries.get(key) else { return };
        let Place::Unschedulable(since) = entry.place else { return };
        let until = since + backoff(entry.attempts);
        if until > now { self.pause_until(key, until) } else { self.activate(key) }
    }

    fn pause(&mut self, key: &PodKey, now: Instant) {
        let Some(entry) = self.entries.get(key) else { return };
        let until = now + backoff(entry.attempts);
        self.pause_until(key, until);
    }

    fn pause_until(&mut self, key: &PodKey, until: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.place = Place::Backoff(until);
            self.pausing.insert((until, entry.order), key.clone());
        }
    }

    fn activate(&mut self, key: &PodKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.place = Place::Active;
            self.active.push((entry.pod.priority, Reverse(entry.order), Reverse(key.clone())));
        }
    }

    /// Moves what paused or waited long enough to the active ones.
    fn expire(&mut self, now: Instant) {
        while let Some(first) = self.pausing.first_entry() {
            let (until, order) = *first.key();
            if until > now {
                break;
            }
            let key = first.remove();
            if self.entries.get(&key).is_some_and(|e| e.place == Place::Backoff(until) && e.order == order) {
                self.activate(&key);
            }
        }
        let overdue =
            |entry: &Entry| matches!(entry.place, Place::Unschedulable(since) if since + LONGEST_WAIT <= now);
        let late: Vec<PodKey> =
            self.entries.iter().filter(|(_, e)| overdue(e)).map(|(k, _)| k.clone()).collect();
        for key in late {
            self.activate(&key);
        }
    }
}

/// One second, doubling to ten.
fn backoff(attempts: u32) -> Duration {
    INITIAL_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(8)).min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;
    use crate::pod::{UsedClaim, Wishes};

    fn named(name: &str, priority: i32) -> Arc<PodInfo> {
        Arc::new(PodInfo { priority, ..pod(name, 0) })
    }

    fn popped(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.pop(now).map(|attempt| attempt.pod.key.name.to_string())
    }

    #[test]
    fn priority_then_age_decides() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for (name, priority) in [("old", 0), ("new", 0), ("urgent", 10)] {
            queue.add(named(name, priority), now);
        }
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue, now)).collect();
        assert_eq!(order, ["urgent", "old", "new"]);
    }

    #[test]
    fn a_pod_that_did_not_fit_waits_for_a_change_and_for_its_pause() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add(named("p", 0), now);
        let key = queue.pop(now).unwrap().pod.key.clone();
        queue.failed(&key, "uid-p", true, now);
        assert_eq!(queue.pending().unschedulable, 1);
        assert_eq!(popped(&mut queue, now + Duration::from_secs(20)), None);
        queue.cluster_changed(now);
        assert_eq!(queue.pending().backoff, 1);
        assert_eq!(popped(&mut queue, now), None);
        assert_eq!(queue.next_wake(now), Some(now + Duration::from_secs(1)));
        assert_eq!(popped(&mut queue, now + Duration::from_secs(1)).as_deref(), Some("p"));
    }

    #[test]
    fn a_claim_wakes_its_users_alone() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let user = |name: &str, claim: &str| {
            let claims = vec![UsedClaim { name: claim.into(), ephemeral: false }];
            let wishes = Box::new(Wishes { claims, ..Wishes::default() });
            Arc::new(PodInfo { wishes, ..pod(name, 0) })
        };
        let pods = [user("p", "c"), user("q", "d"), named("r", 0)];
        pods.iter().for_each(|pod| queue.add(pod.clone(), now));
        for pod in &pods {
            queue.pop(now).unwrap();
            queue.failed(&pod.key, &pod.uid, true, now);
        }
        let waiting = |queue: &Queue| queue.pending().unschedulable;
        queue.claim_changed("other", "c", now);
        assert_eq!(waiting(&queue), 3);
        queue.claim_changed("default", "c", now);
        assert_eq!(waiting(&queue), 2);
        queue.volumes_changed(now);
        assert_eq!(waiting(&queue), 1);
        // Of a pod that is gone nothing is kept, and nothing is to be told.
        queue.remove(&pods[2].key);
        assert!(!queue.failed(&pods[2].key, &pods[2].uid, true, now));
    }

    #[test]
    fn a_change_during_the_decision_is_not_lost() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add(named("p", 0), now);
        let key = queue.pop(now).unwrap().pod.key.clone();
        queue.cluster_changed(now);
        queue.failed(&key, "uid-p", true, now);
        assert_eq!(popped(&mut queue, now + Duration::from_secs(1)).as_deref(), Some("p"));
    }

    #[test]
    fn a_binding_of_its_predecessor_does_not_concern_a_pod() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add(named("p", 0), now);
        let first = queue.pop(now).unwrap().pod;
        // Deleted and made again under its name while the binding is under way.
        queue.remove(&first.key);
        queue.add(Arc::new(PodInfo { uid: "second".into(), ..pod("p", 0) }), now);
        queue.bound(&first.key, &first.uid);
        queue.failed(&first.key, &first.uid, true, now);
        let second = queue.pop(now).unwrap().pod;
        assert_eq!(&*second.uid, "second");
        queue.failed(&first.key, &first.uid, true, now);
        queue.bound(&second.key, &second.uid);
        assert_eq!(popped(&mut queue, now + LONGEST_WAIT), None);
    }

    #[test]
    fn nothing_waits_for_ever_and_a_removed_pod_never_comes() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add(named("p", 0), now);
        queue.add(named("gone", 0), now);
        let key = queue.pop(now).unwrap().pod.key.clone();
        queue.failed(&key, "uid-p", true, now);
        queue.remove(&PodKey { name: "gone".into(), ..key });
        assert_eq!(popped(&mut queue, now), None);
        assert_eq!(popped(&mut queue, now + LONGEST_WAIT).as_deref(), Some("p"));
    }
}
