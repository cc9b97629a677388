//! The cluster role of each controller; each is bound to kube-system's service account of that name.

use super::cluster_roles::EVENTS;
use super::{READ, Rule, named, on};

const APPS: &str = "extensions,apps";

/// Name without `system:controller:`.
pub(super) const CONTROLLER_ROLES: &[(&str, &[Rule])] = &[
    (
        "attachdetach-controller",
        &[
            on("list,watch", "", "persistentvolumes,persistentvolumeclaims"),
            on(READ, "", "nodes"),
            on("patch,update", "", "nodes/status"),
            on("list,watch", "", "pods"),
            EVENTS,
            on("get,create,delete,list,watch", "storage.k8s.io", "volumeattachments"),
            on(READ, "storage.k8s.io", "csidrivers"),
            on(READ, "storage.k8s.io", "csinodes"),
        ],
    ),
    (
        "clusterrole-aggregation-controller",
        &[on("escalate,get,list,watch,update,patch", "rbac.authorization.k8s.io", "clusterroles")],
    ),
    (
        "cronjob-controller",
        &[
            on("get,list,watch,update", "batch", "cronjobs"),
            on("get,list,watch,create,update,delete,patch", "batch", "jobs"),
            on("update", "batch", "cronjobs/status"),
            on("update", "batch", "cronjobs/finalizers"),
            on("list,watch,delete", "", "pods"),
            EVENTS,
        ],
    ),
    (
        "daemon-set-controller",
        &[
            on(READ, APPS, "daemonsets"),
            on("update", APPS, "daemonsets/status"),
            on("update", APPS, "daemonsets/finalizers"),
            on("list,watch", "", "nodes"),
            on("list,watch,create,delete,patch", "", "pods"),
            on("create", "", "pods/binding"),
            on("get,list,watch,create,delete,update,patch", "apps", "controllerrevisions"),
            EVENTS,
        ],
    ),
    (
        "deployment-controller",
        &[
            on("get,list,watch,update", APPS, "deployments"),
            on("update", APPS, "deployments/status"),
            on("update", APPS, "deployments/finalizers"),
            on("get,list,watch,create,update,patch,delete", APPS, "replicasets"),
            on("get,list,watch,update", "", "pods"),
            EVENTS,
        ],
    ),
    (
        "disruption-controller",
        &[
            on(READ, APPS, "deployments"),
            on(READ, APPS, "replicasets"),
            on(READ, "", "replicationcontrollers"),
            on(READ, "policy", "poddisruptionbudgets"),
            on(READ, "apps", "statefulsets"),
            on("update", "policy", "poddisruptionbudgets/status"),
            on("patch,update", "", "pods/status"),
            on("get", "*", "*/scale"),
            EVENTS,
        ],
    ),
    (
        "endpoint-controller",
        &[
            on(READ, "", "services,pods"),
            on("get,list,watch,create,update,delete", "", "endpoints"),
            on("create", "", "endpoints/restricted"),
            EVENTS,
        ],
    ),
    (
        "endpointslice-controller",
        &[
            on(READ, "", "services,pods,nodes"),
            on("update", "", "services/finalizers"),
            on("get,list,watch,create,update,delete", "discovery.k8s.io", "endpointslices"),
            EVENTS,
        ],
    ),
    (
        "endpointslicemirroring-controller",
        &[
            on(READ, "", "services,endpoints"),
            on("update", "", "services/finalizers"),
            on("update", "", "endpoints/finalizers"),
            on("get,list,watch,create,update,delete", "discovery.k8s.io", "endpointslices"),
            EVENTS,
        ],
    ),
    (
        "expand-controller",
        &[
            on("get,list,watch,update,patch", "", "persistentvolumes"),
            on("update,patch", "", "persistentvolumeclaims/status"),
            on(READ, "", "persistentvolumeclaims"),
            EVENTS,
            on("get", "", "services"),
        ],
    ),
    (
        "ephemeral-volume-controller",
        &[
            on(READ, "", "pods"),
            on("update", "", "pods/finalizers"),
            on("get,list,watch,create", "", "persistentvolumeclaims"),
            EVENTS,
        ],
    ),
    (
        "resource-claim-controller",
        &[
            on(READ, "", "pods"),
            on("update", "", "pods/finalizers"),
            on("get,list,watch,create,delete", "resource.k8s.io", "resourceclaims"),
            on("update,patch", "resource.k8s.io", "resourceclaims,resourceclaims/status"),
            on("update,patch", "", "pods/status"),
            EVENTS,
        ],
    ),
    ("generic-garbage-collector", &[on("get,list,watch,patch,update,delete", "*", "*"), EVENTS]),
    (
        "horizontal-pod-autoscaler",
        &[
            on(READ, "autoscaling", "horizontalpodautoscalers"),
            on("update", "autoscaling", "horizontalpodautoscalers/status"),
            on("get,update", "*", "*/scale"),
            on("list,watch", "", "pods"),
            on("list,watch", "metrics.k8s.io", "pods"),
            on(READ, "custom.metrics.k8s.io", "*"),
            on(READ, "external.metrics.k8s.io", "*"),
            EVENTS,
        ],
    ),
    (
        "job-controller",
        &[
            on("get,list,watch,update,patch", "batch", "jobs"),
            on("update", "batch", "jobs/status"),
            on("update", "batch", "jobs/finalizers"),
            on("list,watch,create,delete,patch", "", "pods"),
            EVENTS,
        ],
    ),
    (
        "namespace-controller",
        &[
            on("get,list,watch,delete", "", "namespaces"),
            on("update", "", "namespaces/finalize,namespaces/status"),
            on("get,list,watch,delete,deletecollection", "*", "*"),
        ],
    ),
    (
        "node-controller",
        &[
            on("get,list,watch,update,delete,patch", "", "nodes"),
            on("patch,update", "", "nodes/status"),
            on("patch,update", "", "pods/status"),
            on("list,watch,get,delete", "", "pods"),
            EVENTS,
        ],
    ),
    (
        "persistent-volume-binder",
        &[
            on("get,list,watch,update,create,delete", "", "persistentvolumes"),
            on("update", "", "persistentvolumes/status"),
            on("get,list,watch,update", "", "persistentvolumeclaims"),
            on("update", "", "persistentvolumeclaims/status"),
            on("list,watch,get,create,delete", "", "pods"),
            on(READ, "storage.k8s.io", "storageclasses"),
            on("list,watch", "", "nodes"),
            EVENTS,
            on("watch", "", "events"),
            on("get", "", "services"),
        ],
    ),
    (
        "pod-garbage-collector",
        &[on("list,watch,delete", "", "pods"), on(READ, "", "nodes"), on("patch", "", "pods/status")],
    ),
    (
        "replicaset-controller",
        &[
            on("get,list,watch,update", APPS, "replicasets"),
            on("update", APPS, "replicasets/status"),
            on("update", APPS, "replicasets/finalizers"),
            on("list,watch,patch,create,delete", "", "pods"),
            EVENTS,
        ],
    ),
    (
        "replication-controller",
        &[
            on("get,list,watch,update", "", "replicationcontrollers"),
            on("update", "", "replicationcontrollers/status"),
            on("update", "", "replicationcontrollers/finalizers"),
            on("list,watch,patch,create,delete", "", "pods"),
            EVENTS,
        ],
    ),
    (
        "resourcequota-controller",
        &[on("list,watch", "*", "*"), on("update", "", "resourcequotas/status"), EVENTS],
    ),
    ("route-controller", &[on("list,watch", "", "nodes"), on("patch", "", "nodes/status"), EVENTS]),
    ("service-account-controller", &[on("create", "", "serviceaccounts"), EVENTS]),
    (
        "service-controller",
        &[
            on(READ, "", "services"),
            on("patch,update", "", "services/status"),
            on("list,watch", "", "nodes"),
            EVENTS,
        ],
    ),
    (
        "service-cidrs-controller",
        &[
            on("get,list,watch,patch,update", "networking.k8s.io", "servicecidrs"),
            on("patch,update", "networking.k8s.io", "servicecidrs/finalizers"),
            on("patch,update", "networking.k8s.io", "servicecidrs/status"),
            on(READ, "networking.k8s.io", "ipaddresses"),
            EVENTS,
        ],
    ),
    (
        "statefulset-controller",
        &[
            on("list,watch", "", "pods"),
            on(READ, "apps", "statefulsets"),
            on("update", "apps", "statefulsets/status"),
            on("update", "apps", "statefulsets/finalizers"),
            on("get,create,delete,update,patch", "", "pods"),
            on("get,create,delete,update,patch,list,watch", "apps", "controllerrevisions"),
            on("get,create,list,watch", "", "persistentvolumeclaims"),
            on("update,delete", "", "persistentvolumeclaims"),
            on("update", "", "pods/finalizers"),
            EVENTS,
        ],
    ),
    ("ttl-controller", &[on("update,patch,list,watch", "", "nodes"), EVENTS]),
    (
        "certificate-controller",
        &[
            on("get,list,watch,delete", "certificates.k8s.io", "certificatesigningrequests"),
            on(
                "update",
                "certificates.k8s.io",
                "certificatesigningrequests/status,certificatesigningrequests/approval",
            ),
            named("approve", "certificates.k8s.io", "signers", "kubernetes.io/kube-apiserver-client-kubelet"),
            named(
                "sign",
                "certificates.k8s.io",
                "signers",
                "kubernetes.io/legacy-unknown,kubernetes.io/kube-apiserver-client,kubernetes.io/kube-apiserver-client-kubelet,kubernetes.io/kubelet-serving",
            ),
            on("create", "authorization.k8s.io", "subjectaccessreviews"),
            EVENTS,
        ],
    ),
    (
        "pvc-protection-controller",
        &[on("get,list,watch,update", "", "persistentvolumeclaims"), on(READ, "", "pods"), EVENTS],
    ),
    ("pv-protection-controller", &[on("get,list,watch,update", "", "persistentvolumes"), EVENTS]),
    (
        "volumeattributesclass-protection-controller",
        &[
            on(READ, "", "persistentvolumeclaims"),
            on(READ, "", "persistentvolumes"),
            on("get,list,watch,update", "storage.k8s.io", "volumeattributesclasses"),
            EVENTS,
        ],
    ),
    ("ttl-after-finished-controller", &[on("get,list,watch,delete", "batch", "jobs"), EVENTS]),
    ("root-ca-cert-publisher", &[on("create,update", "", "configmaps"), EVENTS]),
    (
        "validatingadmissionpolicy-status-controller",
        &[
            on(READ, "admissionregistration.k8s.io", "validatingadmissionpolicies"),
            on("get,patch,update", "admissionregistration.k8s.io", "validatingadmissionpolicies/status"),
            EVENTS,
        ],
    ),
    (
        "legacy-service-account-token-cleaner",
        &[
            named("get", "", "configmaps", "kube-apiserver-legacy-service-account-token-tracking"),
            on("patch,delete", "", "secrets"),
        ],
    ),
    (
        "selinux-warning-controller",
        &[
            EVENTS,
            on(READ, "", "persistentvolumes"),
            on(READ, "", "persistentvolumeclaims"),
            on(READ, "", "pods"),
            on(READ, "storage.k8s.io", "csidrivers"),
        ],
    ),
];
