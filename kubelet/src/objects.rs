//! Config maps and secrets that pods on this node refer to, each kept fresh by a watch of its own.
//!
//! A watch lasts as long as a pod refers to the object, and names it by field selector: that is what the Node
//! authorizer permits. Without an API server (static pods only) nothing is found.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource,
    runtime::watcher::{self, Event},
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::{sync::watch, task::AbortHandle};

/// A pod that starts right after it was bound may be ahead of the authorizer's knowledge of it.
const PATIENCE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Why an object could not be had; not finding it is no error but `None`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(pub String);

type State<K> = Option<Result<Option<Arc<K>>, FetchError>>;

struct Entry<K> {
    state: watch::Receiver<State<K>>,
    /// Uids of the pods that refer to it.
    users: Arc<Mutex<HashSet<String>>>,
    task: AbortHandle,
}

impl<K> Drop for Entry<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All objects of one kind that are referred to.
pub struct Referenced<K> {
    client: Option<Client>,
    entries: Mutex<HashMap<(String, String), Entry<K>>>,
    wake: Arc<dyn Fn(&str) + Send + Sync>,
}

impl<K> Referenced<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    /// `wake` gets the uid of every pod that refers to an object which changed.
    pub fn new(client: Option<Client>, wake: Arc<dyn Fn(&str) + Send + Sync>) -> Self {
        Self { client, entries: Mutex::new(HashMap::new()), wake }
    }

    /// The object as it is now; from here on the pod is woken when it changes.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached; asking again later is right.
    pub async fn get(&self, namespace: &str, name: &str, uid: &str) -> Result<Option<Arc<K>>, FetchError> {
        let Some(client) = &self.client else { return Ok(None) };
        let mut state = {
            let mut entries = self.entries.lock();
            let entry = entries
                .entry((namespace.to_owned(), name.to_owned()))
                .or_insert_with(|| self.start(client.clone(), namespace, name));
            entry.users.lock().insert(uid.to_owned());
            entry.state.clone()
        };
        let ready = state.wait_for(|state| matches!(state, Some(Ok(_))));
        // Whether it became ready or not, what is known now is the answer.
        let _ = tokio::time::timeout(PATIENCE, ready).await.is_ok_and(|ready| ready.is_ok());
        match state.borrow().clone() {
            Some(result) => result,
            None => Err(FetchError("failed to sync cache: timed out waiting for the condition".to_owned())),
        }
    }

    /// The pod no longer refers to anything.
    pub fn release(&self, uid: &str) {
        self.entries.lock().retain(|_, entry| {
            let mut users = entry.users.lock();
            users.remove(uid);
            !users.is_empty()
        });
    }

    fn start(&self, client: Client, namespace: &str, name: &str) -> Entry<K> {
        let (sender, state) = watch::channel(None);
        let users = Arc::new(Mutex::new(HashSet::<String>::new()));
        let api: Api<K> = Api::namespaced(client, namespace);
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let (wake, woken) = (self.wake.clone(), users.clone());
        let task = tokio::spawn(async move {
            let mut events = Box::pin(watcher::watcher(api, config));
            let (mut listed, mut pause) = (None, RETRY);
            while let Some(event) = events.next().await {
                let state = match event {
                    Ok(Event::Init) => {
                        listed = None;
                        continue;
                    }
                    Ok(Event::InitApply(object)) => {
                        listed = Some(Arc::new(object));
                        continue;
                    }
                    Ok(Event::InitDone) => Ok(listed.take()),
                    Ok(Event::Apply(object)) => Ok(Some(Arc::new(object))),
                    Ok(Event::Delete(_)) => Ok(None),
                    Err(error) => {
                        // What was read before stays valid; only a first read reports its error.
                        if !matches!(*sender.borrow(), Some(Ok(_))) {
                            sender.send_replace(Some(Err(FetchError(error.to_string()))));
                        }
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(RETRY_MAX);
                        continue;
                    }
                };
                pause = RETRY;
                let first = sender.send_replace(Some(state)).is_none();
                if !first {
                    let users: Vec<String> = woken.lock().iter().cloned().collect();
                    users.iter().for_each(|uid| wake(uid));
                }
            }
        });
        Entry { state, users, task: task.abort_handle() }
    }
}
