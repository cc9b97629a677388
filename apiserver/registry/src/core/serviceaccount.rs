//! ServiceAccounts. Their tokens are asked for at `/token`, where [`validate_token_request`] holds.

use jiff::Timestamp;
use keelson_schema::resource::{GroupVersionKind, Verb};
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, integer},
    fields::{Fields, Fill},
    kind::{Column, Spec, name, subresource},
};

pub(crate) const KIND: Spec = Spec {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &[name("sa")],
    subresources: &[subresource(
        "token",
        GroupVersionKind::new("authentication.k8s.io", "v1", "TokenRequest"),
        &[Verb::Create],
    )],
    storage_prefix: Some("serviceaccounts"),
    columns: COLUMNS,
    strategy: &ServiceAccount,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[NAME, integer("Secrets", "Number of secrets it may mount."), AGE];

struct ServiceAccount;

impl Strategy for ServiceAccount {
    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![columns::name(object), object.list("secrets").len().into(), columns::age(object, now)]
    }
}

/// Defaults of a TokenRequest: one hour.
pub fn default_token_request(request: &mut Value) {
    if let Some(spec) = request.section("spec") {
        spec.fill("expirationSeconds", 3600);
    }
}

/// What is wrong with a TokenRequest.
pub fn validate_token_request(request: &Value) -> Vec<Cause> {
    let mut causes = Causes::default();
    let path = Path::new("spec");
    let path = path.child("expirationSeconds");
    let seconds = request.at("spec").int("expirationSeconds").unwrap_or(0);
    if seconds < 600 {
        causes.invalid(&path, seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > 1 << 32 {
        causes.invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds");
    }
    causes.into_vec()
}
