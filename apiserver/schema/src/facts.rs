//! Facts about the built-in types that their Rust declarations do not carry: list types and keys, map types, patch
//! strategies and merge keys, unions, defaults of list keys.
//!
//! The table is `facts.txt`, a line per field. It holds names only and is checked against the schemas by a test;
//! a definition that is not in it has no such facts, and a list that is not in it is atomic.

use std::collections::HashMap;

/// Facts of one definition.
#[derive(Debug, Default)]
pub struct Definition {
    /// The whole object has one owner (`x-kubernetes-map-type: atomic` on the type).
    pub atomic: bool,
    pub unions: Vec<Union>,
    fields: Vec<(&'static str, Field)>,
}

impl Definition {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|(n, _)| *n == name).map(|(_, f)| f)
    }

    pub fn fields(&self) -> impl Iterator<Item = &(&'static str, Field)> {
        self.fields.iter()
    }
}

/// At most one of `fields` is set; `discriminator` says which.
#[derive(Debug)]
pub struct Union {
    pub discriminator: Option<&'static str>,
    /// Field and the discriminator's value for it.
    pub fields: Vec<(&'static str, &'static str)>,
}

/// How a list is merged by server-side apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Vec<&'static str>),
    /// Treated as atomic, but published without `x-kubernetes-list-type`.
    Unmarked,
}

/// Facts of one field.
#[derive(Debug, Default)]
pub struct Field {
    pub list: ListType,
    /// Overrides the type's own: `Some(true)` atomic, `Some(false)` granular.
    pub atomic: Option<bool>,
    pub patch: PatchStrategy,
    pub merge_key: Option<&'static str>,
    pub default: Option<&'static str>,
    /// An object that upstream holds by value: it is never absent, only empty.
    pub present: bool,
    /// Overrides what the Rust type says.
    pub required: Option<bool>,
}

/// Whether a field is required: as the facts say, else as its Rust type does; metadata is optional.
pub fn is_required(field: &str, facts: Option<&Field>, declared: bool) -> bool {
    facts.and_then(|facts| facts.required).unwrap_or(declared && field != "metadata")
}

/// What a strategic merge patch does with a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PatchStrategy {
    pub merge: bool,
    pub retain_keys: bool,
    pub replace: bool,
}

impl PatchStrategy {
    /// As published in `x-kubernetes-patch-strategy`: `merge,retainKeys`.
    pub fn published(self) -> Option<String> {
        let words: Vec<&str> =
            [(self.merge, "merge"), (self.retain_keys, "retainKeys"), (self.replace, "replace")]
                .into_iter()
                .filter_map(|(set, word)| set.then_some(word))
                .collect();
        (!words.is_empty()).then(|| words.join(","))
    }
}

/// The whole table by definition name. Built on each call: it is needed while schemas and documents are made.
pub fn table() -> HashMap<&'static str, Definition> {
    parse(include_str!("facts.txt"))
}

fn parse(text: &'static str) -> HashMap<&'static str, Definition> {
    let mut table: HashMap<&'static str, Definition> = HashMap::new();
    let mut current = "";
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let Some(fact) = line.strip_prefix("  ") else {
            current = line;
            continue;
        };
        let definition = table.entry(current).or_default();
        let mut words = fact.split(' ');
        match words.next() {
            Some("atomic") => definition.atomic = true,
            Some("union") => definition.unions.push(Union {
                discriminator: words.next().filter(|d| *d != "-"),
                fields: words.filter_map(|w| w.split_once('=')).collect(),
            }),
            Some(name) => definition.fields.push((name, parse_field(words))),
            None => {}
        }
    }
    table
}

fn parse_field(words: std::str::Split<'static, char>) -> Field {
    let mut field = Field::default();
    for word in words {
        let (key, value) = word.split_once('=').map_or((word, None), |(k, v)| (k, Some(v)));
        match (key, value) {
            ("map", Some(keys)) => field.list = ListType::Map(keys.split(',').collect()),
            ("set", None) => field.list = ListType::Set,
            ("unmarked", None) => field.list = ListType::Unmarked,
            ("atomic", None) => field.atomic = Some(true),
            ("granular", None) => field.atomic = Some(false),
            ("merge", key) => {
                field.patch.merge = true;
                field.merge_key = key;
            }
            ("retain-keys", None) => field.patch.retain_keys = true,
            ("replace", None) => field.patch.replace = true,
            ("default", value) => field.default = value,
            ("present", None) => field.present = true,
            ("required", None) => field.required = Some(true),
            ("optional", None) => field.required = Some(false),
            _ => debug_assert!(false, "facts.txt: {word:?} means nothing"),
        }
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Schemas, Shape};

    #[test]
    fn every_word_names_a_type_and_field_that_exist() {
        let schemas = Schemas::builtin();
        for (name, definition) in table() {
            let ty = schemas.named(name).unwrap_or_else(|| panic!("no type {name}"));
            for (field, facts) in definition.fields() {
                let found = ty.field(field).unwrap_or_else(|| panic!("{name} has no field {field}"));
                let shape = found.ty().shape();
                if let ListType::Map(keys) = &facts.list {
                    let Shape::List(_) = shape else { panic!("{name}.{field} is not a list") };
                    let item = found.ty().item().unwrap();
                    for key in keys {
                        assert!(item.field(key).is_some(), "{name}.{field}: items have no {key}");
                    }
                }
                if facts.list == ListType::Set {
                    assert!(matches!(shape, Shape::List(_)), "{name}.{field} is not a list");
                }
                if let Some(key) = facts.merge_key {
                    assert!(found.ty().item().unwrap().field(key).is_some(), "{name}.{field} by {key}");
                }
                if facts.present {
                    assert!(matches!(shape, Shape::Object(_)), "{name}.{field}");
                }
                if facts.atomic.is_some() {
                    assert!(matches!(shape, Shape::Map(_) | Shape::Object(_)), "{name}.{field}");
                }
            }
            for union in &definition.unions {
                let names = union.fields.iter().map(|(f, _)| *f).chain(union.discriminator);
                for field in names {
                    assert!(ty.field(field).is_some(), "union of {name} names {field}");
                }
            }
        }
    }

    #[test]
    fn every_line_is_understood() {
        for line in include_str!("facts.txt").lines().filter(|l| l.starts_with("  ")) {
            for word in line.trim().split(' ').skip(1) {
                let known = [
                    "set",
                    "unmarked",
                    "atomic",
                    "granular",
                    "merge",
                    "retain-keys",
                    "replace",
                    "present",
                    "required",
                    "optional",
                    "-",
                ];
                let key = word.split('=').next().unwrap();
                assert!(
                    known.contains(&word) || word.contains('=') || line.contains("  union"),
                    "{key} in {line:?}"
                );
            }
        }
    }
}
