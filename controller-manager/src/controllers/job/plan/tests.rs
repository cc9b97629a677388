//! Tables of what a Job's plan does for what it observes.

use super::*;
use crate::meta::Meta;
use k8s_openapi::api::batch::v1::UncountedTerminatedPods;
use serde_json::{Value, json};

fn now() -> Timestamp {
    times::parse("2026-11-20T12:00:00Z").unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    times::plus_seconds(now(), -seconds)
}

/// `name[#index]`, then letters: `a`ctive, `r`eady, `s`ucceeded, `f`ailed, `d`eleting, `n`o finalizer,
/// `o` failed long ago.
fn pod(text: &str) -> Arc<PodInfo> {
    let (place, flags) = text.split_once(':').unwrap();
    let (name, index) =
        place.split_once('#').map_or((place, None), |(name, index)| (name, index.parse().ok()));
    let has = |flag: char| flags.contains(flag);
    let phase = match () {
        () if has('s') => Phase::Succeeded,
        () if has('f') => Phase::Failed,
        () => Phase::Running,
    };
    let meta = Meta {
        name: name.into(),
        uid: name.into(),
        deleting: has('d'),
        created: ago(500),
        ..Meta::default()
    };
    Arc::new(PodInfo {
        meta,
        node: "n".into(),
        phase,
        job_tracked: !has('n'),
        ready: has('r').then(|| ago(5)),
        finished: (has('s') || has('f')).then(|| ago(if has('o') { 400 } else { 4 })),
        completion_index: index,
        ..PodInfo::default()
    })
}

struct Case {
    job: Job,
    pods: Vec<Arc<PodInfo>>,
    released: HashSet<String>,
    failures: Failures,
    satisfied: bool,
}

impl Case {
    fn new(spec: &Value, status: &Value, pods: &[&str]) -> Self {
        let mut whole =
            json!({"spec": {"template": {}, "parallelism": 1, "completions": 1, "backoffLimit": 6}});
        for (key, value) in spec.as_object().unwrap() {
            whole["spec"][key] = value.clone();
        }
        whole["status"] = status.clone();
        let pods = pods.iter().map(|text| pod(text)).collect();
        let job = serde_json::from_value(whole).unwrap();
        Self { job, pods, released: HashSet::new(), failures: Failures::default(), satisfied: true }
    }

    fn observed(&self) -> Observed<'_> {
        Observed {
            job: &self.job,
            spec: self.job.spec.as_ref().unwrap(),
            pods: &self.pods,
            released: &self.released,
            failures: self.failures,
            satisfied: self.satisfied,
            now: now(),
        }
    }

    fn action(&self) -> String {
        let names = |pods: &[Arc<PodInfo>]| {
            pods.iter().map(|pod| pod.meta.name.clone()).collect::<Vec<_>>().join(" ")
        };
        match self.observed().decide().action {
            Action::Nothing => "nothing".to_owned(),
            Action::Discard(pods) => format!("discard {}", names(&pods)),
            Action::Stop(pods) => format!("stop {}", names(&pods)),
            Action::Create(all) => {
                let indexes =
                    all.iter().map(|creation| creation.index.map_or("-".into(), |index| index.to_string()));
                format!("create {}", indexes.collect::<Vec<String>>().join(" "))
            }
        }
    }

    /// As the module does it, with everything succeeding.
    fn run(&mut self) -> (Settled, bool) {
        let observed = self.observed();
        let decision = observed.decide();
        let done = match &decision.action {
            Action::Create(all) => Done { created: i32::try_from(all.len()).unwrap(), ..Done::default() },
            Action::Discard(pods) | Action::Stop(pods) => {
                Done { deleted: i32::try_from(pods.len()).unwrap(), ..Done::default() }
            }
            Action::Nothing => Done::default(),
        };
        let mut settled = observed.settle(&decision, done);
        let tracked = self.pods.iter().filter(|pod| observed.is_tracked(pod)).map(|pod| pod.meta.uid.clone());
        let mut tracked: HashSet<String> = tracked.collect();
        for pod in &settled.release {
            tracked.remove(&pod.meta.uid);
            self.released.insert(pod.meta.uid.clone());
        }
        let verdict = settled.verdict.clone();
        let (_, ended) = conclude(&mut settled.status, &tracked, verdict.as_ref(), now());
        self.job.status = Some(settled.status.clone());
        (settled, ended)
    }
}

#[test]
fn actions() {
    #[track_caller]
    fn check(spec: Value, status: Value, pods: &[&str], expected: &str) {
        assert_eq!(Case::new(&spec, &status, pods).action(), expected);
    }
    let none = json!({});
    check(none.clone(), none.clone(), &[], "create -");
    check(json!({"parallelism": 2, "completions": 3}), none.clone(), &["a:a"], "create -");
    check(json!({"parallelism": 2, "completions": 3}), json!({"succeeded": 2}), &["a:a"], "nothing");
    check(json!({"parallelism": 1, "completions": 3}), none.clone(), &["a:a", "b:ar"], "discard a");
    check(json!({"parallelism": 2, "completions": null}), none.clone(), &["a:a"], "create -");
    check(json!({"parallelism": 2, "completions": null}), none.clone(), &["a:a", "b:s"], "nothing");
    check(json!({"suspend": true}), none.clone(), &[], "nothing");
    check(json!({"suspend": true}), none.clone(), &["a:a"], "discard a");
    // A failure holds the next pod off; one long ago does not.
    check(none.clone(), none.clone(), &["a:f"], "nothing");
    check(none.clone(), none.clone(), &["a:fo"], "create -");
    // A pod that is being deleted is replaced at once, or when it has ended.
    check(none.clone(), none.clone(), &["a:adn"], "create -");
    check(json!({"podReplacementPolicy": "Failed"}), none.clone(), &["a:ad"], "nothing");
    check(json!({"backoffLimit": 0}), none.clone(), &["a:f", "b:a"], "stop b");
    check(
        json!({"activeDeadlineSeconds": 60}),
        json!({"startTime": "2026-11-20T11:59:00Z"}),
        &["a:a"],
        "stop a",
    );
    check(
        json!({"activeDeadlineSeconds": 60}),
        json!({"startTime": "2026-11-20T11:59:30Z"}),
        &["a:a"],
        "nothing",
    );
    let indexed = json!({"completionMode": "Indexed", "parallelism": 3, "completions": 5});
    check(indexed.clone(), none.clone(), &[], "create 0 1 2");
    check(
        indexed.clone(),
        json!({"completedIndexes": "0,2", "succeeded": 2}),
        &["a#1:a", "b#3:s"],
        "create 4",
    );
    check(indexed.clone(), none.clone(), &["a#0:a", "b#0:ar", "c#7:a"], "discard c a");
    let each =
        json!({"completionMode": "Indexed", "parallelism": 2, "completions": 2, "backoffLimitPerIndex": 1});
    check(each.clone(), none.clone(), &["a#0:fo"], "create 0 1");
    check(each.clone(), none, &["a#0:f"], "create 1");
}

#[test]
fn counting_survives_restarts() {
    let mut case = Case::new(&json!({"parallelism": 2, "completions": 3}), &json!({}), &["a:s", "b:a"]);
    let decision = case.observed().decide();
    let first = case.observed().settle(&decision, Done { created: 1, ..Done::default() });
    let uncounted = first.status.uncounted_terminated_pods.clone().unwrap();
    assert!(first.must_write && uncounted.succeeded == Some(vec!["a".into()]));
    assert_eq!((first.status.succeeded, first.release.len()), (None, 1));

    // Killed after the first write: nothing is counted twice, the finalizer is removed once more.
    case.job.status = Some(first.status.clone());
    let again = case.observed().settle(&case.observed().decide(), Done { created: 1, ..Done::default() });
    assert_eq!(again.status.uncounted_terminated_pods, Some(uncounted));
    assert!(!again.must_write && again.release.len() == 1);

    // Killed after the finalizer was removed: the pod is counted, seen or not.
    case.pods[0] = pod("a:sn");
    let later = case.observed().settle(&case.observed().decide(), Done { created: 1, ..Done::default() });
    assert_eq!(later.status.succeeded, Some(1));
    assert_eq!(later.status.uncounted_terminated_pods, Some(UncountedTerminatedPods::default()));

    // A cache that is behind still shows the finalizer.
    case.job.status = Some(later.status);
    case.pods[0] = pod("a:s");
    case.released.insert("a".into());
    let behind = case.observed().settle(&case.observed().decide(), Done { created: 1, ..Done::default() });
    assert_eq!((behind.status.succeeded, behind.release.len()), (Some(1), 0));
}

#[test]
fn ends() {
    #[track_caller]
    fn check(mut case: Case, expected: &[&str], reason: &str) {
        let (settled, ended) = case.run();
        let conditions = settled.status.conditions.iter().flatten();
        assert_eq!(conditions.map(|c| c.type_.as_str()).collect::<Vec<_>>(), expected);
        assert_eq!(settled.verdict.map_or_else(String::new, |verdict| verdict.reason), reason);
        assert_eq!(ended, expected.len() == 2, "ended");
        assert_eq!(finished(&case.job).is_some(), ended);
        assert_eq!(settled.status.completion_time.is_some(), expected.contains(&COMPLETE));
    }
    let none = json!({});
    let succeeded = [SUCCESS_CRITERIA_MET, COMPLETE];
    let failed = [FAILURE_TARGET, FAILED];
    check(Case::new(&none, &none, &["a:a"]), &[], "");
    check(Case::new(&none, &none, &["a:s"]), &succeeded, "CompletionsReached");
    check(Case::new(&json!({"completions": 0}), &none, &[]), &succeeded, "CompletionsReached");
    check(Case::new(&json!({"backoffLimit": 0}), &none, &["a:f"]), &failed, "BackoffLimitExceeded");
    // Pods that are stopped must have ended first.
    check(
        Case::new(&json!({"backoffLimit": 0}), &none, &["a:f", "b:a"]),
        &[FAILURE_TARGET],
        "BackoffLimitExceeded",
    );
    check(Case { satisfied: false, ..Case::new(&json!({"backoffLimit": 0}), &none, &["a:f"]) }, &[], "");
    check(
        Case::new(&json!({"parallelism": 2}), &none, &["a:s", "b:ad"]),
        &[SUCCESS_CRITERIA_MET],
        "CompletionsReached",
    );
    let policy = json!({"podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [3]}}]}});
    let mut case = Case::new(&policy, &none, &["a:f"]);
    let exit = crate::pod::Exit { container: "c".into(), code: 3, init: false };
    case.pods = vec![Arc::new(PodInfo { exits: [exit].into(), ..(*case.pods[0]).clone() })];
    check(case, &failed, "PodFailurePolicy");
    let indexed = json!({"completionMode": "Indexed", "completions": 3,
        "successPolicy": {"rules": [{"succeededIndexes": "0,2", "succeededCount": 1}]}});
    check(Case::new(&indexed, &none, &["a#2:s"]), &succeeded, "SuccessPolicy");
    check(Case::new(&indexed, &none, &["a#1:s"]), &[], "");
    let each = json!({"completionMode": "Indexed", "completions": 2, "backoffLimitPerIndex": 0});
    check(Case::new(&each, &none, &["a#0:f", "b#1:s"]), &failed, "FailedIndexes");
}

#[test]
fn numbers() {
    let mut case =
        Case::new(&json!({"completions": 4, "parallelism": 3}), &json!({}), &["a:s", "b:f", "c:ar", "d:ad"]);
    let (settled, _) = case.run();
    let status = &settled.status;
    assert_eq!((status.succeeded, status.failed, status.ready), (Some(1), Some(2), Some(1)));
    // Two more are made: the last that ended had succeeded.
    assert_eq!((status.active, status.terminating), (Some(3), Some(1)));
    assert_eq!(status.start_time, Some(times::api_time(now())));
    assert!(settled.changed);
    let (settled, _) = case.run();
    assert!(!settled.changed && settled.release.is_empty());
    assert_eq!(settled.status.failed, Some(2));

    let indexed = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 4});
    let mut case = Case::new(
        &indexed,
        &json!({"completedIndexes": "0", "succeeded": 1}),
        &["a#0:s", "b#1:s", "c#3:a", "d#9:s"],
    );
    let (settled, _) = case.run();
    assert_eq!(
        (settled.status.succeeded, settled.status.completed_indexes.as_deref()),
        (Some(2), Some("0,1"))
    );
    // One index is known already and one is none of the Job's: they are let go uncounted.
    assert_eq!(settled.release.len(), 3);
}

#[test]
fn suspension() {
    let mut case = Case::new(&json!({"suspend": true}), &json!({}), &["a:a"]);
    let (settled, _) = case.run();
    assert_eq!(settled.event, Some(("Suspended", "Job suspended")));
    assert_eq!((settled.status.start_time, settled.status.failed), (None, None));
    case.pods.clear();
    assert_eq!(case.run().0.event, None);
    case.job.spec.as_mut().unwrap().suspend = Some(false);
    let (settled, _) = case.run();
    assert_eq!(settled.event, Some(("Resumed", "Job resumed")));
    assert_eq!(settled.status.conditions.unwrap()[0].status, "False");
    assert_eq!(settled.status.active, Some(1));
}

#[test]
fn backing_off() {
    #[track_caller]
    fn check(count: u32, seconds: Option<i64>) {
        let failures = Failures { count, last: Some(now()) };
        assert_eq!(backoff_until(failures), seconds.map(|seconds| times::plus_seconds(now(), seconds)));
    }
    check(0, None);
    check(1, Some(10));
    check(2, Some(20));
    check(7, Some(600));
    check(90, Some(600));
    let case = Case::new(&json!({}), &json!({}), &["a:f", "b:fo"]);
    let decision = case.observed().decide();
    assert_eq!(decision.failures, Failures { count: 2, last: Some(ago(4)) });
    assert_eq!(decision.again, Some(times::plus_seconds(now(), 16)));
    let case = Case::new(&json!({"completions": 2}), &json!({}), &["a:s", "b:fo"]);
    assert_eq!(case.observed().decide().failures, Failures::default());
}
