//! Kinds that are answered and never stored: who someone is, and what they may do.

use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    fields::Fields,
    kind::Spec,
};

const AUTHENTICATION: Spec = Spec { group: "authentication.k8s.io", ..Spec::VIRTUAL };
const AUTHORIZATION: Spec = Spec { group: "authorization.k8s.io", ..Spec::VIRTUAL };

pub(crate) const TOKEN_REVIEW: Spec =
    Spec { kind: "TokenReview", plural: "tokenreviews", singular: "tokenreview", ..AUTHENTICATION };

pub(crate) const SELF_SUBJECT_REVIEW: Spec = Spec {
    kind: "SelfSubjectReview",
    plural: "selfsubjectreviews",
    singular: "selfsubjectreview",
    ..AUTHENTICATION
};

pub(crate) const SUBJECT_ACCESS_REVIEW: Spec = Spec {
    kind: "SubjectAccessReview",
    plural: "subjectaccessreviews",
    singular: "subjectaccessreview",
    strategy: &AccessReview { of: Whom::Someone },
    ..AUTHORIZATION
};

pub(crate) const LOCAL_SUBJECT_ACCESS_REVIEW: Spec = Spec {
    kind: "LocalSubjectAccessReview",
    plural: "localsubjectaccessreviews",
    singular: "localsubjectaccessreview",
    namespaced: true,
    strategy: &AccessReview { of: Whom::SomeoneHere },
    ..AUTHORIZATION
};

pub(crate) const SELF_SUBJECT_ACCESS_REVIEW: Spec = Spec {
    kind: "SelfSubjectAccessReview",
    plural: "selfsubjectaccessreviews",
    singular: "selfsubjectaccessreview",
    strategy: &AccessReview { of: Whom::Oneself },
    ..AUTHORIZATION
};

pub(crate) const SELF_SUBJECT_RULES_REVIEW: Spec = Spec {
    kind: "SelfSubjectRulesReview",
    plural: "selfsubjectrulesreviews",
    singular: "selfsubjectrulesreview",
    ..AUTHORIZATION
};

#[derive(PartialEq, Eq)]
enum Whom {
    Someone,
    SomeoneHere,
    Oneself,
}

struct AccessReview {
    of: Whom,
}

impl Strategy for AccessReview {
    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (spec, path) = (object.at("spec"), Path::new("spec"));
        let (resource, other) = (spec.has("resourceAttributes"), spec.has("nonResourceAttributes"));
        if resource && other {
            causes.invalid(
                &path.child("nonResourceAttributes"),
                spec.at("nonResourceAttributes").clone(),
                "cannot be specified in combination with resourceAttributes",
            );
        }
        if !resource && !other {
            causes.invalid(
                &path.child("resourceAttributes"),
                spec.at("resourceAttributes").clone(),
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            );
        }
        if self.of != Whom::Oneself && spec.text("user").is_empty() && spec.list("groups").is_empty() {
            causes.invalid(
                &path.child("user"),
                spec.text("user"),
                "at least one of user or group must be specified",
            );
        }
        if self.of == Whom::SomeoneHere {
            let namespace = object.at("metadata").text("namespace");
            let asked = spec.at("resourceAttributes").text("namespace");
            if resource && asked != namespace {
                causes.invalid(
                    &path.child("resourceAttributes").child("namespace"),
                    asked,
                    "must match metadata.namespace",
                );
            }
            if other {
                causes.invalid(
                    &path.child("nonResourceAttributes"),
                    spec.at("nonResourceAttributes").clone(),
                    "disallowed on this kind of request",
                );
            }
        }
        causes.into_vec()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reviews() {
        fn check(kind: Spec, object: Value, expected: &[&str]) {
            let fields: Vec<String> =
                kind.kind().validate_create(&object).into_iter().map(|c| c.field).collect();
            assert_eq!(fields, expected);
        }
        check(SELF_SUBJECT_REVIEW, json!({}), &[]);
        check(SELF_SUBJECT_ACCESS_REVIEW, json!({"spec": {"resourceAttributes": {}}}), &[]);
        check(SUBJECT_ACCESS_REVIEW, json!({"spec": {}}), &["spec.resourceAttributes", "spec.user"]);
        check(
            LOCAL_SUBJECT_ACCESS_REVIEW,
            json!({"metadata": {"namespace": "a"}, "spec": {"user": "u", "resourceAttributes": {"namespace": "b"}}}),
            &["spec.resourceAttributes.namespace"],
        );
    }
}
