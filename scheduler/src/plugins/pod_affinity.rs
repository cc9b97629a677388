//! Affinity and anti-affinity between pods: near those a pod wants, away from those it avoids, and
//! away from those that avoid it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PodAffinityTerm, WeightedPodAffinityTerm};

use crate::cache::NodeInfo;
use crate::framework::{Check, Cycle, Filter, MAX_SCORE, Score};
use crate::pod::PodInfo;
use crate::selector::PodSelector;

pub struct InterPodAffinity;

/// A term of `owner`, ready to be matched against pods.
struct Term<'a> {
    topology_key: &'a str,
    selector: PodSelector,
    /// Namespaces of the pods meant.
    namespaces: Vec<&'a str>,
    all_namespaces: bool,
}

impl<'a> Term<'a> {
    fn new(owner: &'a PodInfo, term: &'a PodAffinityTerm) -> Self {
        let mut selector = PodSelector::new(term.label_selector.as_ref());
        for key in term.match_label_keys.iter().flatten() {
            if let Some(value) = owner.label(key) {
                selector = selector.and_equals(key, value);
            }
        }
        let named: Vec<&str> = term.namespaces.iter().flatten().map(String::as_str).collect();
        // An empty namespace selector means all namespaces; one with requirements is refused by `unsupported`.
        let all_namespaces = term.namespace_selector.is_some();
        let namespaces =
            if named.is_empty() && !all_namespaces { vec![&*owner.key.namespace] } else { named };
        Self { topology_key: &term.topology_key, selector, namespaces, all_namespaces }
    }

    fn matches(&self, pod: &PodInfo) -> bool {
        (self.all_namespaces || self.namespaces.contains(&&*pod.key.namespace)) && self.selector.matches(pod)
    }
}

/// Whether a term selects namespaces by their labels, which this scheduler does not follow yet.
fn unsupported(term: &PodAffinityTerm) -> bool {
    term.namespace_selector.as_ref().is_some_and(|selector| {
        selector.match_labels.as_ref().is_some_and(|m| !m.is_empty())
            || selector.match_expressions.as_ref().is_some_and(|e| !e.is_empty())
    })
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
        if wanted.iter().chain(avoided).any(unsupported) {
            return Some(Box::new(|_| {
                Err(vec![
                    "node(s) not considered: namespaceSelector with requirements is not supported".into(),
                ])
            }));
        }
        let terms =
            |of: &'a [PodAffinityTerm]| of.iter().map(|term| Term::new(pod, term)).collect::<Vec<_>>();
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
                        && Term::new(existing, term).matches(pod)
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
            for weighted in terms.iter().filter(|w| !unsupported(&w.pod_affinity_term)) {
                let term = Term::new(cycle.pod, &weighted.pod_affinity_term);
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
