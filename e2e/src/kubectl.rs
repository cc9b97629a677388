//! kubectl as people run it, in a namespace that a test has to itself.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// What a kubectl run gave.
#[derive(Debug)]
pub struct Output {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

/// kubectl with a kubeconfig and a namespace; the namespace is deleted when this is dropped.
pub struct Kubectl {
    kubeconfig: PathBuf,
    pub namespace: String,
    owned: bool,
}

impl Kubectl {
    /// A fresh namespace in the shared cluster.
    pub fn shared(test: &str) -> Self {
        Self::in_new_namespace(crate::shared_cluster().layout().admin_kubeconfig(), test)
    }

    /// A fresh namespace in the cluster of `kubeconfig`.
    pub fn in_new_namespace(kubeconfig: PathBuf, test: &str) -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("{test}-{}-{number}", std::process::id());
        let kubectl = Self { kubeconfig, namespace: namespace.clone(), owned: true };
        kubectl.run(&["create", "namespace", &namespace]);
        kubectl
    }

    /// The namespace `default`, which stays.
    pub fn in_default_namespace(kubeconfig: PathBuf) -> Self {
        Self { kubeconfig, namespace: "default".to_owned(), owned: false }
    }

    /// A command to add to: standard streams, more arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        // Another version than the one on PATH: KEELSON_E2E_KUBECTL=kubectl.1.27 e2e/run
        let program = std::env::var_os("KEELSON_E2E_KUBECTL").unwrap_or_else(|| "kubectl".into());
        let mut command = Command::new(program);
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(["--namespace", &self.namespace])
            .args(arguments);
        command.env_remove("KUBECONFIG").stdin(Stdio::null());
        command
    }

    /// Runs and gives whatever came of it.
    #[expect(clippy::expect_used, reason = "a machine without kubectl cannot run these tests")]
    pub fn try_run(&self, arguments: &[&str], input: Option<&str>) -> Output {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().expect("kubectl starts");
        if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
            // A kubectl that has ended closes its input; what it printed tells why.
            let _ = stdin.write_all(text.as_bytes());
        }
        let output = child.wait_with_output().expect("kubectl ends");
        Output {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs, must succeed, gives standard output.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.try_run(arguments, None);
        assert!(output.success, "kubectl {arguments:?} failed: {}{}", output.stdout, output.stderr);
        output.stdout
    }

    /// Runs, must fail, gives standard error.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str], input: Option<&str>) -> String {
        let output = self.try_run(arguments, input);
        assert!(!output.success, "kubectl {arguments:?} succeeded: {}", output.stdout);
        output.stderr
    }

    /// Applies a manifest, must succeed, gives standard output.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        let output = self.try_run(&["apply", "-f", "-"], Some(manifest));
        assert!(output.success, "apply failed: {}{}\n{manifest}", output.stdout, output.stderr);
        output.stdout
    }

    /// An object as JSON.
    pub fn object(&self, arguments: &[&str]) -> Result<Value, String> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        let output = self.try_run(&all, None);
        if !output.success {
            return Err(output.stderr);
        }
        serde_json::from_str(&output.stdout).map_err(|error| error.to_string())
    }

    /// Standard output or, where kubectl failed, what it said: for conditions that are waited for.
    pub fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.try_run(arguments, None);
        if output.success { Ok(output.stdout) } else { Err(output.stderr) }
    }
}

impl Drop for Kubectl {
    fn drop(&mut self) {
        if self.owned {
            let _ = self.try_run(&["delete", "namespace", &self.namespace.clone(), "--wait=false"], None);
        }
    }
}
