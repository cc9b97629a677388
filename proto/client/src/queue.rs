//! The work queue of reconcilers, with client-go's promises: a key is handed to one worker at a time; a key that
//! is added while a worker has it is handed out again afterwards; adding twice before that counts once.
//!
//! Failures back off per key (5 ms doubling up to 1000 s) and share a bucket of 10 a second (burst 100).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Weak};
use std::time::Duration;

use keelson_component_base::metrics::{HistogramFamily, Registry, exponential_buckets};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::Notify;
use tokio::time::Instant;

const BASE_DELAY: Duration = Duration::from_millis(5);
const MAX_DELAY: Duration = Duration::from_secs(1000);
/// After so many failures in a row (five seconds and more) also those are told of that are to be expected.
const PERSISTENT: u32 = 10;
const BUCKET_RATE: f64 = 10.0;
const BUCKET_BURST: f64 = 100.0;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Name {
    name: String,
}

/// The `workqueue_*` metrics of a process; made once and given to each queue.
#[derive(Clone)]
pub struct Metrics {
    depth: Family<Name, Gauge>,
    adds: Family<Name, Counter>,
    retries: Family<Name, Counter>,
    waiting: HistogramFamily<Name>,
    working: HistogramFamily<Name>,
    queues: Arc<Mutex<Vec<Weak<dyn InProgress>>>>,
}

impl Metrics {
    /// Registers the families. To be called once per registry.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        // Upstream: 10 ns to 10 s in powers of ten.
        let make: fn() -> Histogram = || Histogram::new(exponential_buckets(10e-9, 10.0, 10));
        let queues: Arc<Mutex<Vec<Weak<dyn InProgress>>>> = Arc::default();
        registry.collector(Box::new(InProgressCollector(queues.clone())));
        Self {
            depth: registry.gauges("workqueue_depth", "Current depth of workqueue"),
            adds: registry.counters("workqueue_adds", "Total number of adds handled by workqueue"),
            retries: registry.counters("workqueue_retries", "Total number of retries handled by workqueue"),
            waiting: registry.histograms(
                "workqueue_queue_duration_seconds",
                "How long in seconds an item stays in workqueue before being requested",
                make,
            ),
            working: registry.histograms(
                "workqueue_work_duration_seconds",
                "How long in seconds processing an item from workqueue takes",
                make,
            ),
            queues,
        }
    }

    /// Metrics that nobody reads, for tests.
    #[must_use]
    pub fn unregistered() -> Self {
        Self::new(&Registry::new())
    }
}

/// What is looked at only when metrics are scraped.
trait InProgress: Send + Sync {
    fn name(&self) -> String;
    /// The sum of the ages of all items being worked on, and the greatest of them.
    fn ages(&self) -> (Duration, Duration);
}

struct InProgressCollector(Arc<Mutex<Vec<Weak<dyn InProgress>>>>);

impl std::fmt::Debug for InProgressCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InProgressCollector")
    }
}

impl Collector for InProgressCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut queues = self.0.lock();
        queues.retain(|queue| queue.strong_count() > 0);
        let rows: Vec<_> =
            queues.iter().filter_map(Weak::upgrade).map(|queue| (queue.name(), queue.ages())).collect();
        drop(queues);
        if rows.is_empty() {
            return Ok(());
        }
        for (name, help, longest) in [
            (
                "workqueue_unfinished_work_seconds",
                "How many seconds of work has been done that is in progress and hasn't been observed by work_duration",
                false,
            ),
            (
                "workqueue_longest_running_processor_seconds",
                "How many seconds has the longest running processor for workqueue been running",
                true,
            ),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (queue, (sum, greatest)) in &rows {
                let value = if longest { greatest } else { sum };
                let labels = Name { name: queue.clone() };
                ConstGauge::new(value.as_secs_f64()).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Why work on a key did not succeed. Either way the key comes again after its backoff.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setback {
    /// Something is wrong: this is logged as a warning.
    Failed(String),
    /// The cache was behind, or a race was lost: to be expected.
    Outdated(String),
}

struct Bucket {
    tokens: f64,
    updated: Instant,
}

struct State<Key> {
    queue: VecDeque<Key>,
    /// Keys that must be worked on, with the time they were first added.
    dirty: HashMap<Key, Instant>,
    /// Keys that a worker has, with the time it took them.
    processing: HashMap<Key, Instant>,
    /// Keys for later, soonest first. A key may be here once: the sooner time wins.
    delayed: BinaryHeap<Reverse<(Instant, u64)>>,
    delayed_keys: HashMap<u64, Key>,
    delayed_at: HashMap<Key, (Instant, u64)>,
    next_id: u64,
    failures: HashMap<Key, u32>,
    bucket: Bucket,
    shut_down: bool,
}

struct Shared<Key> {
    name: String,
    state: Mutex<State<Key>>,
    ready: Notify,
    depth: Gauge,
    adds: Counter,
    retries: Counter,
    waiting: Histogram,
    working: Histogram,
}

/// A queue of keys; cheap to clone, all clones are the same queue.
pub struct Queue<Key>(Arc<Shared<Key>>);

impl<Key> Clone for Queue<Key> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Key: Clone + Eq + Hash + Send + 'static> Queue<Key> {
    /// An empty queue; `name` is its label in the metrics.
    #[must_use]
    pub fn new(name: &str, metrics: &Metrics) -> Self {
        let labels = Name { name: name.to_owned() };
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            state: Mutex::new(State {
                queue: VecDeque::new(),
                dirty: HashMap::new(),
                processing: HashMap::new(),
                delayed: BinaryHeap::new(),
                delayed_keys: HashMap::new(),
                delayed_at: HashMap::new(),
                next_id: 0,
                failures: HashMap::new(),
                bucket: Bucket { tokens: BUCKET_BURST, updated: Instant::now() },
                shut_down: false,
            }),
            ready: Notify::new(),
            depth: metrics.depth.get_or_create_owned(&labels),
            adds: metrics.adds.get_or_create_owned(&labels),
            retries: metrics.retries.get_or_create_owned(&labels),
            waiting: metrics.waiting.get_or_create_owned(&labels),
            working: metrics.working.get_or_create_owned(&labels),
        });
        let weak: Weak<Shared<Key>> = Arc::downgrade(&shared);
        metrics.queues.lock().push(weak);
        Self(shared)
    }

    /// Asks for a key to be worked on.
    pub fn add(&self, key: Key) {
        let mut state = self.0.state.lock();
        self.add_locked(&mut state, key);
    }

    fn add_locked(&self, state: &mut State<Key>, key: Key) {
        if state.shut_down || state.dirty.contains_key(&key) {
            return;
        }
        self.0.adds.inc();
        state.dirty.insert(key.clone(), Instant::now());
        if !state.processing.contains_key(&key) {
            self.push(state, key);
        }
    }

    fn push(&self, state: &mut State<Key>, key: Key) {
        state.queue.push_back(key);
        self.0.depth.set(state.queue.len() as i64);
        self.0.ready.notify_one();
    }

    /// Adds a key when a time has passed. Of several such requests for one key the soonest counts.
    pub fn add_after(&self, key: Key, delay: Duration) {
        let mut state = self.0.state.lock();
        self.add_after_locked(&mut state, key, delay);
    }

    fn add_after_locked(&self, state: &mut State<Key>, key: Key, delay: Duration) {
        if state.shut_down {
            return;
        }
        if delay.is_zero() {
            self.add_locked(state, key);
            return;
        }
        let at = Instant::now() + delay;
        if let Some((known, id)) = state.delayed_at.get(&key).copied() {
            if known <= at {
                return;
            }
            // Its entry in the heap stays behind without a key and is passed over.
            state.delayed_keys.remove(&id);
        }
        let id = state.next_id;
        state.next_id += 1;
        state.delayed.push(Reverse((at, id)));
        state.delayed_keys.insert(id, key.clone());
        state.delayed_at.insert(key, (at, id));
        // A waiting worker may have to wake sooner than it meant to.
        self.0.ready.notify_one();
    }

    /// Adds a key after its backoff: call it when work on the key failed.
    pub fn add_rate_limited(&self, key: Key) {
        let mut state = self.0.state.lock();
        self.0.retries.inc();
        let failures = state.failures.entry(key.clone()).or_insert(0);
        let own = BASE_DELAY.saturating_mul(1_u32.checked_shl(*failures).unwrap_or(u32::MAX)).min(MAX_DELAY);
        *failures = failures.saturating_add(1);
        let now = Instant::now();
        let bucket = &mut state.bucket;
        let refilled = now.saturating_duration_since(bucket.updated).as_secs_f64() * BUCKET_RATE;
        bucket.tokens = (bucket.tokens + refilled).min(BUCKET_BURST) - 1.0;
        bucket.updated = now;
        let shared = Duration::from_secs_f64((-bucket.tokens).max(0.0) / BUCKET_RATE);
        self.add_after_locked(&mut state, key, own.max(shared));
    }

    /// Ends a key's backoff: call it when work on the key succeeded.
    pub fn forget(&self, key: &Key) {
        self.0.state.lock().failures.remove(key);
    }

    /// How often the key has failed since it was last forgotten.
    #[must_use]
    pub fn failures(&self, key: &Key) -> u32 {
        self.0.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Keys that wait for a worker now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.state.lock().queue.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes no more keys; [`Queue::next`] gives `None` once the waiting ones are handed out.
    pub fn shut_down(&self) {
        self.0.state.lock().shut_down = true;
        self.0.ready.notify_waiters();
        self.0.ready.notify_one();
    }

    /// The next key; the caller must give it back with [`Queue::done`]. `None` after [`Queue::shut_down`].
    /// Safe to drop while it waits.
    pub async fn next(&self) -> Option<Key> {
        loop {
            let notified = self.0.ready.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let wake_at = {
                let mut state = self.0.state.lock();
                let wake_at = self.promote(&mut state);
                if let Some(key) = state.queue.pop_front() {
                    self.0.depth.set(state.queue.len() as i64);
                    let now = Instant::now();
                    if let Some(added) = state.dirty.remove(&key) {
                        self.0.waiting.observe(now.saturating_duration_since(added).as_secs_f64());
                    }
                    state.processing.insert(key.clone(), now);
                    if !state.queue.is_empty() {
                        // One notification may stand for several keys.
                        self.0.ready.notify_one();
                    }
                    return Some(key);
                }
                if state.shut_down {
                    self.0.ready.notify_one();
                    return None;
                }
                wake_at
            };
            match wake_at {
                Some(at) => {
                    tokio::select! {
                        () = notified => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => notified.await,
            }
        }
    }

    /// Moves delayed keys whose time has come into the queue; says when the next one's comes.
    fn promote(&self, state: &mut State<Key>) -> Option<Instant> {
        let now = Instant::now();
        while let Some(Reverse((at, id))) = state.delayed.peek().copied() {
            if !state.delayed_keys.contains_key(&id) {
                state.delayed.pop();
                continue;
            }
            if at > now {
                return Some(at);
            }
            state.delayed.pop();
            if let Some(key) = state.delayed_keys.remove(&id) {
                state.delayed_at.remove(&key);
                self.add_locked(state, key);
            }
        }
        None
    }

    /// Gives a key back. If it was added meanwhile it goes to the end of the queue.
    pub fn done(&self, key: &Key) {
        let mut state = self.0.state.lock();
        if let Some(taken) = state.processing.remove(key) {
            self.0.working.observe(taken.elapsed().as_secs_f64());
            if state.dirty.contains_key(key) {
                self.push(&mut state, key.clone());
            }
        }
    }

    /// Runs `workers` loops of "take, work, give back" until the queue is shut down. An `Err` puts the key back
    /// with its backoff; `Ok(Some(delay))` has it looked at again after that time. The loops share the caller's
    /// task: they wait at the same time, they do not compute at the same time.
    pub async fn run<F, Fut>(&self, workers: usize, work: F)
    where
        F: Fn(Key) -> Fut + Sync,
        Fut: Future<Output = Result<Option<Duration>, Setback>> + Send,
        Key: std::fmt::Debug,
    {
        let worker = || async {
            while let Some(key) = self.next().await {
                match work(key.clone()).await {
                    Ok(again) => {
                        self.forget(&key);
                        if let Some(delay) = again {
                            self.add_after(key.clone(), delay);
                        }
                    }
                    Err(setback) => {
                        match setback {
                            Setback::Failed(error) => {
                                tracing::warn!(
                                    queue = self.0.name,
                                    ?key,
                                    error,
                                    "Work failed, will try again"
                                );
                            }
                            // A cache catches up sooner than this: what lasts is something else.
                            Setback::Outdated(error) if self.failures(&key) >= PERSISTENT => {
                                tracing::warn!(queue = self.0.name, ?key, error, "Work keeps failing");
                            }
                            Setback::Outdated(error) => {
                                tracing::debug!(queue = self.0.name, ?key, error, "Decided on old facts");
                            }
                        }
                        self.add_rate_limited(key.clone());
                    }
                }
                self.done(&key);
            }
        };
        futures::future::join_all((0..workers.max(1)).map(|_| worker())).await;
    }

    /// The distinct keys that wait, are delayed or are worked on; for tests and debug output.
    #[must_use]
    pub fn pending(&self) -> HashSet<Key> {
        let state = self.0.state.lock();
        state.dirty.keys().chain(state.processing.keys()).chain(state.delayed_at.keys()).cloned().collect()
    }
}

impl<Key: Send> InProgress for Shared<Key> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn ages(&self) -> (Duration, Duration) {
        let state = self.state.lock();
        let ages = state.processing.values().map(Instant::elapsed);
        ages.fold((Duration::ZERO, Duration::ZERO), |(sum, greatest), age| (sum + age, greatest.max(age)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    fn queue() -> Queue<&'static str> {
        Queue::new("test", &Metrics::unregistered())
    }

    #[tokio::test(start_paused = true)]
    async fn one_worker_per_key_and_no_add_is_lost() {
        let queue = queue();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.next().await, Some("a"));
        queue.add("a");
        assert_eq!(queue.next().await, Some("b"));
        assert!(queue.next().now_or_never().is_none(), "a is being worked on");
        queue.done(&"a");
        assert_eq!(queue.next().await, Some("a"));
        queue.done(&"a");
        queue.done(&"b");
        assert!(queue.next().now_or_never().is_none());
        queue.add("c");
        queue.shut_down();
        queue.add("d");
        assert_eq!(queue.next().await, Some("c"));
        assert_eq!(queue.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn delays_keep_the_sooner_time() {
        let queue = queue();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(3));
        queue.add_after("a", Duration::from_secs(7));
        queue.add_after("b", Duration::from_secs(5));
        assert_eq!(queue.next().await, Some("a"));
        assert_eq!(start.elapsed().as_secs(), 3);
        assert_eq!(queue.next().await, Some("b"));
        queue.done(&"a");
        queue.done(&"b");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(queue.next().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_sooner_delay_wakes_a_waiting_worker() {
        let queue = queue();
        queue.add_after("late", Duration::from_secs(100));
        let start = Instant::now();
        let worker = tokio::spawn({
            let queue = queue.clone();
            async move { queue.next().await }
        });
        tokio::task::yield_now().await;
        queue.add_after("soon", Duration::from_secs(1));
        assert_eq!(worker.await.unwrap(), Some("soon"));
        assert_eq!(start.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_and_are_forgotten() {
        let queue = queue();
        for milliseconds in [5, 10, 20, 40] {
            let start = Instant::now();
            queue.add_rate_limited("a");
            assert_eq!(queue.next().await, Some("a"));
            let waited = start.elapsed().as_millis();
            assert!((milliseconds..=milliseconds + 1).contains(&waited), "{waited}");
            queue.done(&"a");
        }
        assert_eq!(queue.failures(&"a"), 4);
        for _ in 0..40 {
            queue.add_rate_limited("a");
        }
        queue.forget(&"a");
        assert_eq!(queue.failures(&"a"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_bucket_holds_back_many_keys() {
        let queue: Queue<u32> = Queue::new("bucket", &Metrics::unregistered());
        let start = Instant::now();
        for key in 0..150 {
            queue.add_rate_limited(key);
        }
        for _ in 0..150 {
            let key = queue.next().await.unwrap();
            queue.done(&key);
        }
        assert_eq!(start.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn metrics_have_upstreams_names() {
        let registry = Registry::new();
        let queue = Queue::new("deployment", &Metrics::new(&registry));
        queue.add("a");
        queue.add("b");
        queue.next().await;
        tokio::time::advance(Duration::from_secs(2)).await;
        let text = registry.encode();
        for line in [
            "workqueue_depth{name=\"deployment\"} 1",
            "workqueue_adds_total{name=\"deployment\"} 2",
            "workqueue_unfinished_work_seconds{name=\"deployment\"} 2.0",
            "workqueue_longest_running_processor_seconds{name=\"deployment\"} 2.0",
            "workqueue_queue_duration_seconds_count{name=\"deployment\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn run_retries_until_work_succeeds() {
        let queue = queue();
        queue.add("a");
        let attempts = Mutex::new(0);
        queue
            .run(2, |_| async {
                let mut attempts = attempts.lock();
                *attempts += 1;
                if *attempts < 3 {
                    return Err(Setback::Failed("not yet".to_owned()));
                }
                queue.shut_down();
                Ok(None)
            })
            .await;
        assert_eq!(*attempts.lock(), 3);
    }
}
