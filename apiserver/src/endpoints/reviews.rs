//! Kinds that are asked, not stored: reviews of tokens and of access, and the legacy `bindings`.

use keelson_access::{
    authz::{Attributes, Decision, Operator, Requirement, Rules},
    user::UserInfo,
};
use serde_json::{Value, json};

use super::{Call, binding};
use crate::{
    encoding,
    generic::{
        decode, metadata,
        selectors::{field_requirements, label_requirements},
    },
    http::body::Response,
    request::options::WriteOptions,
    status::Status,
};

pub async fn serve(call: &Call) -> Result<Response, Status> {
    if call.verb != "create" || !call.path.subresource.is_empty() {
        return Err(Status::method_not_allowed());
    }
    let resource = &call.served.kind.resource;
    if resource.plural == "bindings" {
        return binding::serve(call, "").await;
    }
    let options = WriteOptions::from_query(&call.query, "CreateOptions")?;
    let encoding = decode::encoding(&call.headers)?;
    let mut review =
        decode::object(&call.served, &call.body, encoding, options.field_validation, &call.warnings)?;
    if resource.namespaced {
        call.write(&options, "").settle_namespace(&mut review)?;
    }
    metadata::set(&mut review, "creationTimestamp", Value::Null);
    let answer = match resource.plural.as_ref() {
        "tokenreviews" => call.server.access.authentication.review(&review).await?,
        "selfsubjectreviews" => {
            review["status"] = json!({ "userInfo": call.user.to_json() });
            review
        }
        "selfsubjectrulesreviews" => rules(call, review)?,
        "selfsubjectaccessreviews" => {
            let user = call.user.clone();
            access(call, review, &user)?
        }
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            let user = subject(&review["spec"]);
            access(call, review, &user)?
        }
        _ => return Err(Status::method_not_allowed()),
    };
    let (representation, _) = call.representation()?;
    encoding::value_response(201, &answer, representation.media)
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_string)).collect()
}

/// The user whom a SubjectAccessReview names.
fn subject(spec: &Value) -> UserInfo {
    let extra = spec["extra"].as_object().into_iter().flatten();
    UserInfo {
        name: text(spec, "user").to_string(),
        uid: text(spec, "uid").to_string(),
        groups: strings(&spec["groups"]),
        extra: extra.map(|(key, values)| (key.to_lowercase(), strings(values))).collect(),
    }
}

fn access(call: &Call, mut review: Value, user: &UserInfo) -> Result<Value, Status> {
    let kind = call.served.kind;
    let causes = kind.validate_create(&review);
    if !causes.is_empty() {
        let causes = causes.into_iter().map(Into::into).collect();
        return Err(Status::invalid(call.served.qualified_kind(), "", causes));
    }
    let spec = &review["spec"];
    let resource = &spec["resourceAttributes"];
    let path = &spec["nonResourceAttributes"];
    let decision = if resource.is_object() {
        let fields = requirements(&resource["fieldSelector"], field_requirements);
        let labels = requirements(&resource["labelSelector"], label_requirements);
        call.server.access.authorizer.authorize(&Attributes {
            verb: text(resource, "verb"),
            namespace: text(resource, "namespace"),
            api_group: text(resource, "group"),
            api_version: text(resource, "version"),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            name: text(resource, "name"),
            resource_request: true,
            field_selector: &fields,
            label_selector: &labels,
            ..Attributes::of(user)
        })
    } else {
        call.server.access.authorizer.authorize(&Attributes {
            verb: text(path, "verb"),
            path: text(path, "path"),
            ..Attributes::of(user)
        })
    };
    let mut status = json!({ "allowed": decision.is_allowed() });
    if matches!(decision, Decision::Deny(_)) {
        status["denied"] = true.into();
    }
    if !decision.reason().is_empty() {
        status["reason"] = decision.reason().into();
    }
    review["status"] = status;
    Ok(review)
}

/// `FieldSelectorAttributes` and `LabelSelectorAttributes`: raw text or requirements.
fn requirements(selector: &Value, parse: fn(&str) -> Vec<Requirement>) -> Vec<Requirement> {
    let raw = text(selector, "rawSelector");
    if !raw.is_empty() {
        return parse(raw);
    }
    let listed = selector["requirements"].as_array().into_iter().flatten();
    listed
        .filter_map(|requirement| {
            let operator = match text(requirement, "operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return None,
            };
            Some(Requirement {
                key: text(requirement, "key").to_string(),
                operator,
                values: strings(&requirement["values"]),
            })
        })
        .collect()
}

fn rules(call: &Call, mut review: Value) -> Result<Value, Status> {
    let namespace = text(&review["spec"], "namespace");
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let mut rules = Rules::default();
    call.server.access.authorizer.rules(&call.user, namespace, &mut rules);
    let resource: Value = rules
        .resource
        .iter()
        .map(|rule| {
            let mut object = json!({
                "verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources,
            });
            if !rule.resource_names.is_empty() {
                object["resourceNames"] = json!(rule.resource_names);
            }
            object
        })
        .collect();
    let non_resource: Value = rules
        .non_resource
        .iter()
        .map(|rule| json!({ "verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls }))
        .collect();
    let mut status = json!({
        "resourceRules": resource, "nonResourceRules": non_resource, "incomplete": rules.incomplete,
    });
    if !rules.errors.is_empty() {
        status["evaluationError"] = rules.errors.join(", ").into();
    }
    review["status"] = status;
    Ok(review)
}
