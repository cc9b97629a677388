//! Validation of probes and lifecycle hooks.

use serde_json::Value;

use super::Context;
use crate::{
    cause::{Causes, Path},
    fields::Fields,
    names, rules,
};

pub(super) fn probe(probe: &Value, name: &str, context: &Context<'_>, path: &Path<'_>, causes: &mut Causes) {
    handler(probe, false, context, path, causes);
    for field in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        rules::not_negative(probe, field, path, causes);
    }
    if let Some(seconds) = probe.int("terminationGracePeriodSeconds") {
        if seconds <= 0 {
            causes.invalid(&path.child("terminationGracePeriodSeconds"), seconds, "must be greater than 0");
        }
        if name == "readinessProbe" {
            causes.invalid(
                &path.child("terminationGracePeriodSeconds"),
                seconds,
                "must not be set for readinessProbes",
            );
        }
    }
    let threshold = probe.int("successThreshold").unwrap_or(0);
    if name != "readinessProbe" && threshold != 1 {
        causes.invalid(&path.child("successThreshold"), threshold, "must be 1");
    }
}

/// Exactly one way to act: exec, httpGet, tcpSocket, and grpc (probes) or sleep (hooks).
pub(super) fn handler(
    handler: &Value,
    hook: bool,
    context: &Context<'_>,
    path: &Path<'_>,
    causes: &mut Causes,
) {
    let last = if hook { "sleep" } else { "grpc" };
    let mut found = false;
    for kind in ["exec", "httpGet", "tcpSocket", last] {
        let action = handler.at(kind);
        if action.is_null() {
            continue;
        }
        let path = path.child(kind);
        if found {
            causes.forbidden(&path, "may not specify more than 1 handler type");
            continue;
        }
        found = true;
        match kind {
            "exec" => {
                if action.list("command").is_empty() {
                    causes.required(&path.child("command"), "");
                }
            }
            "httpGet" => http_get(action, &path, causes),
            "sleep" => {
                let seconds = action.int("seconds").unwrap_or(0);
                if let Some(grace) = context.grace_period.filter(|grace| seconds < 0 || seconds > *grace) {
                    let message =
                        format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    causes.invalid(&path, seconds, message);
                }
            }
            _ => rules::port_number_or_name(action.at("port"), &path.child("port"), causes),
        }
    }
    if !found {
        causes.required(path, "must specify a handler type");
    }
}

fn http_get(action: &Value, path: &Path<'_>, causes: &mut Causes) {
    if action.text("path").is_empty() {
        causes.required(&path.child("path"), "");
    }
    rules::port_number_or_name(action.at("port"), &path.child("port"), causes);
    let scheme = action.text("scheme");
    if !matches!(scheme, "HTTP" | "HTTPS") {
        causes.not_supported(&path.child("scheme"), scheme, &["HTTP", "HTTPS"]);
    }
    for header in action.list("httpHeaders") {
        let name = header.text("name");
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            let message = names::regex(
                "a valid HTTP header must consist of alphanumeric characters or '-'",
                "[-A-Za-z0-9]+",
                &["X-Header-Name"],
            );
            causes.invalid(&path.child("httpHeaders"), name, message);
        }
    }
}
