//! JSON patch, bounded: the number of operations, the bytes that copies may make, and the depth of the result. A
//! document that is moved into itself again and again would otherwise grow deeper than any stack.

use super::PatchError;
use json_patch::{Patch, PatchErrorKind, PatchOperation, jsonptr::Pointer};
use serde_json::Value;

const MAX_OPERATIONS: usize = 10_000;
const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;
const MAX_DEPTH: usize = 200;
/// A document is never deeper than this plus one path, so that it can be walked and dropped by recursion.
const MEASURE_AT: usize = 800;

/// RFC 6902.
pub fn json(original: &Value, patch: &[u8]) -> Result<Value, PatchError> {
    let Patch(operations) = serde_json::from_slice(patch)
        .map_err(|e| PatchError::Malformed(format!("error decoding patch: {e}")))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooManyOperations { allowed: MAX_OPERATIONS, got: operations.len() });
    }
    let mut patched = original.clone();
    let mut copied = 0;
    // Never less than the document's depth. Moves make it grow, so it is measured anew before it is believed.
    let mut bound = depth_of(&patched);
    for operation in &operations {
        let at = tokens(operation.path());
        if at > MAX_DEPTH {
            return Err(too_deep());
        }
        match operation {
            PatchOperation::Add(add) => bound = bound.max(at + depth_of(&add.value)),
            PatchOperation::Replace(replace) => bound = bound.max(at + depth_of(&replace.value)),
            PatchOperation::Move(_) => bound += at,
            PatchOperation::Copy(copy) => {
                bound += at;
                copied += patched.pointer(copy.from.as_str()).map_or(0, size_of_text);
                if copied > MAX_COPIED_BYTES {
                    return Err(PatchError::NotApplicable(format!(
                        "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding \
                         the limit {MAX_COPIED_BYTES}"
                    )));
                }
            }
            PatchOperation::Remove(_) | PatchOperation::Test(_) => {}
        }
        apply(&mut patched, operation)?;
        if bound > MEASURE_AT {
            bound = depth_of(&patched);
            if bound > MAX_DEPTH {
                return Err(too_deep());
            }
        }
    }
    if bound > MAX_DEPTH && depth_of(&patched) > MAX_DEPTH {
        return Err(too_deep());
    }
    Ok(patched)
}

fn too_deep() -> PatchError {
    PatchError::NotApplicable("the patched object is nested too deeply".to_owned())
}

fn apply(document: &mut Value, operation: &PatchOperation) -> Result<(), PatchError> {
    if let PatchOperation::Test(test) = operation {
        // A test for null also holds where nothing is, which RFC 6902 leaves open and upstream allows.
        let found = document.pointer(test.path.as_str()).unwrap_or(&Value::Null);
        return if *found == test.value {
            Ok(())
        } else {
            Err(PatchError::NotApplicable(format!("testing value {} failed: test failed", test.path)))
        };
    }
    json_patch::patch_unsafe(document, std::slice::from_ref(operation))
        .map_err(|e| describe(operation, &e.kind))
}

fn describe(operation: &PatchOperation, kind: &PatchErrorKind) -> PatchError {
    let path = operation.path();
    PatchError::NotApplicable(match (operation, kind) {
        (PatchOperation::Add(_), _) => {
            format!("add operation does not apply: doc is missing path: {:?}: missing value", path.as_str())
        }
        (PatchOperation::Remove(_), _) => {
            let key = path.as_str().rsplit('/').next().unwrap_or_default();
            format!(
                "error in remove for path: '{path}': Unable to remove nonexistent key: {key}: missing value"
            )
        }
        (PatchOperation::Replace(_), _) => {
            format!("replace operation does not apply: doc is missing key: {path}: missing value")
        }
        (PatchOperation::Move(op), _) => {
            format!("move operation does not apply: doc is missing from path: {} ({kind})", op.from)
        }
        (PatchOperation::Copy(op), _) => {
            format!("copy operation does not apply: doc is missing from path: {} ({kind})", op.from)
        }
        (PatchOperation::Test(_), _) => format!("testing value {path} failed: {kind}"),
    })
}

fn tokens(pointer: &Pointer) -> usize {
    pointer.as_str().bytes().filter(|b| *b == b'/').count()
}

fn depth_of(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth_of).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth_of).max().unwrap_or(0),
        _ => 0,
    }
}

/// About as many bytes as the value takes when written.
fn size_of_text(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(list) => 2 + list.iter().map(|v| size_of_text(v) + 1).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(k, v)| k.len() + size_of_text(v) + 4).sum::<usize>(),
    }
}
