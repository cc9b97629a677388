//! One row of the table of kinds, and the rules that hold for every kind around its [`Strategy`].

use std::borrow::Cow;

use jiff::Timestamp;
use keelson_schema::resource::{ApiResource, GroupVersionKind, Name, Subresource, Verb};
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::Causes,
    columns,
    fields::{Fields, Fill},
    metadata,
    scale::ScaleFields,
};

/// A column of the Table that `kubectl get` prints (`meta.k8s.io/v1 TableColumnDefinition`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `boolean`, `date`.
    pub r#type: &'static str,
    /// OpenAPI format; `name` marks the column that holds the object's name.
    pub format: &'static str,
    pub description: &'static str,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: i32,
}

/// Where the garbage collector goes when a delete names no propagation policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Orphan,
}

/// Which endpoint an update came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The resource itself.
    Main,
    /// `/status`.
    Status,
    /// `/finalize` of namespaces.
    Finalize,
    /// `/ephemeralcontainers` of pods.
    EphemeralContainers,
    /// `/resize` of pods.
    Resize,
}

/// Two served kinds that share one storage (events.k8s.io/v1 lives as core/v1): how the served form becomes the
/// stored one and back. `apiVersion` is part of it.
#[derive(Clone, Copy)]
pub struct Conversion {
    pub to_storage: fn(&mut Value),
    pub from_storage: fn(&mut Value),
    /// (served, stored) names of selectable fields that differ.
    pub fields: &'static [(&'static str, &'static str)],
}

/// How a kind's object may be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    DnsSubdomain,
    /// RFC 1123.
    DnsLabel,
    /// RFC 1035: begins with a letter.
    Dns1035Label,
    PathSegment,
    /// Virtual kinds have no name.
    None,
}

/// One kind as it is served. Built only by the table.
pub struct Kind {
    pub resource: ApiResource,
    /// Under `/registry/`, without slashes around it. None: never stored (reviews).
    pub storage_prefix: Option<&'static str>,
    pub columns: &'static [Column],
    /// Names that [`Kind::selectable_fields`] gives, beyond `metadata.name` and `metadata.namespace`.
    pub selectable: &'static [&'static str],
    /// PUT of an absent object creates it.
    pub create_on_update: bool,
    /// PUT without resourceVersion is allowed.
    pub unconditional_update: bool,
    pub propagation: Propagation,
    /// None: stored as served.
    pub conversion: Option<Conversion>,
    /// Some: the `/scale` subresource exists.
    pub scale: Option<ScaleFields>,
    pub(crate) name_rule: NameRule,
    pub(crate) strategy: &'static dyn Strategy,
    /// spec changes count `metadata.generation`.
    pub(crate) generation: bool,
}

/// What a kind's module writes down; [`Spec::kind`] makes the [`Kind`] of it. Plain data, so that `..Spec::STORED`
/// works in constants.
#[derive(Clone, Copy)]
pub(crate) struct Spec {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub namespaced: bool,
    pub short_names: &'static [Name],
    pub categories: &'static [Name],
    pub verbs: &'static [Verb],
    pub subresources: &'static [Subresource],
    pub storage_prefix: Option<&'static str>,
    pub columns: &'static [Column],
    pub selectable: &'static [&'static str],
    pub create_on_update: bool,
    pub unconditional_update: bool,
    pub propagation: Propagation,
    pub conversion: Option<Conversion>,
    pub scale: Option<ScaleFields>,
    pub name_rule: NameRule,
    pub strategy: &'static dyn Strategy,
    pub generation: bool,
}

struct NoRules;
impl Strategy for NoRules {}

/// The category of `kubectl get all`.
pub(crate) const ALL: &[Name] = &[Cow::Borrowed("all")];
const STATUS_VERBS: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];

impl Spec {
    /// A namespaced, stored kind that says nothing else.
    pub const STORED: Spec = Spec {
        group: "",
        version: "v1",
        kind: "",
        plural: "",
        singular: "",
        namespaced: true,
        short_names: &[],
        categories: &[],
        verbs: Verb::ALL,
        subresources: &[],
        storage_prefix: None,
        columns: columns::NAME_AND_AGE,
        selectable: &[],
        create_on_update: false,
        unconditional_update: true,
        propagation: Propagation::Background,
        conversion: None,
        scale: None,
        name_rule: NameRule::DnsSubdomain,
        strategy: &NoRules,
        generation: false,
    };

    /// A cluster-wide kind that is answered and never stored.
    pub const VIRTUAL: Spec =
        Spec { namespaced: false, verbs: &[Verb::Create], name_rule: NameRule::None, ..Spec::STORED };

    pub const fn kind(self) -> Kind {
        Kind {
            resource: ApiResource {
                group: Cow::Borrowed(self.group),
                version: Cow::Borrowed(self.version),
                kind: Cow::Borrowed(self.kind),
                plural: Cow::Borrowed(self.plural),
                singular: Cow::Borrowed(self.singular),
                namespaced: self.namespaced,
                short_names: Cow::Borrowed(self.short_names),
                categories: Cow::Borrowed(self.categories),
                verbs: Cow::Borrowed(self.verbs),
                subresources: Cow::Borrowed(self.subresources),
            },
            storage_prefix: self.storage_prefix,
            columns: self.columns,
            selectable: self.selectable,
            create_on_update: self.create_on_update,
            unconditional_update: self.unconditional_update,
            propagation: self.propagation,
            conversion: self.conversion,
            scale: self.scale,
            name_rule: self.name_rule,
            strategy: self.strategy,
            generation: self.generation,
        }
    }
}

pub(crate) const fn name(name: &'static str) -> Name {
    Cow::Borrowed(name)
}

pub(crate) const fn subresource(
    name: &'static str,
    kind: GroupVersionKind,
    verbs: &'static [Verb],
) -> Subresource {
    Subresource { name: Cow::Borrowed(name), kind, verbs: Cow::Borrowed(verbs) }
}

/// `/status`, which speaks the kind itself.
pub(crate) const fn status(group: &'static str, kind: &'static str) -> Subresource {
    subresource("status", GroupVersionKind::new(group, "v1", kind), STATUS_VERBS)
}

/// `/scale` of a workload.
pub(crate) const fn scale() -> Subresource {
    subresource("scale", GroupVersionKind::new("autoscaling", "v1", "Scale"), STATUS_VERBS)
}

impl Kind {
    /// Has `/status`: status is dropped on create (other than a Node's), kept on update.
    pub fn has_status(&self) -> bool {
        self.resource.subresource("status").is_some()
    }

    /// Fills in defaults. Idempotent; to be run on what clients send and on what storage gives.
    pub fn default(&self, object: &mut Value) {
        self.strategy.default(object);
    }

    /// After the server has filled in name, uid and creationTimestamp, before admission validates.
    pub fn prepare_for_create(&self, object: &mut Value) {
        let keeps = self.strategy.keeps_status_on_create() && object.at("status").is_object();
        if self.has_status() && !keeps {
            // Empty, not absent: that is how clients see a status that nobody has written yet.
            object.put("status", serde_json::json!({}));
        }
        if self.generation
            && let Some(metadata) = object.section("metadata")
        {
            metadata.put("generation", 1);
        }
        self.strategy.prepare_for_create(object);
    }

    /// Makes `new` what this endpoint may write, given the stored `old`: the other endpoints' part is `old`'s, and
    /// the generation counts when what the user wants has changed.
    pub fn prepare_for_update(&self, scope: Scope, new: &mut Value, old: &Value) {
        keep_identity(new, old);
        match scope {
            Scope::Main => {
                if self.has_status() {
                    new.copy("status", old);
                }
                self.strategy.prepare_for_update(new, old);
            }
            Scope::Status => {
                keep_all_but_status(new, old);
                self.strategy.prepare_for_status_update(new, old);
            }
            other => self.strategy.prepare_for_subresource_update(other, new, old),
        }
        let generation = old.at("metadata").int("generation").unwrap_or(0);
        let counts = self.generation && scope != Scope::Status && self.strategy.generation_counts(new, old);
        if let Some(metadata) = new.section("metadata") {
            match generation.saturating_add(counts.into()) {
                0 => metadata.drop_field("generation"),
                generation => metadata.put("generation", generation),
            }
        }
    }

    /// Every cause at once; empty when the object may be created.
    pub fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        if self.name_rule != NameRule::None {
            metadata::validate_create(
                object.at("metadata"),
                self.resource.namespaced,
                self.name_rule,
                &mut causes,
            );
        }
        causes.extend(self.strategy.validate_create(object));
        causes.into_vec()
    }

    /// Every cause at once. `new` has been through [`Kind::prepare_for_update`] with the same scope.
    pub fn validate_update(&self, scope: Scope, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        metadata::validate_update(new.at("metadata"), old.at("metadata"), &mut causes);
        causes.extend(match scope {
            Scope::Main => self.strategy.validate_update(new, old),
            Scope::Status => self.strategy.validate_status_update(new, old),
            other => self.strategy.validate_subresource_update(other, new, old),
        });
        causes.into_vec()
    }

    /// For the `Warning` header; `old` is None on create.
    pub fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        self.strategy.warnings(object, old)
    }

    /// For the `Warning` header of a delete that names no propagation policy.
    pub fn warnings_on_delete(&self, object: &Value) -> Vec<String> {
        self.strategy.warnings_on_delete(object)
    }

    /// Beyond `metadata.name` and `metadata.namespace`: [`Kind::selectable`] with this object's values.
    pub fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        self.strategy.selectable_fields(object)
    }

    /// Cells in the order of [`Kind::columns`], wide ones included.
    pub fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        self.strategy.row(object, now)
    }

    /// `conditions` of the Table row.
    pub fn row_conditions(&self, object: &Value) -> Option<Value> {
        self.strategy.row_conditions(object)
    }

    /// Some(seconds): deletion is graceful, 0 meaning at once. None: the kind knows no grace.
    pub fn grace_period(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        self.strategy.grace_period(object, requested)
    }

    /// To be called when the deletionTimestamp is first set.
    pub fn mark_deleting(&self, object: &mut Value) {
        self.strategy.mark_deleting(object);
    }

    /// Whether a deleted object must stay for a finalizer, of its metadata or (namespaces) of its spec.
    pub fn has_finalizers(&self, object: &Value) -> bool {
        !object.at("metadata").list("finalizers").is_empty() || self.strategy.held_by_spec(object)
    }
}

/// What clients may leave out, and what none can change: an update that forgets its uid means the object it names,
/// and a deletion once begun goes on.
fn keep_identity(new: &mut Value, old: &Value) {
    let old = old.at("metadata");
    let Some(metadata) = new.section("metadata") else { return };
    if metadata.text("uid").is_empty() {
        metadata.copy("uid", old);
    }
    metadata.copy("creationTimestamp", old);
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        if old.has(field) {
            metadata.copy(field, old);
        }
    }
}

/// `/status` may change status and metadata; everything else stays.
fn keep_all_but_status(new: &mut Value, old: &Value) {
    let (Some(fields), Some(old_fields)) = (new.as_object_mut(), old.as_object()) else { return };
    fields.retain(|key, _| is_status_part(key) || old_fields.contains_key(key));
    for (key, value) in old_fields.iter().filter(|(key, _)| !is_status_part(key)) {
        fields.insert(key.clone(), value.clone());
    }
}

fn is_status_part(key: &str) -> bool {
    matches!(key, "apiVersion" | "kind" | "metadata" | "status")
}
