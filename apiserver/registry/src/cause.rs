//! What is wrong with a field, in upstream's words (`apimachinery/pkg/util/validation/field`): a path, a reason and a
//! message, which become one cause of a 422 Status. Collecting them costs nothing until one is found.

use std::fmt;

use serde_json::Value;

/// Machine-readable reason of a cause, `metav1.CauseType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    TooFew,
    TypeInvalid,
}

impl Reason {
    /// The value of `details.causes[].reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::NotFound => "FieldValueNotFound",
            Reason::Required => "FieldValueRequired",
            Reason::Duplicate => "FieldValueDuplicate",
            Reason::Invalid => "FieldValueInvalid",
            Reason::NotSupported => "FieldValueNotSupported",
            Reason::Forbidden => "FieldValueForbidden",
            Reason::TooLong => "FieldValueTooLong",
            Reason::TooMany => "FieldValueTooMany",
            Reason::TooFew => "FieldValueTooFew",
            Reason::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Reason::NotFound => "Not found",
            Reason::Required => "Required value",
            Reason::Duplicate => "Duplicate value",
            Reason::Invalid | Reason::TypeInvalid => "Invalid value",
            Reason::NotSupported => "Unsupported value",
            Reason::Forbidden => "Forbidden",
            Reason::TooLong => "Too long",
            Reason::TooMany => "Too many",
            Reason::TooFew => "Too few",
        }
    }
}

/// One cause of an Invalid Status. `Display` is `field: message`, as upstream lists causes in the Status message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub reason: Reason,
    pub field: String,
    /// Without the field: `Invalid value: "x": must be …`.
    pub message: String,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

#[derive(Clone, Copy)]
enum Part<'a> {
    Root(&'a str),
    Child(&'a str),
    Index(usize),
    Key(&'a str),
}

/// Where in an object we are: a linked list on the stack, written out only when something is wrong.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    part: Part<'a>,
}

impl<'a> Path<'a> {
    pub fn new(root: &'a str) -> Self {
        Path { parent: None, part: Part::Root(root) }
    }

    pub fn child<'b>(&'b self, name: &'b str) -> Path<'b> {
        Path { parent: Some(self), part: Part::Child(name) }
    }

    pub fn index(&self, index: usize) -> Path<'_> {
        Path { parent: Some(self), part: Part::Index(index) }
    }

    pub fn key<'b>(&'b self, key: &'b str) -> Path<'b> {
        Path { parent: Some(self), part: Part::Key(key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.part {
            Part::Root(name) => f.write_str(name),
            Part::Child(name) => match self.parent {
                // An empty root lets a validator start at the object itself.
                Some(Path { part: Part::Root(""), .. }) | None => f.write_str(name),
                Some(_) => write!(f, ".{name}"),
            },
            Part::Index(index) => write!(f, "[{index}]"),
            Part::Key(key) => write!(f, "[{key}]"),
        }
    }
}

/// Collects causes; each method is named and worded as upstream's constructor of the same name.
#[derive(Default)]
pub struct Causes(Vec<Cause>);

impl Causes {
    pub fn into_vec(self) -> Vec<Cause> {
        self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn extend(&mut self, more: Vec<Cause>) {
        self.0.extend(more);
    }

    pub fn required(&mut self, path: &Path<'_>, detail: &str) {
        self.push(Reason::Required, path, None, detail);
    }

    pub fn forbidden(&mut self, path: &Path<'_>, detail: &str) {
        self.push(Reason::Forbidden, path, None, detail);
    }

    pub fn invalid(&mut self, path: &Path<'_>, value: impl Into<Value>, detail: impl AsRef<str>) {
        self.push(Reason::Invalid, path, Some(&value.into()), detail.as_ref());
    }

    /// One Invalid for each message of a syntax rule.
    pub fn syntax(&mut self, path: &Path<'_>, value: &str, messages: Vec<String>) {
        for message in messages {
            self.invalid(path, value, message);
        }
    }

    pub fn type_invalid(&mut self, path: &Path<'_>, value: impl Into<Value>, detail: &str) {
        self.push(Reason::TypeInvalid, path, Some(&value.into()), detail);
    }

    pub fn not_found(&mut self, path: &Path<'_>, value: impl Into<Value>) {
        self.push(Reason::NotFound, path, Some(&value.into()), "");
    }

    pub fn duplicate(&mut self, path: &Path<'_>, value: impl Into<Value>) {
        self.push(Reason::Duplicate, path, Some(&value.into()), "");
    }

    /// A duplicate that needs a word of why.
    pub fn duplicate_because(&mut self, path: &Path<'_>, value: impl Into<Value>, detail: &str) {
        self.push(Reason::Duplicate, path, Some(&value.into()), detail);
    }

    pub fn not_supported(&mut self, path: &Path<'_>, value: impl Into<Value>, supported: &[&str]) {
        let quoted: Vec<String> = supported.iter().map(|value| go_quote(value)).collect();
        let detail = if quoted.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", quoted.join(", "))
        };
        self.push(Reason::NotSupported, path, Some(&value.into()), &detail);
    }

    pub fn too_long(&mut self, path: &Path<'_>, max: usize) {
        let unit = if max == 1 { "byte" } else { "bytes" };
        self.push(Reason::TooLong, path, None, &format!("may not be more than {max} {unit}"));
    }

    pub fn too_many(&mut self, path: &Path<'_>, actual: usize, max: usize) {
        let unit = if max == 1 { "item" } else { "items" };
        self.push(Reason::TooMany, path, Some(&actual.into()), &format!("must have at most {max} {unit}"));
    }

    fn push(&mut self, reason: Reason, path: &Path<'_>, value: Option<&Value>, detail: &str) {
        let mut message = reason.words().to_owned();
        if let Some(value) = value {
            message.push_str(": ");
            match value {
                Value::String(text) => message.push_str(&go_quote(text)),
                other => message.push_str(&other.to_string()),
            }
        }
        if !detail.is_empty() {
            message.push_str(": ");
            message.push_str(detail);
        }
        self.0.push(Cause { reason, field: path.to_string(), message });
    }
}

/// Go's `%q`.
pub fn go_quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0b' => quoted.push_str("\\v"),
            '\x0c' => quoted.push_str("\\f"),
            c if (c as u32) < 0x20 || c == '\x7f' => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(fill: impl FnOnce(&mut Causes), expected: &str) {
        let mut causes = Causes::default();
        fill(&mut causes);
        let texts: Vec<String> = causes.into_vec().iter().map(Cause::to_string).collect();
        assert_eq!(texts.join("\n"), expected);
    }

    #[test]
    fn words_are_upstreams() {
        let spec = Path::new("spec");
        let containers = spec.child("containers");
        check(
            |c| c.required(&containers.index(0).child("image"), ""),
            "spec.containers[0].image: Required value",
        );
        check(|c| c.required(&containers, "need one"), "spec.containers: Required value: need one");
        check(
            |c| c.invalid(&spec.child("replicas"), -1, "must be greater than or equal to 0"),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        );
        check(
            |c| c.not_supported(&spec.child("type"), "X\n", &["A", "B"]),
            "spec.type: Unsupported value: \"X\\n\": supported values: \"A\", \"B\"",
        );
        check(
            |c| c.invalid(&Path::new("metadata").child("labels").key("a"), json!({"b": 1}), "no"),
            "metadata.labels[a]: Invalid value: {\"b\":1}: no",
        );
        check(|c| c.too_long(&spec, 1), "spec: Too long: may not be more than 1 byte");
        check(|c| c.too_many(&spec, 33, 32), "spec: Too many: 33: must have at most 32 items");
        check(|c| c.duplicate(&Path::new("").child("rules"), "a"), "rules: Duplicate value: \"a\"");
    }
}
