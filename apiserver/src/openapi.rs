//! OpenAPI documents, made when somebody first asks and dropped when nobody has asked for a while.
//!
//! The documents are large (v2 is megabytes) and read rarely: kubectl asks once and keeps them by ETag. Holding them
//! only for a while is what keeps the idle server small.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use keelson_registry::Kind;
use keelson_schema::{openapi, resource::ApiResource};
use parking_lot::Mutex;

use crate::discovery::Document;

const KEEP: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Form {
    V2Json,
    V2Protobuf,
    V3Index,
    V3 { group: String, version: String },
}

/// The documents of a server.
pub struct OpenApi {
    resources: Vec<ApiResource>,
    made: Mutex<HashMap<Form, (Instant, Document)>>,
}

impl OpenApi {
    pub fn new(kinds: &[&'static Kind]) -> Self {
        OpenApi {
            resources: kinds.iter().map(|kind| kind.resource.clone()).collect(),
            made: Mutex::default(),
        }
    }

    fn get(&self, form: Form, make: impl FnOnce(&[ApiResource]) -> Document) -> Document {
        let now = Instant::now();
        let mut made = self.made.lock();
        made.retain(|_, (used, _)| now.duration_since(*used) < KEEP);
        let entry = made.entry(form).or_insert_with(|| (now, make(&self.resources)));
        entry.0 = now;
        entry.1.clone()
    }

    /// Forgets what has not been asked for lately; called now and then.
    pub fn forget_unused(&self) {
        let now = Instant::now();
        self.made.lock().retain(|_, (used, _)| now.duration_since(*used) < KEEP);
    }

    pub fn v2_json(&self) -> Document {
        self.get(Form::V2Json, |resources| Document::new(openapi::v2_json(resources, &[])))
    }

    pub fn v2_protobuf(&self) -> Document {
        self.get(Form::V2Protobuf, |resources| Document::new(openapi::v2_protobuf(resources, &[])))
    }

    pub fn v3_index(&self) -> Document {
        self.get(Form::V3Index, |resources| Document::new(openapi::v3_index(resources, &[])))
    }

    /// `path` is `api/v1` or `apis/<group>/<version>`.
    pub fn v3(&self, path: &str) -> Option<Document> {
        let (group, version) = match path.split('/').collect::<Vec<_>>().as_slice() {
            ["api", version] => (String::new(), (*version).to_string()),
            ["apis", group, version] => ((*group).to_string(), (*version).to_string()),
            _ => return None,
        };
        let served = |resource: &&ApiResource| {
            resource.group == group.as_str() && resource.version == version.as_str()
        };
        self.resources.iter().find(served)?;
        let form = Form::V3 { group: group.clone(), version: version.clone() };
        let document = self.get(form, |resources| {
            let bytes = openapi::v3_document(resources, &[], &group, &version).unwrap_or_default();
            // The ETag is the hash that the index names.
            let etag = openapi::v3_hash(resources, &[], &group, &version).unwrap_or_default();
            Document { bytes: bytes.into(), etag: format!("\"{etag}\"") }
        });
        Some(document)
    }
}
