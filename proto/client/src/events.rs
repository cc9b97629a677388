//! Records events about objects, as client-go's recorder does: the caller is never held up, repeated events raise
//! the count of the one before, many similar ones become one, and each object has a budget.
//!
//! Events are core/v1 (the same storage as events.k8s.io/v1, and what `kubectl describe` reads).

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_objects::times;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

const QUEUE_LENGTH: usize = 1000;
const MAX_TRIES: u32 = 12;
const RETRY_DELAY: Duration = Duration::from_secs(10);
const LONGEST_PREFIX: usize = 253 - 1 - 16;
/// After this many different messages within [`SIMILAR_WINDOW`] events of one reason are combined.
const MAX_SIMILAR: usize = 10;
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);
/// Events an object may have at once, and the time for one more.
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;
const MAX_REMEMBERED: usize = 4096;
/// The API server forgets events after this time: there is nothing left to count on then.
const EVENT_LIFE: Duration = Duration::from_secs(3600);

/// Whether an event tells of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    Normal,
    Warning,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

struct Occurrence {
    object: ObjectReference,
    kind: Type,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Cheap to clone; all clones feed one sender task, which ends when the last clone is dropped.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Occurrence>,
}

impl Recorder {
    /// Events reported by `component` on `host` (empty where the host says nothing). Must be called inside a tokio
    /// runtime.
    #[must_use]
    pub fn new(client: Client, component: &str, host: &str) -> Self {
        let (queue, occurrences) = mpsc::channel(QUEUE_LENGTH);
        let sender = Sender {
            client,
            component: component.to_owned(),
            host: host.to_owned(),
            correlator: Correlator::default(),
        };
        tokio::spawn(sender.run(occurrences));
        Self { queue }
    }

    /// Records an event. Never blocks; when too many wait to be sent, this one is dropped.
    pub fn event(&self, object: &ObjectReference, kind: Type, reason: &str, message: impl Into<String>) {
        let mut message = message.into();
        // The API server refuses more than 1024 bytes.
        if message.len() > 1024 {
            let mut end = 1021;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            message.push_str("...");
        }
        let occurrence = Occurrence {
            object: object.clone(),
            kind,
            reason: reason.to_owned(),
            message,
            at: Timestamp::now(),
        };
        if self.queue.try_send(occurrence).is_err() {
            tracing::debug!(reason, "Too many events wait to be sent, dropped one");
        }
    }
}

/// What makes events the same but for their message.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Group {
    object: ObjectKey,
    kind: Type,
    reason: String,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct ObjectKey {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    field_path: String,
}

impl ObjectKey {
    fn new(object: &ObjectReference) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Self {
            kind: text(&object.kind),
            namespace: text(&object.namespace),
            name: text(&object.name),
            uid: text(&object.uid),
            field_path: text(&object.field_path),
        }
    }
}

struct Similar {
    messages: HashSet<String>,
    last: Instant,
}

struct Known {
    /// Empty until the server has accepted it.
    name: String,
    count: i32,
    last: Instant,
}

struct Budget {
    tokens: f64,
    updated: Instant,
}

/// What is to be sent for an occurrence.
#[derive(Debug, PartialEq)]
enum Decision {
    Drop,
    Create { message: String },
    Bump { name: String, count: i32, message: String },
}

#[derive(Default)]
struct Correlator {
    similar: HashMap<Group, Similar>,
    known: HashMap<(Group, String), Known>,
    budgets: HashMap<ObjectKey, Budget>,
    tidied: Option<Instant>,
}

impl Correlator {
    fn decide(&mut self, group: &Group, message: &str, now: Instant) -> Decision {
        self.forget_old(now);
        let budget =
            self.budgets.entry(group.object.clone()).or_insert(Budget { tokens: BURST, updated: now });
        let refilled = now.saturating_duration_since(budget.updated).as_secs_f64() / REFILL_SECONDS;
        budget.tokens = (budget.tokens + refilled).min(BURST);
        budget.updated = now;
        if budget.tokens < 1.0 {
            return Decision::Drop;
        }
        budget.tokens -= 1.0;

        let similar =
            self.similar.entry(group.clone()).or_insert(Similar { messages: HashSet::new(), last: now });
        if now.saturating_duration_since(similar.last) > SIMILAR_WINDOW {
            similar.messages.clear();
        }
        similar.last = now;
        let combined = similar.messages.len() >= MAX_SIMILAR && !similar.messages.contains(message);
        if !combined {
            similar.messages.insert(message.to_owned());
        }
        let (key, message) = if combined {
            (String::new(), format!("(combined from similar events): {message}"))
        } else {
            (message.to_owned(), message.to_owned())
        };
        match self.known.get_mut(&(group.clone(), key)) {
            Some(known) if !known.name.is_empty() => {
                known.count = known.count.saturating_add(1);
                known.last = now;
                Decision::Bump { name: known.name.clone(), count: known.count, message }
            }
            _ => Decision::Create { message },
        }
    }

    fn created(&mut self, group: Group, message: &str, name: String, now: Instant) {
        let key = if message.starts_with("(combined from similar events): ") {
            String::new()
        } else {
            message.to_owned()
        };
        self.known.insert((group, key), Known { name, count: 1, last: now });
    }

    /// Forgets what can make no difference any more, and gives its memory back: much may have happened once.
    fn tidy(&mut self, now: Instant) {
        let age = |at: Instant| now.saturating_duration_since(at);
        self.similar.retain(|_, similar| age(similar.last) < SIMILAR_WINDOW);
        self.known.retain(|_, known| age(known.last) < EVENT_LIFE);
        self.budgets
            .retain(|_, budget| budget.tokens + age(budget.updated).as_secs_f64() / REFILL_SECONDS < BURST);
        self.similar.shrink_to_fit();
        self.known.shrink_to_fit();
        self.budgets.shrink_to_fit();
        self.tidied = Some(now);
    }

    fn is_empty(&self) -> bool {
        self.similar.is_empty() && self.known.is_empty() && self.budgets.is_empty()
    }

    fn forget_old(&mut self, now: Instant) {
        let age = |at: Instant| now.saturating_duration_since(at);
        if age(*self.tidied.get_or_insert(now)) > SIMILAR_WINDOW {
            self.tidy(now);
        }
        if self.similar.len() > MAX_REMEMBERED {
            self.similar.retain(|_, similar| age(similar.last) < SIMILAR_WINDOW);
        }
        if self.known.len() > MAX_REMEMBERED {
            self.known.retain(|_, known| age(known.last) < SIMILAR_WINDOW);
        }
        if self.budgets.len() > MAX_REMEMBERED {
            self.budgets.retain(|_, budget| age(budget.updated) < SIMILAR_WINDOW);
        }
        // All of them recent: start afresh, rather than grow with the cluster.
        if self.similar.len().max(self.known.len()).max(self.budgets.len()) > 2 * MAX_REMEMBERED {
            *self = Self::default();
        }
    }
}

struct Sender {
    client: Client,
    component: String,
    host: String,
    correlator: Correlator,
}

impl Sender {
    async fn run(mut self, mut occurrences: mpsc::Receiver<Occurrence>) {
        loop {
            let received = match tokio::time::timeout(SIMILAR_WINDOW, occurrences.recv()).await {
                Ok(received) => received,
                Err(_) => {
                    self.correlator.tidy(Instant::now());
                    // With nothing left to forget there is nothing to wake up for.
                    if self.correlator.is_empty() { occurrences.recv().await } else { continue }
                }
            };
            let Some(occurrence) = received else { return };
            let group = Group {
                object: ObjectKey::new(&occurrence.object),
                kind: occurrence.kind,
                reason: occurrence.reason.clone(),
            };
            let decision = self.correlator.decide(&group, &occurrence.message, Instant::now());
            let mut tries = 0;
            while let Err(error) = self.send(&group, &occurrence, &decision).await {
                tries += 1;
                let refused =
                    matches!(error, kube::Error::Api(ref status) if !matches!(status.code, 429 | 500..));
                if refused || tries >= MAX_TRIES {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        reason = occurrence.reason,
                        "Could not record an event"
                    );
                    break;
                }
                tokio::time::sleep(RETRY_DELAY.mul_f64(rand::random_range(0.5..1.0))).await;
            }
        }
    }

    async fn send(
        &mut self,
        group: &Group,
        occurrence: &Occurrence,
        decision: &Decision,
    ) -> Result<(), kube::Error> {
        let namespace = occurrence.object.namespace.as_deref().filter(|namespace| !namespace.is_empty());
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace.unwrap_or("default"));
        let message = match decision {
            Decision::Drop => return Ok(()),
            Decision::Create { message } => message,
            Decision::Bump { name, count, message } => {
                let patch = json!({"count": count, "message": message, "lastTimestamp": times::api_time(occurrence.at)});
                match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                    // It has expired: tell of it anew.
                    Err(kube::Error::Api(status)) if status.code == 404 => message,
                    other => return other.map(drop),
                }
            }
        };
        let event = self.new_event(occurrence, message, namespace.unwrap_or("default"));
        let name = event.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {}
            // An earlier try whose answer was lost.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error),
        }
        self.correlator.created(group.clone(), message, name, Instant::now());
        Ok(())
    }

    fn new_event(&self, occurrence: &Occurrence, message: &str, namespace: &str) -> Event {
        // With the dot and the number a name has at most the 253 letters that names may have.
        let about = occurrence.object.name.as_deref().unwrap_or_default();
        let about = about.get(..LONGEST_PREFIX).unwrap_or(about).trim_end_matches(['.', '-']);
        let metadata = ObjectMeta {
            name: Some(format!("{about}.{:x}", occurrence.at.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        };
        Event {
            metadata,
            involved_object: occurrence.object.clone(),
            reason: Some(occurrence.reason.clone()),
            message: Some(message.to_owned()),
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: (!self.host.is_empty()).then(|| self.host.clone()),
            }),
            first_timestamp: Some(times::api_time(occurrence.at)),
            last_timestamp: Some(times::api_time(occurrence.at)),
            count: Some(1),
            type_: Some(occurrence.kind.name().to_owned()),
            reporting_component: Some(self.component.clone()),
            reporting_instance: (!self.host.is_empty()).then(|| self.host.clone()),
            ..Event::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str) -> Group {
        let object = ObjectReference { name: Some(name.into()), ..ObjectReference::default() };
        Group { object: ObjectKey::new(&object), kind: Type::Warning, reason: "Failed".into() }
    }

    fn deliver(correlator: &mut Correlator, group: &Group, message: &str, now: Instant) -> Decision {
        let decision = correlator.decide(group, message, now);
        if let Decision::Create { message } = &decision {
            correlator.created(group.clone(), message, format!("event-of-{message}"), now);
        }
        decision
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_are_counted_and_similar_ones_combined() {
        let mut correlator = Correlator::default();
        let (a, now) = (group("a"), Instant::now());
        assert_eq!(deliver(&mut correlator, &a, "m", now), Decision::Create { message: "m".into() });
        let bump = Decision::Bump { name: "event-of-m".into(), count: 2, message: "m".into() };
        assert_eq!(deliver(&mut correlator, &a, "m", now), bump);
        for number in 0..9 {
            let message = format!("m{number}");
            assert_eq!(deliver(&mut correlator, &a, &message, now), Decision::Create { message });
        }
        let combined = |number| format!("(combined from similar events): x{number}");
        assert_eq!(deliver(&mut correlator, &a, "x1", now), Decision::Create { message: combined(1) });
        let name = format!("event-of-{}", combined(1));
        assert_eq!(
            deliver(&mut correlator, &a, "x2", now),
            Decision::Bump { name, count: 2, message: combined(2) }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_has_a_budget_of_its_own() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let sent = |correlator: &mut Correlator, name: &str, now| {
            (0..40).filter(|_| deliver(correlator, &group(name), "m", now) != Decision::Drop).count()
        };
        assert_eq!(sent(&mut correlator, "a", now), 25);
        assert_eq!(sent(&mut correlator, "b", now), 25);
        assert_eq!(sent(&mut correlator, "a", now + Duration::from_secs(601)), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_long_past_is_forgotten() {
        let mut correlator = Correlator::default();
        let start = Instant::now();
        for number in 0..100 {
            deliver(&mut correlator, &group(&format!("pod-{number}")), "Created", start);
        }
        correlator.tidy(start + Duration::from_secs(700));
        // It can still be counted on the event that was sent, so that is remembered.
        assert_eq!((correlator.similar.len(), correlator.known.len(), correlator.budgets.len()), (0, 100, 0));
        correlator.tidy(start + EVENT_LIFE);
        assert!(correlator.is_empty() && correlator.known.capacity() == 0);
    }

    /// Records what the API server is asked; an event that was patched once is gone afterwards.
    #[tokio::test(start_paused = true)]
    async fn events_are_created_then_patched_then_created_anew() {
        let (requests, mut seen) = mpsc::unbounded_channel();
        let patched = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let client = crate::fake::client(move |method, path, body| {
            let path = path.trim_end_matches('?');
            let _ = requests.send((method.to_owned(), path.to_owned(), body.clone()));
            if method == "PATCH" && patched.fetch_add(1, std::sync::atomic::Ordering::SeqCst) > 0 {
                return crate::fake::failure(404, "NotFound");
            }
            let whole = if method == "PATCH" { json!({"metadata": {}, "involvedObject": {}}) } else { body };
            crate::fake::json(200, &whole)
        });
        let recorder = Recorder::new(client, "kubelet", "node-1");
        let node =
            ObjectReference { kind: Some("Node".into()), name: Some("node-1".into()), ..Default::default() };
        for _ in 0..3 {
            recorder.event(&node, Type::Warning, "DiskPressure", "é".repeat(1000));
        }
        let (method, path, created) = seen.recv().await.unwrap();
        assert_eq!((method.as_str(), path.as_str()), ("POST", "/api/v1/namespaces/default/events"));
        assert_eq!(created["source"], json!({"component": "kubelet", "host": "node-1"}));
        assert_eq!((&created["type"], &created["count"]), (&json!("Warning"), &json!(1)));
        let message = created["message"].as_str().unwrap();
        assert!(message.len() <= 1024 && message.ends_with("é..."), "{message}");
        let name = created["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with("node-1."), "{name}");

        let (method, path, patch) = seen.recv().await.unwrap();
        assert_eq!((method.as_str(), &patch["count"]), ("PATCH", &json!(2)));
        assert_eq!(path, format!("/api/v1/namespaces/default/events/{name}"));
        assert_eq!(seen.recv().await.unwrap().0, "PATCH");
        assert_eq!(seen.recv().await.unwrap().0, "POST");
    }
}
