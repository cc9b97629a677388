//! Deletes Jobs `ttlSecondsAfterFinished` after their end.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use keelson_objects::times;
use kube::api::{Api, DeleteParams, Preconditions};

use crate::context::Context;
use crate::pod_control::is_code;
use crate::sync;

/// When a Job is to be deleted; `None` while it runs, or without a time to live.
fn expires(job: &Job) -> Option<Timestamp> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let ended = conditions.iter().find(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
    })?;
    Some(times::plus_seconds(ended.last_transition_time.as_ref()?.0, i64::from(ttl)))
}

pub async fn run(context: Context) {
    let client = context.client("ttl-after-finished-controller");
    let queue = context.queue("ttl_jobs_to_delete");
    let jobs = context.informers().jobs();
    sync::enqueue(&jobs, &queue);
    jobs.wait_synced().await;
    sync::run(&queue, context.workers("ttl-after-finished"), |key| {
        let jobs = &jobs;
        let api: Api<Job> = Api::namespaced(client.clone(), &key.namespace);
        async move {
            let cached = jobs.get(&key.namespace, &key.name).filter(|job| !job.meta.deleting);
            if cached.is_none_or(|job| expires(&job.object()).is_none()) {
                return Ok(None);
            }
            // Its time to live may have been raised a moment ago.
            let Some(job) = api.get_opt(&key.name).await? else { return Ok(None) };
            let Some(at) = expires(&job) else { return Ok(None) };
            let left = times::between(Timestamp::now(), at);
            if left.is_positive() {
                return Ok(Some(Duration::try_from(left).unwrap_or_default()));
            }
            let exactly =
                Preconditions { uid: job.metadata.uid, resource_version: job.metadata.resource_version };
            match api.delete(&key.name, &DeleteParams::foreground().preconditions(exactly)).await {
                Err(error) if !is_code(&error, 404) => Err(error.into()),
                _ => Ok(None),
            }
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn expiry() {
        let check = |ttl: Value, kind: &str, status: &str, expected: Option<&str>| {
            let job: Job = serde_json::from_value(json!({
                "metadata": {},
                "spec": {"ttlSecondsAfterFinished": ttl, "template": {}},
                "status": {"conditions": [{"type": kind, "status": status, "lastTransitionTime": "2026-11-20T12:00:00Z"}]},
            }))
            .unwrap();
            assert_eq!(expires(&job).map(times::format).as_deref(), expected);
        };
        check(json!(30), "Complete", "True", Some("2026-11-20T12:00:30Z"));
        check(json!(0), "Failed", "True", Some("2026-11-20T12:00:00Z"));
        check(json!(30), "Complete", "False", None);
        check(json!(30), "Suspended", "True", None);
        check(Value::Null, "Complete", "True", None);
    }
}
