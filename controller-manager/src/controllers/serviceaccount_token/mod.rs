//! Fills in secrets of type `kubernetes.io/service-account-token` that people make for a service account, and
//! deletes them with the account. (Pods get bound tokens from the API server instead.)

mod signer;

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use keelson_client::cache::Event;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};

use self::signer::{Signer, Subject};
use crate::context::Context;
use crate::informers::TokenSecret;
use crate::meta::{Meta, ObjectKey};
use crate::pod_control::is_code;
use crate::sync::{self, Outcome, SyncError};

const UID: &str = "kubernetes.io/service-account.uid";

/// What a secret needs. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    /// Its account is gone, or another one has the name now.
    Deletion,
    Token,
}

fn need(secret: &TokenSecret, account: Option<&Meta>) -> Need {
    match account {
        _ if secret.account.is_empty() || secret.meta.deleting => Need::Nothing,
        None => Need::Deletion,
        Some(account) if !secret.account_uid.is_empty() && secret.account_uid != account.uid => {
            Need::Deletion
        }
        Some(_) if secret.complete && !secret.account_uid.is_empty() => Need::Nothing,
        Some(_) => Need::Token,
    }
}

struct Tokens {
    client: Client,
    signer: Signer,
    root_ca: Option<String>,
}

pub async fn run(context: Context) {
    let Some(key) = &context.settings().service_account_key else {
        tracing::info!("no tokens for secrets: --service-account-private-key-file is not given");
        return;
    };
    let signer = match Signer::parse(key) {
        Ok(signer) => signer,
        Err(error) => {
            tracing::error!("no tokens for secrets: {error}");
            return;
        }
    };
    // Upstream too does this as the process's own user: nobody else may write everybody's secrets.
    let tokens = Tokens { client: context.root(), signer, root_ca: context.settings().root_ca.clone() };
    let queue = context.queue("serviceaccount_tokens_secret");
    let secrets = context.informers().token_secrets();
    let accounts = context.informers().service_accounts();
    sync::enqueue(&secrets, &queue);
    let (of_account, to_queue) = (secrets.clone(), queue.clone());
    accounts.subscribe(move |event| {
        let account = match event {
            Event::Applied { old: None, new } => new,
            Event::Deleted(last) => last,
            _ => return,
        };
        for secret in of_account.list_in(&account.namespace).iter().filter(|s| s.account == account.name) {
            to_queue.add(secret.meta.key());
        }
    });
    secrets.wait_synced().await;
    accounts.wait_synced().await;
    sync::run(&queue, context.workers("serviceaccount-token"), |key| {
        let (secrets, accounts, tokens) = (&secrets, &accounts, &tokens);
        async move {
            let Some(secret) = secrets.get(&key.namespace, &key.name) else { return Ok(None) };
            let account = accounts.get(&key.namespace, &secret.account);
            match (need(&secret, account.as_deref()), account) {
                (Need::Token, Some(account)) => tokens.fill(&key, &account).await,
                (Need::Deletion, _) => tokens.delete(&key, &secret).await,
                _ => Ok(None),
            }
        }
    })
    .await;
}

impl Tokens {
    async fn fill(&self, key: &ObjectKey, account: &Meta) -> Outcome {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &key.namespace);
        let Some(mut secret) = api.get_opt(&key.name).await? else { return Ok(None) };
        let data: &mut BTreeMap<String, ByteString> = secret.data.get_or_insert_default();
        if !data.contains_key("token") {
            let subject = Subject {
                namespace: &key.namespace,
                account: &account.name,
                account_uid: &account.uid,
                secret: &key.name,
            };
            let token = self.signer.sign(&subject).map_err(|error| SyncError::Invalid(error.to_string()))?;
            data.insert("token".to_owned(), ByteString(token.into_bytes()));
        }
        data.insert("namespace".to_owned(), ByteString(key.namespace.as_bytes().to_vec()));
        if let Some(ca) = &self.root_ca {
            data.insert("ca.crt".to_owned(), ByteString(ca.clone().into_bytes()));
        }
        let annotations = secret.metadata.annotations.get_or_insert_default();
        annotations.insert(UID.to_owned(), account.uid.clone());
        api.replace(&key.name, &PostParams::default(), &secret).await?;
        Ok(None)
    }

    async fn delete(&self, key: &ObjectKey, secret: &TokenSecret) -> Outcome {
        // The caches of secrets and accounts do not go in step: ask before destroying.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &key.namespace);
        let live = accounts.get_opt(&secret.account).await?.map(|account| Meta::of(&account.metadata));
        if need(secret, live.as_ref()) != Need::Deletion {
            return Ok(None);
        }
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &key.namespace);
        let exactly = Preconditions {
            uid: Some(secret.meta.uid.clone()),
            resource_version: Some(secret.meta.resource_version.clone()),
        };
        match api.delete(&key.name, &DeleteParams::default().preconditions(exactly)).await {
            Err(error) if !is_code(&error, 404) => Err(error.into()),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_secrets_need() {
        let account = Meta { uid: "u".into(), ..Meta::default() };
        let check = |name: &str, uid: &str, complete: bool, account: Option<&Meta>, expected: Need| {
            let secret = TokenSecret {
                meta: Meta::default(),
                account: name.into(),
                account_uid: uid.into(),
                complete,
            };
            assert_eq!(need(&secret, account), expected);
        };
        check("sa", "", false, Some(&account), Need::Token);
        check("sa", "u", true, Some(&account), Need::Nothing);
        check("sa", "u", false, Some(&account), Need::Token);
        check("sa", "other", true, Some(&account), Need::Deletion);
        check("sa", "u", true, None, Need::Deletion);
        check("", "", false, None, Need::Nothing);
    }
}
