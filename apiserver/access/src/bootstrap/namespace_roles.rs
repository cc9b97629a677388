//! Upstream's roles inside kube-system and kube-public, and who they are bound to there.

use super::cluster_roles::EVENTS;
use super::{READ, Rule, named, on};

const LOCK: &[Rule] = &[
    on("create,get,list,update,watch", "coordination.k8s.io", "leases"),
    on("create,get,list,update,watch", "coordination.k8s.io", "leasecandidates"),
];

/// Namespace, name, rules.
pub(super) const ROLES: &[(&str, &str, &[Rule])] = &[
    (
        "kube-system",
        "extension-apiserver-authentication-reader",
        &[named(READ, "", "configmaps", "extension-apiserver-authentication")],
    ),
    ("kube-system", "system:controller:bootstrap-signer", &[on(READ, "", "secrets")]),
    ("kube-system", "system:controller:cloud-provider", &[on("create,get,list,watch", "", "configmaps")]),
    ("kube-system", "system:controller:token-cleaner", &[on("get,list,watch,delete", "", "secrets"), EVENTS]),
    ("kube-system", "system::leader-locking-kube-controller-manager", LOCK),
    ("kube-system", "system::leader-locking-kube-scheduler", LOCK),
    (
        "kube-public",
        "system:controller:bootstrap-signer",
        &[on(READ, "", "configmaps"), named("update", "", "configmaps", "cluster-info"), EVENTS],
    ),
];

/// Namespace, binding name, role name, subjects as for cluster role bindings.
pub(super) const ROLE_BINDINGS: &[(&str, &str, &str, &str)] = &[
    (
        "kube-system",
        "system::extension-apiserver-authentication-reader",
        "extension-apiserver-authentication-reader",
        "U:system:kube-controller-manager,U:system:kube-scheduler",
    ),
    (
        "kube-system",
        "system:controller:bootstrap-signer",
        "system:controller:bootstrap-signer",
        "S:bootstrap-signer",
    ),
    (
        "kube-system",
        "system:controller:cloud-provider",
        "system:controller:cloud-provider",
        "S:cloud-provider",
    ),
    ("kube-system", "system:controller:token-cleaner", "system:controller:token-cleaner", "S:token-cleaner"),
    (
        "kube-system",
        "system::leader-locking-kube-controller-manager",
        "system::leader-locking-kube-controller-manager",
        "U:system:kube-controller-manager,S:kube-controller-manager",
    ),
    (
        "kube-system",
        "system::leader-locking-kube-scheduler",
        "system::leader-locking-kube-scheduler",
        "U:system:kube-scheduler,S:kube-scheduler",
    ),
    (
        "kube-public",
        "system:controller:bootstrap-signer",
        "system:controller:bootstrap-signer",
        "S:bootstrap-signer",
    ),
];
