//! Upstream's cluster roles that are not of one controller, and who they are bound to.

use super::{ClusterRole, READ, READ_UPDATE, READ_WRITE, Rule, WRITE, named, on, urls};

pub(super) const EVENTS: Rule = on("create,patch,update", ",events.k8s.io", "events");
const TOKEN_REVIEWS: Rule = on("create", "authentication.k8s.io", "tokenreviews");
const ACCESS_REVIEWS: Rule = on("create", "authorization.k8s.io", "subjectaccessreviews");

const fn role(name: &'static str, rules: &'static [Rule]) -> ClusterRole {
    ClusterRole { name, aggregates_to: "", aggregates: "", rules }
}

pub(super) const CLUSTER_ROLES: &[ClusterRole] = &[
    role("cluster-admin", &[on("*", "*", "*"), urls("*")]),
    role(
        "system:discovery",
        &[urls("/api,/api/*,/apis,/apis/*,/healthz,/livez,/openapi,/openapi/*,/readyz,/version,/version/")],
    ),
    role(
        "system:monitoring",
        &[urls("/healthz,/healthz/*,/livez,/livez/*,/metrics,/metrics/slis,/readyz,/readyz/*")],
    ),
    role(
        "system:basic-user",
        &[
            on("create", "authorization.k8s.io", "selfsubjectaccessreviews,selfsubjectrulesreviews"),
            on("create", "authentication.k8s.io", "selfsubjectreviews"),
        ],
    ),
    role("system:public-info-viewer", &[urls("/healthz,/livez,/readyz,/version,/version/")]),
    ClusterRole { name: "admin", aggregates_to: "", aggregates: "admin", rules: &[] },
    ClusterRole { name: "edit", aggregates_to: "admin", aggregates: "edit", rules: &[] },
    ClusterRole { name: "view", aggregates_to: "edit", aggregates: "view", rules: &[] },
    ClusterRole {
        name: "system:aggregate-to-admin",
        aggregates_to: "admin",
        aggregates: "",
        rules: &[
            on("create", "authorization.k8s.io", "localsubjectaccessreviews"),
            on(READ_WRITE, "rbac.authorization.k8s.io", "roles,rolebindings"),
        ],
    },
    ClusterRole {
        name: "system:aggregate-to-edit",
        aggregates_to: "edit",
        aggregates: "",
        rules: &[
            // Reading these escalates, so they are not in view.
            on(READ, "", "pods/attach,pods/proxy,pods/exec,pods/portforward,secrets,services/proxy"),
            on("impersonate", "", "serviceaccounts"),
            on(WRITE, "", "pods,pods/attach,pods/proxy,pods/exec,pods/portforward"),
            on("create", "", "pods/eviction"),
            on(
                WRITE,
                "",
                "replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/proxy,persistentvolumeclaims,configmaps,secrets,events",
            ),
            on("create", "", "serviceaccounts/token"),
            on(
                WRITE,
                "apps",
                "statefulsets,statefulsets/scale,daemonsets,deployments,deployments/scale,deployments/rollback,replicasets,replicasets/scale",
            ),
            on(WRITE, "autoscaling", "horizontalpodautoscalers"),
            on(WRITE, "batch", "jobs,cronjobs"),
            on(
                WRITE,
                "extensions",
                "daemonsets,deployments,deployments/scale,deployments/rollback,ingresses,replicasets,replicasets/scale,replicationcontrollers/scale,networkpolicies",
            ),
            on(WRITE, "policy", "poddisruptionbudgets"),
            on(WRITE, "networking.k8s.io", "networkpolicies,ingresses"),
            on(READ_WRITE, "coordination.k8s.io", "leases"),
            on(WRITE, "resource.k8s.io", "resourceclaims,resourceclaimtemplates"),
        ],
    },
    ClusterRole {
        name: "system:aggregate-to-view",
        aggregates_to: "view",
        aggregates: "",
        rules: &[
            on(
                READ,
                "",
                "pods,replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,configmaps",
            ),
            on(
                READ,
                "",
                "limitranges,resourcequotas,bindings,events,pods/status,resourcequotas/status,namespaces/status,replicationcontrollers/status,pods/log",
            ),
            on(READ, "", "namespaces"),
            on(READ, "discovery.k8s.io", "endpointslices"),
            on(
                READ,
                "apps",
                "controllerrevisions,statefulsets,statefulsets/status,statefulsets/scale,daemonsets,daemonsets/status,deployments,deployments/status,deployments/scale,replicasets,replicasets/status,replicasets/scale",
            ),
            on(READ, "autoscaling", "horizontalpodautoscalers,horizontalpodautoscalers/status"),
            on(READ, "batch", "jobs,cronjobs,cronjobs/status,jobs/status"),
            on(
                READ,
                "extensions",
                "daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,ingresses,ingresses/status,replicasets,replicasets/scale,replicasets/status,replicationcontrollers/scale,networkpolicies",
            ),
            on(READ, "policy", "poddisruptionbudgets,poddisruptionbudgets/status"),
            on(READ, "networking.k8s.io", "networkpolicies,ingresses,ingresses/status"),
            on(READ, "resource.k8s.io", "resourceclaims,resourceclaims/status,resourceclaimtemplates"),
        ],
    },
    role(
        "system:heapster",
        &[on(READ, "", "events,pods,nodes,namespaces"), on(READ, "extensions", "deployments")],
    ),
    role("system:node", NODE_RULES),
    role("system:node-problem-detector", &[on("get", "", "nodes"), on("patch", "", "nodes/status"), EVENTS]),
    role(
        "system:kubelet-api-admin",
        &[
            on(READ, "", "nodes"),
            on("proxy", "", "nodes"),
            on("*", "", "nodes/proxy,nodes/metrics,nodes/stats,nodes/log"),
            on("*", "", "nodes/configz,nodes/healthz,nodes/pods"),
        ],
    ),
    role(
        "system:node-bootstrapper",
        &[on("create,get,list,watch", "certificates.k8s.io", "certificatesigningrequests")],
    ),
    role("system:auth-delegator", &[TOKEN_REVIEWS, ACCESS_REVIEWS]),
    role("system:kube-aggregator", &[on(READ, "", "services,endpoints")]),
    role(
        "system:kube-controller-manager",
        &[
            EVENTS,
            on("create", "coordination.k8s.io", "leases"),
            named("get,update", "coordination.k8s.io", "leases", "kube-controller-manager"),
            on("create", "", "secrets,serviceaccounts"),
            on("delete", "", "secrets"),
            on("get", "", "namespaces,secrets,serviceaccounts,configmaps"),
            on("update", "", "secrets,serviceaccounts"),
            TOKEN_REVIEWS,
            ACCESS_REVIEWS,
            on("list,watch", "*", "*"),
            on("create", "", "serviceaccounts/token"),
        ],
    ),
    role("system:kube-dns", &[on("list,watch", "", "endpoints,services")]),
    role(
        "system:persistent-volume-provisioner",
        &[
            on("get,list,watch,create,delete", "", "persistentvolumes"),
            on("get,list,watch,update", "", "persistentvolumeclaims"),
            on(READ, "storage.k8s.io", "storageclasses"),
            on("watch", "", "events"),
            EVENTS,
        ],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        &[on("create", "certificates.k8s.io", "certificatesigningrequests/nodeclient")],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        &[on("create", "certificates.k8s.io", "certificatesigningrequests/selfnodeclient")],
    ),
    role(
        "system:volume-scheduler",
        &[
            on(READ_UPDATE, "", "persistentvolumes"),
            on(READ, "storage.k8s.io", "storageclasses"),
            on(READ_UPDATE, "", "persistentvolumeclaims"),
        ],
    ),
    role(
        "system:certificates.k8s.io:legacy-unknown-approver",
        &[named("approve", "certificates.k8s.io", "signers", "kubernetes.io/legacy-unknown")],
    ),
    role(
        "system:certificates.k8s.io:kubelet-serving-approver",
        &[named("approve", "certificates.k8s.io", "signers", "kubernetes.io/kubelet-serving")],
    ),
    role(
        "system:certificates.k8s.io:kube-apiserver-client-approver",
        &[named("approve", "certificates.k8s.io", "signers", "kubernetes.io/kube-apiserver-client")],
    ),
    role(
        "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
        &[named("approve", "certificates.k8s.io", "signers", "kubernetes.io/kube-apiserver-client-kubelet")],
    ),
    role(
        "system:service-account-issuer-discovery",
        &[urls(
            "/.well-known/openid-configuration,/.well-known/openid-configuration/,/openid/v1/jwks,/openid/v1/jwks/",
        )],
    ),
    role(
        "system:node-proxier",
        &[
            on("list,watch", "", "services,endpoints"),
            on(READ, "", "nodes"),
            EVENTS,
            on("list,watch", "networking.k8s.io", "servicecidrs"),
            on("list,watch", "discovery.k8s.io", "endpointslices"),
        ],
    ),
    role(
        "system:kube-scheduler",
        &[
            EVENTS,
            on("create", "coordination.k8s.io", "leases"),
            named("get,list,update,watch", "coordination.k8s.io", "leases", "kube-scheduler"),
            on(READ_WRITE, "coordination.k8s.io", "leasecandidates"),
            on(READ, "", "nodes"),
            on("get,list,watch,delete", "", "pods"),
            on("create", "", "pods/binding,bindings"),
            on("patch,update", "", "pods/status"),
            on(READ, "", "services,replicationcontrollers"),
            on(READ, "apps,extensions", "replicasets"),
            on(READ, "apps", "statefulsets"),
            on(READ, "policy", "poddisruptionbudgets"),
            on(READ, "", "persistentvolumeclaims,persistentvolumes"),
            TOKEN_REVIEWS,
            ACCESS_REVIEWS,
            on(READ, "storage.k8s.io", "csinodes"),
            on(READ, "storage.k8s.io", "volumeattachments"),
            on(READ, "", "namespaces"),
            on(READ, "storage.k8s.io", "csidrivers"),
            on(READ, "storage.k8s.io", "csistoragecapacities"),
            on(READ, "resource.k8s.io", "deviceclasses"),
            on(READ_UPDATE, "resource.k8s.io", "resourceclaims"),
            on(READ_UPDATE, "resource.k8s.io", "resourceclaims/status"),
            on(READ_UPDATE, "", "pods/finalizers"),
            on(READ, "resource.k8s.io", "resourceslices"),
        ],
    ),
];

/// What every node may do apart from what the Node authorizer narrows down further.
pub(crate) const NODE_RULES: &[Rule] = &[
    TOKEN_REVIEWS,
    on("create", "authorization.k8s.io", "subjectaccessreviews,localsubjectaccessreviews"),
    on(READ, "", "services"),
    on("create,get,list,watch", "", "nodes"),
    on("update,patch", "", "nodes/status"),
    on("update,patch", "", "nodes"),
    on("create,update,patch", "", "events"),
    on(READ, "", "pods"),
    on("create,delete", "", "pods"),
    on("update,patch", "", "pods/status"),
    on("create", "", "pods/eviction"),
    on(READ, "", "secrets,configmaps"),
    on("get", "", "persistentvolumeclaims,persistentvolumes"),
    on("get", "", "endpoints"),
    on("create,get,list,watch", "certificates.k8s.io", "certificatesigningrequests"),
    on("get,create,update,patch,delete", "coordination.k8s.io", "leases"),
    on("get", "storage.k8s.io", "volumeattachments"),
    on("create", "", "serviceaccounts/token"),
    on("get,update,patch", "", "persistentvolumeclaims/status"),
    on(READ, "storage.k8s.io", "csidrivers"),
    on("get,create,update,patch,delete", "storage.k8s.io", "csinodes"),
    on(READ, "node.k8s.io", "runtimeclasses"),
    on("get", "resource.k8s.io", "resourceclaims"),
    on("deletecollection", "resource.k8s.io", "resourceslices"),
    on("get", "", "serviceaccounts"),
];

/// Role (and binding) name, subjects: `G:` group, `U:` user, `S:` service account of kube-system.
pub(super) const CLUSTER_ROLE_BINDINGS: &[(&str, &str)] = &[
    ("cluster-admin", "G:system:masters"),
    ("system:monitoring", "G:system:monitoring"),
    ("system:discovery", "G:system:authenticated"),
    ("system:basic-user", "G:system:authenticated"),
    ("system:public-info-viewer", "G:system:authenticated,G:system:unauthenticated"),
    ("system:node-proxier", "U:system:kube-proxy"),
    ("system:kube-controller-manager", "U:system:kube-controller-manager"),
    ("system:kube-dns", "S:kube-dns"),
    ("system:kube-scheduler", "U:system:kube-scheduler"),
    ("system:volume-scheduler", "U:system:kube-scheduler"),
    // The Node authorizer took over; the binding stays without subjects.
    ("system:node", ""),
    ("system:service-account-issuer-discovery", "G:system:serviceaccounts"),
];
