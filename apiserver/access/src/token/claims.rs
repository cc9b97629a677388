//! The claims of service account tokens.
//!
//! Bound tokens carry everything under `kubernetes.io`; legacy tokens, which live in secrets and
//! never expire, carry flat claims and no audience. Times are Unix seconds.

use serde::{Deserialize, Deserializer, Serialize};

/// The issuer of legacy tokens.
pub const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// Clocks may differ by this many seconds, as upstream's JWT library allows.
pub const LEEWAY: i64 = 60;

/// Name and UID of an object a token is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The `kubernetes.io` claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    #[serde(default)]
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    #[serde(default)]
    pub serviceaccount: Reference,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<i64>,
    #[serde(default)]
    pub iss: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    #[serde(rename = "kubernetes.io", default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<Bound>,
    #[serde(
        rename = "kubernetes.io/serviceaccount/namespace",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub legacy_namespace: Option<String>,
    #[serde(
        rename = "kubernetes.io/serviceaccount/secret.name",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub legacy_secret: Option<String>,
    #[serde(
        rename = "kubernetes.io/serviceaccount/service-account.name",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub legacy_name: Option<String>,
    #[serde(
        rename = "kubernetes.io/serviceaccount/service-account.uid",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub legacy_uid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    #[serde(default)]
    pub sub: String,
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(deserializer)? {
        Audience::One(audience) => vec![audience],
        Audience::Many(audiences) => audiences,
    })
}

impl Claims {
    /// Refuses expired and not yet valid tokens, in upstream's words.
    ///
    /// # Errors
    /// The reason.
    pub fn check_time(&self, now: i64) -> Result<(), &'static str> {
        if self.exp.is_some_and(|exp| now.saturating_sub(LEEWAY) > exp) {
            return Err("service account token has expired");
        }
        if self.nbf.is_some_and(|nbf| now.saturating_add(LEEWAY) < nbf) {
            return Err("service account token is not valid yet");
        }
        if self.iat.is_some_and(|iat| now.saturating_add(LEEWAY) < iat) {
            return Err("service account token is issued in the future");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_times_within_the_leeway() {
        fn check(exp: i64, nbf: i64, expected: Result<(), &'static str>) {
            let claims = Claims { exp: Some(exp), nbf: Some(nbf), ..Claims::default() };
            assert_eq!(claims.check_time(1000), expected, "exp {exp} nbf {nbf}");
        }
        check(2000, 0, Ok(()));
        check(940, 0, Ok(()));
        check(939, 0, Err("service account token has expired"));
        check(2000, 1060, Ok(()));
        check(2000, 1061, Err("service account token is not valid yet"));
    }

    #[test]
    fn reads_one_audience_or_many() {
        for (json, expected) in
            [(r#"{"aud":"a"}"#, vec!["a"]), (r#"{"aud":["a","b"]}"#, vec!["a", "b"]), ("{}", vec![])]
        {
            let claims: Claims = serde_json::from_str(json).unwrap();
            assert_eq!(claims.aud, expected);
        }
    }
}
