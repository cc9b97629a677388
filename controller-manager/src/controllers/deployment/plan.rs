//! The arithmetic of a rollout: which ReplicaSet gets which size. Pure.
//!
//! A [`Rollout`] is what is observed; its methods give what is to be changed. Nothing here writes or waits; after
//! a change the ReplicaSets' watch brings the next look.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_objects::intstr::{Round, scaled_value};
use keelson_objects::{hashes, owners};
use kube::api::ObjectMeta;

pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";

/// What is observed of one Deployment.
pub struct Rollout<'a> {
    pub deployment: &'a Deployment,
    /// The set whose template is the Deployment's.
    pub new: Option<ReplicaSet>,
    /// The others, oldest first.
    pub old: Vec<ReplicaSet>,
}

/// A set that is to have another size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resize {
    pub name: String,
    pub from: i32,
    pub to: i32,
}

#[must_use]
pub fn spec(deployment: &Deployment) -> DeploymentSpec {
    // The selector and the template are all that has no default here.
    deployment.spec.clone().unwrap_or_default()
}

#[must_use]
pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

#[must_use]
pub fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

#[must_use]
pub fn name(set: &ReplicaSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

fn number(metadata: &ObjectMeta, key: &str) -> Option<i32> {
    annotation(metadata, key)?.parse().ok()
}

/// 0 where there is none.
#[must_use]
pub fn revision(metadata: &ObjectMeta) -> i64 {
    annotation(metadata, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn created(set: &ReplicaSet) -> (Timestamp, &str) {
    let time = set.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    (time, name(set))
}

/// Whether templates are the same but for the label that the hash of the template itself puts there.
fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let bare = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        if let Some(labels) = template.metadata.as_mut().and_then(|metadata| metadata.labels.as_mut()) {
            labels.remove(POD_TEMPLATE_HASH);
        }
        if let Some(metadata) = template.metadata.as_mut() {
            metadata.labels = metadata.labels.take().filter(|labels| !labels.is_empty());
            metadata.annotations = metadata.annotations.take().filter(|annotations| !annotations.is_empty());
            metadata.creation_timestamp = None;
        }
        (template.metadata.unwrap_or_default(), template.spec)
    };
    bare(a) == bare(b)
}

/// Whether a set runs the Deployment's template.
#[must_use]
pub fn has_template_of(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let of_set = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let of_deployment = deployment.spec.as_ref().map(|spec| &spec.template);
    matches!((of_set, of_deployment), (Some(a), Some(b)) if same_template(a, b))
}

/// `(maxSurge, maxUnavailable)` in pods; for Recreate nothing may surge and all may be away.
#[must_use]
pub fn allowances(deployment: &Deployment) -> (i32, i32) {
    let spec = spec(deployment);
    let total = spec.replicas.unwrap_or(1);
    let Some(rolling) = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref()) else {
        return (0, 0);
    };
    let resolve = |value: &Option<IntOrString>, round| {
        value.as_ref().map_or(0, |value| scaled_value(value, total, round).unwrap_or(0))
    };
    let surge = resolve(&rolling.max_surge, Round::Up);
    let unavailable = resolve(&rolling.max_unavailable, Round::Down);
    // Nothing could ever move otherwise: percentages of few pods may round to nothing.
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    (surge, unavailable.min(total))
}

#[must_use]
pub fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("Recreate")
}

fn max_surge(deployment: &Deployment) -> i32 {
    if is_rolling(deployment) { allowances(deployment).0 } else { 0 }
}

/// The most pods that there may be during a rollout.
fn most(deployment: &Deployment) -> i32 {
    replicas(deployment).saturating_add(max_surge(deployment))
}

#[must_use]
pub fn max_unavailable(deployment: &Deployment) -> i32 {
    if is_rolling(deployment) && replicas(deployment) > 0 { allowances(deployment).1 } else { 0 }
}

fn sum<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>, of: fn(&ReplicaSet) -> i32) -> i32 {
    sets.into_iter().map(of).fold(0, i32::saturating_add)
}

impl<'a> Rollout<'a> {
    #[must_use]
    pub fn new(deployment: &'a Deployment, mut sets: Vec<ReplicaSet>) -> Self {
        sets.sort_by(|a, b| created(a).cmp(&created(b)));
        let new =
            sets.iter().position(|set| has_template_of(set, deployment)).map(|index| sets.remove(index));
        Self { deployment, new, old: sets }
    }

    pub fn all(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.old.iter().chain(&self.new)
    }

    fn resize(&self, set: &ReplicaSet, to: i32) -> Option<Resize> {
        (size(set) != to).then(|| Resize { name: name(set).to_owned(), from: size(set), to })
    }

    /// Whether the Deployment's size has changed since its sets were given theirs.
    #[must_use]
    pub fn is_scaling(&self) -> bool {
        let active = self.all().filter(|set| size(set) > 0);
        active
            .filter_map(|set| number(&set.metadata, DESIRED_REPLICAS))
            .any(|n| n != replicas(self.deployment))
    }

    /// The size of the new set, existing or to be made.
    fn new_size(&self) -> i32 {
        let (wanted, current) = (replicas(self.deployment), self.new.as_ref().map_or(0, size));
        if !is_rolling(self.deployment) || current > wanted {
            return wanted;
        }
        let room = most(self.deployment).saturating_sub(sum(self.all(), size));
        if room <= 0 { current } else { current + room.min(wanted - current) }
    }

    fn next_revision(&self) -> i64 {
        self.old.iter().map(|set| revision(&set.metadata)).max().unwrap_or(0) + 1
    }

    /// The set to be made for the Deployment's template.
    #[must_use]
    pub fn create(&self) -> ReplicaSet {
        let deployment = self.deployment;
        let spec = spec(deployment);
        let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
        let hash = hashes::pod_template_hash(&spec.template, collisions);
        let mut template = spec.template;
        let metadata = template.metadata.get_or_insert_default();
        metadata.labels.get_or_insert_default().insert(POD_TEMPLATE_HASH.into(), hash.clone());
        let labels = metadata.labels.clone();
        let mut selector: LabelSelector = spec.selector;
        selector.match_labels.get_or_insert_default().insert(POD_TEMPLATE_HASH.into(), hash.clone());
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let of = &deployment.metadata;
        let mut set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", text(&of.name))),
                namespace: of.namespace.clone(),
                labels,
                owner_references: Some(vec![owners::new_controller_ref(
                    "apps/v1",
                    "Deployment",
                    &text(&of.name),
                    &text(&of.uid),
                )]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(self.new_size()),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        self.annotate_new(&mut set, false);
        self.annotate_sizes(&mut set);
        set
    }

    /// The new set with the annotations and minReadySeconds that it should have, if it has not.
    #[must_use]
    pub fn refreshed(&self) -> Option<ReplicaSet> {
        let set = self.new.as_ref()?;
        let mut updated = set.clone();
        self.annotate_new(&mut updated, true);
        let wanted = self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
        let spec = updated.spec.get_or_insert_default();
        if spec.min_ready_seconds.unwrap_or(0) != wanted {
            spec.min_ready_seconds = Some(wanted);
        }
        (updated != *set).then_some(updated)
    }

    /// Copies the Deployment's annotations and counts the revision on.
    fn annotate_new(&self, set: &mut ReplicaSet, exists: bool) {
        let annotations: &mut BTreeMap<String, String> = set.metadata.annotations.get_or_insert_default();
        for (key, value) in self.deployment.metadata.annotations.iter().flatten() {
            let own = [LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED_REPLICAS, MAX_REPLICAS, ROLLBACK_TO];
            if !own.contains(&key.as_str()) {
                annotations.insert(key.clone(), value.clone());
            }
        }
        let next = self.next_revision();
        let before = annotations.get(REVISION).cloned();
        let known = before.as_deref().and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        if known >= next {
            return;
        }
        annotations.insert(REVISION.into(), next.to_string());
        if let Some(before) = before.filter(|text| exists && !text.is_empty()) {
            let history = annotations.get(REVISION_HISTORY).cloned().unwrap_or_default();
            // As long as names may be at most 253 letters, 2000 is upstream's bound as well.
            let mut history: Vec<&str> = history.split(',').filter(|entry| !entry.is_empty()).collect();
            history.push(&before);
            while history.iter().map(|entry| entry.len() + 1).sum::<usize>() > 2000 {
                history.remove(0);
            }
            let history = history.join(",");
            annotations.insert(REVISION_HISTORY.into(), history);
        }
    }

    /// Notes for which size of the Deployment a set was given its own.
    pub fn annotate_sizes(&self, set: &mut ReplicaSet) {
        let annotations = set.metadata.annotations.get_or_insert_default();
        let wanted = replicas(self.deployment);
        annotations.insert(DESIRED_REPLICAS.into(), wanted.to_string());
        annotations.insert(MAX_REPLICAS.into(), most(self.deployment).to_string());
    }

    /// One step of a rolling update: the new set grows as far as the surge allows, else the old ones shrink as far
    /// as availability allows.
    #[must_use]
    pub fn roll(&self) -> Vec<Resize> {
        let Some(new) = &self.new else { return Vec::new() };
        if let Some(grow) = self.resize(new, self.new_size()) {
            return vec![grow];
        }
        self.shrink_old(new)
    }

    fn shrink_old(&self, new: &ReplicaSet) -> Vec<Resize> {
        if sum(&self.old, size) == 0 {
            return Vec::new();
        }
        let min_available = replicas(self.deployment) - max_unavailable(self.deployment);
        let unavailable_new = size(new) - available(new);
        let most = sum(self.all(), size).saturating_sub(min_available).saturating_sub(unavailable_new);
        if most <= 0 {
            return Vec::new();
        }
        // What is not available anyway goes first, or a broken old set would block the rollout.
        let mut sizes: Vec<i32> = self.old.iter().map(size).collect();
        let mut left = most;
        for (set, size) in self.old.iter().zip(&mut sizes) {
            let unhealthy = (*size - available(set)).clamp(0, left);
            *size -= unhealthy;
            left -= unhealthy;
        }
        let mut excess = sum(self.all(), available).saturating_sub(min_available);
        for size in &mut sizes {
            let less = excess.clamp(0, *size);
            *size -= less;
            excess -= less;
        }
        self.old.iter().zip(sizes).filter_map(|(set, size)| self.resize(set, size)).collect()
    }

    /// Recreate: everything old goes before anything new comes.
    #[must_use]
    pub fn remove_old(&self) -> Vec<Resize> {
        self.old.iter().filter_map(|set| self.resize(set, 0)).collect()
    }

    #[must_use]
    pub fn grow_new(&self) -> Vec<Resize> {
        self.new.iter().filter_map(|set| self.resize(set, self.new_size())).collect()
    }

    /// Sizes after the Deployment was scaled (or while it is paused): shared out in proportion, so that a rollout
    /// that is under way stays as far as it was.
    #[must_use]
    pub fn scale(&self) -> Vec<Resize> {
        let wanted = replicas(self.deployment);
        let active: Vec<&ReplicaSet> = self.all().filter(|set| size(set) > 0).collect();
        if active.len() <= 1 {
            let only = active.first().copied().or(self.new.as_ref()).or(self.old.last());
            return only.and_then(|set| self.resize(set, wanted)).into_iter().collect();
        }
        if self.new.as_ref().is_some_and(|new| self.is_saturated(new)) {
            return self.remove_old();
        }
        if !is_rolling(self.deployment) {
            return Vec::new();
        }
        let allowed = if wanted > 0 { most(self.deployment) } else { 0 };
        let to_add = allowed.saturating_sub(sum(active.iter().copied(), size));
        let mut order = active;
        // Growing favours the newer of equals, shrinking the older.
        order.sort_by(|a, b| {
            let by_size = size(b).cmp(&size(a));
            by_size.then_with(|| {
                if to_add > 0 { created(b).cmp(&created(a)) } else { created(a).cmp(&created(b)) }
            })
        });
        let mut sizes: Vec<i32> = order.iter().map(|set| size(set)).collect();
        let mut added = 0;
        for (set, size) in order.iter().zip(&mut sizes) {
            let share = if to_add == 0 { 0 } else { self.share(set, to_add, added) };
            *size += share;
            added += share;
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        order.iter().zip(sizes).filter_map(|(set, size)| self.resize(set, size)).collect()
    }

    fn is_saturated(&self, new: &ReplicaSet) -> bool {
        let wanted = replicas(self.deployment);
        number(&new.metadata, DESIRED_REPLICAS) == Some(wanted)
            && size(new) == wanted
            && available(new) == wanted
    }

    fn share(&self, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
        let left = to_add - added;
        if size(set) == 0 || left == 0 {
            return 0;
        }
        let fraction = if replicas(self.deployment) == 0 {
            -size(set)
        } else {
            let status = self.deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
            let before = number(&set.metadata, MAX_REPLICAS).filter(|n| *n > 0).unwrap_or(status);
            if before == 0 {
                return 0;
            }
            let scaled =
                (f64::from(size(set)) * f64::from(most(self.deployment)) / f64::from(before)).round();
            // The conversion saturates.
            (scaled as i32).saturating_sub(size(set))
        };
        if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
    }

    /// Old sets beyond the history limit that are out of use, oldest revision first.
    #[must_use]
    pub fn obsolete(&self) -> Vec<String> {
        let limit = self.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
        let mut alive: Vec<&ReplicaSet> =
            self.old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
        let excess = alive.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        alive.sort_by_key(|set| (revision(&set.metadata), created(set)));
        let observed = |set: &ReplicaSet| set.status.as_ref().and_then(|status| status.observed_generation);
        let unused = |set: &&ReplicaSet| {
            actual(set) == 0
                && size(set) == 0
                && set.metadata.generation.unwrap_or(0) <= observed(set).unwrap_or(0)
        };
        alive.into_iter().take(excess).filter(unused).map(|set| name(set).to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(replicas: i32, surge: Value, unavailable: Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "d", "annotations": {"note": "x", LAST_APPLIED: "no"}},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v2"}]}}},
        }))
        .unwrap()
    }

    /// `(image, size, available)`
    fn sets(deployment: &Deployment, sets: &[(&str, i32, i32)]) -> Vec<ReplicaSet> {
        let make = |(index, (image, size, available)): (usize, &(&str, i32, i32))| {
            let max = most(deployment);
            serde_json::from_value(json!({
                "metadata": {"name": format!("web-{index}"), "creationTimestamp": format!("2026-11-20T12:00:0{index}Z"),
                    "annotations": {REVISION: (index + 1).to_string(), MAX_REPLICAS: max.to_string()}},
                "spec": {"replicas": size, "selector": {}, "template": {"metadata": {"labels": {"app": "web", POD_TEMPLATE_HASH: "h"}},
                    "spec": {"containers": [{"name": "c", "image": image}]}}},
                "status": {"replicas": size, "availableReplicas": available},
            }))
            .unwrap()
        };
        sets.iter().enumerate().map(make).collect()
    }

    fn text(resizes: &[Resize]) -> String {
        resizes.iter().map(|r| format!("{}:{}>{}", r.name, r.from, r.to)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn rolling_steps() {
        #[track_caller]
        fn check(of: (i32, Value, Value), existing: &[(&str, i32, i32)], expected: &str) {
            let deployment = deployment(of.0, of.1, of.2);
            let rollout = Rollout::new(&deployment, sets(&deployment, existing));
            assert_eq!(text(&rollout.roll()), expected);
        }
        let quarter = || (4, json!("25%"), json!("25%"));
        check(quarter(), &[("v1", 4, 4), ("v2", 0, 0)], "web-1:0>1");
        check(quarter(), &[("v1", 4, 4), ("v2", 1, 0)], "web-0:4>3");
        check(quarter(), &[("v1", 3, 3), ("v2", 1, 0)], "web-1:1>2");
        check(quarter(), &[("v1", 3, 3), ("v2", 2, 0)], "");
        check(quarter(), &[("v1", 3, 3), ("v2", 2, 1)], "web-0:3>2");
        check(quarter(), &[("v1", 3, 3), ("v2", 2, 2)], "web-0:3>1");
        check(quarter(), &[("v1", 0, 0), ("v2", 4, 4)], "");
        // Broken old pods are removed although the new ones are not up.
        check(quarter(), &[("v1", 4, 1), ("v2", 1, 0)], "web-0:4>3");
        check((10, json!(2), json!(2)), &[("v1", 8, 0), ("v2", 4, 0)], "");
        check((10, json!(2), json!(2)), &[("v1", 8, 0), ("v2", 4, 4)], "web-0:8>4");
        check((1, json!(0), json!(0)), &[("v1", 1, 1), ("v2", 0, 0)], "web-0:1>0");
        check((2, json!(1), json!(0)), &[("v2", 3, 3)], "web-0:3>2");
        check((i32::MAX, json!("25%"), json!("25%")), &[("v1", 2, 2), ("v2", 1, 1)], "web-1:1>2147483645");
    }

    #[test]
    fn proportional_scaling() {
        #[track_caller]
        fn check(from: i32, to: i32, existing: &[(&str, i32, i32)], expected: &str) {
            let before = deployment(from, json!(0), json!(1));
            let sets = sets(&before, existing);
            let after = deployment(to, json!(0), json!(1));
            assert_eq!(text(&Rollout::new(&after, sets).scale()), expected);
        }
        check(10, 15, &[("v1", 6, 6), ("v2", 4, 4)], "web-0:6>9 web-1:4>6");
        check(10, 11, &[("v1", 5, 5), ("v2", 5, 5)], "web-1:5>6");
        check(10, 5, &[("v1", 6, 6), ("v2", 4, 4)], "web-0:6>3 web-1:4>2");
        check(10, 0, &[("v1", 6, 6), ("v2", 4, 4)], "web-0:6>0 web-1:4>0");
        check(3, 5, &[("v1", 0, 0), ("v2", 3, 3)], "web-1:3>5");
        check(3, 5, &[("v1", 3, 3), ("v2", 0, 0)], "web-0:3>5");
        check(0, 2, &[("v1", 0, 0), ("v2", 0, 0)], "web-1:0>2");
    }

    #[test]
    fn a_new_set() {
        let deployment = deployment(4, json!("25%"), json!("25%"));
        let rollout = Rollout::new(&deployment, sets(&deployment, &[("v1", 4, 4)]));
        assert!(rollout.new.is_none());
        let made = rollout.create();
        let hash = made.metadata.labels.as_ref().unwrap()[POD_TEMPLATE_HASH].clone();
        assert_eq!(made.metadata.name, Some(format!("web-{hash}")));
        let annotations = made.metadata.annotations.as_ref().unwrap();
        assert_eq!((annotations[REVISION].as_str(), annotations[DESIRED_REPLICAS].as_str()), ("2", "4"));
        assert_eq!((annotations[MAX_REPLICAS].as_str(), annotations["note"].as_str()), ("5", "x"));
        assert!(!annotations.contains_key(LAST_APPLIED));
        assert_eq!(size(&made), 1);
        assert!(has_template_of(&made, &deployment));
        assert_eq!(made.spec.unwrap().selector.match_labels.unwrap()[POD_TEMPLATE_HASH], hash);
    }

    #[test]
    fn a_rollback_reuses_the_old_set() {
        let deployment = deployment(1, json!(1), json!(0));
        let rollout = Rollout::new(&deployment, sets(&deployment, &[("v2", 0, 0), ("v3", 1, 1)]));
        let refreshed = rollout.refreshed().unwrap();
        let annotations = refreshed.metadata.annotations.as_ref().unwrap();
        assert_eq!((annotations[REVISION].as_str(), annotations[REVISION_HISTORY].as_str()), ("3", "1"));
        let rollout = Rollout { new: Some(refreshed), ..rollout };
        assert!(rollout.refreshed().is_none());
        assert_eq!(text(&rollout.roll()), "web-0:0>1");
    }

    #[test]
    fn history() {
        let mut deployment = deployment(1, json!(1), json!(0));
        deployment.spec.as_mut().unwrap().revision_history_limit = Some(1);
        let existing = [("a", 0, 0), ("b", 1, 0), ("c", 0, 0), ("v2", 1, 1)];
        assert_eq!(Rollout::new(&deployment, sets(&deployment, &existing)).obsolete(), ["web-0"]);
        deployment.spec.as_mut().unwrap().revision_history_limit = Some(3);
        assert!(Rollout::new(&deployment, sets(&deployment, &existing)).obsolete().is_empty());
    }
}
