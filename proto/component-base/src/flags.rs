//! Parsers for flag values, in the forms that upstream's flags take. They fit clap's `value_parser`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Parses `host:port`, `[v6]:port` or `:port` (all IPv4 and IPv6 addresses). The host must be an IP address.
///
/// # Errors
/// The text has no port, or its host is no IP address.
pub fn host_port(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix(':') {
        let port = port.parse().map_err(|_| format!("invalid port in {text:?}"))?;
        return Ok(SocketAddr::new(IpAddr::from([0u16; 8]), port));
    }
    let text =
        text.strip_prefix("localhost:").map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
    text.parse().map_err(|_| format!("{text:?} is not of the form <IP address>:<port>"))
}

/// Parses Go's duration syntax, such as `1h30m`.
///
/// # Errors
/// See [`crate::duration::parse`].
pub fn duration(text: &str) -> Result<Duration, String> {
    crate::duration::parse(text).map_err(|error| error.to_string())
}

/// Parses a boolean as Go's `strconv.ParseBool`. Use it with `num_args = 0..=1, require_equals = true,
/// default_missing_value = "true"` so that `--flag` and `--flag=false` both work.
///
/// # Errors
/// The text is none of Go's spellings.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("invalid boolean {text:?}")),
    }
}

/// Parses `key=value,key=value`. Later keys win.
///
/// # Errors
/// An item has no `=` or an empty key.
pub fn key_values(text: &str) -> Result<BTreeMap<String, String>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .map(|item| match item.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                Ok((key.trim().to_owned(), value.trim().to_owned()))
            }
            _ => Err(format!("malformed pair, expect string=string: {item:?}")),
        })
        .collect()
}

/// A switch that a daemon knows, for [`FeatureGates`].
#[derive(Debug, Clone, Copy)]
pub struct Feature {
    pub name: &'static str,
    pub default: bool,
    /// A feature whose value can no longer be changed.
    pub locked: bool,
}

/// The values of a daemon's feature gates.
#[derive(Debug, Clone)]
pub struct FeatureGates {
    values: BTreeMap<&'static str, bool>,
    known: &'static [Feature],
}

impl FeatureGates {
    /// All features at their defaults.
    #[must_use]
    pub fn new(known: &'static [Feature]) -> Self {
        Self { values: known.iter().map(|feature| (feature.name, feature.default)).collect(), known }
    }

    /// Sets from `A=true,B=false` (the form of `--feature-gates`).
    ///
    /// # Errors
    /// An unknown feature, a value that is no boolean, or a locked feature set against its value.
    pub fn set_from(&mut self, text: &str) -> Result<(), String> {
        for (name, value) in key_values(text)? {
            let value = boolean(&value)
                .map_err(|_| format!("invalid value of {name}={value}, expect true or false"))?;
            self.set(&name, value)?;
        }
        Ok(())
    }

    /// Sets one feature.
    ///
    /// # Errors
    /// The feature is unknown, or locked to the other value.
    pub fn set(&mut self, name: &str, value: bool) -> Result<(), String> {
        let feature = self
            .known
            .iter()
            .find(|feature| feature.name == name)
            .ok_or_else(|| format!("unrecognized feature gate: {name}"))?;
        if feature.locked && feature.default != value {
            return Err(format!(
                "cannot set feature gate {name} to {value}, feature is locked to {}",
                feature.default
            ));
        }
        self.values.insert(feature.name, value);
        Ok(())
    }

    /// Whether a feature is on. A name that is not in the table is off.
    #[must_use]
    pub fn enabled(&self, name: &str) -> bool {
        self.values.get(name).copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports() {
        #[track_caller]
        fn check(input: &str, expected: Option<&str>) {
            assert_eq!(host_port(input).ok().map(|a| a.to_string()).as_deref(), expected, "{input}");
        }
        check("127.0.0.1:10259", Some("127.0.0.1:10259"));
        check("[::1]:80", Some("[::1]:80"));
        check(":6443", Some("[::]:6443"));
        check("localhost:2379", Some("127.0.0.1:2379"));
        check("127.0.0.1", None);
        check("example.com:1", None);
        check(":x", None);
    }

    #[test]
    fn maps_and_gates() {
        assert_eq!(
            key_values("a=b, c=,").unwrap(),
            BTreeMap::from([("a".into(), "b".into()), ("c".into(), "".into())])
        );
        assert!(key_values("a").is_err());
        static KNOWN: [Feature; 2] = [
            Feature { name: "Alpha", default: false, locked: false },
            Feature { name: "Done", default: true, locked: true },
        ];
        let mut gates = FeatureGates::new(&KNOWN);
        gates.set_from("Alpha=true,Done=true").unwrap();
        assert!(gates.enabled("Alpha") && gates.enabled("Done"));
        assert_eq!(gates.set_from("Beta=true").unwrap_err(), "unrecognized feature gate: Beta");
        assert!(gates.set_from("Done=false").unwrap_err().contains("locked to true"));
        assert!(gates.set_from("Alpha=maybe").is_err());
    }
}
