//! Label selectors: the `LabelSelector` of objects and the string form of `?labelSelector=` and `kubectl -l`.
//!
//! An empty selector matches everything. Parsing and messages follow `k8s.io/apimachinery/pkg/labels`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::validation::{is_label_value, is_qualified_name};

/// Why a text or a `LabelSelector` is no selector; the message is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

/// How a requirement relates a label to its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// A condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

impl Requirement {
    /// A requirement whose key and values are valid and as many as the operator takes.
    ///
    /// # Errors
    /// They are not.
    pub fn new(key: &str, operator: Operator, values: Vec<String>) -> Result<Self, SelectorError> {
        let mut errors = Vec::new();
        let messages = is_qualified_name(key);
        if !messages.is_empty() {
            errors.push(format!("key: Invalid value: {key:?}: {}", messages.join("; ")));
        }
        let message = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Equals | Operator::NotEquals if values.len() != 1 => {
                Some("exact-match compatibility requires one single value")
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            _ => None,
        };
        if let Some(message) = message {
            errors.push(format!("values: Invalid value: {values:?}: {message}"));
        }
        for (index, value) in values.iter().enumerate() {
            if matches!(operator, Operator::GreaterThan | Operator::LessThan) && value.parse::<i64>().is_err()
            {
                errors.push(format!(
                    "values[{index}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                ));
            }
            let messages = is_label_value(value);
            if !messages.is_empty() {
                errors.push(format!(
                    "values[{index}][{key}]: Invalid value: {value:?}: {}",
                    messages.join("; ")
                ));
            }
        }
        match errors.len() {
            0 => Ok(Self { key: key.to_owned(), operator, values }),
            1 => Err(SelectorError(errors.remove(0))),
            _ => Err(SelectorError(format!("[{}]", errors.join(", ")))),
        }
    }

    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    #[must_use]
    pub fn operator(&self) -> Operator {
        self.operator
    }

    #[must_use]
    pub fn values(&self) -> &[String] {
        &self.values
    }

    /// Whether a label's value (`None`: it is absent) satisfies this.
    #[must_use]
    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|known| known == value);
        let compared = |holds: fn(i64, i64) -> bool| {
            let bound = self.values.first().and_then(|bound| bound.parse().ok());
            match (value.and_then(|value| value.parse().ok()), bound) {
                (Some(value), Some(bound)) => holds(value, bound),
                _ => false,
            }
        };
        match self.operator {
            Operator::In | Operator::Equals => value.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => compared(|value, bound| value > bound),
            Operator::LessThan => compared(|value, bound| value < bound),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = || self.values.first().map_or("", String::as_str);
        let set = || {
            self.values
                .iter()
                .map(String::as_str)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
                .join(",")
        };
        let key = &self.key;
        match self.operator {
            Operator::Equals => write!(f, "{key}={}", first()),
            Operator::NotEquals => write!(f, "{key}!={}", first()),
            Operator::In => write!(f, "{key} in ({})", set()),
            Operator::NotIn => write!(f, "{key} notin ({})", set()),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{}", first()),
            Operator::LessThan => write!(f, "{key}<{}", first()),
        }
    }
}

/// All of its requirements must hold; none are no condition. Or it matches nothing at all.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Selector {
    /// Matches every object.
    #[must_use]
    pub fn everything() -> Self {
        Self { requirements: Vec::new(), nothing: false }
    }

    /// Matches no object.
    #[must_use]
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// All of these requirements.
    #[must_use]
    pub fn all_of(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// Each of these labels with its value (a ReplicationController's or a Service's selector). Keys and values are
    /// taken as they are.
    #[must_use]
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let requirement = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.clone()],
        };
        Self::all_of(labels.into_iter().map(requirement).collect())
    }

    /// The selector of a `LabelSelector`. `None` matches nothing, an empty one everything.
    ///
    /// # Errors
    /// An unknown operator, or a key or value that is no label's.
    pub fn from_label_selector(selector: Option<&LabelSelector>) -> Result<Self, SelectorError> {
        let Some(selector) = selector else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::new(key, Operator::Equals, vec![value.clone()])?);
        }
        for expression in selector.match_expressions.iter().flatten() {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!("{other:?} is not a valid label selector operator")));
                }
            };
            let values = expression.values.clone().unwrap_or_default();
            requirements.push(Requirement::new(&expression.key, operator, values)?);
        }
        Ok(Self::all_of(requirements))
    }

    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether this places no condition.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Whether no object can match.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// As [`Selector::matches`] for labels that may be absent, as those of `ObjectMeta`.
    #[must_use]
    pub fn matches_option(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches_with(|key| labels?.get(key).map(String::as_str))
    }

    /// Whether an object matches whose labels `lookup` gives.
    #[must_use]
    pub fn matches_with<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing
            && self.requirements.iter().all(|requirement| requirement.matches(lookup(&requirement.key)))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            write!(f, "{}{requirement}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Parser { tokens: scan(text), position: 0 }.selector()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    End,
    Error(&'a str),
    Word(&'a str),
    /// An operator or punctuation; `in` and `notin` among them.
    Symbol(&'static str),
}

impl Token<'_> {
    fn literal(&self) -> String {
        match self {
            Self::End => String::new(),
            Self::Error(found) => format!("error expected: keyword found '{found}'"),
            Self::Word(text) => (*text).to_owned(),
            Self::Symbol(text) => (*text).to_owned(),
        }
    }

    /// The text, where this stands for a value or a key: there `in` and `notin` are words.
    fn word(&self) -> Option<&str> {
        match self {
            Self::Word(text) => Some(text),
            Self::Symbol(text @ ("in" | "notin")) => Some(text),
            _ => None,
        }
    }
}

fn scan(text: &str) -> Vec<Token<'_>> {
    // Longer operators come first.
    const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];
    let special = |c: char| "=!(),><".contains(c);
    let blank = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
    let mut tokens = Vec::new();
    // A zero byte ends upstream's lexer.
    let mut rest = text.split('\0').next().unwrap_or_default();
    loop {
        rest = rest.trim_start_matches(blank);
        let Some(first) = rest.chars().next() else { break };
        if special(first) {
            match SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol)) {
                Some(symbol) => {
                    tokens.push(Token::Symbol(symbol));
                    rest = &rest[symbol.len()..];
                }
                None => {
                    tokens.push(Token::Error(rest));
                    break;
                }
            }
        } else {
            let end = rest.find(|c| special(c) || blank(c)).unwrap_or(rest.len());
            tokens.push(match &rest[..end] {
                "in" => Token::Symbol("in"),
                "notin" => Token::Symbol("notin"),
                word => Token::Word(word),
            });
            rest = &rest[end..];
        }
    }
    tokens.push(Token::End);
    tokens
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    position: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.position).copied().unwrap_or(Token::End)
    }

    fn take(&mut self) -> Token<'a> {
        let token = self.peek();
        self.position += 1;
        token
    }

    fn selector(mut self) -> Result<Selector, SelectorError> {
        let error = |text: String| Err(SelectorError(text));
        let mut requirements = Vec::new();
        loop {
            let token = self.peek();
            if token == Token::End {
                break;
            }
            if token.word().is_none() && token != Token::Symbol("!") {
                return error(format!(
                    "found '{}', expected: !, identifier, or 'end of string'",
                    token.literal()
                ));
            }
            let requirement = self
                .requirement()
                .map_err(|cause| SelectorError(format!("unable to parse requirement: {cause}")))?;
            requirements.push(requirement);
            match self.take() {
                Token::End => break,
                Token::Symbol(",") => {
                    let next = self.peek();
                    if next.word().is_none() && next != Token::Symbol("!") {
                        return error(format!("found '{}', expected: identifier after ','", next.literal()));
                    }
                }
                other => {
                    return error(format!("found '{}', expected: ',' or 'end of string'", other.literal()));
                }
            }
        }
        Ok(Selector::all_of(requirements))
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let mut token = self.take();
        let negated = token == Token::Symbol("!");
        if negated {
            token = self.take();
        }
        let Some(key) = token.word().map(str::to_owned) else {
            return Err(SelectorError(format!("found '{}', expected: identifier", token.literal())));
        };
        let messages = is_qualified_name(&key);
        if !messages.is_empty() {
            return Err(SelectorError(format!("<nil>: Invalid value: {key:?}: {}", messages.join("; "))));
        }
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let token = self.take();
        let operator = match token {
            Token::Symbol("in") => Operator::In,
            Token::Symbol("notin") => Operator::NotIn,
            Token::Symbol("=" | "==") => Operator::Equals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol(">") => Operator::GreaterThan,
            Token::Symbol("<") => Operator::LessThan,
            _ => {
                return Err(SelectorError(format!(
                    "found '{}', expected: in, notin, =, ==, !=, gt, lt",
                    token.literal()
                )));
            }
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(&key, operator, values)
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(String::new());
        }
        let token = self.take();
        let word = token.word().map(str::to_owned);
        word.ok_or_else(|| SelectorError(format!("found '{}', expected: identifier", token.literal())))
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let token = self.take();
        if token != Token::Symbol("(") {
            return Err(SelectorError(format!("found '{}' expected: '('", token.literal())));
        }
        // Between two commas, or a comma and a parenthesis, stands the empty value.
        let mut values = BTreeSet::new();
        let first = self.peek();
        if first.word().is_none() && !matches!(first, Token::Symbol("," | ")")) {
            return Err(SelectorError(format!(
                "found '{}', expected: ',', ')' or identifier",
                first.literal()
            )));
        }
        loop {
            match self.peek().word() {
                Some(word) => {
                    values.insert(word.to_owned());
                    self.position += 1;
                }
                None => {
                    values.insert(String::new());
                }
            }
            match self.take() {
                Token::Symbol(",") => {
                    let next = self.peek();
                    if next.word().is_none() && !matches!(next, Token::Symbol("," | ")")) {
                        return Err(SelectorError(format!(
                            "found '{}', expected: ',', or identifier",
                            next.literal()
                        )));
                    }
                }
                Token::Symbol(")") => return Ok(values.into_iter().collect()),
                other => {
                    return Err(SelectorError(format!("found '{}', expected: ',' or ')'", other.literal())));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    fn labels(text: &str) -> BTreeMap<String, String> {
        text.split(',').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[test]
    fn strings_match_labels() {
        #[track_caller]
        fn check(selector: &str, of: &str, expected: bool) {
            assert_eq!(
                selector.parse::<Selector>().unwrap().matches(&labels(of)),
                expected,
                "{selector} on {of}"
            );
        }
        check("", "x=y", true);
        check("x=y", "x=y", true);
        check("x==y", "x=z", false);
        check("x = y, z=w", "x=y,z=w", true);
        check("x=", "x=", true);
        check("x=,z=w", "x=,z=w", true);
        check("x!=y", "x=z", true);
        check("x!=y", "", true);
        check("x", "x=", true);
        check("x", "y=", false);
        check("!x", "y=", true);
        check("!x", "x=", false);
        check("x in (a,b)", "x=b", true);
        check("x in (a,,b)", "x=", true);
        check("x in ()", "x=", true);
        check("x in (a,)", "x=", true);
        check("x notin (a,b)", "x=c", true);
        check("x notin (a,b)", "y=a", true);
        check("x notin (a,b)", "x=a", false);
        check("in in (in,notin)", "in=notin", true);
        check("n>5", "n=6", true);
        check("n<5", "n=6", false);
        check("n<5", "n=x", false);
        check("example.com/a=b", "example.com/a=b", true);
    }

    #[test]
    fn strings_are_printed_sorted() {
        for (input, expected) in [
            ("z,a=b,!c,d notin (y,x),e in (q),f!=g,h==i", "a=b,!c,d notin (x,y),e in (q),f!=g,h=i,z"),
            ("x>1", "x>1"),
            ("", ""),
        ] {
            assert_eq!(input.parse::<Selector>().unwrap().to_string(), expected);
        }
    }

    #[test]
    fn errors_are_upstreams() {
        #[track_caller]
        fn check(selector: &str, expected: &str) {
            let error = selector.parse::<Selector>().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{selector}: {error}");
        }
        check(
            "x=a||y=b",
            "unable to parse requirement: values[0][x]: Invalid value: \"a||y\": a valid label must",
        );
        check("x==a==b", "found '==', expected: ',' or 'end of string'");
        check("!x=a", "found '=', expected: ',' or 'end of string'");
        check("x=a,", "found '', expected: identifier after ','");
        check("x in a", "unable to parse requirement: found 'a' expected: '('");
        check("x in (a", "unable to parse requirement: found '', expected: ',' or ')'");
        check("x y", "unable to parse requirement: found 'y', expected: in, notin, =, ==, !=, gt, lt");
        check("-x", "unable to parse requirement: <nil>: Invalid value: \"-x\": name part must consist of");
        check("(x)", "found '(', expected: !, identifier, or 'end of string'");
        check("x>a", "unable to parse requirement: values[0]: Invalid value: \"a\": for 'Gt', 'Lt'");
    }

    #[test]
    fn label_selectors() {
        let expression = |operator: &str, values: &[&str]| LabelSelectorRequirement {
            key: "tier".into(),
            operator: operator.into(),
            values: Some(values.iter().map(|&value| value.into()).collect()),
        };
        let selector = |expression| LabelSelector {
            match_labels: Some(labels("app=web")),
            match_expressions: Some(vec![expression]),
        };
        let parsed = Selector::from_label_selector(Some(&selector(expression("NotIn", &["db"])))).unwrap();
        assert!(parsed.matches(&labels("app=web,tier=front")));
        assert!(!parsed.matches(&labels("app=web,tier=db")));
        assert_eq!(parsed.to_string(), "app=web,tier notin (db)");
        assert!(Selector::from_label_selector(Some(&selector(expression("in", &["a"])))).is_err());
        assert!(Selector::from_label_selector(Some(&selector(expression("In", &[])))).is_err());
        assert!(Selector::from_label_selector(Some(&LabelSelector::default())).unwrap().matches(&labels("")));
        assert!(!Selector::from_label_selector(None).unwrap().matches(&labels("")));
    }
}
