//! Reading amounts of resources out of JSON. What an amount is, the objects package knows.

pub(crate) use keelson_objects::quantity::Quantity;
use serde_json::Value;

/// The amount that a JSON string or number stands for; None when it is none.
pub(crate) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}
