//! Content negotiation: which representation the first acceptable clause of an `Accept` header asks for.
//!
//! Pure. Protobuf of objects is not spoken: clients name JSON behind it, or get a 406.

use http::{HeaderMap, header};

use crate::status::Status;

/// How bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    Json,
    Yaml,
}

impl Media {
    pub fn content_type(self) -> &'static str {
        match self {
            Media::Json => "application/json",
            Media::Yaml => "application/yaml",
        }
    }
}

/// What object is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The object itself.
    Object,
    Table {
        version: &'static str,
    },
    PartialMetadata {
        version: &'static str,
    },
}

/// The answer to an `Accept` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Representation {
    pub media: Media,
    pub shape: Shape,
}

pub const PLAIN: Representation = Representation { media: Media::Json, shape: Shape::Object };

/// Media types that a 406 or a 415 names.
pub const SPOKEN: &[&str] = &["application/json", "application/yaml"];

/// One clause of an `Accept` header.
#[derive(Debug, Clone, PartialEq)]
pub struct Clause<'a> {
    pub media: &'a str,
    pub parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }
}

/// The clauses of all `Accept` headers, best first; no header is `*/*`.
pub fn clauses(headers: &HeaderMap) -> Vec<Clause<'_>> {
    let mut found: Vec<Clause<'_>> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|clause| !clause.is_empty())
        .map(clause)
        .filter(|clause| clause.quality > 0.0)
        .collect();
    if found.is_empty() && !headers.contains_key(header::ACCEPT) {
        found.push(clause("*/*"));
    }
    found.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    found
}

fn clause(text: &str) -> Clause<'_> {
    let mut parts = text.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    let parameters: Vec<(&str, &str)> = parts
        .filter_map(|part| part.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim().trim_matches('"')))
        .collect();
    let quality = parameters
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case("q"))
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(1.0);
    Clause { media, parameters, quality }
}

pub fn media(name: &str) -> Option<Media> {
    match name {
        "application/json" | "*/*" | "application/*" => Some(Media::Json),
        "application/yaml" => Some(Media::Yaml),
        _ => None,
    }
}

/// Picks the representation of an object or list; `shapes` says whether Table and PartialObjectMetadata exist for
/// this endpoint.
pub fn negotiate(headers: &HeaderMap, shapes: bool) -> Result<Representation, Status> {
    for clause in clauses(headers) {
        let Some(media) = media(clause.media) else { continue };
        let version = || match (clause.parameter("g"), clause.parameter("v")) {
            (Some("meta.k8s.io"), Some("v1")) => Some("v1"),
            (Some("meta.k8s.io"), Some("v1beta1")) => Some("v1beta1"),
            _ => None,
        };
        let shape = match clause.parameter("as") {
            None | Some("") => Some(Shape::Object),
            Some("Table") if shapes => version().map(|version| Shape::Table { version }),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") if shapes => {
                version().map(|version| Shape::PartialMetadata { version })
            }
            Some(_) => None,
        };
        if let Some(shape) = shape {
            return Ok(Representation { media, shape });
        }
    }
    Err(Status::not_acceptable(SPOKEN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(accept: &str, expected: Option<(Media, Shape)>) {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(header::ACCEPT, accept.parse().unwrap());
        }
        let found = negotiate(&headers, true).ok().map(|r| (r.media, r.shape));
        assert_eq!(found, expected, "{accept}");
    }

    #[test]
    fn the_first_acceptable_clause_wins() {
        let table = Shape::Table { version: "v1" };
        check("", Some((Media::Json, Shape::Object)));
        check("*/*", Some((Media::Json, Shape::Object)));
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some((Media::Json, table)),
        );
        check("application/vnd.kubernetes.protobuf,application/json", Some((Media::Json, Shape::Object)));
        check("application/vnd.kubernetes.protobuf", None);
        check("application/json;q=0.1, application/yaml", Some((Media::Yaml, Shape::Object)));
        check("application/json;as=Wheel;v=v1;g=meta.k8s.io", None);
        check(
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Some((Media::Json, Shape::PartialMetadata { version: "v1" })),
        );
        check("application/json;stream=watch", Some((Media::Json, Shape::Object)));
    }
}
