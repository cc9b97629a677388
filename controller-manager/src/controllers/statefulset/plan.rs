//! Which pod of a StatefulSet is made, replaced or removed next, and what its status says. Pure.
//!
//! A pod's name is its identity: it is made only when no pod has the name, so there are never two. Ordered sets
//! do one thing at a time and only when everything before it is available; parallel ones do all at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};
use keelson_objects::intstr::{Round, scaled_value};
use keelson_objects::owners;

use crate::controllers::history::REVISION_HASH;
use crate::meta::Meta;
use crate::pod::{Phase, PodInfo};
use crate::pod_control::{BURST, from_template};

pub const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
pub const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// What is observed of one StatefulSet.
pub struct Observed<'a> {
    pub name: &'a str,
    pub set: &'a StatefulSet,
    pub spec: &'a StatefulSetSpec,
    pub pods: &'a [Arc<PodInfo>],
    /// Names of revisions.
    pub current: &'a str,
    pub update: &'a str,
    pub now: Timestamp,
}

#[derive(Debug, Clone)]
pub enum Action {
    Create {
        ordinal: i32,
        updated: bool,
    },
    /// It has ended and stands in the way of its successor.
    Recreate(Arc<PodInfo>),
    /// The set became smaller.
    Condemn(Arc<PodInfo>),
    /// Its template is an old one.
    Replace(Arc<PodInfo>),
    /// A pod that was taken over lacks the labels of its identity.
    Identify(Arc<PodInfo>),
}

/// The ordinal in a pod's name, if it is one of the set's.
#[must_use]
pub fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let number = pod.strip_prefix(set)?.strip_prefix('-')?;
    // `web-01` and `web-+1` are not the set's.
    number.parse().ok().filter(|ordinal: &i32| ordinal.to_string() == number)
}

#[must_use]
pub fn pod_name(set: &str, ordinal: i32) -> String {
    format!("{set}-{ordinal}")
}

#[must_use]
pub fn claim_name(template: &str, set: &str, ordinal: i32) -> String {
    format!("{template}-{set}-{ordinal}")
}

fn is_running_and_ready(pod: &PodInfo) -> bool {
    pod.phase == Phase::Running && pod.is_ready()
}

fn revision(pod: &PodInfo) -> &str {
    pod.meta.labels.get(REVISION_HASH).map_or("", String::as_str)
}

impl Observed<'_> {
    fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    fn ordinals(&self) -> std::ops::Range<i32> {
        let start = self.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
        start..start.saturating_add(self.replicas())
    }

    fn is_ordered(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    fn min_ready(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }

    fn is_available(&self, pod: &PodInfo) -> bool {
        is_running_and_ready(pod) && pod.is_available(self.min_ready(), self.now)
    }

    fn is_rolling(&self) -> bool {
        let kind = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
        kind.is_none_or(|kind| kind == "RollingUpdate")
    }

    /// Ordinals below this keep the current revision.
    fn partition(&self) -> Option<i32> {
        let rolling = self.spec.update_strategy.as_ref()?.rolling_update.as_ref()?;
        Some(rolling.partition.unwrap_or(0))
    }

    fn max_unavailable(&self) -> usize {
        let rolling =
            self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let value = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        // Rounded down, whatever the API's documentation says; but never to nothing.
        let number = value.map_or(1, |value| scaled_value(value, self.replicas(), Round::Down).unwrap_or(1));
        usize::try_from(number).unwrap_or(1).max(1)
    }

    fn by_ordinal(&self) -> BTreeMap<i32, &Arc<PodInfo>> {
        self.pods.iter().filter_map(|pod| Some((ordinal(self.name, &pod.meta.name)?, pod))).collect()
    }

    /// Whether a pod that is made now gets the template of the update.
    fn starts_updated(&self, ordinal: i32) -> bool {
        if !self.is_rolling() {
            return true;
        }
        let start = self.ordinals().start;
        let current = self.set.status.as_ref().and_then(|status| status.current_replicas).unwrap_or(0);
        ordinal - start >= self.partition().unwrap_or(current)
    }

    /// Pods beyond the size, the highest first.
    fn condemned(&self) -> Vec<(i32, &Arc<PodInfo>)> {
        let all = self.pods.iter().filter_map(|pod| Some((ordinal(self.name, &pod.meta.name)?, pod)));
        let mut condemned: Vec<_> = all.filter(|(ordinal, _)| !self.ordinals().contains(ordinal)).collect();
        condemned.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
        condemned
    }

    /// What to do now. `blocked` says of which ordinals a claim still belongs to the pod before.
    #[must_use]
    pub fn plan(&self, blocked: impl Fn(i32) -> bool) -> Vec<Action> {
        let mut actions = Vec::new();
        let by_ordinal = self.by_ordinal();
        if self.set.metadata.deletion_timestamp.is_some() {
            return actions;
        }
        // In an ordered set the first that is not as it should be holds up all others.
        let mut held = false;
        for ordinal in self.ordinals() {
            // A parallel set may ask for millions at once.
            if held && (self.is_ordered() || actions.len() >= BURST) {
                return actions;
            }
            let Some(pod) = by_ordinal.get(&ordinal).copied() else {
                if !blocked(ordinal) {
                    actions.push(Action::Create { ordinal, updated: self.starts_updated(ordinal) });
                }
                held = true;
                continue;
            };
            if pod.is_terminal() {
                if !pod.meta.deleting {
                    actions.push(Action::Recreate(pod.clone()));
                }
                held = true;
                continue;
            }
            if self.is_ordered() && (pod.meta.deleting || !self.is_available(pod)) {
                held = true;
                continue;
            }
            if !pod.meta.deleting && !has_identity(pod, ordinal) {
                actions.push(Action::Identify(pod.clone()));
            }
        }
        if held && self.is_ordered() {
            return actions;
        }
        let condemned = self.condemned();
        for (position, (_, pod)) in condemned.iter().enumerate() {
            if pod.meta.deleting {
                if self.is_ordered() {
                    return actions;
                }
                continue;
            }
            // Of several that are unhealthy the lowest goes first, the others wait for it to heal or go.
            let lower_is_unhealthy =
                condemned[position + 1..].iter().any(|(_, lower)| !self.is_available(lower));
            if self.is_ordered() && !self.is_available(pod) && lower_is_unhealthy {
                return actions;
            }
            actions.push(Action::Condemn((*pod).clone()));
            if self.is_ordered() {
                return actions;
            }
        }
        // A parallel set updates only when there is nothing else to do.
        if self.is_rolling() && !held && condemned.is_empty() {
            self.roll(&by_ordinal, &mut actions);
        }
        actions
    }

    fn roll(&self, by_ordinal: &BTreeMap<i32, &Arc<PodInfo>>, actions: &mut Vec<Action>) {
        let lowest = self.ordinals().start.saturating_add(self.partition().unwrap_or(0));
        let mut away = 0;
        for ordinal in self.ordinals().rev().take_while(|ordinal| *ordinal >= lowest) {
            if away >= self.max_unavailable() {
                return;
            }
            let Some(pod) = by_ordinal.get(&ordinal).copied() else { continue };
            let outdated = revision(pod) != self.update && !pod.meta.deleting;
            if outdated {
                actions.push(Action::Replace(pod.clone()));
            }
            away += usize::from(outdated || pod.meta.deleting || !self.is_available(pod));
        }
    }

    /// The status after `actions` were taken, and when to look again because a pod becomes available.
    #[must_use]
    pub fn status(&self, actions: &[Action]) -> (StatefulSetStatus, Option<Timestamp>) {
        let mut status = StatefulSetStatus {
            observed_generation: self.set.metadata.generation,
            collision_count: Some(self.set.status.as_ref().and_then(|old| old.collision_count).unwrap_or(0)),
            conditions: self.set.status.as_ref().and_then(|old| old.conditions.clone()),
            current_revision: Some(self.current.to_owned()),
            update_revision: Some(self.update.to_owned()),
            ..StatefulSetStatus::default()
        };
        let (mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0);
        let mut again: Option<Timestamp> = None;
        let count = |name: &str, by: i32, current: &mut i32, updated: &mut i32| {
            *current += if name == self.current { by } else { 0 };
            *updated += if name == self.update { by } else { 0 };
        };
        for pod in self.pods {
            status.replicas += 1;
            if is_running_and_ready(pod) {
                ready += 1;
                if self.is_available(pod) {
                    available += 1;
                } else if let Some(at) = pod.available_at(self.min_ready()) {
                    again = Some(again.map_or(at, |known| known.min(at)));
                }
            }
            if !pod.meta.deleting {
                count(revision(pod), 1, &mut current, &mut updated);
            }
        }
        for action in actions {
            match action {
                Action::Create { updated: new, .. } => {
                    status.replicas += 1;
                    let name = if *new { self.update } else { self.current };
                    count(name, 1, &mut current, &mut updated);
                }
                Action::Recreate(pod) | Action::Condemn(pod) | Action::Replace(pod) => {
                    count(revision(pod), -1, &mut current, &mut updated);
                }
                Action::Identify(_) => {}
            }
        }
        if self.is_rolling()
            && actions.is_empty()
            && [updated, ready, status.replicas] == [self.replicas(); 3]
        {
            current = updated;
            status.current_revision.clone_from(&status.update_revision);
        }
        status.ready_replicas = Some(ready).filter(|count| *count != 0);
        status.available_replicas = Some(available);
        status.current_replicas = Some(current).filter(|count| *count != 0);
        status.updated_replicas = Some(updated).filter(|count| *count != 0);
        (status, again)
    }
}

fn has_identity(pod: &PodInfo, ordinal: i32) -> bool {
    let label = |name| pod.meta.labels.get(name).map(String::as_str);
    label(POD_NAME) == Some(pod.meta.name.as_str()) && label(POD_INDEX) == Some(ordinal.to_string().as_str())
}

/// The pod of an ordinal, of the template of the revision that is named.
#[must_use]
pub fn pod(
    meta: &Meta,
    spec: &StatefulSetSpec,
    template: &PodTemplateSpec,
    revision: &str,
    ordinal: i32,
) -> Pod {
    let owner = owners::new_controller_ref("apps/v1", "StatefulSet", &meta.name, &meta.uid);
    let mut pod = from_template(template, &meta.namespace, owner);
    let name = pod_name(&meta.name, ordinal);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(REVISION_HASH.to_owned(), revision.to_owned());
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(name);
    pod_spec.subdomain = spec.service_name.clone().filter(|service| !service.is_empty());
    let volumes = pod_spec.volumes.take().unwrap_or_default();
    let mut all = Vec::new();
    for claim in spec.volume_claim_templates.iter().flatten() {
        let template = claim.metadata.name.as_deref().unwrap_or_default();
        let source = PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(template, &meta.name, ordinal),
            read_only: None,
        };
        all.push(Volume {
            name: template.to_owned(),
            persistent_volume_claim: Some(source),
            ..Volume::default()
        });
    }
    let replaced: Vec<String> = all.iter().map(|volume| volume.name.clone()).collect();
    all.extend(volumes.into_iter().filter(|volume| !replaced.contains(&volume.name)));
    pod_spec.volumes = Some(all).filter(|all| !all.is_empty());
    pod
}

/// Who is to own the claims of an ordinal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimOwner {
    Nobody,
    Set,
    Pod,
}

/// As the retention policy says.
#[must_use]
pub fn claim_owner(spec: &StatefulSetSpec, condemned: bool) -> ClaimOwner {
    let policy = spec.persistent_volume_claim_retention_policy.as_ref();
    let deletes = |value: Option<&String>| value.is_some_and(|value| value == "Delete");
    let when_deleted = deletes(policy.and_then(|policy| policy.when_deleted.as_ref()));
    let when_scaled = deletes(policy.and_then(|policy| policy.when_scaled.as_ref()));
    match (condemned && when_scaled, when_deleted) {
        (true, _) => ClaimOwner::Pod,
        (false, true) => ClaimOwner::Set,
        (false, false) => ClaimOwner::Nobody,
    }
}

/// Whether two statuses say the same: a count that is left out is zero.
#[must_use]
pub fn same(a: &StatefulSetStatus, b: &StatefulSetStatus) -> bool {
    let counts = |s: &StatefulSetStatus| {
        let all = [
            s.ready_replicas,
            s.available_replicas,
            s.current_replicas,
            s.updated_replicas,
            s.collision_count,
        ];
        all.map(|count| count.unwrap_or(0))
    };
    a.replicas == b.replicas
        && counts(a) == counts(b)
        && a.observed_generation == b.observed_generation
        && a.current_revision == b.current_revision
        && a.update_revision == b.update_revision
}

#[cfg(test)]
mod tests;
