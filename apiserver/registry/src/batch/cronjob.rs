//! CronJobs. A schedule has five fields or is one of the macros; croner alone would take seconds and years as well.

use std::str::FromStr;

use croner::Cron;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::Value;

use super::job;
use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, integer, text, wide},
    core::pod,
    equality::equal,
    fields::{Fields, Fill},
    kind::{ALL, Column, Spec, name, status},
    metadata, rules,
};

pub(crate) const KIND: Spec = Spec {
    group: "batch",
    kind: "CronJob",
    plural: "cronjobs",
    singular: "cronjob",
    short_names: &[name("cj")],
    categories: ALL,
    subresources: &[status("batch", "CronJob")],
    storage_prefix: Some("cronjobs"),
    columns: COLUMNS,
    strategy: &CronJob,
    generation: true,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[
    NAME,
    text("Schedule", "When jobs start, in cron's format."),
    text("Timezone", "Time zone of the schedule."),
    Column { r#type: "boolean", ..text("Suspend", "Whether no more jobs start.") },
    integer("Active", "Jobs that are running."),
    text("Last Schedule", "Time since a job was started last."),
    AGE,
    wide("Containers", "Names of the template's containers."),
    wide("Images", "Images of the template's containers."),
    wide("Selector", "Labels of the jobs' pods."),
];

/// A job's name is the cron job's with eleven characters of time behind it.
const NAME_MAX: usize = 63 - 11;

struct CronJob;

impl Strategy for CronJob {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.section("spec") else { return };
        spec.fill_text("concurrencyPolicy", "Allow");
        spec.fill("suspend", false);
        spec.fill("successfulJobsHistoryLimit", 3);
        spec.fill("failedJobsHistoryLimit", 1);
        if let Some(template) = spec.section("jobTemplate").and_then(|template| template.section("spec")) {
            default_template(template);
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let name = object.at("metadata").text("name");
        if name.len() > NAME_MAX {
            let path = Path::new("metadata");
            causes.invalid(&path.child("name"), name, "must be no more than 52 characters");
        }
        validate_spec(object.at("spec"), None, &mut causes);
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        validate_spec(new.at("spec"), Some(old.at("spec")), &mut causes);
        causes.into_vec()
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let spec = object.at("spec");
        let mut warnings = Vec::new();
        if spec.text("schedule").contains("TZ") {
            warnings.push(
                "spec.schedule: CRON_TZ or TZ used in schedule is not officially supported, see \
                 https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
                    .to_owned(),
            );
        }
        if !old.is_some_and(|old| equal(old.at("spec").at("jobTemplate"), spec.at("jobTemplate"))) {
            warnings.extend(pod::template_warnings(
                spec.at("jobTemplate").at("spec").at("template"),
                "spec.jobTemplate.spec.template",
            ));
        }
        warnings
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (object.at("spec"), object.at("status"));
        let last = match status.text("lastScheduleTime") {
            "" => "<none>".to_owned(),
            time => columns::since(time, now),
        };
        let zone = if spec.has("timeZone") { spec.text("timeZone") } else { "<none>" };
        let job = spec.at("jobTemplate").at("spec");
        let (names, images) = columns::containers_and_images(job.at("template").at("spec"));
        vec![
            columns::name(object),
            spec.text("schedule").into(),
            zone.into(),
            // Upstream prints Go's word for the pointer.
            if spec.has("suspend") { if spec.flag("suspend") { "True" } else { "False" } } else { "<unset>" }
                .into(),
            status.list("active").len().into(),
            last.into(),
            columns::age(object, now),
            names.into(),
            images.into(),
            columns::selector(job.at("selector")).into(),
        ]
    }
}

/// Only what the pod template gets: the other defaults of a job materialise in the jobs themselves.
fn default_template(spec: &mut Value) {
    if let Some(template) = spec.section("template") {
        pod::default_template(template);
    }
}

fn validate_spec(spec: &Value, old: Option<&Value>, causes: &mut Causes) {
    let path = Path::new("spec");
    let text = spec.text("schedule");
    if text.is_empty() {
        causes.required(&path.child("schedule"), "");
    } else {
        schedule(spec, old, &path.child("schedule"), causes);
    }
    if spec.has("timeZone") && old.is_none_or(|old| old.at("timeZone") != spec.at("timeZone")) {
        time_zone(spec.text("timeZone"), &path.child("timeZone"), causes);
    }
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        rules::not_negative(spec, field, &path, causes);
    }
    rules::one_of(
        spec.text("concurrencyPolicy"),
        &["Allow", "Forbid", "Replace"],
        &path.child("concurrencyPolicy"),
        causes,
    );
    let template = spec.at("jobTemplate");
    let path = path.child("jobTemplate");
    metadata::labels(template.at("metadata"), &path.child("labels"), causes);
    metadata::annotations(template.at("metadata"), &path.child("annotations"), causes);
    // Defaults of jobs are not in the template, so its completion mode may be missing.
    job::validate_spec(template.at("spec"), &path.child("spec"), causes);
    let path = path.child("spec");
    if template.at("spec").has("selector") {
        causes.invalid(
            &path.child("selector"),
            template.at("spec").at("selector").clone(),
            "`selector` will be auto-generated",
        );
    }
    if template.at("spec").flag("manualSelector") {
        causes.not_supported(&path.child("manualSelector"), true, &["nil", "false"]);
    }
}

fn schedule(spec: &Value, old: Option<&Value>, path: &Path<'_>, causes: &mut Causes) {
    let text = spec.text("schedule");
    if old.is_some_and(|old| old.text("schedule") == text) {
        return;
    }
    if text.contains("TZ") {
        let message = if spec.has("timeZone") {
            "cannot use both timeZone field and TZ or CRON_TZ in schedule"
        } else {
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
        };
        causes.invalid(path, text, message);
        return;
    }
    if let Err(message) = parse_schedule(text) {
        causes.invalid(path, text, message);
    }
}

/// `@every 1h30m` has no cron pattern: it is checked as a duration.
fn parse_schedule(text: &str) -> Result<(), String> {
    if let Some(duration) = text.strip_prefix("@every ") {
        return match duration.trim().parse::<jiff::SignedDuration>() {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("failed to parse duration {text}: {error}")),
        };
    }
    if text.starts_with('@') {
        let known = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
        return if known.contains(&text) { Ok(()) } else { Err(format!("unrecognized descriptor: {text}")) };
    }
    let count = text.split_whitespace().count();
    if count != 5 {
        let found = text.split_whitespace().collect::<Vec<_>>().join(" ");
        return Err(format!("expected exactly 5 fields, found {count}: [{found}]"));
    }
    // Beyond cron(5): last day, nearest weekday, nth weekday.
    if let Some(odd) =
        text.chars().find(|c| matches!(c, 'L' | 'W' | '#' | '+') && !has_month_or_day_name(text))
    {
        return Err(format!("failed to parse int from {odd}"));
    }
    Cron::from_str(&text.replace('?', "*")).map(drop).map_err(|error| error.to_string())
}

/// Names such as `JUL` and `WED` hold the letters of croner's extensions.
fn has_month_or_day_name(text: &str) -> bool {
    !text.contains(['#', '+'])
        && text
            .split(|c: char| !c.is_ascii_alphabetic())
            .filter(|word| word.contains(['L', 'W']))
            .all(|word| matches!(word, "JUL" | "WED"))
}

fn time_zone(zone: &str, path: &Path<'_>, causes: &mut Causes) {
    if zone.is_empty() {
        causes.invalid(path, zone, "timeZone must be nil or non-empty string");
    } else if zone.eq_ignore_ascii_case("local") {
        causes.invalid(
            path,
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        );
    } else if TimeZone::get(zone).is_err() {
        causes.invalid(path, zone, format!("unknown time zone {zone}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn schedules() {
        fn check(text: &str, good: bool) {
            assert_eq!(parse_schedule(text).is_ok(), good, "{text}: {:?}", parse_schedule(text));
        }
        for text in
            ["* * * * *", "*/5 0-12 1,15 * MON-FRI", "0 0 1 JUL WED", "0 0 ? * *", "@hourly", "@every 1h30m"]
        {
            check(text, true);
        }
        for text in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "0 0 L * *",
            "0 0 * * 1#2",
            "@often",
            "@every x",
            "a b c d e",
        ] {
            check(text, false);
        }
    }

    #[test]
    fn whole_life() {
        let kind = KIND.kind();
        let mut object = json!({"metadata": {"name": "tick", "namespace": "a"}, "spec": {"schedule": "* * * * *",
            "timeZone": "Europe/Berlin", "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never",
                "containers": [{"name": "c", "image": "i:1"}]}}}}}});
        kind.default(&mut object);
        let spec = &object["spec"];
        assert_eq!(
            (
                &spec["concurrencyPolicy"],
                &spec["successfulJobsHistoryLimit"],
                &spec["failedJobsHistoryLimit"]
            ),
            (&json!("Allow"), &json!(3), &json!(1))
        );
        assert!(!spec["jobTemplate"]["spec"].has("backoffLimit"));
        assert_eq!(kind.validate_create(&object), []);
        let row = kind.row(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(
            row[1..6],
            [json!("* * * * *"), json!("Europe/Berlin"), json!("False"), json!(0), json!("<none>")]
        );
        for (field, value, expected) in [
            ("timeZone", json!("Mars/Olympus"), "spec.timeZone"),
            ("timeZone", json!("Local"), "spec.timeZone"),
            ("schedule", json!("TZ=UTC * * * * *"), "spec.schedule"),
            ("concurrencyPolicy", json!("Never"), "spec.concurrencyPolicy"),
        ] {
            let mut wrong = object.clone();
            wrong["spec"][field] = value;
            let causes = kind.validate_create(&wrong);
            assert_eq!(causes.iter().map(|c| c.field.as_str()).collect::<Vec<_>>(), [expected]);
        }
        let mut endless = object.clone();
        endless["spec"]["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] = json!("Always");
        assert_eq!(
            kind.validate_create(&endless)[0].to_string(),
            "spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""
        );
        object["metadata"]["name"] = json!("n".repeat(53));
        assert_eq!(kind.validate_create(&object).len(), 1);
    }
}
