//! Which admission plugins run, in upstream's order.

use std::sync::Arc;

use super::Admission;
use super::limit_ranger::LimitRanger;
use super::namespace_lifecycle::NamespaceLifecycle;
use super::node_defaults::{DefaultTolerationSeconds, TaintNodesByCondition};
use super::node_restriction::NodeRestriction;
use super::pod_security::PodSecurity;
use super::priority::Priority;
use super::service_account::ServiceAccount;
use crate::authz::Authorizer;
use crate::observed::Freshness;
use crate::state::State;

/// What plugins need to know and ask.
#[derive(Clone)]
pub struct Dependencies {
    pub state: Arc<State>,
    pub freshness: Arc<dyn Freshness>,
    pub authorizer: Arc<dyn Authorizer>,
    /// `--default-not-ready-toleration-seconds` and `--default-unreachable-toleration-seconds`.
    pub not_ready_seconds: i64,
    pub unreachable_seconds: i64,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PluginError {
    #[error("admission plugin {0:?} is unknown")]
    Unknown(String),
    #[error("admission plugin {0:?} is not implemented by this server")]
    NotImplemented(String),
}

/// In upstream's order.
const IMPLEMENTED: [&str; 8] = [
    "NamespaceLifecycle",
    "LimitRanger",
    "ServiceAccount",
    "NodeRestriction",
    "TaintNodesByCondition",
    "PodSecurity",
    "Priority",
    "DefaultTolerationSeconds",
];

/// Of the implemented ones, those that upstream does not run unless asked.
const OFF_BY_DEFAULT: [&str; 1] = ["NodeRestriction"];

/// Known by upstream but not here. Disabling them is harmless.
const KNOWN: [&str; 29] = [
    "AlwaysAdmit",
    "AlwaysDeny",
    "AlwaysPullImages",
    "CertificateApproval",
    "CertificateSigning",
    "CertificateSubjectRestriction",
    "ClusterTrustBundleAttest",
    "DefaultIngressClass",
    "DefaultStorageClass",
    "DenyServiceExternalIPs",
    "EventRateLimit",
    "ExtendedResourceToleration",
    "ImagePolicyWebhook",
    "LimitPodHardAntiAffinityTopology",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionWebhook",
    "NamespaceAutoProvision",
    "NamespaceExists",
    "NodeDeclaredFeatureValidator",
    "OwnerReferencesPermissionEnforcement",
    "PersistentVolumeClaimResize",
    "PodNodeSelector",
    "PodTolerationRestriction",
    "PodTopologyLabels",
    "ResourceQuota",
    "RuntimeClass",
    "StorageObjectInUseProtection",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionWebhook",
];

/// The plugins that run with `--enable-admission-plugins` and `--disable-admission-plugins`.
///
/// # Errors
/// A name that upstream does not have, or an enabled plugin that does not exist here.
pub fn plugins(
    enable: &[String],
    disable: &[String],
    dependencies: &Dependencies,
) -> Result<Vec<Box<dyn Admission>>, PluginError> {
    for name in enable.iter().chain(disable) {
        let (name, enabled) = (name.as_str(), enable.contains(name));
        if IMPLEMENTED.contains(&name) {
            continue;
        }
        if !KNOWN.contains(&name) {
            return Err(PluginError::Unknown(name.to_owned()));
        }
        if enabled {
            return Err(PluginError::NotImplemented(name.to_owned()));
        }
    }
    let listed = |list: &[String], name: &str| list.iter().any(|one| one == name);
    let runs =
        |name: &&&str| listed(enable, name) || (!OFF_BY_DEFAULT.contains(name) && !listed(disable, name));
    Ok(IMPLEMENTED.iter().filter(runs).filter_map(|name| build(name, dependencies)).collect())
}

fn build(name: &str, dependencies: &Dependencies) -> Option<Box<dyn Admission>> {
    let Dependencies { state, freshness, authorizer, not_ready_seconds, unreachable_seconds } =
        dependencies.clone();
    Some(match name {
        "NamespaceLifecycle" => Box::new(NamespaceLifecycle { state, freshness }),
        "LimitRanger" => Box::new(LimitRanger { state }),
        "ServiceAccount" => Box::new(ServiceAccount { state, freshness }),
        "NodeRestriction" => Box::new(NodeRestriction { state, freshness, authorizer }),
        "TaintNodesByCondition" => Box::new(TaintNodesByCondition),
        "PodSecurity" => Box::new(PodSecurity { state }),
        "Priority" => Box::new(Priority { state, freshness }),
        "DefaultTolerationSeconds" => {
            Box::new(DefaultTolerationSeconds { not_ready_seconds, unreachable_seconds })
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::union::Always;
    use crate::observed::AlwaysFresh;

    #[test]
    fn runs_upstreams_defaults_and_what_is_asked_for() {
        let dependencies = Dependencies {
            state: Arc::default(),
            freshness: Arc::new(AlwaysFresh),
            authorizer: Arc::new(Always(false)),
            not_ready_seconds: 300,
            unreachable_seconds: 300,
        };
        let check = |enable: &[&str], disable: &[&str], expected: Result<Vec<&str>, PluginError>| {
            let own = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
            let result = plugins(&own(enable), &own(disable), &dependencies);
            assert_eq!(result.map(|plugins| plugins.iter().map(|plugin| plugin.name()).collect()), expected);
        };
        check(&["NodeRestriction"], &[], Ok(IMPLEMENTED.to_vec()));
        let without = |name: &str| {
            Ok(IMPLEMENTED.into_iter().filter(|one| ![name, "NodeRestriction"].contains(one)).collect())
        };
        check(&[], &[], without(""));
        check(&[], &["Priority", "ResourceQuota"], without("Priority"));
        check(&["Prioritty"], &[], Err(PluginError::Unknown("Prioritty".into())));
        check(&["ResourceQuota"], &[], Err(PluginError::NotImplemented("ResourceQuota".into())));
    }
}
