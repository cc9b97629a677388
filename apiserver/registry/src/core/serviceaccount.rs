//! ServiceAccounts. Their tokens are asked for at `/token`, which is the API server's access package's.

use jiff::Timestamp;
use keelson_schema::resource::{GroupVersionKind, Verb};
use serde_json::Value;

use crate::{
    Strategy,
    columns::{self, AGE, NAME, integer},
    fields::Fields,
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
