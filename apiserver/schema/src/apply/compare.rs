//! How two values of a type differ: fields added, modified, removed.

use super::{
    fieldset::{Element, Set},
    typed::{Atom, at_key, atom, element_of, item_type},
};
use crate::types::TypeRef;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

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
