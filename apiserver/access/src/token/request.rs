//! The `serviceaccounts/token` subresource: from a `TokenRequest` to the same object with a token.
//!
//! Authorization and admission have happened; this validates, looks the account and the bound
//! object up in the observed state, and signs.

use serde_json::{Value, json};

use super::claims::{Bound, Reference};
use super::{Tokens, now};
use crate::observed::{Freshness, Resource};
use crate::state::{State, text, texts};
use crate::status::{Details, Status};

const DEFAULT_EXPIRATION: i64 = 3600;
const MIN_EXPIRATION: i64 = 600;

/// Answers a `TokenRequest` for the service account `namespace`/`name`.
///
/// # Errors
/// The [`Status`] upstream gives.
pub async fn create(
    tokens: &Tokens,
    state: &State,
    freshness: &dyn Freshness,
    (namespace, name): (&str, &str),
    request: &Value,
) -> Result<Value, Status> {
    let spec = &request["spec"];
    let metadata = &request["metadata"];
    for (field, given, expected) in
        [("name", &metadata["name"], name), ("namespace", &metadata["namespace"], namespace)]
    {
        if !text(given).is_empty() && text(given) != expected {
            return Err(Status::bad_request(format!(
                "the {field} of the provided object does not match the {field} sent on the request"
            )));
        }
    }
    let seconds = expiration(&spec["expirationSeconds"], tokens.max_expiration())?;
    let account = match state.service_account(namespace, name) {
        Some(account) => account,
        None => {
            freshness.catch_up(Resource::ServiceAccounts).await;
            state
                .service_account(namespace, name)
                .ok_or_else(|| Status::not_found("", "serviceaccounts", name))?
        }
    };
    let mut bound = Bound {
        namespace: namespace.into(),
        serviceaccount: Reference { name: name.into(), uid: account.uid.to_string() },
        ..Bound::default()
    };
    if spec["boundObjectRef"].is_object() {
        bind(&mut bound, state, freshness, &spec["boundObjectRef"]).await?;
    }
    let mut audiences: Vec<String> = texts(&spec["audiences"]).map(str::to_owned).collect();
    if audiences.is_empty() {
        audiences = tokens.audiences().to_vec();
    }
    let now = now();
    let token = tokens
        .issue(bound, audiences.clone(), now, seconds)
        .map_err(|error| Status::internal(format!("failed to generate token: {error}")))?;
    let mut answer = json!({
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": timestamp(now)},
        "spec": {"audiences": audiences, "expirationSeconds": seconds},
        "status": {"token": token, "expirationTimestamp": timestamp(now.saturating_add(seconds))},
    });
    answer["spec"]["boundObjectRef"] = spec["boundObjectRef"].clone();
    Ok(answer)
}

fn expiration(requested: &Value, max: Option<i64>) -> Result<i64, Status> {
    let seconds = requested.as_i64().unwrap_or(DEFAULT_EXPIRATION);
    let problem = if seconds < MIN_EXPIRATION {
        "may not specify a duration less than 10 minutes"
    } else if seconds > 1 << 32 {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(max.map_or(seconds, |max| seconds.min(max)));
    };
    let message = format!("Invalid value: {seconds}: {problem}");
    Err(Status {
        code: 422,
        reason: "Invalid",
        message: format!(
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: {message}"
        ),
        details: Some(Box::new(Details {
            group: "authentication.k8s.io".into(),
            kind: "TokenRequest".into(),
            ..Details::default()
        })),
    }
    .with_cause("FieldValueInvalid", &message, "spec.expirationSeconds"))
}

async fn bind(
    bound: &mut Bound,
    state: &State,
    freshness: &dyn Freshness,
    reference: &Value,
) -> Result<(), Status> {
    let namespace = bound.namespace.clone();
    let [kind, version, name, uid] =
        ["kind", "apiVersion", "name", "uid"].map(|field| text(&reference[field]));
    let bad_kind = || {
        Status::bad_request(format!("cannot bind token for serviceaccount to type {version}, Kind={kind}"))
    };
    let (resource, plural) = match (version, kind) {
        ("v1", "Pod") => (Resource::Pods, "pods"),
        ("v1", "Secret") => (Resource::Secrets, "secrets"),
        ("v1", "Node") => (Resource::Nodes, "nodes"),
        _ => return Err(bad_kind()),
    };
    let look_up = |bound: &mut Bound| -> Result<Option<Reference>, Status> {
        let found = |uid: &str| Reference { name: name.into(), uid: uid.into() };
        Ok(match resource {
            Resource::Pods => match state.pod(&namespace, name) {
                None => None,
                Some(pod) if *pod.service_account != *bound.serviceaccount.name => {
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                        bound.serviceaccount.name
                    )));
                }
                Some(pod) => {
                    let reference = found(&pod.uid);
                    bound.pod = Some(reference.clone());
                    bound.node = (!pod.node.is_empty()).then(|| Reference {
                        name: pod.node.to_string(),
                        uid: state.node_uid(&pod.node).unwrap_or_default().into(),
                    });
                    Some(reference)
                }
            },
            Resource::Secrets => state.secret(&namespace, name).map(|secret| {
                bound.secret = Some(found(&secret.uid));
                found(&secret.uid)
            }),
            _ => state.node_uid(name).map(|uid| {
                bound.node = Some(found(&uid));
                found(&uid)
            }),
        })
    };
    let found = match look_up(bound)? {
        Some(found) => found,
        None => {
            freshness.catch_up(resource).await;
            look_up(bound)?.ok_or_else(|| Status::not_found("", plural, name))?
        }
    };
    if !uid.is_empty() && uid != found.uid {
        return Err(Status::conflict(
            "",
            plural,
            name,
            format_args!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ),
        ));
    }
    Ok(())
}

fn timestamp(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::{AlwaysFresh, Event, Observer};
    use crate::token::tests::{RSA_KEY, tokens};

    fn state() -> State {
        let state = State::default();
        for (resource, object) in [
            (Resource::ServiceAccounts, json!({"metadata": {"namespace": "ns", "name": "sa", "uid": "s"}})),
            (Resource::Nodes, json!({"metadata": {"name": "node", "uid": "n"}})),
            (Resource::Secrets, json!({"metadata": {"namespace": "ns", "name": "secret", "uid": "x"}})),
            (
                Resource::Pods,
                json!({"metadata": {"namespace": "ns", "name": "pod", "uid": "p"},
                "spec": {"serviceAccountName": "sa", "nodeName": "node"}}),
            ),
            (
                Resource::Pods,
                json!({"metadata": {"namespace": "ns", "name": "other", "uid": "o"},
                "spec": {"serviceAccountName": "default"}}),
            ),
        ] {
            state.observe(resource, Event::Upsert(&object));
        }
        state
    }

    fn check(spec: Value, expected: Result<Bound, (u16, &str)>) {
        let tokens = tokens(&RSA_KEY, &[&RSA_KEY]);
        let request = json!({"spec": spec});
        let answer =
            futures::FutureExt::now_or_never(create(&tokens, &state(), &AlwaysFresh, ("ns", "sa"), &request))
                .unwrap();
        match (answer, expected) {
            (Ok(answer), Ok(bound)) => {
                let claims = tokens.verify(text(&answer["status"]["token"])).unwrap().unwrap();
                assert_eq!(claims.bound.as_ref(), Some(&bound));
                assert_eq!(json!(claims.aud), answer["spec"]["audiences"]);
                let seconds = claims.exp.unwrap() - claims.iat.unwrap();
                assert_eq!(json!(seconds), answer["spec"]["expirationSeconds"]);
            }
            (Err(status), Err((code, message))) => {
                assert_eq!(status.code, code);
                assert!(status.message.contains(message), "{}", status.message);
            }
            (answer, expected) => panic!("{spec}: {answer:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn binds_tokens_as_asked() {
        let reference = |name: &str, uid: &str| Some(Reference { name: name.into(), uid: uid.into() });
        let account = Bound {
            namespace: "ns".into(),
            serviceaccount: reference("sa", "s").unwrap(),
            ..Bound::default()
        };
        let object = |kind: &str, name: &str, uid: &str| json!({"boundObjectRef": {"kind": kind, "apiVersion": "v1", "name": name, "uid": uid}});
        check(json!({}), Ok(account.clone()));
        check(json!({"audiences": ["vault"], "expirationSeconds": 600}), Ok(account.clone()));
        check(json!({"expirationSeconds": 599}), Err((422, "less than 10 minutes")));
        check(
            object("Pod", "pod", "p"),
            Ok(Bound { pod: reference("pod", "p"), node: reference("node", "n"), ..account.clone() }),
        );
        check(
            object("Pod", "pod", ""),
            Ok(Bound { pod: reference("pod", "p"), node: reference("node", "n"), ..account.clone() }),
        );
        check(object("Pod", "pod", "old"), Err((409, "does not match the UID in record")));
        check(object("Pod", "gone", "p"), Err((404, "pods \"gone\" not found")));
        check(object("Pod", "other", ""), Err((400, "different serviceaccount name")));
        check(
            object("Secret", "secret", "x"),
            Ok(Bound { secret: reference("secret", "x"), ..account.clone() }),
        );
        check(object("Node", "node", "n"), Ok(Bound { node: reference("node", "n"), ..account }));
        check(object("Service", "x", ""), Err((400, "cannot bind token")));
    }
}
