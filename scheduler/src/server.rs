//! The scheduler's loop: takes in what is observed, tries the pods that wait, and has decisions
//! carried out beside it, so that one slow binding delays no other pod.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use keelson_client::cache::{self, Event};
use keelson_component_base::exit;
use kube::Api;
use kube::core::PartialObjectMeta;
use rand::Rng;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bind::{BindError, Binder, VolumeError};
use crate::cache::{Cache, Change, NodeFacts};
use crate::cycle::{self, Profile};
use crate::framework::Cycle;
use crate::labels::{self, Labels};
use crate::metrics::{Metrics, Outcome};
use crate::namespaces::Namespaces;
use crate::plugins::volume_binding::{self, Plan};
use crate::pod::{self, PodInfo, PodKey, PodState};
use crate::queue::{Attempt, Queue};
use crate::volumes::{ClaimInfo, ClassInfo, VolumeInfo, Volumes};

/// Everything that can happen to the loop.
enum Input {
    Node(Arc<Named<NodeFacts>>),
    NodeGone(String),
    Namespace(Arc<(String, Labels)>),
    NamespaceGone(String),
    Pod(PodKey, PodState),
    PodGone(PodKey),
    Claim(Arc<ClaimInfo>),
    ClaimGone(Arc<ClaimInfo>),
    Volume(Arc<VolumeInfo>),
    VolumeGone(Arc<VolumeInfo>),
    Class(Arc<ClassInfo>),
    ClassGone(Arc<ClassInfo>),
    Synced,
    /// The reason why the pod waits could not be written: it is to be tried again.
    Unnoted(PodKey),
    /// What the pod's claims need before they can be bound was written, or not.
    VolumesPrepared {
        pod: Arc<PodInfo>,
        waits_for: String,
        result: Result<(), VolumeError>,
    },
    Bound {
        pod: Arc<PodInfo>,
        started: Instant,
        since: Instant,
        result: Result<(), BindError>,
    },
}

/// What the watch of nodes keeps: the name, and what is shared with the scheduler's own cache.
type Named<T> = (String, Arc<T>);

/// Number of watches whose first list must be complete before anything is decided.
const WATCHES: u8 = 6;

/// Bindings that are under way at once: the API server's places are for everybody.
const BINDS_AT_ONCE: usize = 100;
/// Pods that are decided before the loop looks at what has come in.
const DECISIONS_IN_A_ROW: usize = 128;

pub struct Scheduler {
    pub name: String,
    pub profile: Profile,
    pub binder: Binder,
    pub metrics: Metrics,
}

/// Watches end when this is dropped.
struct Watches {
    _nodes: Arc<cache::Cache<Named<NodeFacts>>>,
    _pods: Arc<cache::Cache<Option<(PodKey, PodState)>>>,
    _namespaces: Arc<cache::Cache<(String, Labels)>>,
    _claims: Arc<cache::Cache<Arc<ClaimInfo>>>,
    _volumes: Arc<cache::Cache<Arc<VolumeInfo>>>,
    _classes: Arc<cache::Cache<Arc<ClassInfo>>>,
}

/// What was last told of a pod that does not fit, so that the same is not written again and again.
struct Told {
    message: String,
    since: Timestamp,
    /// What is written next waits for this: an old reason must not overwrite a newer one, or a binding.
    writing: Option<JoinHandle<()>>,
}

struct State {
    cache: Cache,
    namespaces: Namespaces,
    volumes: Volumes,
    queue: Queue,
    synced: u8,
    told: HashMap<PodKey, Told>,
    binds: Arc<Semaphore>,
}

impl Scheduler {
    /// Schedules until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let (sender, mut inputs) = mpsc::unbounded_channel();
        let _watches = self.watch(&sender);
        let mut state = State {
            cache: Cache::default(),
            namespaces: Namespaces::default(),
            volumes: Volumes::default(),
            queue: Queue::default(),
            synced: 0,
            told: HashMap::new(),
            binds: Arc::new(Semaphore::new(BINDS_AT_ONCE)),
        };
        let mut batch = Vec::new();
        loop {
            let wake = state.queue.next_wake(Instant::now());
            let wait = async {
                match wake.filter(|_| state.synced == WATCHES) {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                received = inputs.recv_many(&mut batch, 1024) => if received == 0 { return },
                () = wait => {}
            }
            for input in batch.drain(..) {
                self.take(&mut state, input, &sender);
            }
            if state.synced == WATCHES {
                for _ in 0..DECISIONS_IN_A_ROW {
                    let Some(attempt) = state.queue.pop(Instant::now()) else { break };
                    self.attempt(&mut state, attempt, &sender);
                }
                self.metrics.pending(state.queue.pending());
            }
        }
    }

    fn watch(&self, sender: &mpsc::UnboundedSender<Input>) -> Watches {
        let client = &self.binder.client;
        let project =
            |node: Node| (node.metadata.name.clone().unwrap_or_default(), Arc::new(NodeFacts::of(&node)));
        let nodes = cache::start(Api::<Node>::all(client.clone()), cache::config(), project, Vec::new());
        let name = self.name.clone();
        let project = move |pod: Pod| pod::project(&pod, &name);
        // Finished pods take no room and wait for nothing.
        let unfinished = cache::config().fields("status.phase!=Succeeded,status.phase!=Failed");
        let pods = cache::start(Api::<Pod>::all(client.clone()), unfinished, project, Vec::new());

        let project = |namespace: PartialObjectMeta<Namespace>| {
            let labels = labels::of(namespace.metadata.labels.as_ref());
            (namespace.metadata.name.unwrap_or_default(), labels)
        };
        let all = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
        let namespaces = cache::start(all, cache::config(), project, Vec::new());

        // A closed channel means that the loop has ended; nobody is left to tell.
        let to_loop = sender.clone();
        nodes.subscribe(move |event| {
            let _ = to_loop.send(match event {
                Event::Applied { new, .. } => Input::Node(new.clone()),
                Event::Deleted(last) => Input::NodeGone(last.0.clone()),
                Event::Synced => Input::Synced,
            });
        });
        let to_loop = sender.clone();
        pods.subscribe(move |event| {
            let input = match event {
                Event::Applied { new, .. } => new.as_ref().clone().map(|(key, state)| Input::Pod(key, state)),
                Event::Deleted(last) => last.as_ref().as_ref().map(|(key, _)| Input::PodGone(key.clone())),
                Event::Synced => Some(Input::Synced),
            };
            if let Some(input) = input {
                let _ = to_loop.send(input);
            }
        });
        let to_loop = sender.clone();
        namespaces.subscribe(move |event| {
            let _ = to_loop.send(match event {
                Event::Applied { new, .. } => Input::Namespace(new.clone()),
                Event::Deleted(last) => Input::NamespaceGone(last.0.clone()),
                Event::Synced => Input::Synced,
            });
        });
        Watches {
            _nodes: nodes,
            _pods: pods,
            _namespaces: namespaces,
            _claims: self.follow(sender, |claim| ClaimInfo::of(&claim), Input::Claim, Input::ClaimGone),
            _volumes: self.follow(sender, |volume| VolumeInfo::of(&volume), Input::Volume, Input::VolumeGone),
            _classes: self.follow(sender, |class| ClassInfo::of(&class), Input::Class, Input::ClassGone),
        }
    }

    /// Watches all objects of a kind, of which the loop is told in the scheduler's own form.
    fn follow<K, P>(
        &self,
        sender: &mpsc::UnboundedSender<Input>,
        project: fn(K) -> P,
        applied: fn(Arc<P>) -> Input,
        gone: fn(Arc<P>) -> Input,
    ) -> Arc<cache::Cache<Arc<P>>>
    where
        K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
        P: Send + Sync + 'static,
    {
        let project = move |object: K| Arc::new(project(object));
        let all = Api::<K>::all(self.binder.client.clone());
        let objects = cache::start(all, cache::config(), project, Vec::new());
        let to_loop = sender.clone();
        objects.subscribe(move |event| {
            // A closed channel means that the loop has ended.
            let _ = to_loop.send(match event {
                Event::Applied { new, .. } => applied(new.as_ref().clone()),
                Event::Deleted(last) => gone(last.as_ref().clone()),
                Event::Synced => Input::Synced,
            });
        });
        objects
    }

    fn take(&self, state: &mut State, input: Input, sender: &mpsc::UnboundedSender<Input>) {
        let change = match input {
            Input::Node(node) => state.cache.set_node(&node.0, node.1.clone()),
            Input::NodeGone(name) => state.cache.remove_node(&name),
            Input::Namespace(namespace) => state.namespaces.set(&namespace.0, &namespace.1),
            Input::NamespaceGone(name) => {
                state.namespaces.remove(&name);
                Change::Nothing
            }
            Input::Pod(key, pod_state) => {
                let change = state.cache.observe_pod(&key, &pod_state);
                match pod_state {
                    PodState::Pending(pod) if !state.cache.is_placed(&key) => {
                        state.queue.add(pod, Instant::now())
                    }
                    PodState::Pending(_) => {}
                    PodState::Assigned { .. } | PodState::Ignored => state.forget(&key),
                }
                change
            }
            Input::PodGone(key) => {
                state.forget(&key);
                state.cache.remove_pod(&key)
            }
            Input::Synced => {
                state.synced += 1;
                Change::Nothing
            }
            Input::Unnoted(key) => {
                if let Some(told) = state.told.get_mut(&key) {
                    told.message.clear();
                }
                Change::Nothing
            }
            Input::Claim(claim) => {
                state.queue.claim_changed(&claim.namespace, &claim.name, Instant::now());
                state.volumes.set_claim(claim);
                Change::Nothing
            }
            Input::ClaimGone(claim) => {
                state.volumes.remove_claim(&claim.namespace, &claim.name);
                Change::Nothing
            }
            Input::Volume(volume) => {
                state.volumes.set_volume(volume);
                state.queue.volumes_changed(Instant::now());
                Change::Nothing
            }
            Input::VolumeGone(volume) => {
                state.volumes.remove_volume(&volume.name);
                Change::Nothing
            }
            Input::Class(class) => {
                state.volumes.set_class(class);
                state.queue.volumes_changed(Instant::now());
                Change::Nothing
            }
            Input::ClassGone(class) => {
                state.volumes.remove_class(&class.name);
                Change::Nothing
            }
            Input::VolumesPrepared { pod, waits_for, result } => {
                self.volumes_prepared(state, &pod, waits_for, result, sender);
                Change::Nothing
            }
            Input::Bound { pod, started, since, result } => self.bound(state, &pod, started, since, result),
        };
        match change {
            Change::Nothing => {}
            Change::Placed => state.queue.pod_placed(Instant::now()),
            Change::Retry => state.queue.cluster_changed(Instant::now()),
        }
    }

    fn attempt(&self, state: &mut State, attempt: Attempt, sender: &mpsc::UnboundedSender<Input>) {
        let started = Instant::now();
        let Attempt { pod, since, .. } = attempt;
        let nodes = state.cache.snapshot();
        let cycle =
            Cycle { pod: &pod, nodes: &nodes, namespaces: &state.namespaces, volumes: &state.volumes };
        let decision = cycle::decide(&self.profile, &cycle, |equals| rand::rng().random_range(0..equals))
            .map(|node| {
                let plan = volume_binding::plan(&cycle, &node);
                (node.name.clone(), plan)
            });
        self.metrics.decided(started.elapsed().as_secs_f64());
        match decision {
            Ok((_, Plan::Wait { claims, steps })) => {
                self.metrics.attempted(Outcome::Unschedulable, started.elapsed().as_secs_f64());
                let waits_for =
                    format!("waiting for persistentvolumeclaims to be bound: {}", claims.join(", "));
                if steps.is_empty() {
                    self.volumes_prepared(state, &pod, waits_for, Ok(()), sender);
                    return;
                }
                let (binder, sender, binds) = (self.binder.clone(), sender.clone(), state.binds.clone());
                tokio::spawn(async move {
                    let _place = binds.acquire_owned().await.ok();
                    let result = binder.prepare_volumes(&steps).await;
                    let _ = sender.send(Input::VolumesPrepared { pod, waits_for, result });
                });
            }
            Ok((node, Plan::Ready)) => {
                state.cache.assume(&node, pod.clone());
                state.queue.pod_placed(Instant::now());
                let (binder, sender, binds) = (self.binder.clone(), sender.clone(), state.binds.clone());
                let noting = state.told.get_mut(&pod.key).and_then(|told| told.writing.take());
                tokio::spawn(async move {
                    finish(noting).await;
                    // Never closed, so there always is a place in the end.
                    let _place = binds.acquire_owned().await.ok();
                    let result = binder.bind(&pod, &node).await;
                    // A closed channel means that the loop has ended.
                    let _ = sender.send(Input::Bound { pod, started, since, result });
                });
            }
            Err(unschedulable) => {
                self.metrics.attempted(Outcome::Unschedulable, started.elapsed().as_secs_f64());
                state.queue.failed(&pod.key, &pod.uid, true, Instant::now());
                let message = unschedulable.to_string();
                tracing::debug!(pod = %pod.key, "{message}");
                self.tell(state, &pod, message, sender);
            }
        }
    }

    /// The pod waits until a controller or a provisioner has bound its claims, or is tried again after a refusal.
    fn volumes_prepared(
        &self,
        state: &mut State,
        pod: &Arc<PodInfo>,
        waits_for: String,
        result: Result<(), VolumeError>,
        sender: &mpsc::UnboundedSender<Input>,
    ) {
        if !state.queue.failed(&pod.key, &pod.uid, result.is_ok(), Instant::now()) {
            return;
        }
        let message = match result {
            Ok(()) => waits_for,
            Err(error) => {
                let message = exit::chain(&error);
                tracing::warn!(pod = %pod.key, "{message}");
                message
            }
        };
        self.tell(state, pod, message, sender);
    }

    /// Tells people why a pod waits, each reason once until it changes.
    fn tell(
        &self,
        state: &mut State,
        pod: &Arc<PodInfo>,
        message: String,
        sender: &mpsc::UnboundedSender<Input>,
    ) {
        self.binder.tell_failure(pod, &message);
        let first = || Told { message: String::new(), since: Timestamp::now(), writing: None };
        let told = state.told.entry(pod.key.clone()).or_insert_with(first);
        if told.message == message {
            return;
        }
        told.message.clone_from(&message);
        let (binder, pod, since, before) =
            (self.binder.clone(), pod.clone(), told.since, told.writing.take());
        let (sender, binds) = (sender.clone(), state.binds.clone());
        told.writing = Some(tokio::spawn(async move {
            finish(before).await;
            let _place = binds.acquire_owned().await.ok();
            match binder.note_unschedulable(&pod, &message, since).await {
                Ok(()) => {}
                // It is gone, or another pod has its name.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => {
                    tracing::warn!(pod = %pod.key, "cannot note in the pod that it does not fit: {error}");
                    let _ = sender.send(Input::Unnoted(pod.key.clone()));
                }
            }
        }));
    }

    fn bound(
        &self,
        state: &mut State,
        pod: &Arc<PodInfo>,
        started: Instant,
        since: Instant,
        result: Result<(), BindError>,
    ) -> Change {
        let took = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                self.metrics.attempted(Outcome::Scheduled, took);
                self.metrics.bound(since.elapsed().as_secs_f64());
                state.queue.bound(&pod.key, &pod.uid);
                Change::Nothing
            }
            Err(error) => {
                self.metrics.attempted(Outcome::Error, took);
                match &error {
                    // The watch tells what became of it, or has told already; until then it is tried again.
                    BindError::Settled(_) => tracing::debug!(pod = %pod.key, "not bound: {error}"),
                    BindError::Refused(_) => {
                        tracing::warn!(pod = %pod.key, "cannot bind: {error}");
                        self.binder.tell_failure(pod, &format!("binding rejected: {error}"));
                    }
                }
                state.queue.failed(&pod.key, &pod.uid, false, Instant::now());
                state.cache.forget(&pod.key, &pod.uid)
            }
        }
    }
}

async fn finish(writing: Option<JoinHandle<()>>) {
    if let Some(writing) = writing {
        // It never panics, and nobody aborts it.
        let _ = writing.await;
    }
}

impl State {
    /// The pod waits no longer.
    fn forget(&mut self, key: &PodKey) {
        self.queue.remove(key);
        self.told.remove(key);
    }
}
