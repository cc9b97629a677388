//! All pods of this node: which there are, a worker for each, and what is left over of those that are not.
//!
//! Nothing is ended for not being wanted before every source has said what it wants: a kubelet that starts without
//! its API server leaves containers alone.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    admission,
    context::Kubelet,
    events::Type,
    mirror::Mirrors,
    pod::{
        Desired, End, Mirror, Source, kill, resources,
        worker::{Handle, Worker, ending},
    },
    runtime::{events::Events as RuntimeEvents, names},
    status::compute::Waiting,
};

const HOUSEKEEPING: Duration = Duration::from_secs(2);

/// A pod beside its worker.
struct Entry {
    handle: Handle,
    /// Grows from one pod to the next.
    serial: u64,
}

#[derive(Default)]
struct Table {
    entries: HashMap<String, Entry>,
    last_serial: u64,
    /// Sources that have listed all of their pods.
    ready: HashSet<&'static str>,
    /// Mirror pods of the API server by namespace and name: uid and hash.
    mirrors: HashMap<(String, String), (String, String)>,
}

/// The table of pods; shared.
pub struct Pods {
    kubelet: Arc<Kubelet>,
    runtime_events: Arc<RuntimeEvents>,
    mirrors: Option<Mirrors>,
    table: Mutex<Table>,
    sources: Vec<&'static str>,
    /// A pod is gone from this node.
    ended: tokio::sync::watch::Sender<()>,
}

/// Names of the sources.
pub const API: &str = "api";
pub const FILE: &str = "file";

impl Pods {
    pub fn new(
        kubelet: Arc<Kubelet>,
        runtime_events: Arc<RuntimeEvents>,
        mirrors: Option<Mirrors>,
        sources: Vec<&'static str>,
    ) -> Arc<Self> {
        Arc::new(Self {
            kubelet,
            runtime_events,
            mirrors,
            table: Mutex::default(),
            sources,
            ended: Default::default(),
        })
    }

    /// The source has listed everything it wants.
    pub fn source_ready(&self, source: &'static str) {
        self.table.lock().ready.insert(source);
    }

    /// Whether all sources have.
    pub fn sources_ready(&self) -> bool {
        let table = self.table.lock();
        self.sources.iter().all(|source| table.ready.contains(source))
    }

    /// Wakes the worker of a pod.
    pub fn wake(&self, uid: &str) {
        if let Some(entry) = self.table.lock().entries.get(uid) {
            entry.handle.wake.notify_one();
        }
    }

    /// What a pod refers to has changed: what failed is tried again at once.
    pub fn retry(&self, uid: &str) {
        if let Some(entry) = self.table.lock().entries.get(uid) {
            entry.handle.anew.store(true, std::sync::atomic::Ordering::Release);
            entry.handle.wake.notify_one();
        }
    }

    /// A pod that its source wants, new or changed.
    pub fn update(self: &Arc<Self>, source: Source, pod: Arc<Pod>) {
        let metadata = &pod.metadata;
        let (Some(uid), Some(name)) = (metadata.uid.clone(), metadata.name.clone()) else { return };
        let key = (metadata.namespace.clone().unwrap_or_default(), name);
        let mirrored =
            metadata.annotations.as_ref().and_then(|annotations| annotations.get(names::CONFIG_MIRROR));
        if let (Source::Api, Some(hash)) = (source, mirrored) {
            self.table.lock().mirrors.insert(key.clone(), (uid, hash.clone()));
            self.refresh_mirror(&key);
            return;
        }
        let mut table = self.table.lock();
        let mirror = mirror_of(&table, source, &pod);
        if let Some(entry) = table.entries.get(&uid) {
            entry.handle.desired.send_modify(|desired| {
                desired.pod = pod.clone();
                desired.mirror = mirror.clone();
                desired.gone = false;
            });
        } else {
            let others: Vec<Arc<Pod>> =
                table.entries.values().map(|entry| entry.handle.desired.borrow().pod.clone()).collect();
            let desired = Desired { pod: pod.clone(), source, mirror, gone: false };
            let (worker, handle) = Worker::new(self.kubelet.clone(), desired);
            // A pod that runs already was admitted before.
            let known = pod
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref())
                .is_some_and(|p| p != "Pending");
            if source == Source::Api
                && !known
                && metadata.deletion_timestamp.is_none()
                && let Err(refusal) = admission::admit(&self.kubelet, &pod, &others)
            {
                let object = crate::pod::reference(&pod, None);
                self.kubelet.events.record(&object, Type::Warning, &refusal.reason, &refusal.message);
                let message = format!("Pod was rejected: {}", refusal.message);
                handle.evict.send_replace(Some(End::from(Waiting { message, ..refusal })));
            }
            table.last_serial += 1;
            let serial = table.last_serial;
            table.entries.insert(uid.clone(), Entry { handle, serial });
            let (this, key) = (self.clone(), key.clone());
            tokio::spawn(async move {
                if source == Source::File {
                    this.predecessors_ended(&key, serial).await;
                }
                worker.run().await;
                this.table.lock().entries.remove(&uid);
                this.ended.send_replace(());
            });
        }
        drop(table);
        if source == Source::File {
            self.refresh_mirror(&key);
        }
    }

    /// Waits until no earlier static pod of that name is left: an edited manifest is another pod, and the two would
    /// fight for the same ports and directories.
    async fn predecessors_ended(&self, key: &(String, String), serial: u64) {
        let mut ended = self.ended.subscribe();
        let earlier = |entry: &Entry| {
            let desired = entry.handle.desired.borrow();
            let metadata = &desired.pod.metadata;
            entry.serial < serial
                && desired.source == Source::File
                && metadata.namespace.as_ref() == Some(&key.0)
                && metadata.name.as_ref() == Some(&key.1)
        };
        while self.table.lock().entries.values().any(earlier) {
            // The sender is this table's own.
            if ended.changed().await.is_err() {
                return;
            }
        }
    }

    /// A pod that its source no longer has.
    pub fn remove(&self, source: Source, namespace: &str, name: &str, uid: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut table = self.table.lock();
        if source == Source::Api && table.mirrors.get(&key).is_some_and(|(known, _)| known == uid) {
            table.mirrors.remove(&key);
            drop(table);
            self.refresh_mirror(&key);
            return;
        }
        if let Some(entry) = table.entries.get(uid) {
            entry.handle.desired.send_modify(|desired| desired.gone = true);
        }
        drop(table);
        if source == Source::File {
            self.refresh_mirror(&key);
        }
    }

    /// The source listed exactly these uids: others of it are gone.
    pub fn retain(&self, source: Source, listed: &HashSet<String>) {
        let gone: Vec<(String, String, String)> = {
            let table = self.table.lock();
            let pods = table.entries.iter().filter_map(|(uid, entry)| {
                let desired = entry.handle.desired.borrow();
                let metadata = &desired.pod.metadata;
                let lost = desired.source == source && !listed.contains(uid) && !desired.gone;
                lost.then(|| {
                    let text = |value: &Option<String>| value.clone().unwrap_or_default();
                    (text(&metadata.namespace), text(&metadata.name), uid.clone())
                })
            });
            let mirrors = table
                .mirrors
                .iter()
                .filter(|(_, (uid, _))| source == Source::Api && !listed.contains(uid))
                .map(|((namespace, name), (uid, _))| (namespace.clone(), name.clone(), uid.clone()));
            pods.chain(mirrors).collect()
        };
        for (namespace, name, uid) in gone {
            self.remove(source, &namespace, &name, &uid);
        }
    }

    /// Brings the mirror of a static pod to what it should be.
    fn refresh_mirror(&self, key: &(String, String)) {
        let Some(mirrors) = &self.mirrors else { return };
        let table = self.table.lock();
        let api_ready = table.ready.contains(API);
        let known = table.mirrors.get(key).cloned();
        let entry = table.entries.values().find(|entry| {
            let desired = entry.handle.desired.borrow();
            let metadata = &desired.pod.metadata;
            desired.source == Source::File
                && !desired.gone
                && metadata.name.as_deref() == Some(&key.1)
                && metadata.namespace.as_deref() == Some(&key.0)
        });
        match entry {
            Some(entry) => {
                let pod = entry.handle.desired.borrow().pod.clone();
                let hash = crate::mirror::hash(&pod);
                let current = known.as_ref().filter(|(_, known)| Some(known) == hash.as_ref());
                let mirror = current.map(|(uid, _)| Mirror { uid: uid.clone() });
                if mirror.is_none() && (api_ready || known.is_some()) {
                    mirrors.ensure(pod, known.map(|(uid, _)| uid));
                }
                entry.handle.desired.send_if_modified(|desired| {
                    let changed = desired.mirror != mirror;
                    desired.mirror = mirror;
                    changed
                });
            }
            // A mirror of nothing.
            None => {
                if let Some((uid, _)) = known
                    && self.sources.iter().all(|source| table.ready.contains(source))
                {
                    mirrors.delete(key.0.clone(), key.1.clone(), uid);
                }
            }
        }
    }

    /// Once all sources are known, mirrors that should be there are made and others go.
    pub fn refresh_mirrors(&self) {
        let keys: HashSet<(String, String)> = {
            let table = self.table.lock();
            let statics = table.entries.values().filter_map(|entry| {
                let desired = entry.handle.desired.borrow();
                (desired.source == Source::File).then(|| {
                    let text = |value: &Option<String>| value.clone().unwrap_or_default();
                    (text(&desired.pod.metadata.namespace), text(&desired.pod.metadata.name))
                })
            });
            statics.chain(table.mirrors.keys().cloned()).collect()
        };
        keys.iter().for_each(|key| self.refresh_mirror(key));
    }

    /// Ends a pod before its time.
    pub fn evict(&self, uid: &str, end: End) {
        if let Some(entry) = self.table.lock().entries.get(uid) {
            entry.handle.evict.send_replace(Some(end));
        }
    }

    /// What all pods that are not over ask for, but for the one with that uid.
    pub fn requested_beside(&self, uid: &str) -> resources::Amounts {
        let table = self.table.lock();
        let others = table.entries.iter().filter(|(other, entry)| {
            other.as_str() != uid && !crate::status::compute::is_terminal(&entry.handle.status.borrow())
        });
        others.fold(resources::Amounts::default(), |sum, (_, entry)| {
            let pod = entry.handle.desired.borrow().pod.clone();
            pod.spec.as_ref().map_or(sum, |spec| sum.plus(resources::pod_requests(spec)))
        })
    }

    /// Every pod with its status as this kubelet sees it.
    pub fn list(&self) -> Vec<(Arc<Pod>, PodStatus)> {
        let table = self.table.lock();
        let entries = table.entries.values();
        entries
            .map(|entry| (entry.handle.desired.borrow().pod.clone(), entry.handle.status.borrow().clone()))
            .collect()
    }

    /// The pod of that name; a static one is also known by its mirror's uid.
    pub fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<(Arc<Pod>, PodStatus)> {
        let table = self.table.lock();
        let mut found = table.entries.values().filter(|entry| {
            let desired = entry.handle.desired.borrow();
            let metadata = &desired.pod.metadata;
            metadata.name.as_deref() == Some(name)
                && metadata.namespace.as_deref() == Some(namespace)
                && uid.is_none_or(|uid| {
                    metadata.uid.as_deref() == Some(uid)
                        || desired.mirror.as_ref().is_some_and(|m| m.uid == uid)
                })
        });
        // Of namesakes, one that is not ending.
        let first = found.next()?;
        let entry = found.find(|entry| !entry.handle.desired.borrow().gone).unwrap_or(first);
        Some((entry.handle.desired.borrow().pod.clone(), entry.handle.status.borrow().clone()))
    }

    /// Ends what no source wants, for as long as the kubelet runs.
    pub async fn housekeeping(self: Arc<Self>, cancel: CancellationToken) {
        let mut burstable = 0;
        loop {
            tokio::select! {
                () = tokio::time::sleep(HOUSEKEEPING) => {}
                () = cancel.cancelled() => return,
            }
            self.weigh_burstable(&mut burstable);
            // Before the runtime has been listed nothing says what is in use.
            if self.sources_ready() && self.runtime_events.healthy().is_ok() {
                self.remove_orphans().await;
            }
        }
    }

    /// Together the Burstable pods get the CPU that they ask for; without it they would get hardly any
    /// beside a busy Guaranteed one. `told` is what their class was given last.
    fn weigh_burstable(&self, told: &mut i64) {
        let over = |status: &PodStatus| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let table = self.table.lock();
        let active = table.entries.values().filter(|entry| !over(&entry.handle.status.borrow()));
        let pods: Vec<Arc<Pod>> = active.map(|entry| entry.handle.desired.borrow().pod.clone()).collect();
        drop(table);
        let cpu = resources::burstable_cpu(pods.iter().filter_map(|pod| pod.spec.as_ref()));
        if cpu == *told {
            return;
        }
        match self.kubelet.cgroups.set_burstable(cpu) {
            Ok(()) => *told = cpu,
            Err(error) => tracing::warn!(%error, cpu, "weighing the Burstable pods"),
        }
    }

    async fn remove_orphans(&self) {
        let known = |uid: &str| self.table.lock().entries.contains_key(uid);
        for (uid, pod) in self.runtime_events.pods() {
            if known(&uid) {
                continue;
            }
            let observed = match self.kubelet.runtime.observe(&uid).await {
                // The list may be older than the pod's end.
                Ok(observed) if observed.sandboxes.is_empty() && observed.containers.is_empty() => continue,
                Ok(observed) if !known(&uid) => observed,
                _ => continue,
            };
            tracing::info!(namespace = pod.namespace, name = pod.name, uid, "ending a pod that nobody wants");
            let grace =
                observed.containers.iter().find_map(|c| c.annotations.get(names::POD_GRACE)?.parse().ok());
            let mut named = Pod::default();
            named.metadata.name = Some(pod.name.clone());
            named.metadata.namespace = Some(pod.namespace.clone());
            named.metadata.uid = Some(uid.clone());
            let result = async {
                kill::pod(&self.kubelet, &named, &observed, grace.unwrap_or(30)).await?;
                kill::remove(&self.kubelet, &observed).await
            };
            if let Err(error) = result.await {
                tracing::warn!(uid, %error, "ending an orphaned pod");
                continue;
            }
            let logs = self.kubelet.log_directory(&pod.namespace, &pod.name, &uid);
            let _ = tokio::fs::remove_dir_all(logs).await;
        }
        let running = self.runtime_events.pods();
        for uid in self.kubelet.volumes.pods() {
            if !known(&uid)
                && !running.contains_key(&uid)
                && let Err(error) = ending::remove_volumes(self.kubelet.clone(), uid.clone()).await
            {
                tracing::warn!(uid, %error, "removing an orphaned pod's volumes");
            }
        }
        for uid in self.kubelet.cgroups.pods() {
            if !known(&uid) && !running.contains_key(&uid) {
                self.kubelet.cgroups.remove_pod(&uid);
            }
        }
    }
}

fn mirror_of(table: &Table, source: Source, pod: &Pod) -> Option<Mirror> {
    if source == Source::Api {
        return None;
    }
    let key = (pod.metadata.namespace.clone()?, pod.metadata.name.clone()?);
    let (uid, hash) = table.mirrors.get(&key)?;
    (Some(hash) == crate::mirror::hash(pod).as_ref()).then(|| Mirror { uid: uid.clone() })
}
