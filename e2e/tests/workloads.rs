//! From `kubectl apply` to containers that answer.

use std::time::Duration;

use e2e::kubectl::Kubectl;
use e2e::wait::{until, until_contains};

const LONG: Duration = Duration::from_secs(60);

const WEB: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: page}
data: {index.html: "hello from the config map"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: httpd
        image: localhost/busybox:latest
        imagePullPolicy: IfNotPresent
        command: [httpd, -f, -p, "80", -h, /www]
        ports: [{containerPort: 80}]
        volumeMounts: [{name: page, mountPath: /www}]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
      volumes: [{name: page, configMap: {name: page}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80}]
"#;

fn client_pod(kubectl: &Kubectl, name: &str, node: Option<&str>) {
    let node = node.map(|n| format!("nodeName: {n}")).unwrap_or_default();
    kubectl.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: localhost/busybox:latest
    imagePullPolicy: IfNotPresent
    command: [sleep, "3600"]
"#
    ));
    kubectl.run(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
}

#[test]
fn a_deployment_answers_on_its_service_address_and_name() {
    let kubectl = Kubectl::shared("web");
    kubectl.apply(WEB);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let address = kubectl.run(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    // One client on each node: the Service and the pods of the other node are reached from both.
    for node in ["node-1", "node-2"] {
        let client = format!("client-{node}");
        client_pod(&kubectl, &client, Some(node));
        for target in [address.as_str(), "web"] {
            let url = format!("http://{target}/");
            until_contains("the Service answers", LONG, "hello from the config map", || {
                kubectl.ask(&["exec", &client, "--", "wget", "-q", "-O", "-", &url])
            });
        }
        let pods = kubectl.run(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"]);
        for pod in pods.split_whitespace() {
            let url = format!("http://{pod}/");
            until_contains("the pod answers", LONG, "hello", || {
                kubectl.ask(&["exec", &client, "--", "wget", "-q", "-O", "-", &url])
            });
        }
    }
}

#[test]
fn a_rollout_replaces_pods_and_can_be_undone() {
    let kubectl = Kubectl::shared("rollout");
    kubectl.apply(WEB);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    kubectl.run(&["set", "env", "deployment/web", "VERSION=2"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let history = kubectl.run(&["rollout", "history", "deployment/web"]);
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    kubectl.run(&["rollout", "undo", "deployment/web"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let env =
        kubectl.run(&["get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[0].env}"]);
    assert_eq!(env, "");
    kubectl.run(&["scale", "deployment/web", "--replicas=1"]);
    until("one pod is left", LONG, || {
        let pods = kubectl.ask(&["get", "pods", "-l", "app=web", "-o", "name"])?;
        if pods.lines().count() == 1 { Ok(()) } else { Err(pods) }
    });
    kubectl.run(&["delete", "deployment", "web", "--cascade=foreground", "--timeout=60s"]);
    let left = kubectl.run(&["get", "pods,replicasets", "-o", "name"]);
    assert_eq!(left, "");
}

#[test]
fn jobs_run_to_completion() {
    let kubectl = Kubectl::shared("job");
    kubectl.apply(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: count}
spec:
  completions: 3
  parallelism: 2
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: main, image: "localhost/busybox:latest", imagePullPolicy: IfNotPresent, command: [sh, -c, "echo counted"]}
"#,
    );
    kubectl.run(&["wait", "--for=condition=Complete", "job/count", "--timeout=90s"]);
    let logs = kubectl.run(&["logs", "job/count"]);
    assert_eq!(logs, "counted\n");
    let succeeded = kubectl.run(&["get", "job", "count", "-o", "jsonpath={.status.succeeded}"]);
    assert_eq!(succeeded, "3");
}

#[test]
fn a_stateful_set_starts_its_pods_in_order_with_names_of_their_own() {
    let kubectl = Kubectl::shared("stateful");
    kubectl.apply(
        r#"
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: main, image: "localhost/busybox:latest", imagePullPolicy: IfNotPresent, command: [sleep, "3600"]}
"#,
    );
    kubectl.run(&["rollout", "status", "statefulset/db", "--timeout=90s"]);
    assert_eq!(kubectl.run(&["get", "pods", "-l", "app=db", "-o", "name"]), "pod/db-0\npod/db-1\n");
    let address = kubectl.run(&["get", "pod", "db-1", "-o", "jsonpath={.status.podIP}"]);
    let name = format!("db-1.db.{}.svc.cluster.local", kubectl.namespace);
    until_contains("DNS knows the pod", LONG, &address, || {
        kubectl.ask(&["exec", "db-0", "--", "nslookup", "-type=a", &name])
    });
}

#[test]
fn a_daemon_set_has_a_pod_on_each_node() {
    let kubectl = Kubectl::shared("daemonset");
    kubectl.apply(
        r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: main, image: "localhost/busybox:latest", imagePullPolicy: IfNotPresent, command: [sleep, "3600"]}
"#,
    );
    kubectl.run(&["rollout", "status", "daemonset/agent", "--timeout=90s"]);
    let nodes =
        kubectl.run(&["get", "pods", "-o", "jsonpath={range .items[*]}{.spec.nodeName}{\"\\n\"}{end}"]);
    let mut nodes: Vec<&str> = nodes.lines().collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["node-1", "node-2"]);
}
