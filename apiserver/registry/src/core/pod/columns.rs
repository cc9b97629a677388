//! What `kubectl get pods` shows: how many containers are ready, one word for where the pod stands, and restarts.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    columns::{self, AGE, NAME, text, wide},
    fields::Fields,
    kind::Column,
};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    text("Ready", "Containers that are ready, of all that the pod runs."),
    text("Status", "One word for where the pod and its containers stand."),
    text("Restarts", "How often its containers were restarted, and when last."),
    AGE,
    wide("IP", "Address of the pod."),
    wide("Node", "Node the pod is assigned to."),
    wide("Nominated Node", "Node that preemption is making room on."),
    wide("Readiness Gates", "Readiness gates that are open, of all."),
];

/// Restarts counted so far, and the end of the latest run before a restart.
#[derive(Clone, Default)]
struct Restarts {
    count: i64,
    latest: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += status.int("restartCount").unwrap_or(0);
        let finished = status.at("lastState").at("terminated").text("finishedAt").parse().ok();
        self.latest = self.latest.max(finished);
    }

    fn text(&self, now: Timestamp) -> String {
        match self.latest {
            Some(latest) if self.count != 0 => {
                let ago = columns::human_duration(columns::seconds_between(latest, now));
                format!("{} ({ago} ago)", self.count)
            }
            _ => self.count.to_string(),
        }
    }
}

/// Why a container has ended, in a word.
fn end(terminated: &Value) -> String {
    match (terminated.text("reason"), terminated.int("signal").unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated.int("exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

struct Standing {
    word: String,
    ready: usize,
    total: usize,
    restarts: Restarts,
}

/// The init container that holds the pod up, if one does, gives the word.
fn initialisation(pod: &Value, standing: &mut Standing, sidecars: &mut Restarts) -> bool {
    let spec_containers = pod.at("spec").list("initContainers");
    for (index, status) in pod.at("status").list("initContainerStatuses").iter().enumerate() {
        let is_sidecar = spec_containers.iter().any(|container| {
            container.text("name") == status.text("name") && container.text("restartPolicy") == "Always"
        });
        standing.restarts.add(status);
        if is_sidecar {
            sidecars.add(status);
        }
        let (terminated, waiting) = (status.at("state").at("terminated"), status.at("state").at("waiting"));
        if !terminated.is_null() && terminated.int("exitCode").unwrap_or(0) == 0 {
            continue;
        }
        if is_sidecar && status.flag("started") {
            standing.ready += usize::from(status.flag("ready"));
            continue;
        }
        standing.word = if !terminated.is_null() {
            format!("Init:{}", end(terminated))
        } else if !matches!(waiting.text("reason"), "" | "PodInitializing") {
            format!("Init:{}", waiting.text("reason"))
        } else {
            format!("Init:{index}/{}", spec_containers.len())
        };
        return true;
    }
    false
}

fn has_condition(status: &Value, kind: &str) -> bool {
    status.list("conditions").iter().any(|c| c.text("type") == kind && c.text("status") == "True")
}

fn running(pod: &Value, standing: &mut Standing, sidecars: Restarts) {
    let status = pod.at("status");
    standing.restarts = sidecars;
    let mut one_runs = false;
    for container in status.list("containerStatuses").iter().rev() {
        standing.restarts.add(container);
        let state = container.at("state");
        let (waiting, terminated) = (state.at("waiting"), state.at("terminated"));
        if !waiting.text("reason").is_empty() {
            standing.word = waiting.text("reason").to_owned();
        } else if !terminated.is_null() {
            standing.word = end(terminated);
        } else if container.flag("ready") && state.has("running") {
            one_runs = true;
            standing.ready += 1;
        }
    }
    if standing.word == "Completed" && one_runs {
        let word = if has_condition(status, "Ready") { "Running" } else { "NotReady" };
        standing.word = word.to_owned();
    }
}

fn standing(pod: &Value) -> Standing {
    let (spec, status) = (pod.at("spec"), pod.at("status"));
    let sidecar_count =
        spec.list("initContainers").iter().filter(|c| c.text("restartPolicy") == "Always").count();
    let phase = status.text("phase");
    let gated = status
        .list("conditions")
        .iter()
        .any(|c| c.text("type") == "PodScheduled" && c.text("reason") == "SchedulingGated");
    let word = match status.text("reason") {
        _ if gated => "SchedulingGated",
        "" => phase,
        reason => reason,
    };
    let mut standing = Standing {
        word: word.to_owned(),
        ready: 0,
        total: spec.list("containers").len() + sidecar_count,
        restarts: Restarts::default(),
    };
    let mut sidecars = Restarts::default();
    let initialising = initialisation(pod, &mut standing, &mut sidecars);
    if !initialising || has_condition(status, "Initialized") {
        running(pod, &mut standing, sidecars);
    }
    if pod.at("metadata").has("deletionTimestamp") {
        if status.text("reason") == "NodeLost" {
            standing.word = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            standing.word = "Terminating".to_owned();
        }
    }
    standing
}

pub(super) fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (pod.at("spec"), pod.at("status"));
    let standing = standing(pod);
    let gates = spec.list("readinessGates");
    let open = gates.iter().filter(|gate| has_condition(status, gate.text("conditionType"))).count();
    let gates = if gates.is_empty() { String::new() } else { format!("{open}/{}", gates.len()) };
    let address = status.list("podIPs").first().map_or("", |address| address.text("ip"));
    let mut row = vec![
        columns::name(pod),
        format!("{}/{}", standing.ready, standing.total).into(),
        standing.word.into(),
        standing.restarts.text(now).into(),
        columns::age(pod, now),
    ];
    row.extend(
        [address, spec.text("nodeName"), status.text("nominatedNodeName"), &gates]
            .map(|text| Value::from(columns::or_none(text.to_owned()))),
    );
    row
}

/// A pod that has come to its end carries a condition on its row.
pub(super) fn row_conditions(pod: &Value) -> Option<Value> {
    let (reason, message) = match pod.at("status").text("phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: Value, status: Value, metadata: Value, expected: [&str; 3]) {
        let pod = json!({"metadata": metadata, "spec": spec, "status": status});
        let row = row(&pod, "2024-01-01T01:00:00Z".parse().unwrap());
        assert_eq!(row.len(), COLUMNS.len());
        assert_eq!([row[1].as_str(), row[2].as_str(), row[3].as_str()], expected.map(Some), "{pod}");
    }

    #[test]
    fn words() {
        let one = json!({"containers": [{"name": "a"}]});
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]});
        let run = json!({"name": "a", "ready": true, "state": {"running": {}}});
        check(one.clone(), json!({"phase": "Pending"}), json!({}), ["0/1", "Pending", "0"]);
        check(
            one.clone(),
            json!({"phase": "Running", "containerStatuses": [run]}),
            json!({}),
            ["1/1", "Running", "0"],
        );
        check(
            one.clone(),
            json!({"phase": "Running", "containerStatuses": [run]}),
            json!({"deletionTimestamp": "2024-01-01T00:00:00Z"}),
            ["1/1", "Terminating", "0"],
        );
        check(
            one.clone(),
            json!({"phase": "Running", "containerStatuses": [{"restartCount": 2,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"finishedAt": "2024-01-01T00:55:00Z"}}}]}),
            json!({}),
            ["0/1", "CrashLoopBackOff", "2 (5m ago)"],
        );
        check(
            two.clone(),
            json!({"phase": "Pending", "initContainerStatuses": [{"state": {"running": {}}}]}),
            json!({}),
            ["0/2", "Init:0/1", "0"],
        );
        check(
            two.clone(),
            json!({"phase": "Pending", "initContainerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
            json!({}),
            ["0/2", "Init:ExitCode:3", "0"],
        );
        check(
            two.clone(),
            json!({"phase": "Running", "initContainerStatuses": [{"state": {"terminated": {"exitCode": 0}}}],
                "containerStatuses": [run, {"state": {"terminated": {"reason": "Completed"}}}]}),
            json!({}),
            ["1/2", "NotReady", "0"],
        );
        check(
            one.clone(),
            json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"reason": "Completed"}}}]}),
            json!({}),
            ["0/1", "Completed", "0"],
        );
        check(
            one,
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"signal": 9}}}]}),
            json!({}),
            ["0/1", "Signal:9", "0"],
        );
    }

    #[test]
    fn sidecars_are_counted() {
        let spec = json!({"containers": [{"name": "a"}],
            "initContainers": [{"name": "s", "restartPolicy": "Always"}]});
        check(
            spec,
            json!({"phase": "Running",
                "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "restartCount": 1,
                    "state": {"running": {}}}],
                "containerStatuses": [{"name": "a", "ready": true, "state": {"running": {}}}]}),
            json!({}),
            ["2/2", "Running", "1"],
        );
    }
}
