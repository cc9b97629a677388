//! The built-in kinds: one row for each, naming its Rust type. Which of them are served is the registry's decision.

use k8s_openapi::{ListableResource, Resource};
use schemars::{JsonSchema, Schema, SchemaGenerator};

/// A built-in kind and how to generate its JSON Schema.
pub(crate) struct BuiltinKind {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    /// `PodList`, if there are lists of the kind.
    pub list_kind: Option<&'static str>,
    /// The OpenAPI definition, `io.k8s.api.core.v1.Pod`.
    pub definition: fn() -> std::borrow::Cow<'static, str>,
    pub generate: fn(&mut SchemaGenerator) -> Schema,
}

const fn kind<T: Resource + JsonSchema>() -> BuiltinKind {
    BuiltinKind {
        group: T::GROUP,
        version: T::VERSION,
        kind: T::KIND,
        list_kind: None,
        definition: T::schema_name,
        generate: |generator| generator.subschema_for::<T>(),
    }
}

const fn listed<T: ListableResource + JsonSchema>() -> BuiltinKind {
    BuiltinKind { list_kind: Some(T::LIST_KIND), ..kind::<T>() }
}

macro_rules! kinds {
    ($($module:path { $($row:ident $kind:ident,)* })*) => {
        &[$($({ use $module as module; $row::<module::$kind>() },)*)*]
    };
}

pub(crate) const KINDS: &[BuiltinKind] = kinds! {
    k8s_openapi::api::admissionregistration::v1 {
        listed MutatingAdmissionPolicy,
        listed MutatingAdmissionPolicyBinding,
        listed MutatingWebhookConfiguration,
        listed ValidatingAdmissionPolicy,
        listed ValidatingAdmissionPolicyBinding,
        listed ValidatingWebhookConfiguration,
    }
    k8s_openapi::api::admissionregistration::v1beta1 {
        listed MutatingAdmissionPolicy,
        listed MutatingAdmissionPolicyBinding,
    }
    k8s_openapi::api::apps::v1 {
        listed ControllerRevision,
        listed DaemonSet,
        listed Deployment,
        listed ReplicaSet,
        listed StatefulSet,
    }
    k8s_openapi::api::authentication::v1 {
        kind SelfSubjectReview,
        kind TokenRequest,
        kind TokenReview,
    }
    k8s_openapi::api::authorization::v1 {
        kind LocalSubjectAccessReview,
        kind SelfSubjectAccessReview,
        kind SelfSubjectRulesReview,
        kind SubjectAccessReview,
    }
    k8s_openapi::api::autoscaling::v1 {
        listed HorizontalPodAutoscaler,
        kind Scale,
    }
    k8s_openapi::api::autoscaling::v2 {
        listed HorizontalPodAutoscaler,
    }
    k8s_openapi::api::batch::v1 {
        listed CronJob,
        listed Job,
    }
    k8s_openapi::api::certificates::v1 {
        listed CertificateSigningRequest,
    }
    k8s_openapi::api::certificates::v1beta1 {
        listed ClusterTrustBundle,
        listed PodCertificateRequest,
    }
    k8s_openapi::api::coordination::v1 {
        listed Lease,
    }
    k8s_openapi::api::coordination::v1beta1 {
        listed LeaseCandidate,
    }
    k8s_openapi::api::core::v1 {
        kind Binding,
        listed ComponentStatus,
        listed ConfigMap,
        listed Endpoints,
        listed Event,
        listed LimitRange,
        listed Namespace,
        listed Node,
        listed PersistentVolume,
        listed PersistentVolumeClaim,
        listed Pod,
        listed PodTemplate,
        listed ReplicationController,
        listed ResourceQuota,
        listed Secret,
        listed Service,
        listed ServiceAccount,
    }
    k8s_openapi::api::discovery::v1 {
        listed EndpointSlice,
    }
    k8s_openapi::api::events::v1 {
        listed Event,
    }
    k8s_openapi::api::flowcontrol::v1 {
        listed FlowSchema,
        listed PriorityLevelConfiguration,
    }
    k8s_openapi::api::networking::v1 {
        listed Ingress,
        listed IngressClass,
        listed IPAddress,
        listed NetworkPolicy,
        listed ServiceCIDR,
    }
    k8s_openapi::api::networking::v1beta1 {
        listed IPAddress,
        listed ServiceCIDR,
    }
    k8s_openapi::api::node::v1 {
        listed RuntimeClass,
    }
    k8s_openapi::api::policy::v1 {
        kind Eviction,
        listed PodDisruptionBudget,
    }
    k8s_openapi::api::rbac::v1 {
        listed ClusterRole,
        listed ClusterRoleBinding,
        listed Role,
        listed RoleBinding,
    }
    k8s_openapi::api::resource::v1 {
        listed DeviceClass,
        listed ResourceClaim,
        listed ResourceClaimTemplate,
        listed ResourceSlice,
    }
    k8s_openapi::api::resource::v1beta1 {
        listed DeviceClass,
        listed ResourceClaim,
        listed ResourceClaimTemplate,
        listed ResourceSlice,
    }
    k8s_openapi::api::resource::v1beta2 {
        listed DeviceClass,
        listed DeviceTaintRule,
        listed ResourceClaim,
        listed ResourceClaimTemplate,
        listed ResourceSlice,
    }
    k8s_openapi::api::scheduling::v1 {
        listed PriorityClass,
    }
    k8s_openapi::api::storage::v1 {
        listed CSIDriver,
        listed CSINode,
        listed CSIStorageCapacity,
        listed StorageClass,
        listed VolumeAttachment,
        listed VolumeAttributesClass,
    }
    k8s_openapi::api::storage::v1beta1 {
        listed VolumeAttributesClass,
    }
    k8s_openapi::api::storagemigration::v1beta1 {
        listed StorageVersionMigration,
    }
    k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 {
        listed CustomResourceDefinition,
    }
    k8s_openapi::apimachinery::pkg::apis::meta::v1 {
        kind APIGroup,
        kind APIVersions,
        kind Status,
        kind APIGroupList,
        kind APIResourceList,
    }
    k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 {
        listed APIService,
    }
};

/// Types that no kind above refers to, or that belong to every group: the bodies of meta requests and answers.
pub(crate) fn generate_meta(generator: &mut SchemaGenerator) {
    use k8s_openapi::apimachinery::pkg::{apis::meta::v1 as meta, runtime::RawExtension, version::Info};
    generator.subschema_for::<meta::DeleteOptions>();
    generator.subschema_for::<meta::Condition>();
    generator.subschema_for::<meta::ListMeta>();
    generator.subschema_for::<meta::Patch>();
    generator.subschema_for::<meta::WatchEvent<RawExtension>>();
    generator.subschema_for::<Info>();
}
