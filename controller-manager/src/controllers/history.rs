//! ControllerRevisions: the templates that a DaemonSet or StatefulSet has had, in the form that `kubectl rollout
//! history` and `undo` read. What to do is decided by [`plan`] and [`obsolete`], which are pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use keelson_objects::{hashes, owners};
use kube::Client;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use serde_json::{Value, json};

use crate::meta::{Compact, Meta};
use crate::pod_control::is_code;
use crate::sync::SyncError;

/// On pods: what they were made from.
pub const REVISION_HASH: &str = "controller-revision-hash";

/// Whose revisions these are.
pub struct Parent<'a> {
    pub client: &'a Client,
    pub api_version: &'static str,
    pub kind: &'static str,
    /// The label of revisions that carries their hash.
    pub hash_label: &'static str,
    pub meta: &'a Meta,
    /// The parent's own.
    pub metadata: &'a ObjectMeta,
    pub template: &'a PodTemplateSpec,
    pub collisions: Option<i32>,
}

/// All revisions of a parent.
pub struct Revisions {
    /// Of the template as it is.
    pub current: ControllerRevision,
    /// Oldest first.
    pub others: Vec<ControllerRevision>,
}

/// The strategic merge patch that gives a parent this template.
#[must_use]
pub fn patch(template: &PodTemplateSpec) -> Value {
    // API types always serialize: their maps have string keys.
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The template that [`patch`] was made of.
#[must_use]
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

#[must_use]
pub fn name(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// None has this template: a new one gets this number.
    Create(i64),
    /// This one has it and is the newest.
    Keep(usize),
    /// This older one has it and gets this number: the parent was rolled back.
    Renumber(usize, i64),
}

/// `revisions` are sorted by their numbers.
#[must_use]
pub fn plan(revisions: &[ControllerRevision], patch: &Value) -> Plan {
    let same = |revision: &ControllerRevision| {
        let template = revision.data.as_ref().and_then(|data| data.0.pointer("/spec/template"));
        template.is_some() && template == patch.pointer("/spec/template")
    };
    let last = revisions.last().map_or(0, |revision| revision.revision);
    match revisions.iter().rposition(same) {
        None => Plan::Create(last + 1),
        Some(index) if revisions[index].revision == last => Plan::Keep(index),
        Some(index) => Plan::Renumber(index, last + 1),
    }
}

/// The first `excess` of the revisions, without those in use.
#[must_use]
pub fn obsolete<'a>(
    revisions: impl IntoIterator<Item = &'a ControllerRevision>,
    excess: usize,
    in_use: impl Fn(&ControllerRevision) -> bool,
) -> Vec<&'a str> {
    revisions.into_iter().filter(|revision| !in_use(revision)).take(excess).map(name).collect()
}

/// The history limit, 10 unless the parent says otherwise.
#[must_use]
pub fn limit(of_spec: Option<i32>) -> usize {
    usize::try_from(of_spec.unwrap_or(10)).unwrap_or(0)
}

impl Parent<'_> {
    fn api(&self) -> Api<ControllerRevision> {
        Api::namespaced(self.client.clone(), &self.meta.namespace)
    }

    /// Makes sure that there is a revision of the template, with the highest number. `None`: another template has
    /// the same hash, and the parent's collisions are to be counted on.
    ///
    /// # Errors
    /// A request failed; a conflict means that the cache was behind.
    pub async fn reconcile(
        &self,
        owned: &[Arc<Compact<ControllerRevision>>],
    ) -> Result<Option<Revisions>, SyncError> {
        let mut revisions: Vec<ControllerRevision> = owned.iter().map(|revision| revision.object()).collect();
        revisions.sort_by(|a, b| (a.revision, name(a)).cmp(&(b.revision, name(b))));
        let patch = patch(self.template);
        let current = match plan(&revisions, &patch) {
            Plan::Keep(index) => revisions.remove(index),
            Plan::Renumber(index, number) => {
                let mut revision = revisions.remove(index);
                revision.revision = number;
                let name = name(&revision).to_owned();
                self.api().replace(&name, &PostParams::default(), &revision).await?
            }
            Plan::Create(number) => match self.create(&patch, number).await? {
                Some(revision) => revision,
                None => return Ok(None),
            },
        };
        Ok(Some(Revisions { current, others: revisions }))
    }

    async fn create(&self, patch: &Value, number: i64) -> Result<Option<ControllerRevision>, SyncError> {
        let revision = self.revision(patch, number);
        match self.api().create(&PostParams::default(), &revision).await {
            Ok(made) => Ok(Some(made)),
            Err(error) if is_code(&error, 409) => {
                let live = self.api().get(name(&revision)).await?;
                let ours = owners::is_controlled_by(&live.metadata, &self.meta.uid);
                let same = matches!(plan(std::slice::from_ref(&live), patch), Plan::Keep(_));
                Ok(Some(live).filter(|_| ours && same))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn revision(&self, patch: &Value, number: i64) -> ControllerRevision {
        let hash = hashes::controller_revision_hash(patch, self.collisions);
        let mut labels =
            self.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
        labels.insert(self.hash_label.to_owned(), hash.clone());
        let owner = owners::new_controller_ref(self.api_version, self.kind, &self.meta.name, &self.meta.uid);
        // Names of revisions must be names of objects; the parent's may be as long as 253 letters.
        let prefix: String = self.meta.name.chars().take(223).collect();
        ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{prefix}-{hash}")),
                namespace: Some(self.meta.namespace.clone()),
                labels: Some(labels),
                annotations: self.metadata.annotations.clone(),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(patch.clone())),
            revision: number,
        }
    }

    /// Deletes revisions that are kept no longer.
    ///
    /// # Errors
    /// A request failed. One that is gone is no error.
    pub async fn remove(&self, names: &[&str]) -> Result<(), SyncError> {
        for name in names {
            match self.api().delete(name, &DeleteParams::default()).await {
                Err(error) if !is_code(&error, 404) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": image}]}}))
        .unwrap()
    }

    fn revision(number: i64, image: &str) -> ControllerRevision {
        let metadata = ObjectMeta { name: Some(format!("r{number}")), ..ObjectMeta::default() };
        ControllerRevision { metadata, data: Some(RawExtension(patch(&template(image)))), revision: number }
    }

    #[test]
    fn which_revision() {
        #[track_caller]
        fn check(existing: &[(i64, &str)], image: &str, expected: Plan) {
            let revisions: Vec<_> = existing.iter().map(|(number, image)| revision(*number, image)).collect();
            assert_eq!(plan(&revisions, &patch(&template(image))), expected);
        }
        check(&[], "a", Plan::Create(1));
        check(&[(1, "a")], "a", Plan::Keep(0));
        check(&[(1, "a"), (4, "b")], "b", Plan::Keep(1));
        check(&[(1, "a"), (4, "b")], "a", Plan::Renumber(0, 5));
        check(&[(1, "a"), (4, "b")], "c", Plan::Create(5));
    }

    #[test]
    fn templates_come_back() {
        assert_eq!(patch(&template("a"))["spec"]["template"]["$patch"], "replace");
        assert_eq!(template_of(&revision(1, "a")), Some(template("a")));
    }

    #[test]
    fn what_is_kept() {
        let all = [revision(1, "a"), revision(2, "b"), revision(3, "c")];
        assert_eq!(obsolete(&all, 2, |revision| revision.revision == 1), ["r2", "r3"]);
        assert_eq!(obsolete(&all, 1, |_| false), ["r1"]);
        assert!(obsolete(&all, 0, |_| false).is_empty());
    }
}
