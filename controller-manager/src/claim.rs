//! Adoption and release: which of the observed objects a controller owns, takes, or lets go.

use std::sync::Arc;

use keelson_objects::labels::Selector;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::meta::{HasMeta, Meta};

/// The owner on whose behalf is claimed.
pub struct Claimant<'a> {
    pub api_version: &'static str,
    pub kind: &'static str,
    pub meta: &'a Meta,
    pub selector: &'a Selector,
}

/// What to do with one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    Keep,
    Adopt,
    Release,
    Ignore,
}

impl Claimant<'_> {
    /// Pure. `eligible` says whether an orphan may be taken at all.
    #[must_use]
    pub fn decide(&self, object: &Meta, eligible: bool) -> Claim {
        let matches = self.selector.matches(&object.labels);
        match &object.controller {
            Some(controller) if *controller.uid != *self.meta.uid => Claim::Ignore,
            Some(_) if matches => Claim::Keep,
            Some(_) if self.meta.deleting => Claim::Ignore,
            Some(_) => Claim::Release,
            None if self.meta.deleting || object.deleting || !matches || !eligible => Claim::Ignore,
            None => Claim::Adopt,
        }
    }

    fn adoption(&self, object: &Meta) -> Value {
        json!({"metadata": {"uid": object.uid, "ownerReferences": [{
            "apiVersion": self.api_version, "kind": self.kind, "name": self.meta.name, "uid": self.meta.uid,
            "controller": true, "blockOwnerDeletion": true,
        }]}})
    }

    fn release(&self, object: &Meta) -> Value {
        json!({"metadata": {"uid": object.uid, "ownerReferences": [{"$patch": "delete", "uid": self.meta.uid}]}})
    }

    /// Decides on all of `observed`, carries adoptions and releases out, and gives what is owned afterwards.
    ///
    /// `O` is the owner's kind, read live before the first adoption: a cache may show an owner that is gone.
    ///
    /// # Errors
    /// A request failed, or the owner is another one than the cache shows.
    pub async fn claim<O, K, P>(
        &self,
        client: &Client,
        observed: Vec<Arc<P>>,
        eligible: impl Fn(&P) -> bool,
    ) -> Result<Vec<Arc<P>>, kube::Error>
    where
        O: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
        P: HasMeta,
    {
        let mut owned = Vec::with_capacity(observed.len());
        let mut checked = false;
        let api: Api<K> = Api::namespaced(client.clone(), &self.meta.namespace);
        for object in observed {
            let meta = object.meta();
            let patch = match self.decide(meta, eligible(&object)) {
                Claim::Ignore => continue,
                Claim::Keep => {
                    owned.push(object);
                    continue;
                }
                Claim::Adopt => {
                    if !checked {
                        self.check_live::<O>(client).await?;
                        checked = true;
                    }
                    self.adoption(meta)
                }
                Claim::Release => self.release(meta),
            };
            let adopted = meta.controller.is_none();
            match api.patch_metadata(&meta.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) if adopted => owned.push(object),
                Ok(_) => {}
                // It is gone, or another object of its name has come.
                Err(kube::Error::Api(status)) if status.code == 404 || (!adopted && status.code == 422) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(owned)
    }

    async fn check_live<O>(&self, client: &Client) -> Result<(), kube::Error>
    where
        O: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<O> = Api::namespaced(client.clone(), &self.meta.namespace);
        let live = api.get_metadata(&self.meta.name).await?;
        let live = Meta::of(&live.metadata);
        if live.uid == self.meta.uid && !live.deleting {
            return Ok(());
        }
        let message = format!(
            "original {} {}/{} is gone or being deleted: got uid {}, wanted {}",
            self.kind, self.meta.namespace, self.meta.name, live.uid, self.meta.uid
        );
        Err(kube::Error::Api(kube::core::Status::failure(&message, "Conflict").with_code(409).boxed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Controller;

    #[test]
    fn who_owns_what() {
        #[track_caller]
        fn check(
            owner_deleting: bool,
            controller: Option<&str>,
            matching: bool,
            deleting: bool,
            expected: Claim,
        ) {
            let labels = [("app".to_owned(), "a".to_owned())].into();
            let selector = Selector::from_map(&labels);
            let meta = Meta { uid: "me".into(), deleting: owner_deleting, ..Meta::default() };
            let claimant =
                Claimant { api_version: "apps/v1", kind: "ReplicaSet", meta: &meta, selector: &selector };
            let controller = controller.map(|uid| Controller {
                api_version: "apps/v1".into(),
                kind: "ReplicaSet".into(),
                name: "x".into(),
                uid: uid.into(),
            });
            let labels = if matching { labels } else { [].into() };
            let object = Meta { labels, controller, deleting, ..Meta::default() };
            assert_eq!(claimant.decide(&object, true), expected);
            if expected == Claim::Adopt {
                assert_eq!(claimant.decide(&object, false), Claim::Ignore);
            }
        }
        check(false, Some("me"), true, false, Claim::Keep);
        check(true, Some("me"), true, true, Claim::Keep);
        check(false, Some("me"), false, false, Claim::Release);
        check(true, Some("me"), false, false, Claim::Ignore);
        check(false, Some("other"), true, false, Claim::Ignore);
        check(false, None, true, false, Claim::Adopt);
        check(false, None, true, true, Claim::Ignore);
        check(true, None, true, false, Claim::Ignore);
        check(false, None, false, false, Claim::Ignore);
    }
}
