//! Strategic merge patch: a merge patch that knows which lists are merged, and by which key.
//!
//! Follows upstream's algorithm step by step, because the order of a merged list is visible to clients: items named by
//! `$setElementOrder` come in its order, the server's own stay where they were relative to them as far as possible.

use super::PatchError;
use crate::{
    facts::PatchStrategy,
    types::{Shape, TypeRef},
};
use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList";
const SET_ORDER: &str = "$setElementOrder";

/// Applies a strategic merge patch to an object of a built-in type.
pub fn strategic(original: &Value, patch: &[u8], ty: TypeRef<'_>) -> Result<Value, PatchError> {
    let invalid = || malformed("invalid JSON document");
    let Ok(Value::Object(patch)) = serde_json::from_slice(patch) else { return Err(invalid()) };
    let Value::Object(original) = original else { return Err(invalid()) };
    merge_map(original.clone(), patch, Some(ty)).map(Value::Object)
}

fn malformed(text: &str) -> PatchError {
    PatchError::Malformed(text.to_owned())
}

fn bad_retain_keys() -> PatchError {
    malformed("invalid patch format of retainKeys")
}

fn bad_order() -> PatchError {
    malformed("invalid patch format of setElementOrder list")
}

fn bad_type(expected: &str, found: &Value) -> PatchError {
    PatchError::Internal(format!("expected a {expected}, but received a {}", kind_of(found)))
}

fn no_merge_key(item: &Map<String, Value>, key: &str) -> PatchError {
    PatchError::Internal(format!(
        "map: {} does not contain declared merge key: {key}",
        Value::Object(item.clone())
    ))
}

fn unknown_directive(directive: &Value, map: &Map<String, Value>) -> PatchError {
    PatchError::Internal(format!("unknown patch type: {directive} in map: {}", Value::Object(map.clone())))
}

/// Go's names, as they stand in upstream's messages.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "bool",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// What the schema says about a field that is patched. Where there is no schema (free-form values, fields that do not
/// exist) objects are merged and lists are replaced.
#[derive(Clone, Copy)]
struct Rule<'a> {
    ty: Option<TypeRef<'a>>,
    strategy: PatchStrategy,
    key: Option<&'a str>,
}

fn rule<'a>(ty: Option<TypeRef<'a>>, name: &str) -> Rule<'a> {
    match ty.and_then(|t| t.field(name)) {
        Some(field) => Rule { ty: Some(field.ty()), strategy: field.patch, key: field.merge_key() },
        None => {
            let inner = ty.filter(|t| matches!(t.shape(), Shape::Map(_))).and_then(TypeRef::value);
            Rule { ty: inner, strategy: PatchStrategy::default(), key: None }
        }
    }
}

type Object = Map<String, Value>;

fn merge_map(mut original: Object, mut patch: Object, ty: Option<TypeRef<'_>>) -> Result<Object, PatchError> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                patch.shift_remove(DIRECTIVE);
                Ok(patch)
            }
            Some("delete") => Ok(Object::new()),
            _ => Err(unknown_directive(directive, &patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, ty)?;
    for (key, patch) in patch {
        let (key, deletes) = match key.strip_prefix(DELETE_FROM_LIST) {
            Some(rest) => match rest.strip_prefix('/') {
                Some(name) => (name.to_owned(), true),
                None => return Err(malformed("invalid patch format of primitive list")),
            },
            None => (key, false),
        };
        if patch.is_null() {
            original.shift_remove(&key);
            continue;
        }
        let merged = match (original.get_mut(&key).map(Value::take), patch) {
            (Some(Value::Object(original)), Value::Object(patch)) => {
                let rule = rule(ty, &key);
                Some(Value::Object(if rule.strategy.replace {
                    patch
                } else {
                    merge_map(original, patch, rule.ty)?
                }))
            }
            (Some(Value::Array(original)), Value::Array(patch)) => {
                Some(Value::Array(merge_list(original, patch, rule(ty, &key), deletes)?))
            }
            (None, _) if deletes => continue,
            (Some(original), _) if deletes => Some(original),
            (_, patch) => without_directives(without_nulls(patch)),
        };
        match merged {
            Some(merged) => {
                original.insert(key, merged);
            }
            None => {
                original.shift_remove(&key);
            }
        }
    }
    Ok(original)
}

/// `$retainKeys`: of the original only these fields stay. The patch may name no others.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(retained) = patch.shift_remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(retained) = retained else { return Err(bad_retain_keys()) };
    let is_retained = |key: &str| retained.iter().any(|r| r == key);
    let foreign = |(key, value): (&String, &Value)| {
        !value.is_null()
            && !key.starts_with(DELETE_FROM_LIST)
            && !key.starts_with(SET_ORDER)
            && !is_retained(key)
    };
    if patch.iter().any(foreign) {
        return Err(bad_retain_keys());
    }
    original.retain(|key, _| is_retained(key));
    Ok(())
}

/// Merges the lists that have a `$setElementOrder` and takes both out of the patch.
fn merge_ordered_lists(
    original: &mut Object,
    patch: &mut Object,
    ty: Option<TypeRef<'_>>,
) -> Result<(), PatchError> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let order = match patch.shift_remove(&directive) {
            Some(Value::Array(order)) => order,
            Some(other) => return Err(bad_type("[]interface {}", &other)),
            None => continue,
        };
        let Some(name) = directive.strip_prefix(SET_ORDER).and_then(|rest| rest.strip_prefix('/')) else {
            return Err(bad_order());
        };
        let list = |value: Option<Value>| match value {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(bad_type("[]interface {}", &other)),
        };
        let live = list(original.get(name).cloned())?;
        let patched = list(patch.shift_remove(name))?;
        let rule = rule(ty, name);
        check_order(patched.as_deref().unwrap_or_default(), &order, rule.key)?;
        let merged = match (&live, patched) {
            (None, None) => continue,
            (Some(live), None) => live.clone(),
            (None, Some(patched)) => match without_directives(Value::Array(patched)) {
                Some(Value::Array(list)) => list,
                _ => continue,
            },
            (Some(live), Some(patched)) => merge_list(live.clone(), patched, rule, false)?,
        };
        let (named, others) = partition(merged, &order, rule.key)?;
        let live = live.unwrap_or_default();
        original.insert(name.to_owned(), Value::Array(in_order(named, others, &order, &live, rule.key)));
    }
    Ok(())
}

/// The items of the patch must stand in the order list, in the same relative order.
fn check_order(patch: &[Value], order: &[Value], key: Option<&str>) -> Result<(), PatchError> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut order_items = order.iter();
    for item in patch.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        let mut found = false;
        for candidate in order_items.by_ref() {
            if same(item, candidate, key)? {
                found = true;
                break;
            }
        }
        if !found {
            return Err(PatchError::Internal(format!(
                "The order in patch list:\n{}\n doesn't match {SET_ORDER} list:\n{}\n",
                Value::from(patch),
                Value::from(order)
            )));
        }
    }
    Ok(())
}

/// Same merge key, or same value where there is none.
fn same(left: &Value, right: &Value, key: Option<&str>) -> Result<bool, PatchError> {
    let Some(key) = key else { return Ok(left == right) };
    Ok(key_of(left, key)? == key_of(right, key)?)
}

fn key_of<'v>(item: &'v Value, key: &str) -> Result<&'v Value, PatchError> {
    let Value::Object(map) = item else { return Err(bad_type("map[string]interface {}", item)) };
    map.get(key).ok_or_else(|| no_merge_key(map, key))
}

fn merge_list(
    original: Vec<Value>,
    patch: Vec<Value>,
    rule: Rule<'_>,
    deletes: bool,
) -> Result<Vec<Value>, PatchError> {
    if !rule.strategy.merge && !deletes {
        return Ok(patch);
    }
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let mut items = original.iter().chain(&patch);
    let objects = items.clone().next().is_some_and(Value::is_object);
    if items.clone().any(Value::is_array) {
        return Err(PatchError::NotApplicable("lists of lists are not supported".to_owned()));
    }
    if items.any(|item| item.is_object() != objects) {
        return Err(PatchError::Internal("list element types are not identical".to_owned()));
    }
    if !objects {
        if deletes {
            return Ok(original.into_iter().filter(|item| !patch.contains(item)).collect());
        }
        let mut merged: Vec<Value> = Vec::with_capacity(original.len() + patch.len());
        for item in original.iter().chain(&patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        let (named, others) = partition(merged, &patch, None)?;
        return Ok(in_order(named, others, &patch, &original, None));
    }
    let Some(key) = rule.key else {
        return Err(PatchError::Internal("cannot merge lists without merge key".to_owned()));
    };
    let (original, patch) = special_items(original, patch, key)?;
    let mut merged = original.clone();
    let item_type = rule.ty.and_then(TypeRef::item);
    for item in &patch {
        let wanted = key_of(item, key)?;
        let found = merged.iter_mut().find(|m| m.get(key) == Some(wanted));
        match (found, item) {
            (Some(found), Value::Object(item)) => {
                // It has the merge key, so it is an object.
                if let Value::Object(live) = found.take() {
                    *found = Value::Object(merge_map(live, item.clone(), item_type)?);
                }
            }
            _ => merged.push(item.clone()),
        }
    }
    let (named, others) = partition(merged, &patch, Some(key))?;
    Ok(in_order(named, others, &patch, &original, Some(key)))
}

/// Carries out `$patch` on items of a list: deletions in the original, replacement of the whole list.
fn special_items(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut plain = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        let Value::Object(map) = &item else { continue };
        match map.get(DIRECTIVE) {
            None => plain.push(item),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    let Some(wanted) = map.get(key) else { return Err(no_merge_key(map, key)) };
                    original.retain(|o| o.get(key) != Some(wanted));
                }
                Some("replace") => replace = true,
                Some("merge") => {
                    let text = "merging lists cannot yet be specified in the patch";
                    return Err(PatchError::Internal(text.to_owned()));
                }
                _ => return Err(unknown_directive(directive, map)),
            },
        }
    }
    Ok(if replace { (plain, Vec::new()) } else { (original, plain) })
}

/// Splits a list into the items that `by` names and the others.
fn partition(
    list: Vec<Value>,
    by: &[Value],
    key: Option<&str>,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut named = Vec::new();
    let mut others = Vec::new();
    for item in list {
        let is_named = match key {
            None => by.contains(&item),
            Some(key) => {
                let wanted = key_of(&item, key)?;
                by.iter().any(|b| b.get(key) == Some(wanted))
            }
        };
        if is_named { named.push(item) } else { others.push(item) }
    }
    Ok((named, others))
}

fn position(order: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    match key {
        None => order.iter().position(|o| o == item),
        Some(key) => {
            let wanted = item.get(key)?;
            order.iter().position(|o| o.get(key) == Some(wanted))
        }
    }
}

/// Sorts both parts by their own order and interleaves them by the order in which the server had them.
fn in_order(
    mut named: Vec<Value>,
    mut others: Vec<Value>,
    order: &[Value],
    server: &[Value],
    key: Option<&str>,
) -> Vec<Value> {
    let last = |at: Option<usize>| at.unwrap_or(usize::MAX);
    named.sort_by_cached_key(|item| last(position(order, item, key)));
    others.sort_by_cached_key(|item| last(position(server, item, key)));
    let mut merged = Vec::with_capacity(named.len() + others.len());
    let mut named = named.into_iter().peekable();
    for other in others {
        let at = position(server, &other, key);
        while let Some(next) = named.peek() {
            match (at, position(server, next, key)) {
                (Some(at), Some(next)) if at < next => break,
                _ => merged.extend(named.next()),
            }
        }
        merged.push(other);
    }
    merged.extend(named);
    merged
}

/// Nulls in what is taken over whole mean "absent".
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect(),
        ),
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// What is taken over whole must not carry directives; `None`: it is one itself.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => Some(Value::Object(
            map.into_iter().filter_map(|(k, v)| without_directives(v).map(|v| (k, v))).collect(),
        )),
        Value::Array(list) => Some(Value::Array(list.into_iter().filter_map(without_directives).collect())),
        other => Some(other),
    }
}
