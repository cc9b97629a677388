//! What an update would change of something that must stay, for people: a unified diff of the two as indented JSON, as
//! upstream's `apimachinery/pkg/util/diff` prints it (there with the names of Go's fields, of which every one is shown;
//! here with the API's). Must not decide whether two objects mean the same.

use serde_json::Value;
use similar::TextDiff;

/// Comparing takes time as the product of the lines and of those that differ, and objects come from the network.
const MAX_LINES: usize = 4000;

/// Lines to show around each change.
const CONTEXT: usize = 3;

pub(crate) fn unified(old: &Value, new: &Value) -> String {
    let (old, new) = (lines(old), lines(new));
    if old.lines().count() + new.lines().count() > MAX_LINES {
        return "(too long to be compared)\n".to_owned();
    }
    TextDiff::from_lines(&old, &new).unified_diff().context_radius(CONTEXT).to_string()
}

/// Fields in an order of their own: which one a client wrote first is no change.
fn lines(value: &Value) -> String {
    let mut value = value.clone();
    value.sort_all_objects();
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shows_what_differs() {
        #[track_caller]
        fn check(old: Value, new: Value, expected: &str) {
            assert_eq!(unified(&old, &new), expected);
        }
        check(json!({"a": 1, "b": [1]}), json!({"b": [1], "a": 1}), "");
        check(
            json!({"a": 1, "b": 2, "c": 3, "d": {"e": "x"}, "f": [], "g": 7, "h": 8}),
            json!({"a": 1, "b": 2, "c": 3, "d": {"e": "y"}, "f": [], "g": 7, "h": 8}),
            concat!(
                "@@ -3,7 +3,7 @@\n",
                "   \"b\": 2,\n",
                "   \"c\": 3,\n",
                "   \"d\": {\n",
                "-    \"e\": \"x\"\n",
                "+    \"e\": \"y\"\n",
                "   },\n",
                "   \"f\": [],\n",
                "   \"g\": 7,\n",
            ),
        );
        check(Value::Null, json!("a\nb"), "@@ -1 +1 @@\n-null\n+\"a\\nb\"\n");
    }

    #[test]
    fn a_comparison_that_would_take_long_is_not_made() {
        let many = |start: usize, count: usize| Value::from((start..start + count).collect::<Vec<_>>());
        assert!(unified(&many(0, 100), &many(1, 100)).starts_with("@@"));
        assert_eq!(unified(&many(0, 3000), &many(3000, 3000)), "(too long to be compared)\n");
    }
}
