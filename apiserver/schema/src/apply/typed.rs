//! Values walked together with their type: which fields they set, how two differ, how one is merged into another.
//!
//! The rules are those of structured-merge-diff. Objects and maps are merged by field, lists by key or value; what is
//! atomic has one owner and is replaced as a whole.

use super::fieldset::{Element, Scalar, Set, display_path};
use crate::types::{ListKind, Shape, TypeRef};
use serde_json::{Map, Value};
use std::{borrow::Cow, collections::BTreeMap};

/// How a value of a type is treated.
#[derive(Clone, Copy, PartialEq)]
enum Atom {
    Map { atomic: bool },
    List { atomic: bool },
    Scalar,
}

/// The treatment of a type, where the type leaves it open also of the value. `None` in the second place: a null could
/// be anything.
fn atom(ty: TypeRef<'_>, value: Option<&Value>) -> (Atom, bool) {
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

fn at_key<'a>(ty: TypeRef<'a>, key: &str) -> Option<TypeRef<'a>> {
    match ty.shape() {
        Shape::SchemaOr(_) => Some(ty),
        _ => ty.at_key(key),
    }
}

fn item_type(ty: TypeRef<'_>) -> TypeRef<'_> {
    ty.item().unwrap_or(ty)
}

/// How an item of a keyed list or set is addressed.
fn element_of(ty: TypeRef<'_>, item: &Value) -> Result<Element, String> {
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

/// How the right value differs from the left one. No field is in two of the sets.
#[derive(Default)]
pub(super) struct Comparison {
    pub removed: Set,
    pub modified: Set,
    pub added: Set,
}

impl Comparison {
    /// Without what may not be owned here.
    pub(super) fn excluding(self, ignored: &Set) -> Self {
        Self {
            removed: self.removed.recursive_difference(ignored),
            modified: self.modified.recursive_difference(ignored),
            added: self.added.recursive_difference(ignored),
        }
    }
}

pub(super) fn compare(left: &Value, right: &Value, ty: TypeRef<'_>) -> Comparison {
    let mut comparison = Comparison::default();
    compare_at(Some(left), Some(right), ty, &mut Vec::new(), &mut comparison);
    comparison
}

fn compare_at(
    left: Option<&Value>,
    right: Option<&Value>,
    ty: TypeRef<'_>,
    path: &mut Vec<Element>,
    result: &mut Comparison,
) {
    let (ours, theirs) = (atom(ty, left), atom(ty, right));
    let leaf = if right.is_none() {
        compare_as(ours.0, left, right, ty, path, result)
    } else if left.is_none() || ours == theirs {
        compare_as(theirs.0, left, right, ty, path, result)
    } else {
        compare_as(ours.0, left, right, ty, path, result);
        compare_as(theirs.0, left, right, ty, path, result)
    };
    if !leaf {
        if left.is_none() {
            result.added.insert(path);
        } else if right.is_none() {
            result.removed.insert(path);
        }
    }
}

/// Whether the place is a leaf: compared as a whole.
fn compare_as(
    atom: Atom,
    left: Option<&Value>,
    right: Option<&Value>,
    ty: TypeRef<'_>,
    path: &mut Vec<Element>,
    result: &mut Comparison,
) -> bool {
    let none = Map::new();
    let empty = Value::Object(Map::new());
    match atom {
        Atom::Map { atomic: false } => {
            let maps = [left, right].map(|side| side.and_then(Value::as_object).unwrap_or(&none));
            if maps.iter().any(|map| !map.is_empty()) {
                let only_right = maps[1].iter().filter(|(key, _)| !maps[0].contains_key(*key));
                for (key, _) in maps[0].iter().chain(only_right) {
                    let Some(child) = at_key(ty, key) else { continue };
                    // An object that is never absent is empty where it is not written.
                    let present = !ty.is_custom() && ty.field(key).is_some_and(|field| field.present);
                    let side = |at: usize, whole: Option<&Value>| {
                        maps[at].get(key).or((present && whole.is_some()).then_some(&empty))
                    };
                    path.push(Element::field(key));
                    compare_at(side(0, left), side(1, right), child, path, result);
                    path.pop();
                }
                return false;
            }
        }
        Atom::List { atomic: false } => {
            let lists =
                [left, right].map(|side| side.and_then(Value::as_array).map_or(&[][..], Vec::as_slice));
            if lists.iter().any(|list| !list.is_empty()) {
                compare_items(lists, ty, path, result);
                return false;
            }
        }
        _ => {}
    }
    match (left, right) {
        (None, _) => result.added.insert(path),
        (_, None) => result.removed.insert(path),
        (Some(left), Some(right)) if !equal(left, right) => result.modified.insert(path),
        _ => {}
    }
    true
}

fn compare_items(lists: [&[Value]; 2], ty: TypeRef<'_>, path: &mut Vec<Element>, result: &mut Comparison) {
    let mut items: BTreeMap<Element, [Vec<&Value>; 2]> = BTreeMap::new();
    for (side, list) in lists.into_iter().enumerate() {
        for item in list {
            if let Ok(element) = element_of(ty, item) {
                items.entry(element).or_default()[side].push(item);
            }
        }
    }
    let item = item_type(ty);
    for (element, [left, right]) in items {
        path.push(element);
        match (left.as_slice(), right.as_slice()) {
            (left @ ([] | [_]), right @ ([] | [_])) => {
                compare_at(left.first().copied(), right.first().copied(), item, path, result);
            }
            // Repeated items are compared as one value.
            (left @ [_, _, ..], right @ [_, _, ..]) => {
                if left.len() != right.len() || left.iter().zip(right).any(|(l, r)| !equal(l, r)) {
                    result.modified.insert(path);
                }
            }
            ([_, _, ..], right) => {
                if let Some(right) = right.first() {
                    compare_at(None, Some(right), item, path, result);
                }
                result.removed.insert(path);
            }
            (left, _) => {
                if let Some(left) = left.first() {
                    compare_at(Some(left), None, item, path, result);
                }
                result.added.insert(path);
            }
        }
        path.pop();
    }
}

/// Equal as upstream sees it: 1 and 1.0 are the same number.
pub(super) fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || a.as_f64() == b.as_f64() && a.is_f64() != b.is_f64()
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        (a, b) => a == b,
    }
}

/// Merges the right value into the left one: what the right one says holds, what it does not say stays.
pub(super) fn merge(left: &Value, right: &Value, ty: TypeRef<'_>) -> Result<Value, String> {
    Ok(merge_at(Some(left), Some(right), ty)?.unwrap_or(Value::Null))
}

fn merge_at(left: Option<&Value>, right: Option<&Value>, ty: TypeRef<'_>) -> Result<Option<Value>, String> {
    let atom = if right.is_none() { atom(ty, left).0 } else { atom(ty, right).0 };
    let leaf = || right.or(left).cloned();
    match atom {
        Atom::Map { atomic: false } => {
            let maps = [left, right].map(|side| side.and_then(Value::as_object));
            if maps.iter().all(|map| map.is_none_or(Map::is_empty)) {
                return Ok(leaf());
            }
            let none = Map::new();
            let [left, right] = maps.map(|map| map.unwrap_or(&none));
            let mut merged = Map::with_capacity(left.len().max(right.len()));
            let only_right = right.keys().filter(|key| !left.contains_key(*key));
            for key in left.keys().chain(only_right) {
                let value = match at_key(ty, key) {
                    Some(child) => merge_at(left.get(key), right.get(key), child).map_err(|e| {
                        format!(".{key}{}{e}", if e.starts_with(['.', '[']) { "" } else { ": " })
                    })?,
                    // Not in the schema: the live object may be older than it.
                    None => right.get(key).or(left.get(key)).cloned(),
                };
                if let Some(value) = value {
                    merged.insert(key.clone(), value);
                }
            }
            Ok(Some(Value::Object(merged)))
        }
        Atom::List { atomic: false } => {
            let lists =
                [left, right].map(|side| side.and_then(Value::as_array).map_or(&[][..], Vec::as_slice));
            if lists.iter().all(|list| list.is_empty()) {
                return Ok(leaf());
            }
            merge_items(lists[0], lists[1], ty).map(|merged| Some(Value::Array(merged)))
        }
        _ => Ok(leaf()),
    }
}

/// Elements of a list in order, and the item of each that occurs once (`None` for repeated ones).
type Indexed<'v> = (Vec<Element>, BTreeMap<Element, Option<&'v Value>>);

fn index<'v>(list: &'v [Value], ty: TypeRef<'_>, duplicates: bool) -> Result<Indexed<'v>, String> {
    let mut elements = Vec::with_capacity(list.len());
    let mut items: BTreeMap<Element, Option<&Value>> = BTreeMap::new();
    for (at, item) in list.iter().enumerate() {
        let element = element_of(ty, item).map_err(|e| format!("element {at}: {e}"))?;
        if !items.contains_key(&element) {
            items.insert(element.clone(), Some(item));
        } else if duplicates {
            items.insert(element.clone(), None);
        } else {
            return Err(format!("duplicate entries for key {element}"));
        }
        elements.push(element);
    }
    Ok((elements, items))
}

/// Items keep the left order where the right one does not say otherwise.
fn merge_items(left: &[Value], right: &[Value], ty: TypeRef<'_>) -> Result<Vec<Value>, String> {
    let (right_order, right_items) = index(right, ty, false)?;
    let (left_order, left_items) = index(left, ty, true)?;
    let mut shared = right_order.iter().filter(|e| left_items.contains_key(e));
    let mut next_shared = shared.next();
    let mut merged = std::collections::BTreeSet::new();
    let mut out = Vec::with_capacity(left.len().max(right.len()));
    let item = item_type(ty);
    let both = |element: &Element| {
        let null = Value::Null;
        let left = left_items.get(element).map(|found| found.unwrap_or(&null));
        let right = right_items.get(element).map(|found| found.unwrap_or(&null));
        // A repeated live item is not merged with but replaced.
        let left = left.filter(|value| !value.is_null());
        merge_at(left, right, item)
            .map_err(|e| format!("{element}{}{e}", if e.starts_with(['.', '[']) { "" } else { ": " }))
    };
    let (mut l, mut r) = (0, 0);
    while l < left_order.len() || r < right_order.len() {
        if let (Some(ours), Some(theirs)) = (left_order.get(l), right_order.get(r)) {
            if ours == theirs {
                merged.insert(ours);
                out.extend(both(ours)?);
                l += 1;
                r += 1;
                next_shared = shared.next();
                continue;
            }
            if right_items.contains_key(ours) && next_shared.is_some_and(|next| next != ours) {
                // It is shared, but comes later.
                l += 1;
                continue;
            }
        }
        if let Some(ours) = left_order.get(l) {
            if !right_items.contains_key(ours) {
                out.extend(merge_at(left.get(l), None, item)?);
                l += 1;
                continue;
            }
            if merged.contains(ours) {
                l += 1;
            }
        }
        if let Some(theirs) = right_order.get(r) {
            merged.insert(theirs);
            out.extend(both(theirs)?);
            r += 1;
            if next_shared == Some(theirs) {
                next_shared = shared.next();
            }
        }
    }
    Ok(out)
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
