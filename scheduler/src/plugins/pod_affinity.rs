//! Affinity and anti-affinity between pods: near those a pod wants, away from those it avoids, and
//! away from those that avoid it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PodAffinityTerm, WeightedPodAffinityTerm};
use keelson_objects::labels::Selector;

use crate::cache::NodeInfo;
use crate::framework::{Check, Cycle, Filter, MAX_SCORE, Score};
use crate::namespaces::Namespaces;
use crate::pod::PodInfo;
use crate::selector::PodSelector;

pub struct InterPodAffinity;

/// A term of `owner`, ready to be matched against pods.
struct Term<'a> {
    topology_key: &'a str,
    selector: PodSelector,
    /// Namespaces of the pods meant: those that are named, and those that are selected by their labels.
    named: Vec<&'a str>,
    selected: Option<Selector>,
    labels: &'a Namespaces,
}

impl<'a> Term<'a> {
    fn new(owner: &'a PodInfo, term: &'a PodAffinityTerm, labels: &'a Namespaces) -> Self {
        let mut selector = PodSelector::new(term.label_selector.as_ref());
        for key in term.match_label_keys.iter().flatten() {
            if let Some(value) = owner.label(key) {
                selector = selector.and_equals(key, value);
            }
        }
        let mut named: Vec<&str> = term.namespaces.iter().flatten().map(String::as_str).collect();
        // One that the API server would refuse selects nothing.
        let selected = term.namespace_selector.as_ref();
        let selected =
            selected.map(|s| Selector::from_label_selector(Some(s)).unwrap_or_else(|_| Selector::nothing()));
        if named.is_empty() && selected.is_none() {
            named.push(&owner.key.namespace);
        }
        Self { topology_key: &term.topology_key, selector, named, selected, labels }
    }

    fn matches(&self, pod: &PodInfo) -> bool {
        let namespace = &*pod.key.namespace;
        let is_meant = || {
            self.named.contains(&namespace)
                || self.selected.as_ref().is_some_and(|s| self.labels.is_selected(namespace, s))
        };
        self.selector.matches(pod) && is_meant()
    }
}

fn required_affinity(pod: &PodInfo) -> &[PodAffinityTerm] {
    let affinity = pod.wishes.affinity.as_ref().and_then(|a| a.pod_affinity.as_ref());
    affinity
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default()
}

fn required_anti_affinity(pod: &PodInfo) -> &[PodAffinityTerm] {
    let affinity = pod.wishes.affinity.as_ref().and_then(|a| a.pod_anti_affinity.as_ref());
    affinity
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default()
}

/// The domains of a topology that have a pod of this kind.
fn domains_with<'a>(
    topology_key: &str,
    nodes: &'a [Arc<NodeInfo>],
    is_meant: impl Fn(&PodInfo) -> bool,
) -> HashSet<&'a str> {
    let with_match = nodes.iter().filter(|node| node.pods.iter().any(|pod| is_meant(pod)));
    with_match.filter_map(|node| node.facts.label(topology_key)).collect()
}

impl Filter for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn prepare<'a>(&self, cycle: &Cycle<'a>) -> Option<Check<'a>> {
        let pod = cycle.pod;
        let (wanted, avoided) = (required_affinity(pod), required_anti_affinity(pod));
        let terms = |of: &'a [PodAffinityTerm]| {
            of.iter().map(|term| Term::new(pod, term, cycle.namespaces)).collect::<Vec<_>>()
        };
        let (wanted, avoided) = (terms(wanted), terms(avoided));
        // To be near a pod, that pod must be what all terms ask for; any term is enough to stay away from it.
        let wanted_domains: Vec<HashSet<&'a str>> = wanted
            .iter()
            .map(|term| {
                domains_with(term.topology_key, cycle.nodes, |pod| wanted.iter().all(|t| t.matches(pod)))
            })
            .collect();
        let near: Vec<_> = wanted.into_iter().zip(wanted_domains).collect();
        let away: Vec<_> = avoided
            .into_iter()
            .map(|term| {
                let domains = domains_with(term.topology_key, cycle.nodes, |pod| term.matches(pod));
                (term, domains)
            })
            .collect();
        // (topology key, domain) that existing pods keep this pod out of.
        let mut closed: HashSet<(&'a str, &'a str)> = HashSet::new();
        for node in cycle.nodes {
            for existing in &node.pods {
                for term in required_anti_affinity(existing) {
                    if let Some(domain) = node.facts.label(&term.topology_key)
                        && Term::new(existing, term, cycle.namespaces).matches(pod)
                    {
                        closed.insert((&term.topology_key, domain));
                    }
                }
            }
        }
        if near.is_empty() && away.is_empty() && closed.is_empty() {
            return None;
        }
        // The first of a group that wants to be together has nobody to be near to: it may go anywhere.
        let first_of_its_group = near.iter().all(|(_, domains)| domains.is_empty())
            && near.iter().all(|(term, _)| term.matches(pod));
        Some(Box::new(move |node| {
            let domain = |key: &str| node.facts.label(key);
            let satisfied = |(term, domains): &(Term<'a>, HashSet<&'a str>)| {
                domain(term.topology_key).is_some_and(|d| first_of_its_group || domains.contains(d))
            };
            if !near.iter().all(satisfied) {
                return Err(vec!["node(s) didn't match pod affinity rules".into()]);
            }
            if away
                .iter()
                .any(|(term, domains)| domain(term.topology_key).is_some_and(|d| domains.contains(d)))
            {
                return Err(vec!["node(s) didn't match pod anti-affinity rules".into()]);
            }
            if closed.iter().any(|(key, value)| domain(key) == Some(value)) {
                return Err(vec!["node(s) didn't satisfy existing pods anti-affinity rules".into()]);
            }
            Ok(())
        }))
    }
}

impl Score for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, cycle: &Cycle<'_>, feasible: &[Arc<NodeInfo>]) -> Option<Vec<i64>> {
        let affinity = cycle.pod.wishes.affinity.as_ref()?;
        let near = affinity
            .pod_affinity
            .as_ref()
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
        let away = affinity
            .pod_anti_affinity
            .as_ref()
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
        let mut weights: HashMap<(&str, &str), i64> = HashMap::new();
        let mut weigh = |terms: &'_ [WeightedPodAffinityTerm], sign: i64| {
            for weighted in terms {
                let term = Term::new(cycle.pod, &weighted.pod_affinity_term, cycle.namespaces);
                for node in cycle.nodes {
                    let Some((key, domain)) =
                        node.facts.labels.iter().find(|(k, _)| **k == *term.topology_key)
                    else {
                        continue;
                    };
                    let count = node.pods.iter().filter(|pod| term.matches(pod)).count() as i64;
                    *weights.entry((key, domain)).or_default() += sign * count * i64::from(weighted.weight);
                }
            }
        };
        weigh(near.unwrap_or_default(), 1);
        weigh(away.unwrap_or_default(), -1);
        let raw: Vec<i64> = feasible
            .iter()
            .map(|node| node.facts.labels.iter().filter_map(|(k, v)| weights.get(&(&**k, &**v))).sum())
            .collect();
        let (lowest, highest) = (raw.iter().min().copied()?, raw.iter().max().copied()?);
        if lowest == highest {
            return None;
        }
        Some(raw.into_iter().map(|score| (score - lowest) * MAX_SCORE / (highest - lowest)).collect())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Affinity;
    use serde_json::{Value, json};

    use super::*;
    use crate::cache::NodeFacts;
    use crate::pod::tests::pod;
    use crate::pod::{PodKey, Wishes};
    use crate::resources::Resources;
    use crate::volumes::Volumes;

    /// `namespace/name labels`, as in `prod/a app,tier`; each label has the value `x`.
    fn labelled(text: &str, affinity: &Value) -> PodInfo {
        let (place, labels) = text.split_once(' ').unwrap();
        let (namespace, name) = place.split_once('/').unwrap();
        let affinity: Option<Affinity> = serde_json::from_value(affinity.clone()).unwrap();
        PodInfo {
            key: PodKey { namespace: namespace.into(), name: name.into() },
            labels: labels.split(',').map(|label| (label.into(), "x".into())).collect(),
            wishes: Box::new(Wishes { affinity, ..Wishes::default() }),
            ..pod(name, 0)
        }
    }

    fn node(name: &str, pods: &[PodInfo]) -> Arc<NodeInfo> {
        let labels = [("host".into(), name.into())].into();
        Arc::new(NodeInfo {
            name: name.into(),
            facts: Arc::new(NodeFacts { labels, ..NodeFacts::default() }),
            pods: pods.iter().cloned().map(Arc::new).collect(),
            requested: Resources::default(),
        })
    }

    fn term(label: &str, more: &Value) -> Value {
        let mut term = json!({"topologyKey": "host", "labelSelector": {"matchLabels": {label: "x"}}});
        term.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        term
    }

    fn wish(kind: &str, terms: &[Value]) -> Value {
        json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": terms}})
    }

    /// Which nodes take `ns/new self`, wishing for `affinity`.
    fn admitted(affinity: &Value, nodes: &[(&str, &[PodInfo])]) -> String {
        let mut namespaces = Namespaces::default();
        namespaces.set("prod", &[("stage".into(), "prod".into())].into());
        let pod = labelled("ns/new self", affinity);
        let nodes: Vec<_> = nodes.iter().map(|(name, pods)| node(name, pods)).collect();
        let volumes = Volumes::default();
        let cycle = Cycle { pod: &pod, nodes: &nodes, namespaces: &namespaces, volumes: &volumes };
        let check = InterPodAffinity.prepare(&cycle);
        let open = nodes.iter().filter(|node| check.as_ref().is_none_or(|check| check(node).is_ok()));
        open.map(|node| &*node.name).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn near_and_away() {
        let (none, plain) = (Value::Null, json!({}));
        let web = |place: &str| [labelled(&format!("{place} app"), &none)];
        let near = |more: &Value| wish("podAffinity", &[term("app", more)]);
        let away = |more: &Value| wish("podAntiAffinity", &[term("app", more)]);
        assert_eq!(admitted(&near(&plain), &[("a", &web("ns/p")), ("b", &[])]), "a");
        assert_eq!(admitted(&away(&plain), &[("a", &web("ns/p")), ("b", &[])]), "b");
        // Pods of other namespaces count only when they are meant: by name, by label, or all.
        let elsewhere = web("prod/p");
        for (more, expected) in [
            (json!({}), "a b"),
            (json!({"namespaces": ["prod"]}), "b"),
            (json!({"namespaceSelector": {}}), "b"),
            (json!({"namespaceSelector": {"matchLabels": {"stage": "prod"}}}), "b"),
            (json!({"namespaceSelector": {"matchLabels": {"stage": "test"}}}), "a b"),
        ] {
            assert_eq!(admitted(&away(&more), &[("a", &elsewhere), ("b", &[])]), expected, "{more}");
        }
        // Pods that are there keep others away too.
        let shy = [labelled("ns/shy other", &wish("podAntiAffinity", &[term("self", &plain)]))];
        assert_eq!(admitted(&none, &[("a", &shy), ("b", &[])]), "b");
    }

    #[test]
    fn all_terms_are_about_one_pod() {
        let plain = json!({});
        let both = wish("podAffinity", &[term("app", &plain), term("tier", &plain)]);
        let pods = ["ns/p app", "ns/q tier", "ns/r app,tier"].map(|text| labelled(text, &Value::Null));
        assert_eq!(admitted(&both, &[("a", &pods[..2]), ("b", &pods[2..])]), "b");
        assert_eq!(admitted(&both, &[("a", &pods[..2])]), "");
        // The first of its kind has nobody to be near to.
        let own = wish("podAffinity", &[term("self", &plain)]);
        assert_eq!(admitted(&own, &[("a", &[]), ("b", &[])]), "a b");
    }
}
