//! Deletes what has lost its owners, in the background or in the foreground, and frees what is to be orphaned.
//!
//! It watches the metadata of everything that can be deleted. Deletions carry the uid and resourceVersion that
//! were decided on: a graph that is behind can delete nothing that has changed since.

pub mod graph;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use keelson_client::cache::{self, Cache, Event};
use keelson_client::queue::Queue;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use self::graph::{Decision, FOREGROUND, Graph, ORPHAN, Observed, Propagation, Uid, Wakes};
use crate::context::Context;
use crate::discovery::{self, AnyMeta, Found};
use crate::pod_control::{is_code, message};
use crate::sync::{self, SyncError};

/// Between looks at what resources there are.
const REDISCOVER: Duration = Duration::from_secs(30);
/// Between looks at whether all watches are complete.
const AWAIT_WATCHES: Duration = Duration::from_millis(500);
/// How long an owner that was not there counts as absent.
const REMEMBER_ABSENT: Duration = Duration::from_secs(60);

/// What to work on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Item {
    Examine(Uid),
    Orphan(Uid),
}

struct Collector {
    client: Client,
    root: Client,
    graph: Mutex<Graph>,
    queue: Queue<Item>,
    resources: Mutex<Vec<Arc<Resource>>>,
    absent: Mutex<HashMap<(String, Box<str>), Instant>>,
}

struct Resource {
    found: Found,
    group: Arc<str>,
    kind: Arc<str>,
    /// The watch ends when this is dropped. The graph holds what it has shown, this only the names.
    cache: Mutex<Option<Arc<Cache<Observed>>>>,
}

fn is_ignored(found: &Found) -> bool {
    found.resource.plural == "events" && matches!(found.resource.group.as_str(), "" | "events.k8s.io")
}

pub async fn run(context: Context) {
    let collector = Arc::new(Collector {
        client: context.client("generic-garbage-collector"),
        root: context.root(),
        graph: Mutex::default(),
        queue: context.queue("garbage_collector"),
        resources: Mutex::default(),
        absent: Mutex::default(),
    });
    let watching = collector.clone().keep_watching();
    let working = collector.queue.run(context.workers("gc"), |item| {
        let collector = &collector;
        async move { collector.work(&item).await.map(|()| None).map_err(sync::setback) }
    });
    tokio::join!(watching, working);
}

impl Collector {
    /// Watches what there is, and looks again from time to time for what has come or gone.
    async fn keep_watching(self: Arc<Self>) {
        loop {
            match discovery::resources(&self.root).await {
                Ok(found) => self.clone().watch(found),
                Err(error) => tracing::warn!("cannot discover resources: {}", message(&error)),
            }
            tokio::time::sleep(REDISCOVER).await;
            let unsynced = self.unsynced();
            if !unsynced.is_empty() {
                tracing::warn!("nothing is collected before these can be watched: {}", unsynced.join(", "));
            }
        }
    }

    fn watch(self: Arc<Self>, found: Vec<Found>) {
        let wanted: Vec<Found> = found.into_iter().filter(|found| !is_ignored(found)).collect();
        let mut resources = self.resources.lock();
        for resource in resources.iter() {
            let there = wanted.iter().any(|found| found.resource == resource.found.resource);
            let mut cache = resource.cache.lock();
            if !there && let Some(ended) = cache.take() {
                for last in ended.list() {
                    self.wake(self.graph.lock().remove(&last.uid));
                }
            }
        }
        for found in wanted {
            let known = resources.iter().position(|resource| resource.found.resource == found.resource);
            let index = known.unwrap_or(resources.len());
            if known.is_none() {
                let (group, kind) =
                    (found.resource.group.as_str().into(), found.resource.kind.as_str().into());
                resources.push(Arc::new(Resource { found, group, kind, cache: Mutex::new(None) }));
            }
            let resource = &resources[index];
            let mut cache = resource.cache.lock();
            if cache.is_none() && resource.found.collectable {
                *cache = Some(self.start(index, resource));
            }
        }
    }

    fn start(self: &Arc<Self>, index: usize, resource: &Resource) -> Arc<Cache<Observed>> {
        let (group, kind) = (resource.group.clone(), resource.kind.clone());
        let project = move |object: AnyMeta| Observed::of(object.metadata, index, &group, &kind);
        let started = cache::start(resource.found.api(&self.root, ""), cache::config(), project, Vec::new());
        let collector = Arc::downgrade(self);
        started.subscribe(move |event| {
            let Some(collector) = collector.upgrade() else { return };
            match event {
                Event::Applied { new, .. } => {
                    let wakes = collector.graph.lock().apply(Arc::clone(new));
                    collector.wake(wakes);
                }
                Event::Deleted(last) => {
                    let wakes = collector.graph.lock().remove(&last.uid);
                    collector.wake(wakes);
                }
                Event::Synced => {}
            }
        });
        started
    }

    fn wake(&self, wakes: Wakes) {
        wakes.examine.into_iter().for_each(|uid| self.queue.add(Item::Examine(uid)));
        wakes.orphan.into_iter().for_each(|uid| self.queue.add(Item::Orphan(uid)));
    }

    fn api(&self, object: &Observed) -> Option<Api<AnyMeta>> {
        let resource = self.resources.lock().get(object.resource).cloned()?;
        Some(resource.found.api(&self.client, &object.namespace))
    }

    /// Resources whose first watch is not complete. Until all are, dependents may be unknown: what they wait for
    /// must not be let go.
    fn unsynced(&self) -> Vec<String> {
        let resources = self.resources.lock();
        let waits = |resource: &&Arc<Resource>| {
            resource.cache.lock().as_ref().is_some_and(|cache| !cache.has_synced())
        };
        resources.iter().filter(waits).map(|resource| resource.found.name()).collect()
    }

    fn is_synced(&self) -> bool {
        !self.resources.lock().is_empty() && self.unsynced().is_empty()
    }

    async fn work(&self, item: &Item) -> Result<(), SyncError> {
        // The workers wait and not the items: there may be many, and for long.
        while !self.is_synced() {
            tokio::time::sleep(AWAIT_WATCHES).await;
        }
        match item {
            Item::Examine(uid) => self.examine(uid).await,
            Item::Orphan(uid) => self.orphan(uid).await,
        }
    }

    async fn examine(&self, uid: &Uid) -> Result<(), SyncError> {
        let mut looked_up: HashMap<String, bool> = HashMap::new();
        loop {
            let (object, decision) = {
                let graph = self.graph.lock();
                let Some(object) = graph.get(uid).cloned() else { return Ok(()) };
                (object, graph.decide(uid, &|owner| looked_up.get(&owner.uid).copied()))
            };
            let Some(api) = self.api(&object) else { return Ok(()) };
            match decision {
                Decision::Nothing => return Ok(()),
                Decision::LookUp(owners) => {
                    for owner in owners {
                        let exists = self.owner_exists(&owner, &object).await?;
                        looked_up.insert(owner.uid, exists);
                    }
                }
                Decision::Detach(gone) => {
                    let keep: Vec<_> = object
                        .owners
                        .iter()
                        .filter(|owner| !gone.iter().any(|g| g.uid == owner.uid))
                        .collect();
                    return self.patch(&api, &object, json!({"ownerReferences": keep})).await;
                }
                Decision::Delete(propagation) => return self.delete(&api, &object, propagation).await,
                Decision::Unblock(dependents) => {
                    for dependent in dependents {
                        self.unblock(&dependent, uid).await?;
                    }
                    return self.delete(&api, &object, Propagation::Foreground).await;
                }
                Decision::RemoveForeground => return self.remove_finalizer(&api, &object, FOREGROUND).await,
                Decision::Wake(dependents) => {
                    dependents.into_iter().for_each(|uid| self.queue.add(Item::Examine(uid)));
                    return Ok(());
                }
            }
        }
    }

    /// Asks for an owner that no watch has shown, in the namespace of its dependent.
    async fn owner_exists(&self, owner: &OwnerReference, dependent: &Observed) -> Result<bool, SyncError> {
        let key = (owner.uid.clone(), dependent.namespace.clone());
        {
            let mut absent = self.absent.lock();
            absent.retain(|_, since| since.elapsed() < REMEMBER_ABSENT);
            if absent.contains_key(&key) {
                return Ok(false);
            }
        }
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let resources = self.resources.lock().clone();
        let found =
            resources.iter().find(|resource| *resource.group == *group && *resource.kind == *owner.kind);
        let Some(resource) = found else {
            let text = format!("no resource for the owner's kind {} of {}", owner.kind, owner.api_version);
            return Err(SyncError::Invalid(text));
        };
        if resource.found.namespaced && dependent.namespace.is_empty() {
            let text = format!("cluster-scoped {} {} has a namespaced owner", dependent.kind, dependent.name);
            tracing::debug!("{text}, which cannot be found: it is kept");
            return Ok(true);
        }
        let live = resource.found.api(&self.client, &dependent.namespace).get_opt(&owner.name).await?;
        let exists = live.is_some_and(|live| live.metadata.uid.as_deref() == Some(&owner.uid));
        if !exists {
            self.absent.lock().insert(key, Instant::now());
        }
        Ok(exists)
    }

    async fn delete(
        &self,
        api: &Api<AnyMeta>,
        object: &Observed,
        propagation: Propagation,
    ) -> Result<(), SyncError> {
        let params = match propagation {
            Propagation::Background => DeleteParams::background(),
            Propagation::Foreground => DeleteParams::foreground(),
            Propagation::Orphan => DeleteParams::orphan(),
        };
        let params = params.preconditions(Preconditions {
            uid: Some(object.uid.to_string()),
            resource_version: Some(object.resource_version.to_string()),
        });
        tracing::debug!(
            kind = &*object.kind,
            namespace = &*object.namespace,
            name = &*object.name,
            ?propagation,
            "Deleting"
        );
        match api.delete(&object.name, &params).await {
            Err(error) if !is_code(&error, 404) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Changes metadata, provided that it is as it was when this was decided.
    async fn patch(
        &self,
        api: &Api<AnyMeta>,
        object: &Observed,
        mut metadata: serde_json::Value,
    ) -> Result<(), SyncError> {
        metadata["uid"] = json!(&*object.uid);
        metadata["resourceVersion"] = json!(&*object.resource_version);
        let patch = Patch::Merge(json!({"metadata": metadata}));
        match api.patch(&object.name, &PatchParams::default(), &patch).await {
            Err(error) if !is_code(&error, 404) => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn remove_finalizer(
        &self,
        api: &Api<AnyMeta>,
        object: &Observed,
        finalizer: &str,
    ) -> Result<(), SyncError> {
        let Some(live) = api.get_opt(&object.name).await? else { return Ok(()) };
        let mut finalizers = live.metadata.finalizers.unwrap_or_default();
        if live.metadata.uid.as_deref() != Some(&object.uid)
            || !finalizers.iter().any(|name| name == finalizer)
        {
            return Ok(());
        }
        finalizers.retain(|name| name != finalizer);
        let resource_version = live.metadata.resource_version.unwrap_or_default().into();
        let live = Observed { resource_version, ..object.clone() };
        self.patch(api, &live, json!({"finalizers": finalizers})).await
    }

    async fn unblock(&self, dependent: &Uid, owner: &Uid) -> Result<(), SyncError> {
        let object = self.graph.lock().get(dependent).cloned();
        let Some((object, api)) = object.and_then(|object| Some((object.clone(), self.api(&object)?))) else {
            return Ok(());
        };
        let mut owners = object.owners.to_vec();
        for reference in owners.iter_mut().filter(|reference| *reference.uid == **owner) {
            reference.block_owner_deletion = Some(false);
        }
        self.patch(&api, &object, json!({"ownerReferences": owners})).await
    }

    async fn orphan(&self, uid: &Uid) -> Result<(), SyncError> {
        let (object, dependents) = {
            let graph = self.graph.lock();
            let Some(object) = graph.get(uid).filter(|object| object.deleting && object.orphan).cloned()
            else {
                return Ok(());
            };
            (object, graph.dependents(uid))
        };
        for dependent in dependents {
            let Some(api) = self.api(&dependent) else { continue };
            let keep: Vec<_> = dependent.owners.iter().filter(|owner| *owner.uid != **uid).collect();
            self.patch(&api, &dependent, json!({"ownerReferences": keep})).await?;
        }
        match self.api(&object) {
            Some(api) => self.remove_finalizer(&api, &object, ORPHAN).await,
            None => Ok(()),
        }
    }
}
