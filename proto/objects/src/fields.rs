//! Field selectors (`?fieldSelector=`): equality and inequality of a few fields, joined by commas. `\`, `,` and `=`
//! in values are escaped by a backslash. Which fields a kind can be selected by is the kind's to say.

use std::fmt;
use std::str::FromStr;

/// Why a text is no field selector; the message is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldSelectorError {
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term { selector: String, term: String },
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    /// Upstream prints the character's number.
    #[error("invalid field selector: unescaped character in value: {}", u32::from(*.0))]
    Unescaped(char),
}

/// A condition on one field.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Term {
    pub field: String,
    pub value: String,
    /// `=` or `!=`.
    pub equal: bool,
}

/// All terms must hold; none are no condition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct FieldSelector {
    pub terms: Vec<Term>,
}

impl FieldSelector {
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether an object matches whose fields `lookup` gives; an absent field is an empty one.
    #[must_use]
    pub fn matches_with<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|term| (lookup(&term.field).unwrap_or_default() == term.value) == term.equal)
    }

    /// The value that a field must have, where there is such a term: it can serve as an index key.
    #[must_use]
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }
}

impl FromStr for FieldSelector {
    type Err = FieldSelectorError;

    fn from_str(text: &str) -> Result<Self, FieldSelectorError> {
        let mut parts = split_terms(text);
        parts.sort_unstable();
        let mut terms = Vec::new();
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            let malformed = || FieldSelectorError::Term { selector: text.to_owned(), term: part.to_owned() };
            // A '!' that no '=' follows belongs to the field's name.
            let operator =
                |(at, _): &(usize, char)| part[*at..].starts_with('=') || part[*at..].starts_with("!=");
            let at = part.char_indices().find(operator).map(|(at, _)| at);
            let at = at.ok_or_else(malformed)?;
            let (field, rest) = part.split_at(at);
            let (equal, value) = match rest.strip_prefix("!=") {
                Some(value) => (false, value),
                None => {
                    (true, rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')).ok_or_else(malformed)?)
                }
            };
            terms.push(Term { field: field.to_owned(), value: unescape(value)?, equal });
        }
        Ok(Self { terms })
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let operator = if term.equal { "=" } else { "!=" };
            write!(f, "{comma}{}{operator}{}", term.field, escape(&term.value))?;
        }
        Ok(())
    }
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
    terms
}

/// Escapes a value for use in a field selector.
#[must_use]
pub fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}

fn unescape(value: &str) -> Result<String, FieldSelectorError> {
    let mut plain = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => match characters.next() {
                Some(c @ ('\\' | ',' | '=')) => plain.push(c),
                Some(c) => return Err(FieldSelectorError::Escape(format!("\\{c}"))),
                None => return Err(FieldSelectorError::Escape("\\".to_owned())),
            },
            ',' | '=' => return Err(FieldSelectorError::Unescaped(c)),
            c => plain.push(c),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_and_print() {
        #[track_caller]
        fn check(input: &str, expected: Result<&str, &str>) {
            let actual = input.parse::<FieldSelector>();
            match expected {
                Ok(text) => assert_eq!(actual.unwrap().to_string(), text, "{input}"),
                Err(text) => assert_eq!(actual.unwrap_err().to_string(), text, "{input}"),
            }
        }
        check("", Ok(""));
        check("spec.nodeName=a,metadata.name==b", Ok("metadata.name=b,spec.nodeName=a"));
        check("a!=b", Ok("a!=b"));
        check("a=", Ok("a="));
        check(r"a=b\,c\=d\\", Ok(r"a=b\,c\=d\\"));
        check("a!b=c", Ok("a!b=c"));
        check("nonsense", Err("invalid selector: 'nonsense'; can't understand 'nonsense'"));
        check("a=b=c", Err("invalid field selector: unescaped character in value: 61"));
        check(r"a=\b", Err(r"invalid field selector: invalid escape sequence: \b"));
    }

    #[test]
    fn matching() {
        let selector: FieldSelector = "status.phase!=Failed,spec.nodeName=n1".parse().unwrap();
        let pod = |node: &'static str, phase: &'static str| {
            move |field: &str| match field {
                "spec.nodeName" => Some(node),
                "status.phase" => Some(phase),
                _ => None,
            }
        };
        assert!(selector.matches_with(pod("n1", "Running")));
        assert!(!selector.matches_with(pod("n1", "Failed")));
        assert!(!selector.matches_with(pod("", "Running")));
        assert_eq!(selector.required("spec.nodeName"), Some("n1"));
        assert_eq!(selector.required("status.phase"), None);
    }
}
