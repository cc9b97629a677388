//! The one list of controllers: their names, whether they are on by default, and how they are started.

use std::future::Future;
use std::pin::Pin;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::controllers;

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

pub struct Descriptor {
    /// As upstream's `--controllers` knows it.
    pub name: &'static str,
    /// The name before Kubernetes 1.28, which the flag takes too.
    pub alias: &'static str,
    start: fn(Context) -> Running,
}

macro_rules! descriptor {
    ($name:literal, $alias:literal, $module:ident) => {
        Descriptor {
            name: $name,
            alias: $alias,
            start: |context| Box::pin(controllers::$module::run(context)),
        }
    };
}

/// In the order in which they are started. All are on by default.
pub const DESCRIPTORS: &[Descriptor] = &[
    descriptor!("serviceaccount-controller", "serviceaccount", serviceaccount),
    descriptor!("root-ca-certificate-publisher-controller", "root-ca-cert-publisher", root_ca),
    descriptor!("node-ipam-controller", "nodeipam", node_ipam),
    descriptor!("node-lifecycle-controller", "nodelifecycle", node_lifecycle),
    descriptor!("deployment-controller", "deployment", deployment),
    descriptor!("replicaset-controller", "replicaset", replicaset),
    descriptor!("daemonset-controller", "daemonset", daemonset),
    descriptor!("disruption-controller", "disruption", disruption),
    descriptor!("statefulset-controller", "statefulset", statefulset),
    descriptor!("job-controller", "job", job),
    descriptor!("cronjob-controller", "cronjob", cronjob),
    descriptor!("endpoints-controller", "endpoint", endpoints),
    descriptor!("endpointslice-controller", "endpointslice", endpointslice),
    descriptor!("namespace-controller", "namespace", namespace),
    descriptor!("garbage-collector-controller", "garbagecollector", garbage_collector),
    descriptor!("taint-eviction-controller", "taint-eviction", taint_eviction),
    descriptor!("pod-garbage-collector-controller", "podgc", pod_gc),
    descriptor!("ttl-after-finished-controller", "ttl-after-finished", ttl_after_finished),
    descriptor!("serviceaccount-token-controller", "serviceaccount-token", serviceaccount_token),
];

impl Descriptor {
    fn is_called(&self, name: &str) -> bool {
        self.name == name || self.alias == name
    }

    /// What `--controllers` says of it: the first entry that names it, else whether there is a `*`.
    #[must_use]
    pub fn is_enabled(&self, flag: &[String]) -> bool {
        for entry in flag {
            match entry.strip_prefix('-') {
                Some(name) if self.is_called(name) => return false,
                None if self.is_called(entry) => return true,
                _ => {}
            }
        }
        flag.iter().any(|entry| entry == "*")
    }
}

/// The first entry of `--controllers` that names nothing.
#[must_use]
pub fn unknown(flag: &[String]) -> Option<&str> {
    let names = |entry: &str| {
        let name = entry.strip_prefix('-').unwrap_or(entry);
        entry == "*" || DESCRIPTORS.iter().any(|descriptor| descriptor.is_called(name))
    };
    flag.iter().map(String::as_str).find(|entry| !names(entry))
}

/// Runs the enabled controllers until cancelled, or until one of them panics: half a controller manager must not
/// hold the lease.
pub async fn run(context: Context, flag: &[String], cancel: CancellationToken) {
    let mut running = JoinSet::new();
    for descriptor in DESCRIPTORS.iter().filter(|descriptor| descriptor.is_enabled(flag)) {
        tracing::info!(controller = descriptor.name, "Started controller");
        let work = (descriptor.start)(context.clone());
        running.spawn(async move {
            work.await;
            descriptor.name
        });
    }
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            ended = running.join_next() => match ended {
                None => cancel.cancelled().await,
                Some(Ok(name)) => tracing::info!(controller = name, "Controller has nothing to do"),
                Some(Err(error)) => {
                    tracing::error!("a controller failed: {error}");
                    break;
                }
            },
        }
    }
    // Dropping the set ends what still runs; unfinished requests are repeated by the next leader.
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enabling() {
        #[track_caller]
        fn check(flag: &str, name: &str, expected: bool) {
            let flag: Vec<String> = flag.split(',').map(str::to_owned).collect();
            assert_eq!(unknown(&flag), None);
            let descriptor = DESCRIPTORS.iter().find(|descriptor| descriptor.name == name).unwrap();
            assert_eq!(descriptor.is_enabled(&flag), expected, "{flag:?}");
        }
        check("*", "deployment-controller", true);
        check("*,-deployment-controller", "deployment-controller", false);
        check("-deployment,*", "deployment-controller", false);
        check("replicaset", "deployment-controller", false);
        check("deployment", "deployment-controller", true);
        assert_eq!(unknown(&["*".into(), "-wheel".into()]), Some("-wheel"));
    }
}
