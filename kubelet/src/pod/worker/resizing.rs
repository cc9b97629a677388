//! Changing the resources of running containers in place (KEP-1287).
//!
//! What a container was last given is kept by its id, and in the pod's status for the kubelet that comes next; what the
//! spec says and the container has not been given is never reported as if it had.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container as Spec, Pod, PodSpec, ResourceRequirements};
use keelson_proto::cri;

use super::{Next, Worker};
use crate::{
    admission,
    events::Type,
    pod::{
        Desired, container, kill,
        plan::{Kind, is_sidecar},
        reference,
        resources::{self, Amounts},
    },
    runtime::observe::{Container, ObservedPod},
    status::compute::Waiting,
};

/// What brings a running container to its spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    InPlace,
    /// Its resizePolicy asks for it.
    Restart,
}

fn change(spec: &Spec, given: Option<&ResourceRequirements>) -> Change {
    let wanted = spec.resources.as_ref();
    let (requests, limits) = (resources::requests, resources::limits);
    let cpu = requests(wanted).cpu != requests(given).cpu || limits(wanted).cpu != limits(given).cpu;
    let memory =
        requests(wanted).memory != requests(given).memory || limits(wanted).memory != limits(given).memory;
    let restarts = |name: &str| {
        let mut policies = spec.resize_policy.iter().flatten();
        policies.any(|policy| policy.resource_name == name && policy.restart_policy == "RestartContainer")
    };
    match (cpu, memory) {
        (false, false) => Change::None,
        (cpu, memory) if (cpu && restarts("cpu")) || (memory && restarts("memory")) => Change::Restart,
        _ => Change::InPlace,
    }
}

/// Why the node cannot give a pod what it asks for: never, or not beside what others have.
fn refused(wanted: Amounts, others: Amounts, node: Amounts) -> Option<Waiting> {
    let of = |name: &str, wanted: i64, used: i64, capacity: i64| {
        let (reason, message) = if wanted > capacity {
            let what = format!("{name}, requested: {wanted}, capacity: {capacity}");
            ("Infeasible", format!("Node didn't have enough capacity: {what}"))
        } else if wanted.saturating_add(used) > capacity {
            let what = format!("{name}, requested: {wanted}, used: {used}, capacity: {capacity}");
            ("Deferred", format!("Node didn't have enough resource: {what}"))
        } else {
            return None;
        };
        Some(Waiting { reason: reason.to_owned(), message })
    };
    let refusals = [
        of("cpu", wanted.cpu, others.cpu, node.cpu),
        of("memory", wanted.memory, others.memory, node.memory),
    ];
    // What can never be says more than what cannot be now.
    let never = |refusal: &Waiting| refusal.reason == "Infeasible";
    let refusals: Vec<Waiting> = refusals.into_iter().flatten().collect();
    refusals.iter().find(|refusal| never(refusal)).or(refusals.first()).cloned()
}

/// Containers that run for as long as their pod does.
fn lasting(spec: &PodSpec) -> impl Iterator<Item = (Kind, &Spec)> {
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    sidecars.map(|c| (Kind::Init, c)).chain(spec.containers.iter().map(|c| (Kind::Regular, c)))
}

impl Worker {
    /// Learns what containers were given that an earlier kubelet started, and forgets those that are gone.
    fn note_given(&mut self, spec: &PodSpec, observed: &ObservedPod) {
        self.given.retain(|id, _| observed.containers.iter().any(|container| container.id == *id));
        for (_, container) in lasting(spec) {
            let Some(found) = observed.container(&container.name).filter(|found| found.running()) else {
                continue;
            };
            if self.given.contains_key(&found.id) {
                continue;
            }
            let lists = [&self.status.container_statuses, &self.status.init_container_statuses];
            let reported = lists.into_iter().flatten().flatten().find(|status| {
                status.container_id.as_deref().is_some_and(|id| id.ends_with(&format!("//{}", found.id)))
            });
            let given = reported.and_then(|status| status.resources.clone());
            let given = given.or_else(|| container.resources.clone()).unwrap_or_default();
            self.given.insert(found.id.clone(), given);
        }
    }

    /// Gives running containers what their spec says by now; says what to do next if that was not all.
    pub(super) async fn resize(
        &mut self,
        desired: &Desired,
        spec: &PodSpec,
        observed: &ObservedPod,
    ) -> Option<Next> {
        self.note_given(spec, observed);
        let outdated: Vec<(Kind, &Spec, &Container, Change)> = lasting(spec)
            .filter_map(|(kind, container)| {
                let found = observed.container(&container.name).filter(|found| found.running())?;
                let change = change(container, self.given.get(&found.id));
                (change != Change::None).then_some((kind, container, found, change))
            })
            .collect();
        self.resize_pending = None;
        if outdated.is_empty() {
            return None;
        }
        let kubelet = self.kubelet.clone();
        let wanted = resources::pod_requests(spec);
        let before = resources::pod_requests(&self.as_given(spec, observed));
        // To ask for less is always granted.
        if wanted.cpu > before.cpu || wanted.memory > before.memory {
            let others = (kubelet.requested_beside)(&self.uid);
            self.resize_pending = refused(wanted, others, admission::allocatable(&kubelet));
        }
        if self.resize_pending.is_some() {
            return None;
        }
        let pod = &desired.pod;
        // Wider first and narrower last: a part is never larger than the whole.
        let narrow = resources::pod_limits(spec, kubelet.config.cpu_cfs_quota);
        let before = resources::pod_limits(&self.as_given(spec, observed), kubelet.config.cpu_cfs_quota);
        if let Err(next) = self.limit_pod(pod, spec, narrow.wider(before)) {
            return Some(next);
        }
        for (kind, container, found, change) in outdated {
            if change == Change::Restart {
                let ip = observed.ready_sandbox().and_then(|sandbox| sandbox.ips.first());
                let message = format!("Container {} resize requires restart", container.name);
                let killed = kill::container(
                    &kubelet,
                    pod,
                    found,
                    ip.map(String::as_str),
                    self.grace(desired),
                    Some(&message),
                );
                return Some(match killed.await {
                    Ok(()) => Next::Again,
                    Err(error) => {
                        self.sync_failed(pod, "FailedKillPod", &format!("error killing container: {error}"))
                    }
                });
            }
            let object = reference(pod, Some((kind, &container.name)));
            match self.update(pod, container, found).await {
                Ok(()) => {
                    self.given.insert(found.id.clone(), container.resources.clone().unwrap_or_default());
                    let message = format!("Container {} was resized", container.name);
                    kubelet.events.record(&object, Type::Normal, "ResizeCompleted", &message);
                }
                Err(message) => {
                    kubelet.events.record(&object, Type::Warning, "ResizeError", &message);
                    self.resize_pending = Some(Waiting { reason: "Deferred".to_owned(), message });
                }
            }
        }
        if self.resize_pending.is_none()
            && let Err(next) = self.limit_pod(pod, spec, narrow)
        {
            return Some(next);
        }
        None
    }

    /// The spec with what its containers have been given.
    fn as_given(&self, spec: &PodSpec, observed: &ObservedPod) -> PodSpec {
        let mut spec = spec.clone();
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            let given = observed.container(&container.name).and_then(|found| self.given.get(&found.id));
            if let Some(given) = given {
                container.resources = Some(given.clone());
            }
        }
        spec
    }

    async fn update(&self, pod: &Pod, container: &Spec, found: &Container) -> Result<(), String> {
        let kubelet = &self.kubelet;
        let limit = resources::limits(container.resources.as_ref()).memory;
        let before = resources::limits(self.given.get(&found.id)).memory;
        // Less than it uses would kill it.
        if limit > 0 && (before == 0 || limit < before) {
            let filter = cri::ContainerStatsFilter { id: found.id.clone(), ..Default::default() };
            let request = cri::ListContainerStatsRequest { filter: Some(filter) };
            let stats =
                kubelet.runtime.list_container_stats(request).await.map_err(|error| error.to_string())?;
            let used =
                stats.stats.into_iter().find_map(|stats| stats.memory?.usage_bytes).map(|bytes| bytes.value);
            let used = used
                .and_then(|used| i64::try_from(used).ok())
                .ok_or("the container's memory use is unknown")?;
            if used >= limit {
                return Err(format!(
                    "attempting to set memory limit of container {} ({limit}) below its usage ({used})",
                    container.name
                ));
            }
        }
        let linux = container::resources(pod, container, &container::Node::of(kubelet));
        let request = cri::UpdateContainerResourcesRequest {
            container_id: found.id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        kubelet
            .runtime
            .update_container_resources(request)
            .await
            .map(|_| ())
            .map_err(|error| error.to_string())
    }

    /// What containers were given, by id: what the status tells.
    pub(super) fn given(&self) -> &HashMap<String, ResourceRequirements> {
        &self.given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes() {
        let check = |given: serde_json::Value, policy: &str, expected: Change| {
            let spec: Spec = serde_json::from_value(serde_json::json!({
                "name": "c",
                "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1024Mi"}},
                "resizePolicy": [{"resourceName": "memory", "restartPolicy": policy}]}))
            .unwrap();
            let given: ResourceRequirements = serde_json::from_value(given).unwrap();
            assert_eq!(change(&spec, Some(&given)), expected);
        };
        let given = |cpu: &str, memory: &str| serde_json::json!({"requests": {"cpu": cpu, "memory": "1Gi"}, "limits": {"memory": memory}});
        check(given("1000m", "1Gi"), "NotRequired", Change::None);
        check(given("2", "1Gi"), "NotRequired", Change::InPlace);
        check(given("2", "1Gi"), "RestartContainer", Change::InPlace);
        check(given("1", "2Gi"), "NotRequired", Change::InPlace);
        check(given("1", "2Gi"), "RestartContainer", Change::Restart);
    }

    #[test]
    fn what_the_node_has_not() {
        let node = Amounts { cpu: 2000, memory: 1 << 30 };
        let check = |cpu: i64, memory: i64, expected: Option<(&str, &str)>| {
            let others = Amounts { cpu: 1000, memory: 0 };
            let found = refused(Amounts { cpu, memory }, others, node);
            let found = found.as_ref().map(|why| (why.reason.as_str(), why.message.as_str()));
            assert_eq!(found, expected, "{cpu} {memory}");
        };
        check(1000, 1 << 30, None);
        let never = "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000";
        check(3000, 0, Some(("Infeasible", never)));
        let now = "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000";
        check(1500, 0, Some(("Deferred", now)));
        let memory = "Node didn't have enough capacity: memory, requested: 1073741825, capacity: 1073741824";
        check(1500, (1 << 30) + 1, Some(("Infeasible", memory)));
    }
}
