//! Decides what to do about one pod: desired spec + what the runtime reports → actions.
//!
//! Pure: no clock, no I/O. The same rules as upstream's `computePodActions`; back-off and hooks belong to the worker.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container as Spec, Pod, PodSpec, PodStatus};

use crate::runtime::{
    names,
    observe::{Container, ObservedPod, State},
};

/// Probe verdicts by container id; a container without one is fine.
#[derive(Debug, Clone, Default)]
pub struct Verdicts {
    /// Container id → message of the failed liveness or startup probe.
    pub failed: HashMap<String, String>,
    /// Ids of containers whose startup probe has passed or which have none.
    pub started: std::collections::HashSet<String>,
}

/// Which of the pod's lists a container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Init,
    Regular,
    Ephemeral,
}

/// A container of the spec: list and index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    pub kind: Kind,
    pub index: usize,
}

/// A container to stop, with the sentence of its Killing event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    pub id: String,
    pub name: String,
    pub message: String,
    /// Upstream's reason: a failed startup or liveness probe may have its own grace period.
    pub cause: KillCause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillCause {
    Probe,
    Changed,
    Unknown,
}

/// What to do now. After it is done, or when something changes, plan again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Stop everything first: the sandbox is gone or must be another one.
    pub kill_pod: bool,
    /// Make a sandbox with this attempt number.
    pub create_sandbox: Option<u32>,
    pub kill: Vec<Kill>,
    pub start: Vec<Slot>,
}

/// Restart policy of the pod as a word that can be matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub fn of(spec: &PodSpec) -> Self {
        match spec.restart_policy.as_deref() {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    /// The container's own policy where it has one.
    pub fn of_container(self, container: &Spec) -> Self {
        match container.restart_policy.as_deref() {
            Some("Always") => Self::Always,
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never,
            _ => self,
        }
    }

    pub fn restarts_after(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// Whether an init container keeps running beside the others (KEP-753).
pub fn is_sidecar(container: &Spec) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The spec of a slot.
pub fn container_of(spec: &PodSpec, slot: Slot) -> Option<std::borrow::Cow<'_, Spec>> {
    use std::borrow::Cow::{Borrowed, Owned};
    match slot.kind {
        Kind::Init => spec.init_containers.as_ref()?.get(slot.index).map(Borrowed),
        Kind::Regular => spec.containers.get(slot.index).map(Borrowed),
        Kind::Ephemeral => {
            spec.ephemeral_containers.as_ref()?.get(slot.index).map(|c| Owned(from_ephemeral(c)))
        }
    }
}

/// An ephemeral container as if it were a regular one: it has all of its fields.
pub fn from_ephemeral(container: &k8s_openapi::api::core::v1::EphemeralContainer) -> Spec {
    let c = container.clone();
    Spec {
        args: c.args,
        command: c.command,
        env: c.env,
        env_from: c.env_from,
        image: c.image,
        image_pull_policy: c.image_pull_policy,
        name: c.name,
        security_context: c.security_context,
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        termination_message_path: c.termination_message_path,
        termination_message_policy: c.termination_message_policy,
        tty: c.tty,
        volume_devices: c.volume_devices,
        volume_mounts: c.volume_mounts,
        working_dir: c.working_dir,
        ..Spec::default()
    }
}

/// What brings the observed pod nearer to its spec; `known` is its last status, which outlives the runtime's records.
pub fn plan(pod: &Pod, observed: &ObservedPod, known: &PodStatus, verdicts: &Verdicts) -> Plan {
    let Some(spec) = &pod.spec else { return Plan::default() };
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let policy = RestartPolicy::of(spec);

    let Some(sandbox) = observed.ready_sandbox() else {
        return without_sandbox(spec, observed, policy);
    };
    let mut plan = Plan::default();
    // A sandbox that is ready beside the newest one is a leftover: start from nothing.
    if observed.sandboxes.iter().filter(|sandbox| sandbox.ready).count() > 1 {
        plan.kill_pod = true;
        plan.create_sandbox = Some(next_attempt(observed));
        plan.start = first_containers(spec);
        return plan;
    }
    ephemeral(spec, observed, known, &mut plan);
    let current = |name: &str| observed.container(name).filter(|c| c.sandbox_id == sandbox.id || c.may_run());
    let any_regular_ran = spec.containers.iter().any(|container| current(&container.name).is_some());
    let initialized = init_containers(spec, inits, observed, verdicts, any_regular_ran, &mut plan);
    if !initialized {
        return plan;
    }
    let mut keep = 0;
    for (index, container) in spec.containers.iter().enumerate() {
        let slot = Slot { kind: Kind::Regular, index };
        match decide(container, observed.container(&container.name), policy.of_container(container), verdicts)
        {
            Decision::Start => plan.start.push(slot),
            Decision::Leave => {}
            Decision::Keep => keep += 1,
            Decision::Restart(kill, again) => {
                plan.kill.push(kill);
                if again {
                    plan.start.push(slot);
                    keep += 1;
                }
            }
        }
    }
    let regular_starts = plan.start.iter().any(|slot| slot.kind == Kind::Regular);
    if keep == 0 && !regular_starts {
        // Everything regular is over: sidecars end with the pod, and the sandbox with them.
        plan.kill_pod = true;
        plan.start.clear();
    }
    plan
}

enum Decision {
    Start,
    /// Over for good, or not to be touched.
    Leave,
    Keep,
    Restart(Kill, bool),
}

fn decide(
    container: &Spec,
    found: Option<&Container>,
    policy: RestartPolicy,
    verdicts: &Verdicts,
) -> Decision {
    let Some(found) = found else { return Decision::Start };
    match &found.state {
        // Created but never started: the kubelet was killed between the two calls.
        State::Created => {
            Decision::Restart(kill(found, KillCause::Unknown, "was never started".to_owned()), true)
        }
        State::Unknown => {
            let message = "is in unknown state, try killing it before restart".to_owned();
            Decision::Restart(kill(found, KillCause::Unknown, message), true)
        }
        State::Exited { exit_code, .. } if policy.restarts_after(*exit_code) => Decision::Start,
        State::Exited { .. } => Decision::Leave,
        State::Running { .. } => {
            if found.hash != names::container_hash(container) {
                let message = "definition changed, will be restarted".to_owned();
                return Decision::Restart(kill(found, KillCause::Changed, message), true);
            }
            match verdicts.failed.get(&found.id) {
                // The message says itself which probe failed.
                Some(message) => Decision::Restart(
                    kill(found, KillCause::Probe, message.clone()),
                    policy != RestartPolicy::Never,
                ),
                None => Decision::Keep,
            }
        }
    }
}

fn kill(container: &Container, cause: KillCause, message: String) -> Kill {
    let message = match cause {
        KillCause::Probe => format!("Container {} {message}", container.name),
        _ => format!("Container {} {message}", container.name),
    };
    Kill { id: container.id.clone(), name: container.name.clone(), message, cause }
}

fn next_attempt(observed: &ObservedPod) -> u32 {
    observed.sandboxes.first().map_or(0, |sandbox| sandbox.attempt + 1)
}

fn first_containers(spec: &PodSpec) -> Vec<Slot> {
    match spec.init_containers.as_deref() {
        Some([_, ..]) => vec![Slot { kind: Kind::Init, index: 0 }],
        _ => (0..spec.containers.len()).map(|index| Slot { kind: Kind::Regular, index }).collect(),
    }
}

/// No usable sandbox: make one, unless nothing would run in it.
fn without_sandbox(spec: &PodSpec, observed: &ObservedPod, policy: RestartPolicy) -> Plan {
    let anything_before = !observed.sandboxes.is_empty();
    // Containers that ended and are not to run again are not started in a new sandbox.
    let wanted: Vec<Slot> = spec
        .containers
        .iter()
        .enumerate()
        .filter(|(_, container)| match observed.container(&container.name) {
            Some(found) => match found.exit_code() {
                Some(code) => policy.of_container(container).restarts_after(code),
                None => true,
            },
            None => true,
        })
        .map(|(index, _)| Slot { kind: Kind::Regular, index })
        .collect();
    let mut plan = Plan { kill_pod: anything_before, ..Plan::default() };
    if wanted.is_empty() {
        return plan;
    }
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    // An init container that failed for good fails the pod: no new sandbox for it.
    let failed = inits.iter().filter(|container| !is_sidecar(container)).any(|container| {
        let code = observed.container(&container.name).and_then(Container::exit_code);
        code.is_some_and(|code| code != 0) && policy == RestartPolicy::Never
    });
    if failed {
        return plan;
    }
    plan.create_sandbox = Some(next_attempt(observed));
    plan.start = if inits.is_empty() { wanted } else { vec![Slot { kind: Kind::Init, index: 0 }] };
    plan
}

/// Plans init containers; true once the regular ones may run.
///
/// In order; a sidecar counts as done once it has started, and is restarted at any time after that.
fn init_containers(
    spec: &PodSpec,
    inits: &[Spec],
    observed: &ObservedPod,
    verdicts: &Verdicts,
    any_regular_ran: bool,
    plan: &mut Plan,
) -> bool {
    let policy = RestartPolicy::of(spec);
    let sandbox = observed.ready_sandbox().map(|sandbox| sandbox.id.as_str());
    let mut initialized = true;
    for (index, container) in inits.iter().enumerate() {
        let slot = Slot { kind: Kind::Init, index };
        let found = observed.container(&container.name);
        if is_sidecar(container) {
            match decide(container, found, RestartPolicy::Always, verdicts) {
                Decision::Keep => {
                    let id = found.map_or("", |found| found.id.as_str());
                    if !any_regular_ran && !verdicts.started.contains(id) {
                        return false;
                    }
                }
                Decision::Start => {
                    plan.start.push(slot);
                    initialized = false;
                }
                Decision::Restart(kill, _) => {
                    plan.kill.push(kill);
                    plan.start.push(slot);
                    initialized = false;
                }
                Decision::Leave => {}
            }
            if !initialized && !any_regular_ran {
                return false;
            }
            continue;
        }
        if any_regular_ran {
            continue;
        }
        // Init containers run anew in a new sandbox.
        let found = found.filter(|found| Some(found.sandbox_id.as_str()) == sandbox);
        match found.map(|found| (&found.state, found)) {
            None => {
                plan.start.push(slot);
                return false;
            }
            Some((State::Exited { exit_code: 0, .. }, _)) => {}
            Some((State::Exited { .. }, _)) => {
                match policy.of_container(container) {
                    // Failed for good: the pod is over.
                    RestartPolicy::Never => {
                        plan.start.clear();
                        plan.kill_pod = true;
                    }
                    _ => plan.start.push(slot),
                }
                return false;
            }
            Some((State::Running { .. }, found)) => {
                if let Some(message) = verdicts.failed.get(&found.id) {
                    plan.kill.push(kill(found, KillCause::Probe, message.clone()));
                }
                return false;
            }
            Some((State::Created | State::Unknown, found)) => {
                let message = "is in unknown state, try killing it before restart".to_owned();
                plan.kill.push(kill(found, KillCause::Unknown, message));
                plan.start.push(slot);
                return false;
            }
        }
    }
    initialized || any_regular_ran
}

/// Ephemeral containers start once and never again, also when the runtime has forgotten them.
fn ephemeral(spec: &PodSpec, observed: &ObservedPod, known: &PodStatus, plan: &mut Plan) {
    let ran = |name: &str| {
        let statuses = known.ephemeral_container_statuses.as_deref().unwrap_or_default();
        let state = statuses.iter().find(|status| status.name == name).and_then(|found| found.state.as_ref());
        state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    for (index, container) in spec.ephemeral_containers.iter().flatten().enumerate() {
        if observed.container(&container.name).is_none() && !ran(&container.name) {
            plan.start.push(Slot { kind: Kind::Ephemeral, index });
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
