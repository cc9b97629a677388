//! Merging one value into another: what the right one says holds, what it does not say stays.

use super::{
    fieldset::Element,
    typed::{Atom, at_key, atom, element_of, item_type},
};
use crate::types::TypeRef;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

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
    let mut merged = BTreeSet::new();
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
