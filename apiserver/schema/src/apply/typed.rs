//! Values walked together with their type: whether they fit it, which fields they set, what is left without some.
//!
//! The rules are those of structured-merge-diff. Objects and maps are walked by field, lists by key or value; what is
//! atomic has one owner and is never entered.

use super::fieldset::{Element, Scalar, Set, display_path};
use crate::types::{ListKind, Shape, TypeRef};
use serde_json::{Map, Value};
use std::{borrow::Cow, collections::BTreeMap};

/// How a value of a type is treated.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Atom {
    Map { atomic: bool },
    List { atomic: bool },
    Scalar,
}

/// The treatment of a type, where the type leaves it open also of the value. `None` in the second place: a null could
/// be anything.
pub(super) fn atom(ty: TypeRef<'_>, value: Option<&Value>) -> (Atom, bool) {
    let granular = match ty.shape() {
        Shape::Object(object) => return (Atom::Map { atomic: object.atomic }, true),
        Shape::Map(map) => return (Atom::Map { atomic: map.atomic }, true),
        Shape::List(list) => return (Atom::List { atomic: list.kind == ListKind::Atomic }, true),
        Shape::Any { granular } => *granular,
        Shape::SchemaOr(_) => false,
        _ => return (Atom::Scalar, true),
    };
    match value {
        Some(Value::Array(_)) => (Atom::List { atomic: true }, true),
        Some(Value::Object(_)) => (Atom::Map { atomic: !granular }, true),
        None | Some(Value::Null) => (Atom::Map { atomic: !granular }, false),
        Some(_) => (Atom::Scalar, true),
    }
}

/// The field of an object that is declared, as opposed to a key of a map.
fn is_declared(ty: TypeRef<'_>, key: &str) -> bool {
    ty.field(key).is_some()
}

pub(super) fn at_key<'a>(ty: TypeRef<'a>, key: &str) -> Option<TypeRef<'a>> {
    match ty.shape() {
        Shape::SchemaOr(_) => Some(ty),
        _ => ty.at_key(key),
    }
}

pub(super) fn item_type(ty: TypeRef<'_>) -> TypeRef<'_> {
    ty.item().unwrap_or(ty)
}

/// How an item of a keyed list or set is addressed.
pub(super) fn element_of(ty: TypeRef<'_>, item: &Value) -> Result<Element, String> {
    let Shape::List(list) = ty.shape() else {
        return Err("invalid indexing of non-associative list".to_owned());
    };
    match &list.kind {
        ListKind::Atomic => Err("invalid indexing of non-associative list".to_owned()),
        ListKind::Set => match item {
            Value::Object(_) => {
                Err("associative list without keys has an element that's a map type".to_owned())
            }
            Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
            Value::Null => {
                Err("associative list without keys has an element that's an explicit null".to_owned())
            }
            scalar => Ok(Element::Value(Scalar(scalar.clone()))),
        },
        ListKind::Map(keys) => {
            let map = match item {
                Value::Object(map) => map,
                Value::Null => {
                    return Err("associative list with keys may not have a null element".to_owned());
                }
                _ => return Err("associative list with keys may not have non-map elements".to_owned()),
            };
            let mut fields: Vec<(Box<str>, Scalar)> = Vec::with_capacity(keys.len());
            for key in &**keys {
                let value = match map.get(&**key) {
                    Some(value) => Some(value.clone()),
                    None => default_of(item_type(ty), key),
                };
                fields.extend(value.map(|value| ((&**key).into(), Scalar(value))));
            }
            if fields.is_empty() {
                let keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
                return Err(format!(
                    "associative list with keys has an element that omits all key fields [{}] (and doesn't have \
                     default values for any key fields)",
                    keys.join(" ")
                ));
            }
            fields.sort();
            Ok(Element::Key(fields))
        }
    }
}

/// A key's default: declared, or Go's zero value where the field is always written.
fn default_of(item: TypeRef<'_>, key: &str) -> Option<Value> {
    let field = item.field(key)?;
    if let Some(default) = &field.default {
        return Some((**default).clone());
    }
    if !field.required || item.is_custom() {
        return None;
    }
    match field.ty().shape() {
        Shape::String => Some(Value::from("")),
        Shape::Int32 | Shape::Int64 => Some(Value::from(0)),
        _ => None,
    }
}

/// Checks a value against its type, as upstream does before an apply. `duplicates`: keyed lists may repeat a key.
pub(super) fn validate(value: &Value, ty: TypeRef<'_>, duplicates: bool) -> Result<(), String> {
    let mut errors = Vec::new();
    Validation { duplicates, errors: &mut errors }.walk(value, ty, &mut Vec::new());
    match errors.as_slice() {
        [] => Ok(()),
        [error] => Err(error.clone()),
        errors => Err(format!("errors:\n  {}", errors.join("\n  "))),
    }
}

struct Validation<'e> {
    duplicates: bool,
    errors: &'e mut Vec<String>,
}

impl Validation<'_> {
    fn error(&mut self, path: &[Element], text: &str) {
        let path = display_path(path);
        self.errors.push(if path.is_empty() { text.to_owned() } else { format!("{path}: {text}") });
    }

    fn walk(&mut self, value: &Value, ty: TypeRef<'_>, path: &mut Vec<Element>) {
        if value.is_null() {
            return;
        }
        match atom(ty, Some(value)).0 {
            Atom::Scalar => {
                if let Some(text) = wrong_scalar(value, ty) {
                    self.error(path, &text);
                }
            }
            Atom::Map { .. } => {
                let Value::Object(map) = value else {
                    return self.error(path, &format!("expected map, got &{{{value}}}"));
                };
                for (key, value) in map {
                    path.push(Element::field(key));
                    match at_key(ty, key) {
                        Some(ty) => self.walk(value, ty, path),
                        None => self.error(path, "field not declared in schema"),
                    }
                    path.pop();
                }
            }
            Atom::List { .. } => {
                let Value::Array(list) = value else {
                    return self.error(path, &format!("expected list, got &{{{value}}}"));
                };
                self.walk_list(list, ty, path);
            }
        }
    }

    fn walk_list(&mut self, list: &[Value], ty: TypeRef<'_>, path: &mut Vec<Element>) {
        let atomic = !matches!(ty.shape(), Shape::List(l) if l.kind != ListKind::Atomic);
        let mut seen = std::collections::BTreeSet::new();
        for (index, item) in list.iter().enumerate() {
            let element = if atomic {
                Element::Index(i64::try_from(index).unwrap_or(i64::MAX))
            } else {
                match element_of(ty, item) {
                    Ok(element) => element,
                    Err(text) => return self.error(path, &format!("element {index}: {text}")),
                }
            };
            if !atomic && !seen.insert(element.clone()) && !self.duplicates {
                self.error(path, &format!("duplicate entries for key {element}"));
            }
            path.push(element);
            self.walk(item, item_type(ty), path);
            path.pop();
        }
    }
}

fn wrong_scalar(value: &Value, ty: TypeRef<'_>) -> Option<String> {
    match (ty.shape(), value) {
        (Shape::Int32 | Shape::Int64 | Shape::Number, Value::Number(_))
        | (Shape::String | Shape::Bytes, Value::String(_))
        | (Shape::Boolean, Value::Bool(_)) => None,
        (Shape::Int32 | Shape::Int64 | Shape::Number, other) => {
            let found = match other {
                Value::String(_) => "string",
                Value::Bool(_) => "bool",
                Value::Array(_) => "[]interface {}",
                _ => "map[string]interface {}",
            };
            Some(format!("expected numeric (int or float), got {found}"))
        }
        (Shape::String | Shape::Bytes, other) => {
            Some(format!("expected string, got &value.valueUnstructured{{Value:{other}}}"))
        }
        (Shape::Boolean, other) => Some(format!("expected boolean, got &{{{other}}}")),
        (_, Value::Array(_) | Value::Object(_)) => Some(format!("expected any scalar, got &{{{value}}}")),
        _ => None,
    }
}

/// Every leaf field and list item that the value mentions.
pub(super) fn to_set(value: &Value, ty: TypeRef<'_>) -> Set {
    let mut set = Set::default();
    collect(value, ty, &mut Vec::new(), &mut set);
    set
}

fn collect(value: &Value, ty: TypeRef<'_>, path: &mut Vec<Element>, set: &mut Set) {
    match (atom(ty, Some(value)).0, value) {
        (Atom::Scalar | Atom::Map { atomic: true } | Atom::List { atomic: true }, _) => set.insert(path),
        (Atom::Map { .. }, Value::Object(map)) => {
            for (key, value) in map {
                let Some(child) = at_key(ty, key) else { continue };
                path.push(Element::field(key));
                collect(value, child, path, set);
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                if empty || !is_declared(ty, key) {
                    set.insert(path);
                }
                path.pop();
            }
        }
        (Atom::List { .. }, Value::Array(list)) => {
            // Items that occur more than once are owned together, without what is in them.
            let mut counts: BTreeMap<Element, usize> = BTreeMap::new();
            let elements: Vec<Option<Element>> = list.iter().map(|item| element_of(ty, item).ok()).collect();
            for element in elements.iter().flatten() {
                *counts.entry(element.clone()).or_default() += 1;
            }
            for (item, element) in list.iter().zip(elements) {
                let Some(element) = element else { continue };
                let once = counts.get(&element) == Some(&1);
                path.push(element);
                if once {
                    collect(item, item_type(ty), path, set);
                }
                set.insert(path);
                path.pop();
            }
        }
        _ => {}
    }
}

/// The value without these fields and items. Containers that lose everything become null.
pub(super) fn remove<'v>(value: &'v Value, items: &Set, ty: TypeRef<'_>) -> Cow<'v, Value> {
    if items.is_empty() {
        return Cow::Borrowed(value);
    }
    match (atom(ty, Some(value)).0, value) {
        (Atom::Scalar, _) => Cow::Borrowed(value),
        (Atom::Map { atomic: false }, Value::Object(map)) => {
            let kept: Map<String, Value> = map
                .iter()
                .filter_map(|(key, value)| {
                    let element = Element::field(key);
                    if items.members.contains(&element) {
                        return None;
                    }
                    let value = match (items.children.get(&element), at_key(ty, key)) {
                        (Some(under), Some(child)) => remove(value, under, child).into_owned(),
                        _ => value.clone(),
                    };
                    Some((key.clone(), value))
                })
                .collect();
            Cow::Owned(if kept.is_empty() { Value::Null } else { Value::Object(kept) })
        }
        (Atom::List { atomic: false }, Value::Array(list)) => {
            let kept: Vec<Value> = list
                .iter()
                .filter_map(|value| {
                    let Ok(element) = element_of(ty, value) else { return Some(value.clone()) };
                    if items.members.contains(&element) {
                        return None;
                    }
                    Some(match items.children.get(&element) {
                        Some(under) => remove(value, under, item_type(ty)).into_owned(),
                        None => value.clone(),
                    })
                })
                .collect();
            Cow::Owned(if kept.is_empty() { Value::Null } else { Value::Array(kept) })
        }
        _ => Cow::Owned(Value::Null),
    }
}

/// The set with the declared fields on the way to its members: they go when all under them goes.
pub(super) fn with_named_fields(set: &Set, ty: Option<TypeRef<'_>>) -> Set {
    let mut members = set.members.clone();
    let mut children = BTreeMap::new();
    for (element, child) in &set.children {
        let child_type = match (element, ty) {
            (Element::Field(name), Some(ty)) => {
                if is_declared(ty, name) {
                    members.insert(element.clone());
                }
                at_key(ty, name)
            }
            (Element::Key(_), Some(ty)) => ty.item(),
            _ => None,
        };
        children.insert(element.clone(), with_named_fields(child, child_type));
    }
    Set { members, children }
}

/// A set that was written when a type was not yet atomic: fields inside become the whole.
pub(super) fn reconcile(set: Set, ty: TypeRef<'_>) -> Set {
    let mut reconciled = Set { members: set.members, children: BTreeMap::new() };
    for (element, child) in set.children {
        let child_type = match &element {
            Element::Field(name) => at_key(ty, name),
            _ => ty.item(),
        };
        let Some(child_type) = child_type else {
            reconciled.children.insert(element, child);
            continue;
        };
        let atomic = match child_type.shape() {
            Shape::Object(object) => object.atomic,
            Shape::Map(map) => map.atomic,
            Shape::List(list) => list.kind == ListKind::Atomic,
            _ => false,
        };
        if atomic && !child.is_empty() {
            reconciled.members.insert(element);
        } else {
            reconciled.children.insert(element, reconcile(child, child_type));
        }
    }
    reconciled
}
