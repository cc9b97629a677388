//! The verbs of kubectl, as a person types them.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use e2e::kubectl::Kubectl;
use e2e::wait::{until, until_contains};

const LONG: Duration = Duration::from_secs(60);

const SHELL: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: shell, labels: {app: shell}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: localhost/busybox:latest
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "echo started; httpd -p 8080 -h /etc; while true; do sleep 1; done"]
"#;

fn shell(kubectl: &Kubectl) {
    kubectl.apply(SHELL);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/shell", "--timeout=60s"]);
}

#[test]
fn logs_exec_cp_and_port_forward() {
    let kubectl = Kubectl::shared("streams");
    shell(&kubectl);
    until_contains("logs", LONG, "started", || kubectl.ask(&["logs", "shell"]));

    assert_eq!(kubectl.run(&["exec", "shell", "--", "echo", "hello"]), "hello\n");
    let output = kubectl.try_run(&["exec", "-i", "shell", "--", "cat"], Some("through standard input\n"));
    assert_eq!(output.stdout, "through standard input\n", "{}", output.stderr);
    let failed = kubectl.refused(&["exec", "shell", "--", "sh", "-c", "exit 7"], None);
    assert!(failed.contains("exit code 7"), "{failed}");
    // As kubectl cp asks for a file; cp itself does not wait for the answer's end (kubernetes/kubectl#980).
    let failed = kubectl.refused(&["exec", "shell", "--", "tar", "cf", "-", "/nope"], None);
    for said in ["tar: /nope: No such file or directory", "command terminated with exit code 1"] {
        assert!(failed.contains(said), "{failed}");
    }

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "copied").unwrap();
    // busybox has tar, which cp needs.
    kubectl.run(&["cp", file.to_str().unwrap(), "shell:/tmp/file"]);
    assert_eq!(kubectl.run(&["exec", "shell", "--", "cat", "/tmp/file"]), "copied");

    let mut forward = kubectl
        .command(&["port-forward", "pod/shell", ":8080", "--address", "127.0.0.1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = forward.stdout.take().unwrap();
    let mut first = [0; 64];
    let length = stdout.read(&mut first).unwrap();
    let line = String::from_utf8_lossy(&first[..length]).into_owned();
    let port = line
        .split(' ')
        .nth(2)
        .and_then(|a| a.rsplit(':').next())
        .unwrap_or_else(|| panic!("{line:?}"))
        .to_owned();
    let answer = until("the forwarded port answers", LONG, || {
        let mut stream =
            std::net::TcpStream::connect(format!("127.0.0.1:{port}")).map_err(|e| e.to_string())?;
        stream.write_all(b"GET /passwd HTTP/1.0\r\n\r\n").map_err(|e| e.to_string())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|e| e.to_string())?;
        if text.contains("root:x:0:0") { Ok(text) } else { Err(text) }
    });
    forward.kill().unwrap();
    forward.wait().unwrap();
    assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn every_patch_type_and_server_side_apply() {
    let kubectl = Kubectl::shared("patch");
    kubectl.run(&["create", "configmap", "c", "--from-literal=a=1"]);
    let data = || kubectl.run(&["get", "configmap", "c", "-o", "jsonpath={.data}"]);
    kubectl.run(&["patch", "configmap", "c", "--type=merge", "-p", r#"{"data":{"b":"2"}}"#]);
    assert_eq!(data(), r#"{"a":"1","b":"2"}"#);
    kubectl.run(&["patch", "configmap", "c", "--type=json", "-p", r#"[{"op":"remove","path":"/data/a"}]"#]);
    assert_eq!(data(), r#"{"b":"2"}"#);
    kubectl.run(&["patch", "configmap", "c", "--type=strategic", "-p", r#"{"data":{"b":null,"c":"3"}}"#]);
    assert_eq!(data(), r#"{"c":"3"}"#);
    // A manifest that begins with a brace is JSON to kubectl.
    let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: s}\ndata: {x: '1'}\n";
    let applied = kubectl.try_run(&["apply", "--server-side", "-f", "-"], Some(manifest));
    assert!(applied.success, "{}", applied.stderr);
    let other = manifest.replace("'1'", "'2'");
    let conflict =
        kubectl.refused(&["apply", "--server-side", "--field-manager=other", "-f", "-"], Some(&other));
    assert!(conflict.contains("conflict with \"kubectl\""), "{conflict}");
    kubectl.run(&["label", "configmap", "c", "team=blue"]);
    kubectl.run(&["annotate", "configmap", "c", "note=n"]);
    assert_eq!(kubectl.run(&["get", "configmap", "-l", "team=blue", "-o", "name"]), "configmap/c\n");
    assert_eq!(
        kubectl.run(&["get", "configmap", "--field-selector", "metadata.name=s", "-o", "name"]),
        "configmap/s\n"
    );
}

#[test]
fn tables_describe_explain_and_discovery() {
    let kubectl = Kubectl::shared("show");
    shell(&kubectl);
    let table = kubectl.run(&["get", "pods"]);
    let header: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(header, ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    let row: Vec<&str> = table.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(row[..4], ["shell", "1/1", "Running", "0"]);
    assert!(kubectl.run(&["get", "pods", "-o", "wide"]).contains("NOMINATED NODE"));
    assert!(kubectl.run(&["get", "nodes"]).contains("Ready"));
    let described = kubectl.run(&["describe", "pod", "shell"]);
    assert!(described.contains("Started container main") || described.contains("Started"), "{described}");
    assert!(described.contains("Successfully assigned"), "{described}");
    assert!(kubectl.run(&["get", "events"]).contains("Scheduled"));
    let node = kubectl.run(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let described = kubectl.run(&["describe", "node", &node]);
    for said in [
        "Starting kubelet.",
        "Updated Node Allocatable limit across pods",
        "status is now: NodeHasSufficientMemory",
        "status is now: NodeHasNoDiskPressure",
        "status is now: NodeHasSufficientPID",
        "volumes.kubernetes.io/controller-managed-attach-detach: true",
    ] {
        assert!(described.contains(said), "{said}: {described}");
    }
    assert!(kubectl.run(&["explain", "deployment.spec.replicas"]).contains("<integer>"));
    let resources = kubectl.run(&["api-resources", "-o", "name"]);
    for resource in ["pods", "deployments.apps", "leases.coordination.k8s.io", "cronjobs.batch"] {
        assert!(resources.lines().any(|line| line == resource), "{resource} in {resources}");
    }
    assert!(kubectl.run(&["api-versions"]).lines().any(|line| line == "apps/v1"));
    // Versions of kubectl differ in how they print it for people.
    let version: serde_json::Value = serde_json::from_str(&kubectl.run(&["version", "-o", "json"])).unwrap();
    let version = version["serverVersion"]["gitVersion"].to_string();
    assert!(version.starts_with("\"v1.36"), "{version}");
    // As it looks when no namespace is named.
    let info = kubectl.run(&["cluster-info", "--namespace=kube-system"]);
    assert_eq!(info.matches("is running at").count(), 2, "{info}");
    assert!(info.contains("CoreDNS"), "{info}");
    assert!(info.contains("/api/v1/namespaces/kube-system/services/kube-dns:dns/proxy"), "{info}");
    assert_eq!(kubectl.run(&["auth", "can-i", "create", "pods"]), "yes\n");
}

#[test]
fn mistakes_get_upstreams_errors() {
    let kubectl = Kubectl::shared("mistakes");
    let check = |arguments: &[&str], input: Option<&str>, expected: &str| {
        let error = kubectl.refused(arguments, input);
        assert!(error.contains(expected), "{arguments:?}: {error:?} has no {expected:?}");
    };
    check(&["get", "pod", "absent"], None, "pods \"absent\" not found");
    check(&["create", "configmap", "Not_A_Name"], None, "a lowercase RFC 1123 subdomain must consist of");
    let unknown = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndat: {}\n";
    check(&["apply", "-f", "-"], Some(unknown), "unknown field \"dat\"");
    let no_image = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a}]}\n";
    check(
        &["create", "--validate=false", "-f", "-"],
        Some(no_image),
        "spec.containers[0].image: Required value",
    );
    let not_number = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {replicas: many}\n";
    check(&["create", "--validate=false", "-f", "-"], Some(not_number), "cannot be handled as a Deployment");
    kubectl.run(&["create", "configmap", "twice"]);
    check(&["create", "configmap", "twice"], None, "configmaps \"twice\" already exists");
    check(&["create", "-n", "nowhere", "configmap", "c"], None, "namespaces \"nowhere\" not found");
    check(&["get", "pods", "--as", "nobody"], None, "User \"nobody\" cannot list resource \"pods\"");
}
