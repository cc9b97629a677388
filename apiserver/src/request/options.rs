//! Query parameters and the option types that they decode to (`metav1.ListOptions`, `DeleteOptions`, …).
//!
//! Invariants: an option that is present but malformed is an error that names it, in upstream's words.

use serde::Deserialize;

use crate::status::Status;

/// Percent-decodes `text`; `None` when an escape is broken or the result is not UTF-8.
pub fn percent_decode(text: &str, plus_is_space: bool) -> Option<String> {
    let escaped = |c: char| c == '%' || (plus_is_space && c == '+');
    if !text.contains(escaped) {
        return Some(text.to_string());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            b'+' if plus_is_space => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

/// The decoded pairs of a query string, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Pairs with a broken escape are dropped, as Go's `url.Query()` does.
    pub fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((percent_decode(key, true)?, percent_decode(value, true)?))
        });
        Query(pairs.collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Upstream's conversion: present and neither `0` nor `false` is true.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "0" | "false"))
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, Status> {
        match self.get(key).filter(|value| !value.is_empty()) {
            None => Ok(None),
            Some(value) => value.parse().map(Some).map_err(|_| {
                Status::bad_request(format!("strconv.ParseInt: parsing {value:?}: invalid syntax"))
            }),
        }
    }
}

/// `metav1.ListOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListOptions {
    pub label_selector: String,
    pub field_selector: String,
    pub resource_version: String,
    pub resource_version_match: String,
    pub limit: u64,
    pub continue_token: String,
    pub allow_watch_bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub timeout_seconds: Option<u64>,
}

impl ListOptions {
    pub fn from_query(query: &Query) -> Result<Self, Status> {
        let text = |key: &str| query.get(key).unwrap_or_default().to_string();
        let limit: i64 = query.number("limit")?.unwrap_or(0);
        let timeout: Option<i64> = query.number("timeoutSeconds")?;
        Ok(ListOptions {
            label_selector: text("labelSelector"),
            field_selector: text("fieldSelector"),
            resource_version: text("resourceVersion"),
            resource_version_match: text("resourceVersionMatch"),
            limit: u64::try_from(limit).unwrap_or(0),
            continue_token: text("continue"),
            allow_watch_bookmarks: query.flag("allowWatchBookmarks"),
            send_initial_events: query
                .get("sendInitialEvents")
                .filter(|value| !value.is_empty())
                .map(|_| query.flag("sendInitialEvents")),
            timeout_seconds: timeout.and_then(|seconds| u64::try_from(seconds).ok()),
        })
    }
}

/// `dryRun`, `fieldManager`, `fieldValidation` and `force` of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    pub force: Option<bool>,
}

/// How unknown and duplicate fields are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl WriteOptions {
    /// `kind` is the options type whose validation fails, as the message names it (`CreateOptions`, …).
    pub fn from_query(query: &Query, kind: &str) -> Result<Self, Status> {
        let invalid = |causes| {
            Status::invalid(crate::status::Qualified { group: "meta.k8s.io", name: kind }, "", causes)
        };
        let dry_run = parse_dry_run(query.all("dryRun")).map_err(|cause| invalid(vec![cause]))?;
        let field_validation = match query.get("fieldValidation").unwrap_or_default() {
            // Servers default to Warn.
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                return Err(invalid(vec![crate::status::Cause {
                    reason: "FieldValueNotSupported".into(),
                    message: format!(
                        "Unsupported value: {other:?}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\""
                    ),
                    field: "fieldValidation".into(),
                }]));
            }
        };
        let field_manager = query.get("fieldManager").unwrap_or_default().to_string();
        if field_manager.chars().count() > 128 {
            return Err(invalid(vec![crate::status::Cause {
                reason: "FieldValueTooLong".into(),
                message: "Too long: may not be more than 128 bytes".into(),
                field: "fieldManager".into(),
            }]));
        }
        let force = query.get("force").map(|_| query.flag("force"));
        Ok(WriteOptions { dry_run, field_manager, field_validation, force })
    }
}

fn parse_dry_run<'a>(mut values: impl Iterator<Item = &'a str>) -> Result<bool, crate::status::Cause> {
    values.try_fold(false, |_, value| match value {
        "All" => Ok(true),
        other => Err(crate::status::Cause {
            reason: "FieldValueNotSupported".into(),
            message: format!("Unsupported value: {other:?}: supported values: \"All\""),
            field: "dryRun".into(),
        }),
    })
}

/// What happens to the dependents of a deleted object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum PropagationPolicy {
    Orphan,
    Background,
    Foreground,
}

/// `metav1.DeleteOptions`, from the body or the query.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub preconditions: Option<Preconditions>,
    pub orphan_dependents: Option<bool>,
    pub propagation_policy: Option<PropagationPolicy>,
    pub dry_run: Vec<String>,
}

fn unsupported_policy(policy: &str) -> Status {
    let message = format!(
        "Unsupported value: {policy:?}: supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
    );
    let cause = crate::status::Cause {
        reason: "FieldValueNotSupported".into(),
        message,
        field: "propagationPolicy".into(),
    };
    Status::invalid(crate::status::Qualified { group: "meta.k8s.io", name: "DeleteOptions" }, "", vec![cause])
}

/// The caller's expectations of the object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    pub fn from_query(query: &Query) -> Result<Self, Status> {
        let propagation_policy = match query.get("propagationPolicy").filter(|p| !p.is_empty()) {
            None => None,
            Some("Orphan") => Some(PropagationPolicy::Orphan),
            Some("Background") => Some(PropagationPolicy::Background),
            Some("Foreground") => Some(PropagationPolicy::Foreground),
            Some(other) => {
                return Err(unsupported_policy(other));
            }
        };
        Ok(DeleteOptions {
            grace_period_seconds: query.number("gracePeriodSeconds")?,
            preconditions: None,
            orphan_dependents: query.get("orphanDependents").map(|_| query.flag("orphanDependents")),
            propagation_policy,
            dry_run: query.all("dryRun").map(str::to_string).collect(),
        })
    }

    pub fn from_value(body: serde_json::Value) -> Result<Self, Status> {
        if let Some(other) = body["propagationPolicy"].as_str()
            && !matches!(other, "Orphan" | "Background" | "Foreground")
        {
            return Err(unsupported_policy(other));
        }
        serde_json::from_value(body)
            .map_err(|error| Status::bad_request(format!("couldn't decode the DeleteOptions: {error}")))
    }

    /// Whether this is a dry run; refuses what `ValidateDeleteOptions` refuses.
    pub fn validate(&self) -> Result<bool, Status> {
        if self.orphan_dependents.is_some() && self.propagation_policy.is_some() {
            return Err(Status::invalid(
                crate::status::Qualified { group: "meta.k8s.io", name: "DeleteOptions" },
                "",
                vec![crate::status::Cause::invalid(
                    "propagationPolicy",
                    &serde_json::Value::Null,
                    "orphanDependents and deletionPropagation cannot be both set",
                )],
            ));
        }
        parse_dry_run(self.dry_run.iter().map(String::as_str)).map_err(|cause| {
            Status::invalid(
                crate::status::Qualified { group: "meta.k8s.io", name: "DeleteOptions" },
                "",
                vec![cause],
            )
        })
    }

    /// The policy after folding the deprecated `orphanDependents` in.
    pub fn policy(&self) -> Option<PropagationPolicy> {
        self.propagation_policy.or(match self.orphan_dependents {
            Some(true) => Some(PropagationPolicy::Orphan),
            Some(false) => Some(PropagationPolicy::Background),
            None => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_decode() {
        let query = Query::parse("a=1&a=2&b&c=x%3Dy+z&bad=%2&limit=500");
        assert_eq!(query.get("a"), Some("1"));
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(query.get("b"), Some(""));
        assert_eq!(query.get("c"), Some("x=y z"));
        assert_eq!(query.get("bad"), None);
        assert_eq!(ListOptions::from_query(&query).unwrap().limit, 500);
    }

    #[test]
    fn bad_options_name_themselves() {
        let check = |query: &str, expected: &str| {
            let error = WriteOptions::from_query(&Query::parse(query), "CreateOptions").unwrap_err();
            assert!(error.message.contains(expected), "{}", error.message);
        };
        check("dryRun=Some", "dryRun: Unsupported value: \"Some\"");
        check("fieldValidation=Hard", "fieldValidation: Unsupported value: \"Hard\"");
        let error = ListOptions::from_query(&Query::parse("limit=x")).unwrap_err();
        assert_eq!(error.code, 400);
    }

    #[test]
    fn delete_options_fold_the_deprecated_field() {
        let check = |body: &str, policy| {
            assert_eq!(
                DeleteOptions::from_value(serde_json::from_str(body).unwrap()).unwrap().policy(),
                policy
            );
        };
        check(r#"{"orphanDependents":true}"#, Some(PropagationPolicy::Orphan));
        check(r#"{"propagationPolicy":"Foreground"}"#, Some(PropagationPolicy::Foreground));
        check("{}", None);
    }
}
