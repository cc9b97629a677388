//! The table of field numbers: `numbers.txt`, parsed at the first protobuf request.

use std::{collections::HashMap, sync::LazyLock};

/// What a number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Member {
    Field {
        name: &'static str,
        /// Zero is a value (a pointer in Go), not absence.
        counts: bool,
    },
    /// A message whose fields are the object's own, by its definition's short name in the same package.
    Inline(&'static str),
}

/// The members of one message, by number.
pub type Message = Vec<(u32, Member)>;

static TABLE: LazyLock<HashMap<&'static str, HashMap<&'static str, Message>>> =
    LazyLock::new(|| parse(include_str!("numbers.txt")));

/// The message of an OpenAPI definition such as `io.k8s.api.core.v1.Pod`.
pub fn message(definition: &str) -> Option<&'static Message> {
    let (package, name) = definition.rsplit_once('.')?;
    TABLE.get(package)?.get(name)
}

fn parse(text: &'static str) -> HashMap<&'static str, HashMap<&'static str, Message>> {
    let mut table: HashMap<_, HashMap<_, _>> = HashMap::new();
    let mut package = "";
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some(rest) = line.strip_prefix(' ') else {
            package = line;
            continue;
        };
        let mut words = rest.split(' ');
        let name = words.next().unwrap_or_default();
        let mut number = 0;
        let mut message = Message::new();
        for word in words {
            let word = match word.split_once('=') {
                Some((jump, word)) => {
                    number = jump.parse().unwrap_or(0);
                    word
                }
                None => {
                    number += 1;
                    word
                }
            };
            let member = if word == "-" {
                continue;
            } else if let Some(inline) = word.strip_prefix('(').and_then(|word| word.strip_suffix(')')) {
                Member::Inline(inline)
            } else {
                let field = word.strip_suffix('*');
                Member::Field { name: field.unwrap_or(word), counts: field.is_some() }
            };
            message.push((number, member));
        }
        table.entry(package).or_default().insert(name, message);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read() {
        let pod = message("io.k8s.api.core.v1.Pod").unwrap();
        assert_eq!(pod[2], (3, Member::Field { name: "status", counts: false }));
        let deployment = message("io.k8s.api.apps.v1.DeploymentSpec").unwrap();
        assert_eq!(deployment[0], (1, Member::Field { name: "replicas", counts: true }));
        let volume = message("io.k8s.api.core.v1.Volume").unwrap();
        assert_eq!(volume[1], (2, Member::Inline("VolumeSource")));
        assert!(message("io.k8s.api.core.v1.Nothing").is_none());
    }
}
