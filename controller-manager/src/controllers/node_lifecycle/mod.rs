//! Notices nodes that have gone silent, marks them and their pods, and taints nodes by their conditions.
//!
//! A heartbeat is a renewed Lease or a changed status. The taints that evict are given at a bounded rate for each
//! zone, and not at all when no node is ready; the taint-eviction controller acts on them.

pub mod plan;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_client::cache::{Cache, Event};
use keelson_client::events::{Recorder, Type};
use keelson_objects::times;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};

use self::plan::{Eviction, Health, Readiness};
use crate::context::{Context, Settings};
use crate::informers::{BY_NODE, LeaseInfo};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::pod_control::{is_code, reference};

struct Lifecycle {
    client: Client,
    recorder: Recorder,
    nodes: Arc<Cache<NodeInfo>>,
    leases: Arc<Cache<LeaseInfo>>,
    pods: Arc<Cache<PodInfo>>,
    settings: Settings,
}

#[derive(Default)]
struct State {
    health: HashMap<String, Health>,
    /// Nodes whose pods must be marked as not ready.
    to_mark: HashSet<String>,
    last: HashMap<String, Readiness>,
    /// When the next node of a zone may be given up.
    next_eviction: HashMap<String, Instant>,
}

pub async fn run(context: Context) {
    let client = context.client("node-controller");
    let controller = Lifecycle {
        recorder: context.recorder(&client, "node-controller"),
        client,
        nodes: context.informers().nodes(),
        leases: context.informers().leases(),
        pods: context.informers().pods(),
        settings: context.settings().clone(),
    };
    controller.nodes.wait_synced().await;
    controller.leases.wait_synced().await;
    controller.pods.wait_synced().await;
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    controller.nodes.subscribe(move |event| {
        let matters = match event {
            Event::Applied { old: Some(old), new } => {
                let statuses = |node: &NodeInfo| {
                    node.conditions.iter().map(|c| (c.kind.clone(), c.status.clone())).collect::<Vec<_>>()
                };
                old.unschedulable != new.unschedulable
                    || old.taints != new.taints
                    || statuses(old) != statuses(new)
            }
            _ => true,
        };
        if matters {
            notify.notify_one();
        }
    });
    let mut state = State::default();
    let mut period = tokio::time::interval(controller.settings.node_monitor_period);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = period.tick() => {}
            () = changed.notified() => {}
        }
        controller.look(&mut state).await;
    }
}

impl Lifecycle {
    fn renewed(&self, node: &str) -> Option<Timestamp> {
        self.leases.get("kube-node-lease", node)?.renewed
    }

    async fn look(&self, state: &mut State) {
        let nodes = self.nodes.list();
        self.forget_gone(state, &nodes);
        let zones = plan::zones(nodes.iter().map(AsRef::as_ref));
        let all_lost = !nodes.is_empty() && zones.values().all(|(ready, _)| *ready == 0);
        for node in &nodes {
            if let Err(error) = self.look_at(state, node, all_lost, &zones).await
                && !is_code(&error, 404)
                && !is_code(&error, 409)
            {
                // The next period tries again.
                tracing::warn!(node = node.meta.name, "cannot update the node: {error}");
            }
        }
        let to_mark: Vec<String> = state.to_mark.iter().cloned().collect();
        for name in to_mark {
            if self.mark_pods(&name).await {
                state.to_mark.remove(&name);
            }
        }
    }

    fn forget_gone(&self, state: &mut State, nodes: &[Arc<NodeInfo>]) {
        let present: HashSet<&str> = nodes.iter().map(|node| node.meta.name.as_str()).collect();
        state.health.retain(|name, _| present.contains(name.as_str()));
        state.last.retain(|name, _| present.contains(name.as_str()));
        state.to_mark.retain(|name| present.contains(name.as_str()));
    }

    async fn look_at(
        &self,
        state: &mut State,
        node: &Arc<NodeInfo>,
        all_lost: bool,
        zones: &HashMap<String, (usize, usize)>,
    ) -> Result<(), kube::Error> {
        let (name, now) = (&node.meta.name, Instant::now());
        let api: Api<Node> = Api::all(self.client.clone());
        let renewed = self.renewed(name);
        let about = || {
            // Upstream's events about nodes carry the name as uid.
            let mut about = reference("v1", "Node", &node.meta);
            about.uid = Some(name.clone());
            about
        };
        let health = state.health.entry(name.clone()).or_insert_with(|| {
            let text = format!("Node {name} event: Registered Node {name} in Controller");
            self.recorder.event(&about(), Type::Normal, "RegisteredNode", text);
            Health::new(node, renewed, now)
        });
        health.observe(node, renewed, now);
        let settings = &self.settings;
        let grace = (settings.node_monitor_grace_period, settings.node_startup_grace_period);
        if health.is_silent(node, grace.0, grace.1, now) {
            let conditions = plan::unknown_conditions(node, Timestamp::now());
            if !conditions.is_empty() {
                tracing::info!(node = name, "The node has gone silent");
                let patch = json!({"status": {"conditions": conditions}});
                api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
                // The watch brings the node with these conditions; what follows from them comes then.
                return Ok(());
            }
        }
        let readiness = plan::readiness(node);
        let before = state.last.insert(name.clone(), readiness);
        match (before, readiness) {
            (Some(Readiness::Ready), Readiness::NotReady | Readiness::Unknown) => {
                let text = format!("Node {name} status is now: NodeNotReady");
                self.recorder.event(&about(), Type::Normal, "NodeNotReady", text);
                state.to_mark.insert(name.clone());
            }
            // After a restart it is not known whether the pods were marked.
            (None, Readiness::NotReady | Readiness::Unknown) if node.condition("Ready").is_some() => {
                state.to_mark.insert(name.clone());
            }
            (_, Readiness::Ready) => {
                state.to_mark.remove(name);
            }
            _ => {}
        }
        let eviction = self.eviction(state, node, all_lost, zones, now);
        if let Some(taints) = plan::taints(node, eviction, Timestamp::now()) {
            let patch = json!({"metadata": {"resourceVersion": node.meta.resource_version}, "spec": {"taints": taints}});
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        Ok(())
    }

    fn eviction(
        &self,
        state: &mut State,
        node: &NodeInfo,
        all_lost: bool,
        zones: &HashMap<String, (usize, usize)>,
        now: Instant,
    ) -> Eviction {
        if all_lost {
            return Eviction::Clear;
        }
        if !plan::needs_eviction_taint(node) || node.condition("Ready").is_none() {
            return Eviction::Hold;
        }
        let zone = plan::zone(node);
        let (ready, not_ready) = zones.get(zone).copied().unwrap_or_default();
        let rate = plan::eviction_rate(ready, not_ready);
        let may = rate > 0.0 && state.next_eviction.get(zone).is_none_or(|at| *at <= now);
        if !may {
            return Eviction::Hold;
        }
        let next = now + std::time::Duration::from_secs_f64(1.0 / rate);
        state.next_eviction.insert(zone.to_owned(), next);
        Eviction::Mark
    }

    /// Marks the pods of a lost node as not ready, so that no traffic goes there; whether all are marked.
    async fn mark_pods(&self, node: &str) -> bool {
        let mut done = true;
        for pod in self.pods.indexed(BY_NODE, node).iter().filter(|pod| pod.is_ready()) {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.meta.namespace);
            let now = times::format(Timestamp::now());
            let patch = json!({"metadata": {"uid": pod.meta.uid}, "status": {"conditions": [
                {"type": "Ready", "status": "False", "lastTransitionTime": now},
            ]}});
            match api.patch_status(&pod.meta.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {
                    let about = reference("v1", "Pod", &pod.meta);
                    self.recorder.event(&about, Type::Warning, "NodeNotReady", "Node is not ready");
                }
                Err(error) if is_code(&error, 404) => {}
                Err(error) => {
                    tracing::warn!(pod = %pod.meta.key(), "cannot mark the pod as not ready: {error}");
                    done = false;
                }
            }
        }
        done
    }
}
