//! Label and field selectors of requests: from text to requirements, and from requirements to a filter of cached
//! objects (upstream `labels.Parse` and `fields.ParseSelector`).

use std::sync::Arc;

use keelson_access::authz::{Operator, Requirement};
use keelson_storage::{Filter, Object, Scope};

use crate::{served::Served, status::Status};

/// What a comparison of a label or field demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One requirement of a selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    key: String,
    test: Test,
    values: Vec<String>,
}

impl Demand {
    fn matches(&self, found: Option<&str>) -> bool {
        let listed = |text: &str| self.values.iter().any(|value| value == text);
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = self.values.first().and_then(|value| number(value));
        match self.test {
            Test::In => found.is_some_and(listed),
            Test::NotIn => !found.is_some_and(listed),
            Test::Exists => found.is_some(),
            Test::DoesNotExist => found.is_none(),
            Test::GreaterThan => found.and_then(number).zip(bound).is_some_and(|(a, b)| a > b),
            Test::LessThan => found.and_then(number).zip(bound).is_some_and(|(a, b)| a < b),
        }
    }
}

/// Parses a label selector. The error is the client's text.
pub fn labels(text: &str) -> Result<Vec<Demand>, String> {
    let mut demands = Vec::new();
    let mut rest = text.trim();
    if rest.is_empty() {
        return Ok(demands);
    }
    loop {
        let (demand, after) = label_demand(rest)?;
        demands.push(demand);
        match after.strip_prefix(',') {
            // A comma must be followed by something.
            Some(next) if next.trim().is_empty() => {
                return Err("found '', expected: identifier after ','".into());
            }
            Some(next) => rest = next.trim_start(),
            None if after.is_empty() => return Ok(demands),
            None => return Err(format!("found '{}', expected: ',' or 'end of string'", token(after))),
        }
    }
}

fn token(text: &str) -> &str {
    text.split([' ', ',', '=', '!', '(', ')', '<', '>']).find(|part| !part.is_empty()).unwrap_or(text)
}

/// The longest head that can be a key or value, and what follows it.
fn word(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| c.is_whitespace() || matches!(c, ',' | '=' | '!' | '(' | ')' | '<' | '>'))
        .unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

fn label_demand(text: &str) -> Result<(Demand, &str), String> {
    if let Some(rest) = text.strip_prefix('!') {
        let (key, rest) = word(rest.trim_start());
        valid_key(key)?;
        return Ok((Demand { key: key.into(), test: Test::DoesNotExist, values: Vec::new() }, rest));
    }
    let (key, rest) = word(text);
    if key.is_empty() {
        return Err(format!("found '{}', expected: !, identifier, or 'end of string'", token(rest)));
    }
    valid_key(key)?;
    let demand = |test, values| Demand { key: key.to_string(), test, values };
    for (operator, test) in [
        ("==", Test::In),
        ("!=", Test::NotIn),
        ("=", Test::In),
        (">", Test::GreaterThan),
        ("<", Test::LessThan),
    ] {
        if let Some(after) = rest.strip_prefix(operator) {
            let (value, after) = word(after.trim_start());
            valid_value(key, value)?;
            if matches!(test, Test::GreaterThan | Test::LessThan) && value.parse::<i64>().is_err() {
                return Err(format!(
                    "values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                ));
            }
            return Ok((demand(test, vec![value.to_string()]), after));
        }
    }
    let (operator, after) = word(rest);
    let test = match operator {
        "" if rest.is_empty() || rest.starts_with(',') => {
            return Ok((demand(Test::Exists, Vec::new()), rest));
        }
        "in" => Test::In,
        "notin" => Test::NotIn,
        _ => {
            return Err(format!(
                "found '{}', expected: in, notin, =, ==, !=, gt, lt",
                token(if operator.is_empty() { rest } else { operator })
            ));
        }
    };
    let Some(list) = after.strip_prefix('(') else {
        return Err(format!("found '{}', expected: '('", token(after)));
    };
    let Some((inside, after)) = list.split_once(')') else {
        return Err("found '', expected: ',' or ')'".into());
    };
    let values: Vec<String> = inside.split(',').map(|value| value.trim().to_string()).collect();
    for value in &values {
        valid_value(key, value)?;
    }
    Ok((demand(test, values), after.trim_start()))
}

fn valid_key(key: &str) -> Result<(), String> {
    let name = key.rsplit('/').next().unwrap_or_default();
    let good = !key.is_empty()
        && name.len() <= 63
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric());
    if good {
        Ok(())
    } else {
        Err(format!(
            "key: Invalid value: {key:?}: name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
        ))
    }
}

fn valid_value(key: &str, value: &str) -> Result<(), String> {
    let good = value.is_empty()
        || (value.len() <= 63
            && value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && value.starts_with(|c: char| c.is_ascii_alphanumeric())
            && value.ends_with(|c: char| c.is_ascii_alphanumeric()));
    if good {
        Ok(())
    } else {
        Err(format!(
            "values[0][{key}]: Invalid value: {value:?}: a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
        ))
    }
}

/// Parses a field selector: `a=b`, `a==b`, `a!=b`, joined by commas; `\` escapes `,`, `=` and `\` in values.
pub fn fields(text: &str) -> Result<Vec<Demand>, String> {
    let mut demands = Vec::new();
    for term in split_terms(text) {
        let bad = || format!("invalid selector: '{text}'; can't understand '{term}'");
        let at = term.find(['=', '!']).ok_or_else(bad)?;
        let (key, rest) = term.split_at(at);
        let (test, value) = if let Some(value) = rest.strip_prefix("!=") {
            (Test::NotIn, value)
        } else if let Some(value) = rest.strip_prefix("==") {
            (Test::In, value)
        } else if let Some(value) = rest.strip_prefix('=') {
            (Test::In, value)
        } else {
            return Err(bad());
        };
        demands.push(Demand { key: key.to_string(), test, values: vec![unescape(value).ok_or_else(bad)?] });
    }
    Ok(demands)
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms.retain(|term| !term.is_empty());
    terms
}

fn unescape(value: &str) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                c @ (',' | '=' | '\\') => out.push(c),
                _ => return None,
            },
            ',' | '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

fn requirements(demands: Vec<Demand>) -> Vec<Requirement> {
    demands
        .into_iter()
        .filter_map(|demand| {
            let operator = match demand.test {
                Test::In => Operator::In,
                Test::NotIn => Operator::NotIn,
                Test::Exists => Operator::Exists,
                Test::DoesNotExist => Operator::DoesNotExist,
                Test::GreaterThan | Test::LessThan => return None,
            };
            Some(Requirement { key: demand.key, operator, values: demand.values })
        })
        .collect()
}

/// For authorization; what does not parse counts as no selector.
pub fn label_requirements(text: &str) -> Vec<Requirement> {
    labels(text).map(requirements).unwrap_or_default()
}

/// For authorization; what does not parse counts as no selector.
pub fn field_requirements(text: &str) -> Vec<Requirement> {
    fields(text).map(requirements).unwrap_or_default()
}

/// Whether a `metav1.LabelSelector` selects an object; an operator that is none selects nothing.
pub fn label_selector_matches(selector: &serde_json::Value, object: &Object) -> bool {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    labels.into_iter().all(|(key, value)| object.label(key) == value.as_str())
        && expressions.into_iter().all(|expression| {
            let test = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Test::In,
                "NotIn" => Test::NotIn,
                "Exists" => Test::Exists,
                "DoesNotExist" => Test::DoesNotExist,
                _ => return false,
            };
            let values = expression["values"].as_array().into_iter().flatten();
            let values = values.filter_map(|value| value.as_str().map(str::to_string)).collect();
            let key = expression["key"].as_str().unwrap_or_default().to_string();
            let found = object.label(&key);
            Demand { test, values, key: String::new() }.matches(found)
        })
}

/// Both selectors of a request, compiled for a resource.
pub struct Selection {
    pub scope: Scope,
    pub filter: Filter,
}

impl Selection {
    /// `name` is that of a request for a single object (a watch of `/pods/x`), else empty.
    pub fn new(
        served: &Served,
        namespace: &str,
        name: &str,
        label_selector: &str,
        field_selector: &str,
    ) -> Result<Self, Status> {
        let label_demands = labels(label_selector)
            .map_err(|why| Status::bad_request(format!("unable to parse requirement: {why}")))?;
        let field_demands = fields(field_selector).map_err(Status::bad_request)?;
        let resource = &served.kind.resource;
        for demand in &field_demands {
            let known = demand.key == "metadata.name"
                || (demand.key == "metadata.namespace" && resource.namespaced)
                || served.kind.selectable.contains(&demand.key.as_str());
            if !known {
                let key = &demand.key;
                return Err(Status::bad_request(if served.kind.selectable.is_empty() {
                    format!(
                        "{key:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    )
                } else {
                    format!("field label not supported: {key}")
                }));
            }
        }
        let namespace = if resource.namespaced { namespace } else { "" };
        let asked = field_demands
            .iter()
            .find(|demand| demand.key == "metadata.name" && demand.test == Test::In)
            .and_then(|demand| demand.values.first().cloned());
        let single = if name.is_empty() { asked } else { Some(name.to_string()) };
        let scope = match single {
            Some(name) if !name.is_empty() && (!namespace.is_empty() || !resource.namespaced) => {
                Scope::Object { namespace: namespace.into(), name }
            }
            _ if namespace.is_empty() => Scope::All,
            _ => Scope::Namespace(namespace.into()),
        };
        let filter: Filter = if label_demands.is_empty() && field_demands.is_empty() {
            None
        } else {
            Some(Arc::new(move |object: &Object| {
                label_demands.iter().all(|demand| demand.matches(object.label(&demand.key)))
                    && field_demands
                        .iter()
                        .all(|demand| demand.matches(Some(object.field(&demand.key).unwrap_or_default())))
            }))
        };
        Ok(Selection { scope, filter })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_labels(selector: &str, label: Option<&str>, expected: Result<bool, &str>) {
        let found = labels(selector)
            .map(|demands| demands.iter().all(|d| d.matches(if d.key == "a" { label } else { None })));
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{selector}"),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{selector}: {found}"),
            (found, expected) => panic!("{selector}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn label_selectors() {
        check_labels("", None, Ok(true));
        check_labels("a", Some("x"), Ok(true));
        check_labels("a", None, Ok(false));
        check_labels("!a", None, Ok(true));
        check_labels("a=x", Some("x"), Ok(true));
        check_labels("a == x", Some("x"), Ok(true));
        check_labels("a!=x", None, Ok(true));
        check_labels("a in (x, y),a notin (z)", Some("y"), Ok(true));
        check_labels("a in (x,y),!b", Some("z"), Ok(false));
        check_labels("a>3", Some("4"), Ok(true));
        check_labels("a<3", Some("4"), Ok(false));
        check_labels("a=", Some(""), Ok(true));
        check_labels("a,", None, Err("expected: identifier after ','"));
        check_labels("a in x", None, Err("expected: '('"));
        check_labels("a in (x", None, Err("expected: ',' or ')'"));
        check_labels("a like b", None, Err("found 'like'"));
        check_labels("=x", None, Err("expected: !, identifier"));
        check_labels("a=x=y", None, Err("expected: ','"));
        check_labels("-a=x", None, Err("key: Invalid value"));
    }

    #[test]
    fn field_selectors() {
        let check = |text: &str, expected: Option<Vec<(&str, Test, &str)>>| {
            let found = fields(text).ok();
            let found = found.as_ref().map(|all| {
                all.iter().map(|d| (d.key.as_str(), d.test, d.values[0].as_str())).collect::<Vec<_>>()
            });
            assert_eq!(found, expected, "{text}");
        };
        check("", Some(vec![]));
        check(
            "a=b,c!=d,e==f",
            Some(vec![("a", Test::In, "b"), ("c", Test::NotIn, "d"), ("e", Test::In, "f")]),
        );
        check(r"a=b\,c\=", Some(vec![("a", Test::In, "b,c=")]));
        check("a", None);
        check("a=b=c", None);
    }
}
