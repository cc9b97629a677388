//! The continue token: upstream's format, so that a list begun at one server goes on at another.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::error::Error;

const FORMAT: &str = "meta.k8s.io/v1";

/// The version in a token that goes on at the present state.
const INCONSISTENT: i64 = -1;

#[derive(Serialize, Deserialize)]
struct Wire {
    v: String,
    rv: i64,
    start: String,
}

/// Where a list goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Continuation {
    /// The pinned version; `None` goes on inconsistently.
    pub(crate) version: Option<u64>,
    /// The first key of the next page, relative to the listed prefix.
    pub(crate) start: String,
}

impl Continuation {
    pub(crate) fn encode(&self) -> String {
        let wire = Wire {
            v: FORMAT.into(),
            rv: self.version.map_or(INCONSISTENT, |version| version as i64),
            start: self.start.clone(),
        };
        // A struct of strings and a number always serializes.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&wire).unwrap_or_default())
    }

    pub(crate) fn decode(token: &str) -> Result<Self, Error> {
        let invalid = |reason: String| Error::InvalidContinue(reason);
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|error| invalid(error.to_string()))?;
        let wire: Wire = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
        if wire.v != FORMAT {
            return Err(invalid(format!("server does not recognize this encoded version {}", wire.v)));
        }
        let version = match wire.rv {
            0 => {
                return Err(invalid(
                    "incorrect encoded start resourceVersion (version meta.k8s.io/v1)".into(),
                ));
            }
            version => u64::try_from(version).ok(),
        };
        if wire.start.is_empty() {
            return Err(invalid("encoded start key empty (version meta.k8s.io/v1)".into()));
        }
        let start = wire.start.strip_prefix('/').unwrap_or(&wire.start);
        // Nothing may lead out of the listed prefix.
        if start.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(invalid(wire.start));
        }
        Ok(Self { version, start: start.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_upstreams() {
        // base64url of {"v":"meta.k8s.io/v1","rv":336,"start":"default\u0000"}, as apimachinery writes it.
        let token = Continuation { version: Some(336), start: "default\0".into() }.encode();
        assert_eq!(token, "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MzM2LCJzdGFydCI6ImRlZmF1bHRcdTAwMDAifQ");
        assert_eq!(
            Continuation::decode(&token).unwrap(),
            Continuation { version: Some(336), start: "default\0".into() }
        );
    }

    #[test]
    fn foreign_tokens_are_refused() {
        fn check(json: &str, expected: &str) {
            let error = Continuation::decode(&URL_SAFE_NO_PAD.encode(json)).unwrap_err().to_string();
            assert_eq!(error, format!("continue key is not valid: {expected}"), "{json}");
        }
        check(
            r#"{"v":"meta.k8s.io/v2","rv":1,"start":"a"}"#,
            "server does not recognize this encoded version meta.k8s.io/v2",
        );
        check(
            r#"{"v":"meta.k8s.io/v1","rv":0,"start":"a"}"#,
            "incorrect encoded start resourceVersion (version meta.k8s.io/v1)",
        );
        check(
            r#"{"v":"meta.k8s.io/v1","rv":1,"start":""}"#,
            "encoded start key empty (version meta.k8s.io/v1)",
        );
        check(r#"{"v":"meta.k8s.io/v1","rv":1,"start":"../secrets/a"}"#, "../secrets/a");
        check(r#"{"v":"meta.k8s.io/v1","rv":1,"start":"a/"}"#, "a/");
        for token in ["nonsense", "§", "e30"] {
            assert!(matches!(Continuation::decode(token), Err(Error::InvalidContinue(_))), "{token}");
        }
    }
}
