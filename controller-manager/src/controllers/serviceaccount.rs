//! Gives every namespace its `default` service account.

use k8s_openapi::api::core::v1::ServiceAccount;
use keelson_client::cache::Event;
use kube::api::{Api, ObjectMeta, PostParams};

use crate::context::Context;
use crate::meta::ObjectKey;
use crate::pod_control::{is_code, is_namespace_terminating};
use crate::sync;

const NAME: &str = "default";

pub async fn run(context: Context) {
    let client = context.client("service-account-controller");
    let queue = context.queue("serviceaccount");
    let namespaces = context.informers().namespaces();
    let accounts = context.informers().service_accounts();
    sync::enqueue(&namespaces, &queue);
    let to_queue = queue.clone();
    accounts.subscribe(move |event| {
        if let Event::Deleted(account) = event
            && account.name == NAME
        {
            to_queue.add(ObjectKey::new("", &account.namespace));
        }
    });
    namespaces.wait_synced().await;
    accounts.wait_synced().await;
    sync::run(&queue, 1, |key| {
        let (client, namespaces, accounts) = (&client, &namespaces, &accounts);
        async move {
            let wanted = namespaces.get("", &key.name).is_some_and(|namespace| !namespace.meta.deleting);
            if !wanted || accounts.get(&key.name, NAME).is_some() {
                return Ok(None);
            }
            let api: Api<ServiceAccount> = Api::namespaced(client.clone(), &key.name);
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let account = ServiceAccount { metadata, ..ServiceAccount::default() };
            match api.create(&PostParams::default(), &account).await {
                Err(error) if !(is_code(&error, 409) || is_namespace_terminating(&error)) => {
                    Err(error.into())
                }
                _ => Ok(None),
            }
        }
    })
    .await;
}
