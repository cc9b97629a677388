//! Requests that change something and have no answer yet: a bound on what waits in memory while the disk or a quorum is
//! away. A request counts until the node is done with it, also when its client has long gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

/// More are refused.
const MAX_IN_FLIGHT: usize = 20_000;
/// Bytes of them, above which more are refused.
const MAX_IN_FLIGHT_BYTES: usize = 64 << 20;

#[derive(Default)]
pub struct InFlight {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

impl InFlight {
    /// None: there are too many. A single request may be of any size.
    pub fn begin(self: &Arc<Self>, size: usize) -> Option<Flight> {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed);
        let bytes = self.bytes.fetch_add(size, Ordering::Relaxed);
        let flight = Flight { of: self.clone(), size };
        (requests < MAX_IN_FLIGHT && bytes < MAX_IN_FLIGHT_BYTES).then_some(flight)
    }
}

pub struct Flight {
    of: Arc<InFlight>,
    size: usize,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.of.requests.fetch_sub(1, Ordering::Relaxed);
        self.of.bytes.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// A request that the node has.
pub struct Waiting<T: Send + 'static>(Option<(Flight, oneshot::Receiver<T>)>);

impl<T: Send + 'static> Waiting<T> {
    pub fn new(flight: Flight, answer: oneshot::Receiver<T>) -> Self {
        Self(Some((flight, answer)))
    }

    /// The node's answer.
    pub async fn answer(&mut self) -> Result<T, oneshot::error::RecvError> {
        match &mut self.0 {
            Some((_, answer)) => answer.await,
            // It is there until this is dropped.
            None => std::future::pending().await,
        }
    }
}

impl<T: Send + 'static> Drop for Waiting<T> {
    fn drop(&mut self) {
        let Some((flight, mut answer)) = self.0.take() else { return };
        if answer.is_terminated() || !matches!(answer.try_recv(), Err(TryRecvError::Empty)) {
            return;
        }
        // Nobody waits any more, but the node still has it. Without a runtime the process is ending.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                let _ = answer.await;
                drop(flight);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_counts_until_the_node_is_done_with_it() {
        let in_flight = Arc::new(InFlight::default());
        let counted = || in_flight.requests.load(Ordering::Relaxed);
        let begin = || {
            let (reply, answer) = oneshot::channel::<u8>();
            (reply, Waiting::new(in_flight.begin(10).unwrap(), answer))
        };
        let (reply, mut waiting) = begin();
        reply.send(7).unwrap();
        assert_eq!(waiting.answer().await, Ok(7));
        assert_eq!(counted(), 1);
        drop(waiting);
        assert_eq!(counted(), 0);
        let (reply, waiting) = begin();
        drop(waiting);
        tokio::task::yield_now().await;
        assert_eq!(counted(), 1, "its client has gone, and the node has it");
        drop(reply);
        while counted() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(in_flight.bytes.load(Ordering::Relaxed), 0);
    }
}
