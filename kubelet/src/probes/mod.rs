//! Liveness, readiness and startup probes: one task per probe of a running container.
//!
//! A task only records verdicts and wakes its pod; what follows from them is [`crate::pod::plan`]'s to say. A verdict
//! belongs to a container id, so a restarted container starts with a clean slate.

pub mod exec;
pub mod grpc;
pub mod http;
pub mod tcp;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Container as Spec, Pod, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
};

use crate::{
    context::Kubelet,
    events::Type,
    pod::{
        plan::{Kind, Verdicts, is_sidecar},
        reference,
    },
    runtime::observe::{Container, ObservedPod, State, timestamp},
    status::compute::Probed,
};

/// Which probe it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Liveness,
    Readiness,
    Startup,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
            Self::Startup => "Startup",
        }
    }
}

/// What is known of one container.
#[derive(Debug, Clone, Default)]
struct Verdict {
    started: bool,
    ready: bool,
    failed: Option<String>,
}

struct Tracked {
    verdict: Arc<Mutex<Verdict>>,
    tasks: Vec<(Role, AbortHandle)>,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|(_, task)| task.abort());
    }
}

/// The probes of one pod, by container id.
#[derive(Default)]
pub struct Probes {
    tracked: HashMap<String, Tracked>,
}

/// What a probe task works on.
struct Target {
    kubelet: Arc<Kubelet>,
    pod: Arc<Pod>,
    kind: Kind,
    spec: Spec,
    id: String,
    ip: String,
    started_at: Timestamp,
    verdict: Arc<Mutex<Verdict>>,
    started: watch::Sender<bool>,
    wake: Arc<Notify>,
}

impl Probes {
    /// Starts probes of new containers and ends those of containers that stopped. `was_ready`: ids of containers that
    /// were ready before this kubelet started.
    pub fn reconcile(
        &mut self,
        kubelet: &Arc<Kubelet>,
        pod: &Arc<Pod>,
        observed: &ObservedPod,
        wake: &Arc<Notify>,
        was_ready: &HashSet<String>,
    ) {
        let Some(spec) = &pod.spec else { return };
        let probed = spec
            .containers
            .iter()
            .map(|container| (Kind::Regular, container))
            .chain(spec.init_containers.iter().flatten().filter(|c| is_sidecar(c)).map(|c| (Kind::Init, c)))
            .filter(|(_, c)| {
                c.liveness_probe.is_some() || c.readiness_probe.is_some() || c.startup_probe.is_some()
            });
        let running: HashMap<&str, &Container> =
            observed.containers.iter().filter(|c| c.running()).map(|c| (c.id.as_str(), c)).collect();
        self.tracked.retain(|id, _| running.contains_key(id.as_str()));
        for (kind, container) in probed {
            let Some(found) = observed.container(&container.name).filter(|found| found.running()) else {
                continue;
            };
            if self.tracked.contains_key(&found.id) {
                continue;
            }
            let host_network = spec.host_network == Some(true);
            let ip = if host_network {
                kubelet.host_ips().first().cloned()
            } else {
                observed.ready_sandbox().and_then(|sandbox| sandbox.ips.first()).cloned()
            };
            let adopted = was_ready.contains(&found.id);
            let verdict = Arc::new(Mutex::new(Verdict {
                started: adopted || container.startup_probe.is_none(),
                ready: adopted || container.readiness_probe.is_none(),
                failed: None,
            }));
            let target = Arc::new(Target {
                kubelet: kubelet.clone(),
                pod: pod.clone(),
                kind,
                spec: container.clone(),
                id: found.id.clone(),
                ip: ip.unwrap_or_default(),
                started_at: match found.state {
                    State::Running { started_at } => timestamp(started_at).unwrap_or_else(Timestamp::now),
                    _ => Timestamp::now(),
                },
                started: watch::Sender::new(verdict.lock().started),
                verdict: verdict.clone(),
                wake: wake.clone(),
            });
            let probes = [
                (Role::Startup, container.startup_probe.clone().filter(|_| !adopted)),
                (Role::Liveness, container.liveness_probe.clone()),
                (Role::Readiness, container.readiness_probe.clone()),
            ];
            let tasks = probes
                .into_iter()
                .filter_map(|(role, probe)| Some((role, probe?)))
                .map(|(role, probe)| (role, tokio::spawn(run(target.clone(), role, probe)).abort_handle()))
                .collect();
            self.tracked.insert(found.id.clone(), Tracked { verdict, tasks });
        }
    }

    /// A pod that ends is not restarted any more, but still says whether it is ready.
    pub fn stop_restarts(&mut self) {
        for (role, task) in self.tracked.values().flat_map(|tracked| &tracked.tasks) {
            if *role != Role::Readiness {
                task.abort();
            }
        }
    }

    /// Nothing of the pod is left to be asked.
    pub fn stop(&mut self) {
        self.tracked.clear();
    }

    /// What the status says of a running container that is probed.
    pub fn probed(&self, id: &str) -> Option<Probed> {
        let verdict = self.tracked.get(id)?.verdict.lock();
        Some(Probed { started: verdict.started, ready: verdict.started && verdict.ready })
    }

    /// What the plan needs to know.
    pub fn verdicts(&self, observed: &ObservedPod) -> Verdicts {
        let mut verdicts = Verdicts::default();
        for container in observed.containers.iter().filter(|container| container.running()) {
            match self.tracked.get(&container.id) {
                None => {
                    verdicts.started.insert(container.id.clone());
                }
                Some(tracked) => {
                    let verdict = tracked.verdict.lock();
                    if verdict.started {
                        verdicts.started.insert(container.id.clone());
                    }
                    if let Some(message) = &verdict.failed {
                        verdicts.failed.insert(container.id.clone(), message.clone());
                    }
                }
            }
        }
        verdicts
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(
        value.and_then(|value| u64::try_from(value).ok()).filter(|&v| v > 0).unwrap_or(default),
    )
}

async fn run(target: Arc<Target>, role: Role, probe: Probe) {
    // Liveness and readiness wait for the startup probe.
    if role != Role::Startup {
        let mut started = target.started.subscribe();
        if started.wait_for(|started| *started).await.is_err() {
            return;
        }
    }
    let delay =
        Duration::from_secs(probe.initial_delay_seconds.and_then(|d| u64::try_from(d).ok()).unwrap_or(0));
    let age = Duration::try_from(Timestamp::now().duration_since(target.started_at)).unwrap_or_default();
    tokio::time::sleep(delay.saturating_sub(age)).await;
    let mut ticks = tokio::time::interval(seconds(probe.period_seconds, 10));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let threshold = |value: Option<i32>, default: u32| {
        value.and_then(|v| u32::try_from(v).ok()).unwrap_or(default).max(1)
    };
    let successes_needed = threshold(probe.success_threshold, 1);
    let failures_needed = threshold(probe.failure_threshold, 3);
    let (mut successes, mut failures) = (0, 0);
    loop {
        ticks.tick().await;
        match once(&target, role, &probe).await {
            Ok(()) => (successes, failures) = (successes + 1, 0),
            Err(message) => {
                (successes, failures) = (0, failures + 1);
                let object = reference(&target.pod, Some((target.kind, &target.spec.name)));
                let message = format!("{} probe failed: {message}", role.name());
                target.kubelet.events.record(&object, Type::Warning, "Unhealthy", &message);
            }
        }
        if apply(&target, role, successes >= successes_needed, failures >= failures_needed) {
            return;
        }
    }
}

/// Records a verdict once its threshold is reached; true when this probe has said all it has to say.
fn apply(target: &Target, role: Role, succeeded: bool, failed: bool) -> bool {
    let mut verdict = target.verdict.lock();
    let mut changed = false;
    match role {
        Role::Readiness => {
            let ready = if succeeded {
                true
            } else if failed {
                false
            } else {
                verdict.ready
            };
            changed = ready != verdict.ready;
            verdict.ready = ready;
        }
        Role::Startup if succeeded => {
            verdict.started = true;
            changed = true;
            target.started.send_replace(true);
        }
        Role::Startup | Role::Liveness if failed => {
            let name = role.name().to_lowercase();
            verdict.failed = Some(format!("failed {name} probe, will be restarted"));
            changed = true;
        }
        _ => {}
    }
    drop(verdict);
    if changed {
        target.wake.notify_one();
    }
    changed && role != Role::Readiness
}

async fn once(target: &Target, role: Role, probe: &Probe) -> Result<(), String> {
    let limit = seconds(probe.timeout_seconds, 1);
    let result = ask(target, probe, limit).await;
    let metadata = &target.pod.metadata;
    let pod =
        (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default());
    let outcome = if result.is_ok() { "successful" } else { "failed" };
    target.kubelet.metrics.probed(role.name(), outcome, &target.spec.name, pod);
    result
}

async fn ask(target: &Target, probe: &Probe, limit: Duration) -> Result<(), String> {
    if let Some(command) = &probe.exec {
        let command = command.command.clone().unwrap_or_default();
        return exec::probe(&target.kubelet.runtime, &target.id, command, limit).await;
    }
    if let Some(get) = &probe.http_get {
        let request = http::Request::of(get, &target.spec, &target.ip, "kube-probe")?;
        return http::probe(&request, limit).await;
    }
    if let Some(socket) = &probe.tcp_socket {
        let host = socket.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&target.ip);
        return tcp::probe(host, port(&socket.port, &target.spec)?, limit).await;
    }
    if let Some(check) = &probe.grpc {
        let port = u16::try_from(check.port).map_err(|_| format!("invalid port {}", check.port))?;
        return grpc::probe(&target.ip, port, check.service.as_deref().unwrap_or_default(), limit).await;
    }
    Err("missing probe handler".to_owned())
}

/// A port by number or by the container's name for it.
///
/// # Errors
/// When the container has no port of that name, or the number is none.
pub fn port(port: &IntOrString, container: &Spec) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_ref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok()),
    };
    number.and_then(|number| u16::try_from(number).ok()).filter(|&number| number > 0).ok_or_else(
        || match port {
            IntOrString::Int(number) => format!("invalid port number: {number}"),
            IntOrString::String(name) => {
                format!("couldn't find port: {name:?} in container {:?}", container.name)
            }
        },
    )
}

/// Go's words for a connection that failed.
pub fn dial_error(address: &str, error: &std::io::Error) -> String {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
    let what = match error.kind() {
        ConnectionRefused => "connect: connection refused".to_owned(),
        HostUnreachable => "connect: no route to host".to_owned(),
        NetworkUnreachable => "connect: network is unreachable".to_owned(),
        TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {address}: {what}")
}

/// `host:port`, with brackets around IPv6.
pub fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
