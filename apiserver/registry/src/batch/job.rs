//! Jobs. Their selector and the labels it selects are generated from the job's uid, so that no two jobs share pods.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, text, wide},
    core::pod,
    equality::equal,
    fields::{Fields, Fill},
    kind::{ALL, Column, Propagation, Spec, status},
    names, rules,
};

pub(crate) const KIND: Spec = Spec {
    group: "batch",
    kind: "Job",
    plural: "jobs",
    singular: "job",
    categories: ALL,
    subresources: &[status("batch", "Job")],
    storage_prefix: Some("jobs"),
    columns: COLUMNS,
    selectable: &["status.successful"],
    // Of old; kubectl asks for background itself.
    propagation: Propagation::Orphan,
    strategy: &Job,
    generation: true,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[
    NAME,
    text("Status", "Where the job stands."),
    text("Completions", "Pods that have succeeded, of all that must."),
    text("Duration", "Time that the job has taken."),
    AGE,
    wide("Containers", "Names of the template's containers."),
    wide("Images", "Images of the template's containers."),
    wide("Selector", "Labels of the job's pods."),
];

const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const NAME_LABEL: &str = "batch.kubernetes.io/job-name";
const OLD_UID_LABEL: &str = "controller-uid";
const OLD_NAME_LABEL: &str = "job-name";

struct Job;

impl Strategy for Job {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.section("spec") else { return };
        default_spec(spec);
        // A job without labels takes its template's.
        let labels = spec.at("template").at("metadata").at("labels").clone();
        let has_labels = |map: &Value| map.as_object().is_some_and(|map| !map.is_empty());
        if has_labels(&labels)
            && let Some(metadata) = object.section("metadata")
            && !has_labels(metadata.at("labels"))
        {
            metadata.put("labels", labels);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        if !object.at("spec").flag("manualSelector") {
            generate_selector(object);
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        generated_selector(object, &mut causes);
        let (spec, path) = (object.at("spec"), Path::new("spec"));
        validate_spec(spec, &path, &mut causes);
        selector(spec, &path, &mut causes);
        if spec.text("completionMode") == "Indexed" {
            indexed_name(object, &mut causes);
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (spec, old_spec, path) = (new.at("spec"), old.at("spec"), Path::new("spec"));
        validate_spec(spec, &path, &mut causes);
        selector(spec, &path, &mut causes);
        let elastic = spec.text("completionMode") == "Indexed"
            && spec.int("completions") == spec.int("parallelism")
            && spec.has("completions");
        for field in [
            "completions",
            "selector",
            "completionMode",
            "podFailurePolicy",
            "backoffLimitPerIndex",
            "managedBy",
            "successPolicy",
            "podReplacementPolicy",
        ] {
            if field == "completions" && elastic {
                continue;
            }
            if !equal(&json!({field: spec.at(field)}), &json!({field: old_spec.at(field)})) {
                causes.invalid(&path.child(field), spec.at(field).clone(), "field is immutable");
            }
        }
        template_update(spec, old, &path.child("template"), &mut causes);
        causes.into_vec()
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (status, path) = (new.at("status"), Path::new("status"));
        for field in ["active", "succeeded", "failed", "ready", "terminating"] {
            rules::not_negative(status, field, &path, &mut causes);
        }
        let finished = |status: &Value, kind: &str| {
            status.list("conditions").iter().any(|c| c.text("type") == kind && c.text("status") == "True")
        };
        for kind in ["Complete", "Failed"] {
            if finished(old.at("status"), kind) && !finished(status, kind) {
                causes.invalid(
                    &path.child("conditions"),
                    status.at("conditions").clone(),
                    format!("cannot disable the terminal {kind}=True condition"),
                );
            }
        }
        if finished(status, "Complete") && finished(status, "Failed") {
            causes.invalid(
                &path.child("conditions"),
                status.at("conditions").clone(),
                "cannot set Complete=True and Failed=true conditions",
            );
        }
        let completed = finished(status, "Complete");
        if status.has("completionTime") && !completed {
            causes.invalid(
                &path.child("completionTime"),
                status.at("completionTime").clone(),
                "cannot set completionTime when there is no Complete=True condition",
            );
        }
        causes.into_vec()
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        match old {
            Some(old) if equal(old.at("spec").at("template"), object.at("spec").at("template")) => Vec::new(),
            _ => pod::template_warnings(object.at("spec").at("template"), "spec.template"),
        }
    }

    fn warnings_on_delete(&self, _object: &Value) -> Vec<String> {
        vec![
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove \
             them or set propagationPolicy=Orphan to suppress this warning"
                .to_owned(),
        ]
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.successful", object.at("status").int("succeeded").unwrap_or(0).to_string())]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (object.at("spec"), object.at("status"));
        let succeeded = status.int("succeeded").unwrap_or(0);
        let completions = match (spec.int("completions"), spec.int("parallelism").unwrap_or(0)) {
            (Some(wanted), _) => format!("{succeeded}/{wanted}"),
            (None, parallel) if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
            (None, _) => format!("{succeeded}/1"),
        };
        let (names, images) = columns::containers_and_images(spec.at("template").at("spec"));
        vec![
            columns::name(object),
            standing(object).into(),
            completions.into(),
            duration(status, now).into(),
            columns::age(object, now),
            names.into(),
            images.into(),
            columns::selector(spec.at("selector")).into(),
        ]
    }
}

fn duration(status: &Value, now: Timestamp) -> String {
    let time = |key: &str| status.text(key).parse::<Timestamp>().ok();
    match (time("startTime"), time("completionTime")) {
        (None, _) => String::new(),
        (Some(start), end) => columns::human_duration(columns::seconds_between(start, end.unwrap_or(now))),
    }
}

fn standing(job: &Value) -> &'static str {
    let is = |kind: &str| {
        job.at("status")
            .list("conditions")
            .iter()
            .any(|c| c.text("type") == kind && c.text("status") == "True")
    };
    if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if job.at("metadata").has("deletionTimestamp") {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

/// Defaults of a JobSpec, in a job or in a cron job's template.
pub(super) fn default_spec(spec: &mut Value) {
    if let Some(template) = spec.section("template") {
        pod::default_template(template);
    }
    // Neither given: one pod. Only parallelism given: a work queue, which has no completions.
    if !spec.has("completions") && !spec.has("parallelism") {
        spec.put("completions", 1);
    }
    spec.fill("parallelism", 1);
    let per_index = spec.has("backoffLimitPerIndex");
    spec.fill("backoffLimit", if per_index { i32::MAX } else { 6 });
    spec.fill("completionMode", "NonIndexed");
    spec.fill("suspend", false);
    let has_failure_policy = spec.has("podFailurePolicy");
    spec.fill("podReplacementPolicy", if has_failure_policy { "Failed" } else { "TerminatingOrFailed" });
    spec.fill("manualSelector", false);
    if let Some(policy) = spec.part("podFailurePolicy") {
        for rule in policy.items("rules") {
            for pattern in rule.items("onPodConditions") {
                pattern.fill_text("status", "True");
            }
        }
    }
}

/// Labels of the template and the selector, from the job's uid and name; what the user has set stays and is refused
/// by validation if it conflicts.
fn generate_selector(job: &mut Value) {
    let (uid, name) = (job.at("metadata").text("uid").to_owned(), job.at("metadata").text("name").to_owned());
    let Some(spec) = job.section("spec") else { return };
    if let Some(labels) =
        spec.section("template").and_then(|t| t.section("metadata")).and_then(|m| m.section("labels"))
    {
        for (key, value) in
            [(OLD_NAME_LABEL, &name), (OLD_UID_LABEL, &uid), (NAME_LABEL, &name), (UID_LABEL, &uid)]
        {
            labels.fill(key, value.as_str());
        }
    }
    if let Some(labels) = spec.section("selector").and_then(|selector| selector.section("matchLabels")) {
        labels.fill(UID_LABEL, uid);
    }
}

fn generated_selector(job: &Value, causes: &mut Causes) {
    let spec = job.at("spec");
    if spec.flag("manualSelector") || !spec.has("selector") {
        return;
    }
    let (uid, name) = (job.at("metadata").text("uid"), job.at("metadata").text("name"));
    let path = Path::new("spec");
    let path_of_template = path.child("template");
    if uid.is_empty() {
        causes.required(&Path::new("metadata").child("uid"), "");
    }
    let labels = spec.at("template").at("metadata").at("labels");
    for (key, value) in [(OLD_UID_LABEL, uid), (OLD_NAME_LABEL, name), (UID_LABEL, uid), (NAME_LABEL, name)] {
        let path = path_of_template.child("metadata");
        let path = path.child("labels");
        let message = format!("must be '{value}'");
        match labels.get(key) {
            None => causes.required(&path.key(key), &message),
            Some(found) if found != value => causes.invalid(&path.key(key), labels.clone(), message),
            Some(_) => {}
        }
    }
    let expected = json!({OLD_UID_LABEL: uid, OLD_NAME_LABEL: name, UID_LABEL: uid, NAME_LABEL: name});
    if !rules::selects(spec.at("selector"), &expected) {
        causes.invalid(&path.child("selector"), spec.at("selector").clone(), "`selector` not auto-generated");
    }
}

fn selector(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    if !spec.has("selector") {
        causes.required(&path.child("selector"), "");
        return;
    }
    rules::label_selector(spec.at("selector"), &path.child("selector"), causes);
    let labels = spec.at("template").at("metadata").at("labels");
    if !rules::selects(spec.at("selector"), labels) {
        causes.invalid(
            &path.child("template").child("metadata").child("labels"),
            if labels.is_null() { json!({}) } else { labels.clone() },
            "`selector` does not match template `labels`",
        );
    }
}

/// Pods of an indexed job are named after it and their index; that must fit a host name.
fn indexed_name(job: &Value, causes: &mut Causes) {
    let completions = job.at("spec").int("completions").unwrap_or(0);
    if completions <= 0 {
        return;
    }
    let name = format!("{}-{}", job.at("metadata").text("name"), completions - 1);
    let messages = names::dns_label(&name);
    if !messages.is_empty() {
        let path = Path::new("metadata");
        let message = format!("will not able to create pod with invalid DNS label: {name}");
        causes.invalid(&path.child("name"), job.at("metadata").text("name"), message);
    }
}

/// A JobSpec without its selector, in a job or in a cron job's template.
pub(super) fn validate_spec(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        rules::not_negative(spec, field, path, causes);
    }
    match spec.text("completionMode") {
        "NonIndexed" => {
            for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
                if spec.has(field) {
                    let what = if field == "backoffLimitPerIndex" {
                        "requires indexed completion mode"
                    } else {
                        "when completion mode is not Indexed"
                    };
                    causes.invalid(&path.child(field), spec.at(field).clone(), what);
                }
            }
        }
        "Indexed" => indexed(spec, path, causes),
        other if !other.is_empty() => {
            causes.not_supported(&path.child("completionMode"), other, &["Indexed", "NonIndexed"]);
        }
        _ => {}
    }
    if spec.has("podReplacementPolicy") {
        let policy = spec.text("podReplacementPolicy");
        if spec.has("podFailurePolicy") && policy != "Failed" {
            causes.not_supported(&path.child("podReplacementPolicy"), policy, &["Failed"]);
        } else if !matches!(policy, "Failed" | "TerminatingOrFailed") {
            causes.not_supported(
                &path.child("podReplacementPolicy"),
                policy,
                &["Failed", "TerminatingOrFailed"],
            );
        }
    }
    failure_policy(spec, &path.child("podFailurePolicy"), causes);
    if spec.has("managedBy") {
        let manager = spec.text("managedBy");
        let path = path.child("managedBy");
        if !manager.contains('/') {
            causes.invalid(&path, manager, "must be a domain-prefixed path (such as \"acme.io/foo\")");
        } else if manager.len() > 63 {
            causes.too_long(&path, 63);
        }
    }
    pod::validate_template(spec.at("template"), &path.child("template"), causes);
    let policy = spec.at("template").at("spec").text("restartPolicy");
    let path_of_policy = path.child("template");
    let path_of_policy = path_of_policy.child("spec");
    let path_of_policy = path_of_policy.child("restartPolicy");
    match policy {
        // A template that says nothing has the default of pods by now, which is Always: both mean that a policy is missing.
        "" | "Always" => causes.required(&path_of_policy, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.has("podFailurePolicy") => {
            causes.invalid(
                &path_of_policy,
                policy,
                "only \"Never\" is supported when podFailurePolicy is specified",
            );
        }
        "OnFailure" | "Never" => {}
        other => causes.not_supported(&path_of_policy, other, &["OnFailure", "Never"]),
    }
}

fn indexed(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    const MAX_PARALLEL: i64 = 100_000;
    let Some(completions) = spec.int("completions") else {
        causes.required(&path.child("completions"), "when completion mode is Indexed");
        return;
    };
    if let Some(parallelism) = spec.int("parallelism").filter(|parallelism| *parallelism > MAX_PARALLEL) {
        causes.invalid(
            &path.child("parallelism"),
            parallelism,
            "must be less than or equal to 100000 when completion mode is Indexed",
        );
    }
    let max_failed = spec.int("maxFailedIndexes");
    if max_failed.is_some_and(|failed| failed > completions) {
        causes.invalid(
            &path.child("maxFailedIndexes"),
            spec.at("maxFailedIndexes").clone(),
            "must be less than or equal to completions",
        );
    }
    if max_failed.is_some() && !spec.has("backoffLimitPerIndex") {
        causes.required(&path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
}

fn failure_policy(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let rules_list = spec.at("podFailurePolicy").list("rules");
    if rules_list.len() > 20 {
        causes.too_many(&path.child("rules"), rules_list.len(), 20);
    }
    let containers = |name: &str| {
        let pod = spec.at("template").at("spec");
        ["containers", "initContainers"]
            .iter()
            .flat_map(|list| pod.list(list))
            .any(|c| c.text("name") == name)
    };
    for (index, rule) in rules_list.iter().enumerate() {
        let path = path.child("rules");
        let path = path.index(index);
        let action = rule.text("action");
        rules::one_of(action, &["Count", "FailIndex", "FailJob", "Ignore"], &path.child("action"), causes);
        if action == "FailIndex" && !spec.has("backoffLimitPerIndex") {
            causes.invalid(&path.child("action"), action, "requires the backoffLimitPerIndex to be set");
        }
        let codes = rule.at("onExitCodes");
        let conditions = rule.list("onPodConditions");
        if codes.is_null() && conditions.is_empty() {
            causes.invalid(&path, "", "specifying one of OnExitCodes and OnPodConditions is required");
        } else if !codes.is_null() && !conditions.is_empty() {
            causes.invalid(&path, "", "specifying both OnExitCodes and OnPodConditions is not supported");
        }
        if !codes.is_null() {
            let path = path.child("onExitCodes");
            let operator = codes.text("operator");
            rules::one_of(operator, &["In", "NotIn"], &path.child("operator"), causes);
            let name = codes.text("containerName");
            if codes.has("containerName") && !containers(name) {
                causes.invalid(
                    &path.child("containerName"),
                    name,
                    "must be one of the container or initContainer names in the pod template",
                );
            }
            let values = codes.list("values");
            if values.is_empty() {
                causes.invalid(
                    &path.child("values"),
                    codes.at("values").clone(),
                    "at least one value is required",
                );
            }
            for (index, value) in values.iter().enumerate() {
                if operator == "In" && value.as_i64() == Some(0) {
                    causes.invalid(
                        &path.child("values").index(index),
                        0,
                        "must not be 0 for the In operator",
                    );
                }
                if values[..index].contains(value) {
                    causes.duplicate(&path.child("values").index(index), value.clone());
                }
            }
        }
        for (index, condition) in conditions.iter().enumerate() {
            let path = path.child("onPodConditions");
            let path = path.index(index);
            let kind = condition.text("type");
            causes.syntax(&path.child("type"), kind, names::qualified_name(kind));
            rules::one_of(
                condition.text("status"),
                &["False", "True", "Unknown"],
                &path.child("status"),
                causes,
            );
        }
    }
}

/// The template stays, except for where the pods may run while the job is suspended and has not started.
fn template_update(spec: &Value, old: &Value, path: &Path<'_>, causes: &mut Causes) {
    let old_spec = old.at("spec");
    let mut template = spec.at("template").clone();
    let not_started = old_spec.flag("suspend") && !old.at("status").has("startTime");
    if not_started {
        let old_template = old_spec.at("template");
        if let Some(metadata) = template.section("metadata") {
            metadata.copy("labels", old_template.at("metadata"));
            metadata.copy("annotations", old_template.at("metadata"));
            if metadata.as_object().is_some_and(serde_json::Map::is_empty) && !old_template.has("metadata") {
                template.drop_field("metadata");
            }
        }
        if let Some(pod_spec) = template.part("spec") {
            for field in ["nodeSelector", "tolerations", "affinity", "schedulingGates"] {
                pod_spec.copy(field, old_template.at("spec"));
            }
        }
    }
    if !equal(&template, old_spec.at("template")) {
        causes.invalid(path, spec.at("template").clone(), "field is immutable");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(spec: Value) -> Value {
        let kind = KIND.kind();
        let mut object =
            json!({"metadata": {"name": "pi", "namespace": "default", "uid": "u-1"}, "spec": spec});
        kind.default(&mut object);
        kind.prepare_for_create(&mut object);
        object
    }

    fn template() -> Value {
        json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}})
    }

    fn check(object: &Value, expected: &[&str]) {
        let causes = KIND.kind().validate_create(object);
        let fields: Vec<String> =
            causes.iter().map(|c| format!("{} {}", c.reason.as_str(), c.field)).collect();
        assert_eq!(fields, expected);
    }

    #[test]
    fn defaults_and_selector() {
        let object = whole(json!({"template": template()}));
        let spec = &object["spec"];
        assert_eq!(
            (&spec["completions"], &spec["parallelism"], &spec["backoffLimit"]),
            (&json!(1), &json!(1), &json!(6))
        );
        assert_eq!((&spec["completionMode"], &spec["suspend"]), (&json!("NonIndexed"), &json!(false)));
        assert_eq!(spec["podReplacementPolicy"], "TerminatingOrFailed");
        assert_eq!(spec["selector"], json!({"matchLabels": {UID_LABEL: "u-1"}}));
        assert_eq!(
            spec["template"]["metadata"]["labels"],
            json!({OLD_NAME_LABEL: "pi", OLD_UID_LABEL: "u-1", NAME_LABEL: "pi", UID_LABEL: "u-1"})
        );
        check(&object, &[]);
        let queue = whole(json!({"template": template(), "parallelism": 2}));
        assert!(!queue["spec"].has("completions"));
    }

    #[test]
    fn validates() {
        let mut labelled = template();
        labelled["metadata"] = json!({"labels": {UID_LABEL: "other"}});
        check(
            &whole(json!({"template": labelled})),
            &[
                "FieldValueInvalid spec.template.metadata.labels[batch.kubernetes.io/controller-uid]",
                "FieldValueInvalid spec.template.metadata.labels",
            ],
        );
        check(
            &whole(json!({"template": template(), "completionMode": "Indexed", "parallelism": 1})),
            &["FieldValueRequired spec.completions"],
        );
        check(
            &whole(json!({"template": template(), "backoffLimit": -1})),
            &["FieldValueInvalid spec.backoffLimit"],
        );
    }

    #[test]
    fn restart_policies() {
        #[track_caller]
        fn check(policy: Value, expected: &[&str]) {
            let mut template = template();
            template["spec"]["restartPolicy"] = policy;
            let causes = KIND.kind().validate_create(&whole(json!({"template": template})));
            assert_eq!(causes.iter().map(Cause::to_string).collect::<Vec<_>>(), expected);
        }
        let required =
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"";
        check(json!("Never"), &[]);
        check(json!("OnFailure"), &[]);
        check(json!("Always"), &[required]);
        check(Value::Null, &[required]);
        check(
            json!("Sometimes"),
            &[
                "spec.template.spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
                 \"OnFailure\", \"Never\"",
                "spec.template.spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \
                 \"OnFailure\", \"Never\"",
            ],
        );
    }

    #[test]
    fn updates() {
        let old = whole(json!({"template": template()}));
        let mut new = old.clone();
        new["spec"]["parallelism"] = json!(0);
        new["spec"]["suspend"] = json!(true);
        assert_eq!(Job.validate_update(&new, &old), []);
        new["spec"]["completions"] = json!(5);
        new["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
        let fields: Vec<String> = Job.validate_update(&new, &old).into_iter().map(|c| c.field).collect();
        assert_eq!(fields, ["spec.completions", "spec.template"]);
        let mut suspended = old.clone();
        suspended["spec"]["suspend"] = json!(true);
        let mut moved = suspended.clone();
        moved["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
        assert_eq!(Job.validate_update(&moved, &suspended), []);
    }

    #[test]
    fn rows() {
        let mut object = whole(json!({"template": template()}));
        object["status"] = json!({"succeeded": 1, "startTime": "2024-01-01T00:00:00Z",
            "completionTime": "2024-01-01T00:00:09Z", "conditions": [{"type": "Complete", "status": "True"}]});
        let row = KIND.kind().row(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(row[1..4], ["Complete", "1/1", "9s"].map(Value::from));
    }
}
