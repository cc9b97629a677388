//! Image names: whether one is well formed, its registry, tag and default pull policy. Pure.

/// A name without tag or digest gets `:latest`.
///
/// # Errors
/// Upstream's sentence for a name that cannot be parsed.
pub fn with_default_tag(image: &str) -> Result<String, String> {
    let refuse = |why: &str| Err(format!("couldn't parse image name {image:?}: {why}"));
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let (path, tag) = match name.rsplit_once(':') {
        // A colon before a slash belongs to the registry's port.
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let (domain, rest) = split_domain(path);
    if rest.chars().any(|c| c.is_ascii_uppercase()) {
        return refuse("invalid reference format: repository name must be lowercase");
    }
    let tag_valid = tag.is_none_or(|tag| {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        !tag.is_empty()
            && tag.len() <= 128
            && tag.starts_with(word)
            && tag.chars().all(|c| word(c) || matches!(c, '.' | '-'))
    });
    let digest_valid = digest.is_none_or(|digest| {
        digest.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty() && hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit())
        })
    });
    let domain_valid = domain.is_none_or(|domain| {
        domain.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']'))
    });
    if !tag_valid || !digest_valid || !domain_valid || !rest.split('/').all(component) {
        return refuse("invalid reference format");
    }
    Ok(if tag.is_none() && digest.is_none() { format!("{image}:latest") } else { image.to_owned() })
}

/// `Always` for `:latest`, else `IfNotPresent`; the API server sets it, this is for static pods.
pub fn default_policy(image: &str) -> &'static str {
    match with_default_tag(image) {
        Ok(tagged) if tagged.ends_with(":latest") => "Always",
        _ => "IfNotPresent",
    }
}

/// Lower-case words joined by single dots, one or two underscores, or dashes.
fn component(part: &str) -> bool {
    let word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let mut separator = String::new();
    if !word(part.chars().next()) || !word(part.chars().last()) {
        return false;
    }
    for c in part.chars() {
        if word(Some(c)) {
            separator.clear();
            continue;
        }
        separator.push(c);
        let fine = matches!(separator.as_str(), "." | "_" | "__") || separator.chars().all(|c| c == '-');
        if !fine {
            return false;
        }
    }
    true
}

fn split_domain(path: &str) -> (Option<&str>, &str) {
    match path.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
        _ => (None, path),
    }
}

/// The registry and path as credentials name them.
pub fn registry_path(image: &str) -> String {
    let name = image.split('@').next().unwrap_or_default();
    let name = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => path,
        _ => name,
    };
    match split_domain(name) {
        (Some(_), _) => name.to_owned(),
        (None, path) if path.contains('/') => format!("docker.io/{path}"),
        (None, path) => format!("docker.io/library/{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |image: &str, expected: Option<&str>| {
            assert_eq!(with_default_tag(image).ok().as_deref(), expected, "{image}");
        };
        check("busybox", Some("busybox:latest"));
        check("localhost/busybox:1.36", Some("localhost/busybox:1.36"));
        check("localhost:5000/a/b", Some("localhost:5000/a/b:latest"));
        let digest = format!("a@sha256:{}", "0".repeat(64));
        check(&digest, Some(&digest));
        check("Bad/Name", None);
        check("a b", None);
        check("a//b", None);
        check("a:", None);
        check("", None);
        check("a@sha256:12", None);
        let error = with_default_tag("UPPER").unwrap_err();
        let expected = "couldn't parse image name \"UPPER\": invalid reference format: repository name must be lowercase";
        assert_eq!(error, expected);
    }

    #[test]
    fn registries() {
        let check = |image: &str, expected: &str| assert_eq!(registry_path(image), expected);
        check("busybox:1", "docker.io/library/busybox");
        check("a/b", "docker.io/a/b");
        check("r.example:5000/a/b:1", "r.example:5000/a/b");
    }
}
