//! What the runtime says about one pod, as plain data that the pure parts decide from.

use std::collections::HashMap;

use jiff::Timestamp;
use keelson_proto::cri;

use super::{Result, Runtime, names};

/// Sandboxes and containers of one pod, newest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ObservedPod {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<Container>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: i64,
    /// Empty for a pod on the host's network and for a sandbox that is down.
    pub ips: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub hash: String,
    /// The tag or digest that was asked for.
    pub image: String,
    /// What it resolved to.
    pub image_id: String,
    pub restart_count: u32,
    pub sandbox_id: String,
    pub created_at: i64,
    pub state: State,
    /// The whole grace period and preStop hook, for a container whose pod is no longer known.
    pub annotations: HashMap<String, String>,
    pub log_path: String,
    /// The user the process got, where the runtime says so.
    pub user: Option<(i64, i64, Vec<i64>)>,
}

/// A container's life; times are nanoseconds since the epoch as CRI gives them.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    Created,
    Running { started_at: i64 },
    Exited { started_at: i64, finished_at: i64, exit_code: i32, reason: String, message: String },
    Unknown,
}

impl Container {
    pub fn running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// Whether the process may exist: running, or in a state the runtime itself does not know.
    pub fn may_run(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Unknown)
    }

    pub fn exit_code(&self) -> Option<i32> {
        match self.state {
            State::Exited { exit_code, .. } => Some(exit_code),
            _ => None,
        }
    }

    /// When it ended, for back-off.
    pub fn finished_at(&self) -> Option<Timestamp> {
        match self.state {
            State::Exited { finished_at, .. } => timestamp(finished_at),
            _ => None,
        }
    }
}

impl ObservedPod {
    /// The newest container of that name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    pub fn any_running(&self) -> bool {
        self.containers.iter().any(Container::may_run)
    }

    /// The newest sandbox, if it is ready.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }
}

/// CRI time to ours; zero means "never".
pub fn timestamp(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds > 0).then(|| Timestamp::from_nanosecond(i128::from(nanoseconds)).ok()).flatten()
}

impl Runtime {
    /// Everything of the pod with this uid.
    ///
    /// # Errors
    /// When a list fails; a container that disappears between list and status is left out.
    pub async fn observe(&self, uid: &str) -> Result<ObservedPod> {
        let selector = HashMap::from([(names::POD_UID.to_owned(), uid.to_owned())]);
        let sandboxes = self.list_pod_sandbox(cri::ListPodSandboxRequest {
            filter: Some(cri::PodSandboxFilter { label_selector: selector.clone(), ..Default::default() }),
        });
        let containers = self.list_containers(cri::ListContainersRequest {
            filter: Some(cri::ContainerFilter { label_selector: selector, ..Default::default() }),
        });
        let (sandboxes, containers) = futures::try_join!(sandboxes, containers)?;
        let mut items = sandboxes.items;
        items.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at));
        let newest = items.first().filter(|sandbox| sandbox.state() == cri::PodSandboxState::SandboxReady);
        let ips = async {
            match newest {
                Some(sandbox) => self.sandbox_ips(&sandbox.id).await,
                None => Ok(Vec::new()),
            }
        };
        let statuses =
            futures::future::join_all(containers.containers.into_iter().map(|c| self.observe_container(c)));
        let (ips, statuses) = futures::join!(ips, statuses);
        // A pod is not told to have lost its address because the runtime did not answer.
        let mut ips = match ips {
            Err(error) if error.is_not_found() => Vec::new(),
            other => other?,
        };
        let sandboxes = items
            .iter()
            .enumerate()
            .map(|(index, sandbox)| Sandbox {
                id: sandbox.id.clone(),
                attempt: sandbox.metadata.as_ref().map_or(0, |m| m.attempt),
                ready: sandbox.state() == cri::PodSandboxState::SandboxReady,
                created_at: sandbox.created_at,
                ips: if index == 0 { std::mem::take(&mut ips) } else { Vec::new() },
            })
            .collect();
        let mut found = Vec::with_capacity(statuses.len());
        for status in statuses {
            found.extend(status?);
        }
        found.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        Ok(ObservedPod { sandboxes, containers: found })
    }

    async fn sandbox_ips(&self, id: &str) -> Result<Vec<String>> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let network = self.pod_sandbox_status(request).await?.status.and_then(|status| status.network);
        Ok(network.map_or_else(Vec::new, |network| {
            std::iter::once(network.ip)
                .chain(network.additional_ips.into_iter().map(|ip| ip.ip))
                .filter(|ip| !ip.is_empty())
                .collect()
        }))
    }

    async fn observe_container(&self, listed: cri::Container) -> Result<Option<Container>> {
        let request = cri::ContainerStatusRequest { container_id: listed.id.clone(), verbose: false };
        let status = match self.container_status(request).await {
            Ok(response) => response.status,
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        Ok(status.map(|status| container(listed, status)))
    }
}

fn container(listed: cri::Container, status: cri::ContainerStatus) -> Container {
    let state = match status.state() {
        cri::ContainerState::ContainerCreated => State::Created,
        cri::ContainerState::ContainerRunning => State::Running { started_at: status.started_at },
        cri::ContainerState::ContainerExited => State::Exited {
            started_at: status.started_at,
            finished_at: status.finished_at,
            exit_code: status.exit_code,
            reason: status.reason,
            message: status.message,
        },
        cri::ContainerState::ContainerUnknown => State::Unknown,
    };
    let annotations = status.annotations;
    let restart_count = annotations
        .get(names::RESTART_COUNT)
        .and_then(|count| count.parse().ok())
        .or_else(|| listed.metadata.as_ref().map(|m| m.attempt))
        .unwrap_or(0);
    Container {
        id: listed.id,
        name: status.labels.get(names::CONTAINER_NAME).cloned().unwrap_or_default(),
        hash: annotations.get(names::HASH).cloned().unwrap_or_default(),
        image: status.image.map(|image| image.image).unwrap_or_default(),
        image_id: status.image_ref,
        restart_count,
        sandbox_id: listed.pod_sandbox_id,
        created_at: status.created_at,
        state,
        annotations,
        log_path: status.log_path,
        user: status
            .user
            .and_then(|user| user.linux)
            .map(|user| (user.uid, user.gid, user.supplemental_groups)),
    }
}
