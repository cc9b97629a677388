//! What controllers keep of a Pod: about a kilobyte instead of thirty.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Toleration};
use keelson_objects::{pods, taints, times};

use crate::meta::{HasMeta, Meta};

pub const JOB_TRACKING_FINALIZER: &str = "batch.kubernetes.io/job-tracking";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

/// A container port that a Service may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPort {
    pub name: Box<str>,
    pub number: i32,
    pub protocol: Box<str>,
}

/// How a container of a failed pod ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub container: Box<str>,
    pub code: i32,
    pub init: bool,
}

#[derive(Debug, Clone, Default)]
pub struct PodInfo {
    pub meta: Meta,
    pub deletion: Option<Timestamp>,
    /// The finalizer by which the job controller counts every pod exactly once.
    pub job_tracked: bool,
    pub node: Box<str>,
    /// The one node that its affinity admits by name: where a daemon's pod will run.
    pub pinned: Box<str>,
    pub hostname: Box<str>,
    pub subdomain: Box<str>,
    pub ports: Box<[NamedPort]>,
    /// Those that bear on `NoExecute` taints.
    pub tolerations: Box<[Toleration]>,
    /// Volumes that are claims: volume and claim.
    pub claims: Box<[(Box<str>, Box<str>)]>,
    pub phase: Phase,
    /// When it became ready, while it is.
    pub ready: Option<Timestamp>,
    /// Conditions that are true, but for the usual ones.
    pub conditions: Box<[Box<str>]>,
    /// Since when it is the target of a disruption; not of the kubelet's, which may come any time later.
    pub disrupted: Option<Timestamp>,
    pub addresses: Box<[Box<str>]>,
    pub started: Option<Timestamp>,
    /// When the last of its containers ended.
    pub finished: Option<Timestamp>,
    pub restarts: i32,
    /// Of all containers together, where `restarts` is the greatest of one.
    pub restarts_total: i32,
    pub exits: Box<[Exit]>,
    pub completion_index: Option<i32>,
    /// How often its index of a Job had failed before it: counted, and ignored by the failure policy.
    pub index_failures: (i32, i32),
    pub deletion_cost: i32,
}

impl HasMeta for PodInfo {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

fn text(value: Option<&String>) -> Box<str> {
    value.map_or_else(Box::default, |value| value.as_str().into())
}

fn pinned(spec: &PodSpec) -> Option<&str> {
    let required = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = required.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let mut named = fields.filter(|field| field.key == "metadata.name" && field.operator == "In");
    match named.next()?.values.as_deref()? {
        [name] => Some(name),
        _ => None,
    }
}

fn named_ports(container: &Container) -> impl Iterator<Item = NamedPort> {
    let ports = container.ports.iter().flatten();
    ports.filter_map(|port| {
        Some(NamedPort {
            name: port.name.as_deref()?.into(),
            number: port.container_port,
            protocol: port.protocol.as_deref().unwrap_or("TCP").into(),
        })
    })
}

impl PodInfo {
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let mut info = Self {
            meta: Meta::of(&pod.metadata),
            deletion: pod.metadata.deletion_timestamp.as_ref().map(|time| time.0),
            job_tracked: pod.metadata.finalizers.iter().flatten().any(|name| name == JOB_TRACKING_FINALIZER),
            ..Self::default()
        };
        let annotation = |name: &str| pod.metadata.annotations.as_ref()?.get(name)?.parse().ok();
        info.completion_index = annotation("batch.kubernetes.io/job-completion-index");
        info.index_failures = (
            annotation("batch.kubernetes.io/job-index-failure-count").unwrap_or(0),
            annotation("batch.kubernetes.io/job-index-ignored-failure-count").unwrap_or(0),
        );
        info.deletion_cost = annotation("controller.kubernetes.io/pod-deletion-cost").unwrap_or(0);
        if let Some(spec) = &pod.spec {
            info.node = text(spec.node_name.as_ref());
            info.pinned = pinned(spec).map_or_else(Box::default, Into::into);
            info.hostname = text(spec.hostname.as_ref());
            info.subdomain = text(spec.subdomain.as_ref());
            let sidecars = spec.init_containers.iter().flatten().filter(|c| pods::is_sidecar(c));
            info.ports = spec.containers.iter().chain(sidecars).flat_map(named_ports).collect();
            let relevant =
                |t: &&Toleration| matches!(t.effect.as_deref(), None | Some("" | taints::NO_EXECUTE));
            info.tolerations = spec.tolerations.iter().flatten().filter(relevant).cloned().collect();
            let claims = spec.volumes.iter().flatten().filter_map(|volume| {
                let claim = volume.persistent_volume_claim.as_ref()?;
                Some((volume.name.as_str().into(), claim.claim_name.as_str().into()))
            });
            info.claims = claims.collect();
        }
        if let Some(status) = &pod.status {
            info.phase = match status.phase.as_deref() {
                Some("Running") => Phase::Running,
                Some("Succeeded") => Phase::Succeeded,
                Some("Failed") => Phase::Failed,
                Some("Unknown") => Phase::Unknown,
                _ => Phase::Pending,
            };
            if let Some(ready) = pods::condition(status, pods::READY).filter(|ready| ready.status == "True") {
                info.ready = Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0));
            }
            let special = status.conditions.iter().flatten().filter(|condition| {
                condition.status == "True"
                    && !matches!(
                        condition.type_.as_str(),
                        pods::READY | pods::INITIALIZED | pods::CONTAINERS_READY | pods::POD_SCHEDULED
                    )
            });
            info.conditions = special.map(|condition| condition.type_.as_str().into()).collect();
            let target = pods::condition(status, pods::DISRUPTION_TARGET).filter(|target| {
                target.status == "True" && target.reason.as_deref() != Some("TerminationByKubelet")
            });
            info.disrupted = target
                .map(|target| target.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0));
            let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
            info.addresses = listed.map(Into::into).collect();
            if info.addresses.is_empty() {
                info.addresses = status.pod_ip.iter().map(|ip| ip.as_str().into()).collect();
            }
            info.started = status.start_time.as_ref().map(|time| time.0);
            let mut ended = |list: &Option<Vec<k8s_openapi::api::core::v1::ContainerStatus>>, init: bool| {
                let mut exits = Vec::new();
                let mut last = None;
                let mut restarts = 0;
                for container in list.iter().flatten() {
                    restarts = restarts.max(container.restart_count);
                    info.restarts_total += container.restart_count;
                    let Some(terminated) = container.state.as_ref().and_then(|s| s.terminated.as_ref())
                    else {
                        continue;
                    };
                    last = last.max(terminated.finished_at.as_ref().map(|time| time.0));
                    let container = container.name.as_str().into();
                    exits.push(Exit { container, code: terminated.exit_code, init });
                }
                (exits, last, restarts)
            };
            let (mut exits, last, restarts) = ended(&status.container_statuses, false);
            let (init_exits, init_last, init_restarts) = ended(&status.init_container_statuses, true);
            info.restarts = restarts.max(init_restarts);
            info.finished = last.max(init_last);
            if info.phase == Phase::Failed {
                exits.extend(init_exits);
                info.exits = exits.into();
            }
        }
        info
    }

    /// It has ended for good.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Controllers count it: it has not ended and is not being deleted.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !self.is_terminal() && !self.meta.deleting
    }

    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.is_some()
    }

    /// When a ready pod counts as available.
    #[must_use]
    pub fn available_at(&self, min_ready_seconds: i32) -> Option<Timestamp> {
        Some(times::plus_seconds(self.ready?, i64::from(min_ready_seconds.max(0))))
    }

    #[must_use]
    pub fn is_available(&self, min_ready_seconds: i32, now: Timestamp) -> bool {
        min_ready_seconds <= 0 && self.ready.is_some()
            || self.available_at(min_ready_seconds).is_some_and(|at| at <= now)
    }

    #[must_use]
    pub fn has_condition(&self, kind: &str) -> bool {
        self.conditions.iter().any(|condition| &**condition == kind)
    }
}

/// Ages are compared by their powers of two, so that what dies is not always the newest.
fn age_class(time: Timestamp, now: Timestamp) -> u32 {
    u64::try_from(times::between(time, now).as_nanos())
        .ok()
        .filter(|age| *age > 0)
        .map_or(0, |age| age.ilog2() + 1)
}

/// Which of two pods is deleted first (`Less`), a total order; `crowd` counts related pods on the pods' nodes.
#[must_use]
pub fn deletion_order(
    a: &PodInfo,
    b: &PodInfo,
    crowd: &HashMap<Box<str>, usize>,
    now: Timestamp,
) -> Ordering {
    let phase = |pod: &PodInfo| match pod.phase {
        Phase::Pending => 0,
        Phase::Unknown => 1,
        _ => 2,
    };
    let crowd = |pod: &PodInfo| crowd.get(&pod.node).copied().unwrap_or(0);
    let class = |time| age_class(time, now);
    (!a.node.is_empty())
        .cmp(&!b.node.is_empty())
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| a.is_ready().cmp(&b.is_ready()))
        .then_with(|| a.deletion_cost.cmp(&b.deletion_cost))
        .then_with(|| crowd(b).cmp(&crowd(a)))
        .then_with(|| class(a.ready.unwrap_or(now)).cmp(&class(b.ready.unwrap_or(now))))
        .then_with(|| b.restarts.cmp(&a.restarts))
        .then_with(|| class(a.meta.created).cmp(&class(b.meta.created)))
        .then_with(|| a.meta.uid.cmp(&b.meta.uid))
}

/// The pods to delete, of `pods`, so that `count` fewer remain.
#[must_use]
pub fn choose_to_delete(
    mut pods: Vec<Arc<PodInfo>>,
    count: usize,
    crowd: &HashMap<Box<str>, usize>,
    now: Timestamp,
) -> Vec<Arc<PodInfo>> {
    if count < pods.len() {
        pods.sort_by(|a, b| deletion_order(a, b, crowd, now));
        pods.truncate(count);
    }
    pods
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        times::parse("2026-11-20T12:00:00Z").unwrap()
    }

    fn pod(name: &str) -> PodInfo {
        let meta = Meta {
            name: name.into(),
            uid: name.into(),
            created: times::plus_seconds(now(), -100),
            ..Meta::default()
        };
        PodInfo {
            meta,
            node: "n1".into(),
            phase: Phase::Running,
            ready: Some(times::plus_seconds(now(), -90)),
            ..PodInfo::default()
        }
    }

    #[test]
    fn projection() {
        let whole: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "ns", "uid": "u", "creationTimestamp": "2026-11-20T11:00:00Z",
                "finalizers": ["batch.kubernetes.io/job-tracking"],
                "annotations": {"batch.kubernetes.io/job-completion-index": "3"},
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "ju", "controller": true}]},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 80}]}],
                "initContainers": [{"name": "i", "ports": [{"name": "no", "containerPort": 1}]},
                    {"name": "s", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 2, "protocol": "UDP"}]}],
                "tolerations": [{"key": "a", "effect": "NoSchedule"}, {"key": "b", "effect": "NoExecute"}, {"operator": "Exists"}]},
            "status": {"phase": "Failed", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "conditions": [{"type": "Ready", "status": "False"}, {"type": "DisruptionTarget", "status": "True"}],
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 2,
                    "state": {"terminated": {"exitCode": 4, "finishedAt": "2026-11-20T11:30:00Z"}}}]}
        })).unwrap();
        let info = PodInfo::of(&whole);
        assert!(info.job_tracked && info.is_terminal() && !info.is_ready());
        assert_eq!(info.completion_index, Some(3));
        assert_eq!(info.ports.iter().map(|p| &*p.name).collect::<Vec<_>>(), ["http", "side"]);
        assert_eq!(info.tolerations.len(), 2);
        assert!(info.has_condition("DisruptionTarget") && !info.has_condition("Ready"));
        assert_eq!(info.exits, [Exit { container: "c".into(), code: 4, init: false }].into());
        assert_eq!((info.restarts, info.addresses.len()), (2, 2));
        assert_eq!(info.meta.controller_key("Job").unwrap().to_string(), "ns/j");
        assert!(info.meta.controller_key("ReplicaSet").is_none());
    }

    #[test]
    fn what_dies_first() {
        #[track_caller]
        fn check(change_a: impl Fn(&mut PodInfo), change_b: impl Fn(&mut PodInfo)) {
            let (mut a, mut b) = (pod("a"), pod("b"));
            change_a(&mut a);
            change_b(&mut b);
            let crowd = HashMap::from([("n1".into(), 2), ("n2".into(), 1)]);
            assert_eq!(deletion_order(&a, &b, &crowd, now()), Ordering::Less);
            assert_eq!(deletion_order(&b, &a, &crowd, now()), Ordering::Greater);
        }
        let nothing = |_: &mut PodInfo| {};
        check(|a| a.node = Box::default(), nothing);
        check(|a| a.phase = Phase::Pending, nothing);
        check(|a| a.ready = None, nothing);
        check(|a| a.deletion_cost = -1, nothing);
        check(nothing, |b| b.node = "n2".into());
        check(|a| a.ready = Some(times::plus_seconds(now(), -5)), nothing);
        check(|a| a.restarts = 3, nothing);
        check(|a| a.meta.created = times::plus_seconds(now(), -5), nothing);
        // Of about the same age: by uid.
        check(|a| a.meta.created = times::plus_seconds(now(), -101), nothing);
    }

    #[test]
    fn hundreds_are_sorted() {
        let many = |n: i64| {
            let mut pod = pod(&format!("p{}", n * 7919 % 300));
            pod.meta.created = times::plus_seconds(now(), -(n % 7));
            pod.ready = (n % 3 == 0).then(|| times::plus_seconds(now(), -(n % 5)));
            Arc::new(pod)
        };
        let chosen = choose_to_delete((0..300).map(many).collect(), 250, &HashMap::new(), now());
        let first_ready = chosen.iter().position(|pod| pod.is_ready());
        assert_eq!((chosen.len(), first_ready), (250, Some(200)));
    }

    #[test]
    fn availability() {
        let mut p = pod("a");
        assert!(p.is_available(0, now()) && p.is_available(90, now()) && !p.is_available(91, now()));
        p.ready = None;
        assert!(!p.is_available(0, now()));
    }
}
