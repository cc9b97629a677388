//! Loads a configuration file (YAML, of which JSON is a part) into a type, strictly: an unknown field, a
//! duplicate key or a second document is an error that names the file.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_yaml::Value;

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("reading configuration file {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("parsing configuration file {}", path.display())]
    Parse { path: PathBuf, source: serde_yaml::Error },
    #[error("configuration file {}: unknown field{} {}", path.display(), if fields.len() == 1 { "" } else { "s" },
        fields.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", "))]
    UnknownFields { path: PathBuf, fields: Vec<String> },
    #[error("configuration file {}: {field} is {found:?}, expected {expected:?}", path.display())]
    WrongType { path: PathBuf, field: &'static str, found: String, expected: String },
}

/// Reads a file into `T`. Every field that `T` does not take is named, by its path, in one error.
///
/// # Errors
/// The file cannot be read or parsed, or has unknown fields.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    decode(path, read(path)?)
}

/// Reads a versioned configuration file: `kind` must be `kind` and `apiVersion` one of `api_versions`. Both are
/// taken out before `T` sees the rest.
///
/// # Errors
/// As [`load`], and when `kind` or `apiVersion` is missing or another.
pub fn load_kind<T: DeserializeOwned>(
    path: &Path,
    kind: &str,
    api_versions: &[&str],
) -> Result<T, ConfigError> {
    let mut value = read(path)?;
    for (field, expected) in [("kind", &[kind][..]), ("apiVersion", api_versions)] {
        let found = value.as_mapping_mut().and_then(|mapping| mapping.shift_remove(field));
        let found = found.as_ref().and_then(Value::as_str).unwrap_or_default();
        if !expected.contains(&found) {
            return Err(ConfigError::WrongType {
                path: path.to_owned(),
                field,
                found: found.to_owned(),
                expected: expected.join(" or "),
            });
        }
    }
    decode(path, value)
}

fn read(path: &Path) -> Result<Value, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let value: Value =
        serde_yaml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
    Ok(if value.is_null() { Value::Mapping(Default::default()) } else { value })
}

fn decode<T: DeserializeOwned>(path: &Path, value: Value) -> Result<T, ConfigError> {
    let mut fields = Vec::new();
    let decoded = serde_ignored::deserialize(value, |field| fields.push(field.to_string()))
        .map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
    if fields.is_empty() {
        Ok(decoded)
    } else {
        Err(ConfigError::UnknownFields { path: path.to_owned(), fields })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::error::Error;

    #[derive(Debug, Deserialize, PartialEq, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Config {
        address: String,
        nested: Nested,
    }
    #[derive(Debug, Deserialize, PartialEq, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Nested {
        sync_period: crate::duration::GoDuration,
    }

    fn load_text(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        load_kind(&path, "ProxyConfiguration", &["example/v1"]).map_err(|error| {
            let mut message = error.to_string().replace(&path.display().to_string(), "FILE");
            if let Some(source) = error.source() {
                message += &format!(": {source}");
            }
            message
        })
    }

    #[test]
    fn strict_decoding() {
        #[track_caller]
        fn check(body: &str, expected: Result<&str, &str>) {
            let header = "kind: ProxyConfiguration\napiVersion: example/v1\n";
            let actual = load_text(&format!("{header}{body}"));
            match expected {
                Ok(address) => assert_eq!(actual.unwrap().address, address),
                Err(part) => {
                    let message = actual.unwrap_err();
                    assert!(message.contains(part), "{message}");
                }
            }
        }
        check("", Ok(""));
        check("address: a\nnested: {syncPeriod: 1m}", Ok("a"));
        check("adress: a\nnested: {x: 1}", Err("FILE: unknown fields \"adress\", \"nested.x\""));
        check("address: a\naddress: b", Err("duplicate"));
        check("nested: {syncPeriod: soon}", Err("invalid duration"));
        check("---\naddress: b", Err("parsing configuration file FILE"));
    }

    #[test]
    fn json_is_yaml_and_the_kind_is_checked() {
        let config =
            load_text(r#"{"kind":"ProxyConfiguration","apiVersion":"example/v1","address":"x"}"#).unwrap();
        assert_eq!(config.address, "x");
        assert!(load_text("kind: Other\napiVersion: example/v1").unwrap_err().contains("kind is \"Other\""));
        assert!(load_text("kind: ProxyConfiguration").unwrap_err().contains("apiVersion is \"\""));
    }
}
