//! What a budget's status says of its pods. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::{PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_objects::intstr::{NotAPercentage, Round, scaled_value};
use keelson_objects::times;

use crate::meta::Controller;
use crate::pod::PodInfo;

/// Seconds after which an evicted pod that nobody has deleted counts again.
const DELETION_TIMEOUT: i64 = 120;
const DISRUPTION_ALLOWED: &str = "DisruptionAllowed";

/// Why the pods of a budget cannot be counted. The messages are upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Uncountable {
    #[error("{0} does not implement the scale subresource")]
    NotScalable(String),
    #[error("no matches for kind {kind:?} in version {version:?}")]
    UnknownKind { kind: String, version: String },
    #[error("found no controllers for pod {0:?}")]
    NoController(String),
    #[error(transparent)]
    Amount(#[from] NotAPercentage),
}

/// The kinds that have a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalable {
    ReplicationController,
    Deployment,
    /// Its Deployment's scale, if it has one.
    ReplicaSet,
    StatefulSet,
}

/// How the scale of a pod's controller is found.
///
/// # Errors
/// It has none.
pub fn scalable(controller: &Controller) -> Result<Scalable, Uncountable> {
    let group = controller.api_version.split_once('/').map_or("", |(group, _)| group);
    match (group, &*controller.kind) {
        ("", "ReplicationController") => Ok(Scalable::ReplicationController),
        ("apps" | "extensions", "Deployment") => Ok(Scalable::Deployment),
        ("apps" | "extensions", "ReplicaSet") => Ok(Scalable::ReplicaSet),
        ("apps", "StatefulSet") => Ok(Scalable::StatefulSet),
        ("apps", "DaemonSet") => Err(Uncountable::NotScalable("daemonsets.apps".to_owned())),
        ("batch", "Job") => Err(Uncountable::NotScalable("jobs.batch".to_owned())),
        ("", "Node") => Err(Uncountable::NotScalable("nodes".to_owned())),
        (_, kind) => Err(Uncountable::UnknownKind {
            kind: kind.to_owned(),
            version: controller.api_version.to_string(),
        }),
    }
}

/// How many pods what stands behind a pod asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scale {
    pub uid: String,
    pub replicas: i32,
}

/// Scales by the uid of the pods' controllers; several may share one.
pub type Scales = HashMap<Box<str>, Scale>;

/// The pods that are to be there, and how many of them healthy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Demand {
    pub expected: i32,
    pub desired: i32,
    /// Pods without a controller are there, and were not counted.
    pub unmanaged: bool,
}

/// Whether a budget is a share of what the pods' controllers ask for, and not of the pods that there are.
#[must_use]
pub fn needs_scales(spec: &PodDisruptionBudgetSpec) -> bool {
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// # Errors
/// A pod's controller is gone, or an amount is none.
pub fn demand(
    spec: &PodDisruptionBudgetSpec,
    pods: &[Arc<PodInfo>],
    scales: &Scales,
) -> Result<Demand, Uncountable> {
    if !needs_scales(spec) {
        return Ok(match spec.min_available {
            Some(IntOrString::Int(desired)) => {
                Demand { expected: count(pods.len()), desired, unmanaged: false }
            }
            _ => Demand::default(),
        });
    }
    let mut controllers = BTreeMap::new();
    let mut unmanaged = false;
    for pod in pods {
        let Some(controller) = &pod.meta.controller else {
            unmanaged = true;
            continue;
        };
        let scale = scales.get(&controller.uid);
        let scale = scale.ok_or_else(|| Uncountable::NoController(pod.meta.name.clone()))?;
        controllers.insert(scale.uid.as_str(), scale.replicas);
    }
    let expected = controllers.values().fold(0, |sum: i32, replicas| sum.saturating_add(*replicas));
    let share = |amount| scaled_value(amount, expected, Round::Up);
    let desired = match (&spec.max_unavailable, &spec.min_available) {
        (Some(unavailable), _) => expected.saturating_sub(share(unavailable)?).max(0),
        (None, Some(available)) => share(available)?,
        (None, None) => 0,
    };
    Ok(Demand { expected, desired, unmanaged })
}

/// The evictions that are not over yet.
#[derive(Debug, Default)]
pub struct Disrupted<'a> {
    pub pods: BTreeMap<String, Time>,
    /// Evicted, and still there when the time was over.
    pub spared: Vec<&'a PodInfo>,
    /// When the first of them is to be looked at again.
    pub until: Option<Timestamp>,
}

#[must_use]
pub fn disrupted<'a>(
    known: Option<&BTreeMap<String, Time>>,
    pods: &'a [Arc<PodInfo>],
    now: Timestamp,
) -> Disrupted<'a> {
    let mut found = Disrupted::default();
    for pod in pods.iter().filter(|pod| !pod.meta.deleting) {
        let Some(evicted) = known.and_then(|known| known.get(&pod.meta.name)) else { continue };
        let until = times::plus_seconds(evicted.0, DELETION_TIMEOUT);
        if until <= now {
            found.spared.push(pod);
        } else {
            found.until = Some(found.until.map_or(until, |first| first.min(until)));
            found.pods.insert(pod.meta.name.clone(), evicted.clone());
        }
    }
    found
}

/// The status of a budget whose pods were counted.
#[must_use]
pub fn status(
    known: &PodDisruptionBudgetStatus,
    generation: i64,
    demand: &Demand,
    pods: &[Arc<PodInfo>],
    disrupted: BTreeMap<String, Time>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let healthy =
        |pod: &&Arc<PodInfo>| pod.is_ready() && !pod.meta.deleting && !disrupted.contains_key(&pod.meta.name);
    let healthy = count(pods.iter().filter(healthy).count());
    // Without pods nothing is allowed: the first may come before they are counted.
    let allowed = if demand.expected > 0 { healthy.saturating_sub(demand.desired).max(0) } else { 0 };
    let (truth, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let mut status = PodDisruptionBudgetStatus {
        conditions: known.conditions.clone(),
        current_healthy: Some(healthy),
        desired_healthy: Some(demand.desired),
        disrupted_pods: Some(disrupted).filter(|pods| !pods.is_empty()),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(demand.expected),
        observed_generation: Some(generation),
    };
    set_condition(&mut status, truth, reason, String::new(), now);
    status
}

/// The status of a budget whose pods could not be counted: nothing may be disrupted.
#[must_use]
pub fn fail_safe(
    known: &PodDisruptionBudgetStatus,
    message: String,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let mut status = PodDisruptionBudgetStatus { disruptions_allowed: Some(0), ..known.clone() };
    set_condition(&mut status, "False", "SyncFailed", message, now);
    status
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    truth: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let mut condition = Condition {
        last_transition_time: times::api_time(now),
        message,
        observed_generation: status.observed_generation,
        reason: reason.to_owned(),
        status: truth.to_owned(),
        type_: DISRUPTION_ALLOWED.to_owned(),
    };
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|known| known.type_ == DISRUPTION_ALLOWED) {
        Some(known) => {
            if known.status == condition.status {
                condition.last_transition_time = known.last_transition_time.clone();
            }
            *known = condition;
        }
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests;
