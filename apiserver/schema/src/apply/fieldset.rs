//! Sets of fields: what a manager owns, and how `FieldsV1` writes it.
//!
//! A set is a tree; a path is a member if the last element's node says so. That a child is a member says nothing about
//! its parents. Order is upstream's: fields, keys, values, indices.

use serde_json::{Map, Value};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// A scalar in a key or set item, ordered as upstream orders values: numbers, strings, booleans, the rest.
#[derive(Clone, Debug)]
pub(crate) struct Scalar(pub Value);

impl Scalar {
    fn rank(&self) -> u8 {
        match self.0 {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        }
    }
}

impl Ord for Scalar {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => a.as_f64().unwrap_or_default().total_cmp(&b.as_f64().unwrap_or_default()),
            },
            (Value::String(a), Value::String(b)) => a.cmp(b),
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (a, b) if self.rank() == other.rank() => a.to_string().cmp(&b.to_string()),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Scalar {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scalar {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scalar {}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Element {
    /// A field of an object or a key of a map.
    Field(Box<str>),
    /// The item of a list whose key fields, sorted by name, have these values.
    Key(Vec<(Box<str>, Scalar)>),
    /// The item of a set.
    Value(Scalar),
    Index(i64),
}

impl Element {
    pub(crate) fn field(name: &str) -> Self {
        Element::Field(name.into())
    }

    fn encode(&self) -> String {
        match self {
            Element::Field(name) => format!("f:{name}"),
            Element::Key(fields) => {
                let map: Map<String, Value> =
                    fields.iter().map(|(name, value)| (name.to_string(), value.0.clone())).collect();
                format!("k:{}", escaped(&Value::Object(map)))
            }
            Element::Value(value) => format!("v:{}", escaped(&value.0)),
            Element::Index(index) => format!("i:{index}"),
        }
    }

    /// `None`: a kind of element that a later version may know.
    fn decode(text: &str) -> Result<Option<Self>, String> {
        let mut parts = text.splitn(2, ':');
        let (Some(kind), Some(rest)) = (parts.next(), parts.next()) else {
            return Err(format!("missing colon: {text}"));
        };
        Ok(Some(match kind {
            "f" => Element::field(rest),
            "v" => Element::Value(Scalar(serde_json::from_str(rest).map_err(|e| e.to_string())?)),
            "k" => {
                let map: Map<String, Value> = serde_json::from_str(rest).map_err(|e| e.to_string())?;
                let mut fields: Vec<_> =
                    map.into_iter().map(|(name, value)| (name.into_boxed_str(), Scalar(value))).collect();
                fields.sort();
                Element::Key(fields)
            }
            "i" => Element::Index(rest.parse().map_err(|_| format!("not an index: {text}"))?),
            _ => return Ok(None),
        }))
    }
}

/// Compact JSON with Go's escapes of HTML: these texts are keys and must be equal byte by byte.
fn escaped(value: &Value) -> String {
    let text = value.to_string();
    if !text.contains(['<', '>', '&']) {
        return text;
    }
    text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Field(name) => write!(f, ".{name}"),
            Element::Key(fields) => {
                f.write_str("[")?;
                for (i, (name, value)) in fields.iter().enumerate() {
                    write!(f, "{}{name}={}", if i > 0 { "," } else { "" }, value.0)?;
                }
                f.write_str("]")
            }
            Element::Value(value) => write!(f, "[={}]", value.0),
            Element::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// `.spec.containers[name="a"].image`
pub(crate) fn display_path(path: &[Element]) -> String {
    path.iter().map(Element::to_string).collect()
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) members: BTreeSet<Element>,
    pub(crate) children: BTreeMap<Element, Set>,
}

impl Set {
    /// A set of paths of field names.
    pub(crate) fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Set::default();
        for path in paths {
            let path: Vec<Element> = path.iter().map(|name| Element::field(name)).collect();
            set.insert(&path);
        }
        set
    }

    /// The empty path is the whole object, which nobody owns.
    pub(crate) fn insert(&mut self, path: &[Element]) {
        let Some((last, parents)) = path.split_last() else { return };
        let mut set = self;
        for element in parents {
            if !set.children.contains_key(element) {
                set.children.insert(element.clone(), Set::default());
            }
            match set.children.get_mut(element) {
                Some(child) => set = child,
                None => return,
            }
        }
        set.members.insert(last.clone());
    }

    pub(crate) fn has(&self, path: &[Element]) -> bool {
        let Some((last, parents)) = path.split_last() else { return false };
        let mut set = self;
        for element in parents {
            match set.children.get(element) {
                Some(child) => set = child,
                None => return false,
            }
        }
        set.members.contains(last)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(Set::is_empty)
    }

    pub(crate) fn union(mut self, other: &Set) -> Set {
        self.extend(other);
        self
    }

    pub(crate) fn extend(&mut self, other: &Set) {
        self.members.extend(other.members.iter().cloned());
        for (element, theirs) in &other.children {
            match self.children.get_mut(element) {
                Some(own) => own.extend(theirs),
                None => {
                    self.children.insert(element.clone(), theirs.clone());
                }
            }
        }
    }

    pub(crate) fn intersection(&self, other: &Set) -> Set {
        Set {
            members: self.members.intersection(&other.members).cloned().collect(),
            children: (self.children.iter())
                .filter_map(|(element, own)| {
                    let both = own.intersection(other.children.get(element)?);
                    (!both.is_empty()).then(|| (element.clone(), both))
                })
                .collect(),
        }
    }

    /// Members of `other` are taken out; what lies under them stays.
    pub(crate) fn difference(&self, other: &Set) -> Set {
        self.minus(other, false)
    }

    /// Members of `other` are taken out with everything under them.
    pub(crate) fn recursive_difference(&self, other: &Set) -> Set {
        self.minus(other, true)
    }

    fn minus(&self, other: &Set, recursive: bool) -> Set {
        Set {
            members: self.members.difference(&other.members).cloned().collect(),
            children: (self.children.iter())
                .filter(|(element, _)| !recursive || !other.members.contains(element))
                .filter_map(|(element, own)| {
                    let left = match other.children.get(element) {
                        Some(theirs) => own.minus(theirs, recursive),
                        None => own.clone(),
                    };
                    (!left.is_empty()).then(|| (element.clone(), left))
                })
                .collect(),
        }
    }

    /// Every member's path, members before children.
    pub(crate) fn paths(&self) -> Vec<Vec<Element>> {
        let mut paths = Vec::new();
        self.collect(&mut Vec::new(), &mut paths);
        paths
    }

    fn collect(&self, prefix: &mut Vec<Element>, paths: &mut Vec<Vec<Element>>) {
        for member in &self.members {
            let mut path = prefix.clone();
            path.push(member.clone());
            paths.push(path);
        }
        for (element, child) in &self.children {
            prefix.push(element.clone());
            child.collect(prefix, paths);
            prefix.pop();
        }
    }

    /// As `FieldsV1`.
    pub(crate) fn encode(&self) -> Value {
        Value::Object(self.encode_contents(false))
    }

    fn encode_contents(&self, member: bool) -> Map<String, Value> {
        let mut map = Map::new();
        if member {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        let elements: BTreeSet<&Element> = self.members.iter().chain(self.children.keys()).collect();
        for element in elements {
            let contents = match self.children.get(element) {
                Some(child) => child.encode_contents(self.members.contains(element)),
                None => Map::new(),
            };
            map.insert(element.encode(), Value::Object(contents));
        }
        map
    }

    pub(crate) fn decode(fields: &Value) -> Result<Set, String> {
        let Value::Object(map) = fields else { return Err("fieldsV1 is not an object".to_owned()) };
        Ok(Self::decode_contents(map, 0)?.0)
    }

    /// The children, and whether the node is a member itself: it says so or has no children.
    fn decode_contents(map: &Map<String, Value>, depth: usize) -> Result<(Set, bool), String> {
        if depth > 256 {
            return Err("exceeded max depth".to_owned());
        }
        let mut set = Set::default();
        let mut member = false;
        for (key, value) in map {
            if key == "." {
                member = true;
                continue;
            }
            let Some(element) = Element::decode(key)? else { continue };
            let (child, child_is_member) = match value {
                Value::Object(map) => Self::decode_contents(map, depth + 1)?,
                _ => (Set::default(), true),
            };
            if child_is_member {
                set.members.insert(element.clone());
            }
            if !(child.members.is_empty() && child.children.is_empty()) {
                set.children.insert(element, child);
            }
        }
        let is_leaf = set.members.is_empty() && set.children.is_empty();
        Ok((set, member || is_leaf))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_survive_the_round_trip() {
        let check = |fields: Value| {
            assert_eq!(Set::decode(&fields).unwrap().encode().to_string(), fields.to_string())
        };
        check(json!({}));
        check(json!({"f:spec":{"f:replicas":{}}}));
        check(json!({"f:metadata":{"f:labels":{".":{},"f:a":{}}}}));
        check(json!({"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:image":{},"f:name":{},
            "f:ports":{"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{}}}}}}}));
        check(json!({"f:metadata":{"f:finalizers":{"v:\"x\\u0026y\"":{}}}}));
        check(json!({"f:l":{"i:1":{}}}));
    }

    #[test]
    fn bad_fields() {
        for fields in [json!([]), json!({"x":{}}), json!({"k:{":{}}), json!({"v:x":{}}), json!({"i:x":{}})] {
            assert!(Set::decode(&fields).is_err(), "{fields}");
        }
        assert!(Set::decode(&json!({"z:future":{}})).unwrap().is_empty());
    }

    #[test]
    fn algebra() {
        let set = |fields: Value| Set::decode(&fields).unwrap();
        let a = set(json!({"f:a":{".":{},"f:b":{}},"f:c":{}}));
        let b = set(json!({"f:a":{}}));
        assert_eq!(a.difference(&b), set(json!({"f:a":{"f:b":{}},"f:c":{}})));
        assert_eq!(a.recursive_difference(&b), set(json!({"f:c":{}})));
        assert_eq!(a.intersection(&b), b);
        assert_eq!(b.clone().union(&a), a);
        let paths: Vec<String> = a.paths().iter().map(|p| display_path(p)).collect();
        assert_eq!(paths, [".a", ".c", ".a.b"]);
    }
}
