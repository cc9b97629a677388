//! The checks behind `/healthz`, `/livez` and `/readyz`, and their answers in upstream's format.
//!
//! A check is a quick look at state that something else keeps: it must not block. The reason of a failure goes to
//! the log; clients learn only that it failed (the endpoints may be open to everyone).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use parking_lot::RwLock;

type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Which endpoint is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    Healthz,
    Livez,
    Readyz,
}

impl Endpoint {
    fn name(self) -> &'static str {
        match self {
            Self::Healthz => "healthz",
            Self::Livez => "livez",
            Self::Readyz => "readyz",
        }
    }
}

/// An answer: status code and plain text.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

struct Named {
    name: String,
    /// Counts only for `/readyz`.
    readiness_only: bool,
    check: Check,
}

/// The checks of a process; cheap to clone, all clones share one list. `ping` is always there.
#[derive(Clone)]
pub struct Checks(Arc<RwLock<Vec<Named>>>);

impl Default for Checks {
    fn default() -> Self {
        Self::new()
    }
}

impl Checks {
    #[must_use]
    pub fn new() -> Self {
        let checks = Self(Arc::default());
        checks.add("ping", || Ok(()));
        checks
    }

    /// Adds a check that counts for all three endpoints.
    pub fn add(
        &self,
        name: impl Into<String>,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        self.push(name.into(), false, Arc::new(check));
    }

    /// Adds a check that counts for `/readyz` only, such as "caches have synced" or "shutting down".
    pub fn add_readiness(
        &self,
        name: impl Into<String>,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        self.push(name.into(), true, Arc::new(check));
    }

    fn push(&self, name: String, readiness_only: bool, check: Check) {
        self.0.write().push(Named { name, readiness_only, check });
    }

    /// Answers a request path such as `/readyz` or `/livez/ping` with its query; `None` when the path is of no
    /// health endpoint or names no check.
    #[must_use]
    pub fn answer(&self, path: &str, query: Option<&str>) -> Option<Answer> {
        let mut segments = path.strip_prefix('/')?.splitn(2, '/');
        let endpoint = match segments.next()? {
            "healthz" => Endpoint::Healthz,
            "livez" => Endpoint::Livez,
            "readyz" => Endpoint::Readyz,
            _ => return None,
        };
        match segments.next() {
            None | Some("") => {
                let query = query.unwrap_or_default();
                let verbose = query.split('&').any(|item| item == "verbose" || item.starts_with("verbose="));
                let excluded = query.split('&').filter_map(|item| item.strip_prefix("exclude="));
                Some(self.all(endpoint, verbose, excluded.collect()))
            }
            Some(name) => self.one(endpoint, name),
        }
    }

    fn selected(&self, endpoint: Endpoint) -> Vec<(String, Check)> {
        // Checks run outside the lock, so that one may add another.
        let checks = self.0.read();
        checks
            .iter()
            .filter(|named| !named.readiness_only || endpoint == Endpoint::Readyz)
            .map(|named| (named.name.clone(), named.check.clone()))
            .collect()
    }

    fn all(&self, endpoint: Endpoint, verbose: bool, mut excluded: BTreeSet<&str>) -> Answer {
        let name = endpoint.name();
        let mut lines = String::new();
        let mut failures = Vec::new();
        for (check_name, check) in self.selected(endpoint) {
            if excluded.remove(check_name.as_str()) {
                let _ = writeln!(lines, "[+]{check_name} excluded: ok");
                continue;
            }
            match check() {
                Ok(()) => {
                    let _ = writeln!(lines, "[+]{check_name} ok");
                }
                Err(reason) => {
                    let _ = writeln!(lines, "[-]{check_name} failed: reason withheld");
                    failures.push(format!("[-]{check_name} failed: {reason}"));
                }
            }
        }
        if !excluded.is_empty() {
            let names: Vec<_> = excluded.iter().map(|name| format!("{name:?}")).collect();
            let _ = writeln!(
                lines,
                "warn: some health checks cannot be excluded: no matches for {}",
                names.join(",")
            );
        }
        if !failures.is_empty() {
            tracing::info!(endpoint = name, failures = %failures.join("; "), "Health check failed");
            return Answer { status: 500, body: format!("{lines}{name} check failed\n") };
        }
        let body = if verbose { format!("{lines}{name} check passed\n") } else { "ok".to_owned() };
        Answer { status: 200, body }
    }

    fn one(&self, endpoint: Endpoint, name: &str) -> Option<Answer> {
        let (_, check) = self.selected(endpoint).into_iter().find(|(known, _)| known == name)?;
        Some(match check() {
            Ok(()) => Answer { status: 200, body: "ok".to_owned() },
            Err(reason) => Answer { status: 500, body: format!("internal server error: {reason}\n") },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_upstreams() {
        let checks = Checks::new();
        checks.add("log", || Ok(()));
        checks.add_readiness("informer-sync", || Err("not yet".into()));
        #[track_caller]
        fn check(checks: &Checks, path: &str, query: Option<&str>, expected: Option<(u16, &str)>) {
            let answer = checks.answer(path, query);
            assert_eq!(answer.as_ref().map(|a| (a.status, a.body.as_str())), expected, "{path}");
        }
        check(&checks, "/healthz", None, Some((200, "ok")));
        check(&checks, "/livez", Some("verbose"), Some((200, "[+]ping ok\n[+]log ok\nlivez check passed\n")));
        check(
            &checks,
            "/readyz",
            None,
            Some((
                500,
                "[+]ping ok\n[+]log ok\n[-]informer-sync failed: reason withheld\nreadyz check failed\n",
            )),
        );
        check(
            &checks,
            "/readyz",
            Some("verbose=true&exclude=informer-sync&exclude=x"),
            Some((
                200,
                "[+]ping ok\n[+]log ok\n[+]informer-sync excluded: ok\n\
                 warn: some health checks cannot be excluded: no matches for \"x\"\nreadyz check passed\n",
            )),
        );
        check(&checks, "/healthz/ping", None, Some((200, "ok")));
        check(&checks, "/readyz/informer-sync", None, Some((500, "internal server error: not yet\n")));
        check(&checks, "/livez/informer-sync", None, None);
        check(&checks, "/metrics", None, None);
    }
}
