//! The add-ons of a local cluster, applied with the administrator's kubectl.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::command::CommandError;
use crate::daemons::{DNS_DOMAIN, DNS_SERVICE};

/// Rights of the people and daemons that upstream's bootstrap policy does not know: the
/// administrators' group of kubeadm and the pod network's daemon.
const ACCESS: &str = include_str!("../manifests/access.yaml");
const DNS: &str = include_str!("../../addons/dns/manifest.yaml");

/// Applies one manifest.
fn apply(kubeconfig: &Path, manifest: &str) -> Result<(), CommandError> {
    let start = |source| CommandError::Start { program: "kubectl".to_owned(), source };
    let mut child = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    if let Some(mut input) = child.stdin.take() {
        // A kubectl that ended early closes its input; its own message is the one to show.
        let _ = input.write_all(manifest.as_bytes());
    }
    let output = child.wait_with_output().map_err(start)?;
    if output.status.success() {
        return Ok(());
    }
    Err(CommandError::Failed {
        line: "kubectl apply -f -".to_owned(),
        status: output.status,
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Applies the rights; needs a kubeconfig of `system:masters`.
pub fn apply_access(super_admin: &Path) -> Result<(), CommandError> {
    apply(super_admin, ACCESS)
}

/// Applies the cluster's DNS.
pub fn apply_dns(kubeconfig: &Path) -> Result<(), CommandError> {
    let manifest =
        DNS.replace("${CLUSTER_DNS}", &DNS_SERVICE.to_string()).replace("${CLUSTER_DOMAIN}", DNS_DOMAIN);
    apply(kubeconfig, &manifest)
}
