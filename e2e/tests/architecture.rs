//! The arrows of ARCHITECTURE.md: from `cargo metadata` between packages, and from `use` lines where
//! a package cannot enforce them. Needs no cluster.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's own functions fail as it does"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What a package of the workspace may import, its own tests included. A package that is not named
/// here fails the test: whoever adds one says where it belongs.
const ARROWS: &[(&str, &[&str])] = &[
    ("keelson-proto", &[]),
    ("keelson-objects", &[]),
    ("keelson-component-base", &[]),
    ("workspace-hack", &[]),
    ("keelson-streaming", &["keelson-objects", "keelson-component-base"]),
    ("keelson-client", &["keelson-objects", "keelson-component-base"]),
    ("keelson-raft", &[]),
    ("kube-store", &["keelson-raft", "keelson-proto", "keelson-component-base"]),
    ("keelson-schema", &["keelson-objects"]),
    ("keelson-registry", &["keelson-schema", "keelson-objects"]),
    ("keelson-access", &["keelson-objects"]),
    ("keelson-storage", &["keelson-proto", "keelson-objects", "keelson-component-base"]),
    (
        "kube-apiserver",
        &[
            "keelson-schema",
            "keelson-registry",
            "keelson-access",
            "keelson-storage",
            "keelson-proto",
            "keelson-objects",
            "keelson-streaming",
            "keelson-component-base",
        ],
    ),
    ("kube-scheduler", CLIENTS),
    ("kube-controller-manager", CLIENTS),
    ("kubelet", CLIENTS),
    ("kube-proxy", CLIENTS),
    ("keelson-dns", CLIENTS),
    ("keelson-network", CLIENTS),
    ("pause", &[]),
    ("kubeadm", &["keelson-component-base"]),
    ("keelson-local", &["kubeadm", "keelson-proto", "keelson-component-base"]),
    (
        "e2e",
        &["keelson-local", "keelson-proto", "keelson-objects", "keelson-component-base", "keelson-client"],
    ),
];

const CLIENTS: &[&str] =
    &["keelson-proto", "keelson-objects", "keelson-streaming", "keelson-component-base", "keelson-client"];

/// Dependencies from outside that a package must not have: prefixes of their names.
const FOREIGN: &[(&str, &[&str])] = &[
    ("kube-store", &["k8s-openapi", "kube"]),
    ("keelson-component-base", &["k8s-openapi", "kube"]),
    ("keelson-proto", &["k8s-openapi", "kube"]),
    ("keelson-raft", &["tokio", "futures", "tonic", "sled"]),
    ("keelson-schema", &["tokio", "hyper", "tonic", "kube"]),
    ("keelson-registry", &["tokio", "hyper", "tonic", "kube"]),
    ("keelson-objects", &["tokio", "hyper", "tonic", "kube"]),
    ("kube-apiserver", &["kube"]),
    ("keelson-storage", &["kube", "k8s-openapi"]),
];

/// Words that the `use` lines of certain files must not have, and why.
const USES: &[(&str, &[&str], &str)] = &[
    (
        "store/raft/src",
        &["std::fs", "std::net", "std::thread", "std::time"],
        "the shell around raft-rs is pure",
    ),
    ("apiserver/schema/src", IO, "the schema is pure"),
    ("apiserver/registry/src", IO, "the registry is pure"),
    ("apiserver/src/request", &["keelson_storage", "crate::generic"], "a URL is understood without storage"),
    ("scheduler/src/cycle.rs", PURE, "a decision is made of a snapshot and a pod"),
    ("scheduler/src/framework.rs", PURE, "a decision is made of a snapshot and a pod"),
    ("scheduler/src/plugins", PURE, "a decision is made of a snapshot and a pod"),
    ("kube-proxy/src/model.rs", PURE, "rules are made of Services and EndpointSlices alone"),
    ("kubelet/src/pod/plan.rs", PURE, "a plan is made of what is observed"),
    ("deploy/addons/network/src/plan.rs", PURE, "a plan is made of what is observed"),
    ("controller-manager/src/controllers/*/plan.rs", PURE, "a plan is made of what is observed"),
    ("scheduler/src", STORE, "only the API server talks to the store"),
    ("controller-manager/src", STORE, "only the API server talks to the store"),
    ("kubelet/src", STORE, "only the API server talks to the store"),
    ("kube-proxy/src", STORE, "only the API server talks to the store"),
    ("deploy/addons", STORE, "only the API server talks to the store"),
    ("store/src", &["k8s_openapi", "kube"], "the store knows nothing of Kubernetes"),
];

const PURE: &[&str] = &[
    "tokio::net",
    "tokio::sync",
    "tokio::task",
    "tokio::spawn",
    "tokio::fs",
    "tokio::time::sleep",
    "tokio::time::timeout",
    "futures",
    "kube::Api",
    "kube::Client",
    "kube::api::Api",
    "kube::client",
    "kube::runtime",
    "keelson_client",
    "std::fs",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::process",
    "std::thread",
];
/// A time may be handed to what is pure; asking for it, or waiting, may not.
const PURE_WORDS: &[&str] = &["::now()", ".await", "async fn", "thread_rng", "rand::"];
const IO: &[&str] = &[
    "std::fs",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::process",
    "std::thread",
    "std::time::Instant",
];
const STORE: &[&str] = &["keelson_proto::etcd", "keelson_proto::peer"];

fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap().to_owned()
}

/// The names of a package's dependencies: (inside the workspace, from outside).
type Dependencies = (BTreeSet<String>, BTreeSet<String>);

fn packages() -> BTreeMap<String, Dependencies> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let package = |package: &Value| {
        // Build dependencies run at build time only; what tests import is held to the same arrows.
        let all = package["dependencies"].as_array().unwrap().iter().filter(|d| d["kind"] != "build");
        let (inside, outside): (Vec<&Value>, Vec<&Value>) = all.partition(|d| d["path"].is_string());
        (name(package), (inside.into_iter().map(name).collect(), outside.into_iter().map(name).collect()))
    };
    metadata["packages"].as_array().unwrap().iter().map(package).collect()
}

/// The dependencies of a package that the table does not allow.
fn violations(package: &str, inside: &BTreeSet<String>) -> Vec<String> {
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package) else {
        return vec![format!("{package} is not in the table of arrows")];
    };
    let wrong = inside.iter().filter(|d| *d != "workspace-hack" && !allowed.contains(&d.as_str()));
    wrong.map(|dependency| format!("{package} → {dependency}")).collect()
}

#[test]
fn packages_import_only_along_the_arrows() {
    let packages = packages();
    let wrong: Vec<String> =
        packages.iter().flat_map(|(name, (inside, _))| violations(name, inside)).collect();
    assert!(wrong.is_empty(), "not in ARCHITECTURE.md: {wrong:?}");
    for (name, _) in ARROWS {
        assert!(packages.contains_key(*name), "{name} is in the table of arrows, but not in the workspace");
    }
    let foreign: Vec<String> = FOREIGN
        .iter()
        .flat_map(|(name, banned)| {
            let (_, outside) = &packages[*name];
            let hits = outside
                .iter()
                .filter(|d| banned.iter().any(|b| d.as_str() == *b || d.starts_with(&format!("{b}-"))));
            hits.map(move |dependency| format!("{name} → {dependency}")).collect::<Vec<_>>()
        })
        .collect();
    assert!(foreign.is_empty(), "not in ARCHITECTURE.md: {foreign:?}");
}

#[test]
fn no_daemon_imports_another_and_nothing_imports_the_tests() {
    // The table itself must not allow what the page forbids.
    let daemons = [
        "kube-store",
        "kube-apiserver",
        "kube-scheduler",
        "kube-controller-manager",
        "kubelet",
        "kube-proxy",
        "e2e",
    ];
    for (name, allowed) in ARROWS {
        for daemon in daemons {
            assert!(!allowed.contains(&daemon), "{name} → {daemon}");
        }
    }
    // A package that is not in the table, or that imports what it may not, is found.
    let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<String>>();
    assert_eq!(violations("kubelet", &set(&["keelson-client", "kube-store"])), ["kubelet → kube-store"]);
    assert_eq!(violations("newcomer", &set(&[])), ["newcomer is not in the table of arrows"]);
}

/// The Rust files under a path that may have one `*` for a directory.
fn files(pattern: &str) -> Vec<PathBuf> {
    let root = repository();
    if let Some((before, after)) = pattern.split_once("/*/") {
        let entries = std::fs::read_dir(root.join(before)).into_iter().flatten().flatten();
        return entries.map(|e| e.path().join(after)).filter(|path| path.is_file()).collect();
    }
    let mut found = Vec::new();
    let mut left = vec![root.join(pattern)];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The paths that a file imports, one per leaf, without its test module: `use a::{b, c::d};` gives
/// `a::b` and `a::c::d`.
fn imports(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(start) = rest.find("use ") {
        let at_start_of_line = rest[..start].rsplit('\n').next().is_some_and(|before| {
            let before = before.trim();
            before.is_empty() || before.starts_with("pub")
        });
        rest = &rest[start + 4..];
        if !at_start_of_line {
            continue;
        }
        let Some(end) = rest.find(';') else { break };
        let tree: String = rest[..end].split_whitespace().collect::<Vec<_>>().join(" ");
        leaves("", &tree, &mut found);
        rest = &rest[end..];
    }
    found
}

fn leaves(prefix: &str, tree: &str, found: &mut Vec<String>) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        found.push(format!("{prefix}{tree}"));
        return;
    };
    let prefix = format!("{prefix}{}", &tree[..open]);
    let inner = tree[open + 1..].trim_end().trim_end_matches('}');
    let (mut depth, mut start) = (0, 0);
    // The closing brace of this group was cut off together with those of its last member.
    for (index, character) in inner.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                leaves(&prefix, &inner[start..index], found);
                start = index + 1;
            }
            _ => {}
        }
    }
    if !inner[start..].trim().is_empty() {
        leaves(&prefix, &inner[start..], found);
    }
}

#[test]
fn imports_are_read_from_source() {
    let check = |source: &str, expected: &[&str]| assert_eq!(imports(source), expected, "{source}");
    check("use a::b;\nfn f() {}\n", &["a::b"]);
    check("pub use a::{b, c::{d, e}};\n", &["a::b", "a::c::d", "a::c::e"]);
    check("use a::{\n    b,\n    c::{self, d},\n};\nuse x;\n", &["a::b", "a::c::self", "a::c::d", "x"]);
    check("// use is a word\nlet reuse = 1;\n", &[]);
    check("use a;\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n", &["a"]);
}

/// Whether an import is of `word` or of something in it.
fn names(import: &str, word: &str) -> bool {
    import
        .strip_prefix(word)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::") || rest.starts_with(" as "))
}

#[test]
fn modules_keep_to_what_they_may_know() {
    let mut wrong = Vec::new();
    for (pattern, banned, why) in USES {
        let files = files(pattern);
        assert!(!files.is_empty(), "{pattern} has no files: the table is out of date");
        for file in files {
            let source = std::fs::read_to_string(&file).unwrap();
            if std::ptr::eq(*banned, PURE) {
                let code = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
                for word in PURE_WORDS.iter().filter(|word| code.contains(**word)) {
                    wrong.push(format!("{}: {word} ({why})", file.display()));
                }
            }
            for import in imports(&source) {
                if banned.iter().any(|word| names(&import, word)) {
                    wrong.push(format!("{}: use {import} ({why})", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_says_what_it_is_for() {
    let mut silent = Vec::new();
    for directory in [
        "store",
        "apiserver",
        "scheduler",
        "controller-manager",
        "kubelet",
        "kube-proxy",
        "proto",
        "deploy",
        "e2e",
    ] {
        for file in files(directory) {
            // Unit tests in a file of their own belong to the module that they test.
            if file.file_stem().is_some_and(|stem| stem.as_encoded_bytes().ends_with(b"tests")) {
                continue;
            }
            let source = std::fs::read_to_string(&file).unwrap();
            if !source.lines().take(5).any(|line| line.starts_with("//!")) {
                silent.push(file.display().to_string());
            }
        }
    }
    assert!(silent.is_empty(), "no //! at the top: {silent:?}");
}
