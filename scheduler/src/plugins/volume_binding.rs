//! A pod runs where its volumes can be used. Claims that are bound say by their volumes where that is. Claims of
//! classes that wait for their first consumer are bound to a volume that the chosen node can use, or have one made for
//! it; other claims must be bound before.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::TopologySelectorTerm;
use keelson_objects::nodes;

use crate::cache::NodeInfo;
use crate::framework::{Check, Cycle, Filter, Reason};
use crate::pod::PodInfo;
use crate::volumes::{ClaimInfo, Standing, VolumeInfo, Volumes};

pub struct VolumeBinding;

/// What has to be written before the pod's claims can be bound. Who binds them is a controller of volumes, and who
/// makes volumes a provisioner.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The volume is set aside for the claim.
    Reserve { volume: Arc<VolumeInfo>, claim: Arc<ClaimInfo> },
    /// A volume is to be made for the claim that this node can use.
    Provision { claim: Arc<ClaimInfo>, node: Box<str> },
}

/// How the pod's claims stand once a node is chosen.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// The pod can be bound.
    Ready,
    /// These claims, by name, have to be bound before, for which these steps are still to be taken.
    Wait { claims: Vec<String>, steps: Vec<Step> },
}

/// The pod's claims; those that can never be bound on any node as things stand are refused before.
struct Claims<'a> {
    bound: Vec<&'a Arc<ClaimInfo>>,
    /// Smallest first, so that large volumes are left for large claims.
    unbound: Vec<&'a Arc<ClaimInfo>>,
}

/// How an unbound claim can come to a volume.
enum Source<'a> {
    Volume(&'a Arc<VolumeInfo>),
    Provisioner,
}

fn claims<'a>(cycle: &Cycle<'a>) -> Result<Claims<'a>, Reason> {
    let mut found = Vec::new();
    for used in &cycle.pod.wishes.claims {
        found.push(usable(cycle.pod, &used.name, used.ephemeral, cycle.volumes)?);
    }
    let mut claims = Claims { bound: Vec::new(), unbound: Vec::new() };
    for claim in found {
        let waits = || cycle.volumes.class(&claim.wanted.class).is_some_and(|class| class.waits_for_consumer);
        match claim.standing {
            Standing::Bound { .. } => claims.bound.push(claim),
            Standing::Unbound if waits() => claims.unbound.push(claim),
            // Lost ones are refused by now.
            Standing::Unbound | Standing::Prebound | Standing::Lost { .. } => {
                return Err("pod has unbound immediate PersistentVolumeClaims".into());
            }
        }
    }
    claims.unbound.sort_by_key(|claim| claim.wanted.size);
    Ok(claims)
}

fn usable<'a>(
    pod: &PodInfo,
    name: &str,
    ephemeral: bool,
    volumes: &'a Volumes,
) -> Result<&'a Arc<ClaimInfo>, Reason> {
    let namespace = &pod.key.namespace;
    let Some(claim) = volumes.claim(namespace, name) else {
        return Err(if ephemeral {
            format!("waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\"")
        } else {
            format!("persistentvolumeclaim \"{name}\" not found")
        }
        .into());
    };
    if let Standing::Lost { volume } = &claim.standing {
        return Err(format!(
            "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
        )
        .into());
    }
    if claim.deleting {
        return Err(format!("persistentvolumeclaim \"{name}\" is being deleted").into());
    }
    if ephemeral && claim.controller.as_deref() != Some(&*pod.uid) {
        return Err(
            format!("PVC {namespace}/{name} was not created for pod {} (pod is not owner)", pod.key).into()
        );
    }
    Ok(claim)
}

impl Filter for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn refuse(&self, cycle: &Cycle<'_>) -> Option<Reason> {
        claims(cycle).err()
    }

    fn prepare<'a>(&self, cycle: &Cycle<'a>) -> Option<Check<'a>> {
        if cycle.pod.wishes.claims.is_empty() {
            return None;
        }
        let claims = claims(cycle).ok()?;
        let volumes = cycle.volumes;
        Some(Box::new(move |node| sources(&claims, volumes, node).map(drop)))
    }
}

/// What is to be done for the pod's claims now that the pod's node is chosen.
pub fn plan(cycle: &Cycle<'_>, node: &NodeInfo) -> Plan {
    // A pod that is refused has no node.
    let Ok(claims) = claims(cycle) else { return Plan::Ready };
    if claims.unbound.is_empty() {
        return Plan::Ready;
    }
    let names = claims.unbound.iter().map(|claim| claim.name.to_string()).collect();
    // The node was chosen because it has sources.
    let sources = sources(&claims, cycle.volumes, node).unwrap_or_default();
    let steps = claims.unbound.iter().zip(sources).filter_map(|(claim, source)| match source {
        Source::Volume(volume) => {
            let is_its = volume.claim.as_ref().is_some_and(|of| of.uid == claim.uid);
            (!is_its).then(|| Step::Reserve { volume: volume.clone(), claim: Arc::clone(claim) })
        }
        Source::Provisioner => claim
            .selected_node
            .is_none()
            .then(|| Step::Provision { claim: Arc::clone(claim), node: (*node.name).into() }),
    });
    Plan::Wait { steps: steps.collect(), claims: names }
}

/// Where the volumes of the unbound claims come from, in their order, if the node can use all of the pod's volumes.
fn sources<'a>(
    claims: &Claims<'a>,
    volumes: &'a Volumes,
    node: &NodeInfo,
) -> Result<Vec<Source<'a>>, Vec<Reason>> {
    let mut reasons: Vec<Reason> = Vec::new();
    let mut missing = false;
    for claim in &claims.bound {
        let Standing::Bound { volume } = &claim.standing else { continue };
        match volumes.volume(volume) {
            None => missing = true,
            Some(volume) if is_usable(volume, node) => continue,
            Some(_) => reasons.push("node(s) didn't match PersistentVolume's node affinity".into()),
        }
        break;
    }
    let sources = sources_of_unbound(&claims.unbound, volumes, node);
    if sources.is_none() {
        reasons.push("node(s) didn't find available persistent volumes to bind".into());
    }
    if missing {
        reasons.push("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)".into());
    }
    sources.filter(|_| reasons.is_empty()).ok_or(reasons)
}

fn sources_of_unbound<'a>(
    claims: &[&'a Arc<ClaimInfo>],
    volumes: &'a Volumes,
    node: &NodeInfo,
) -> Option<Vec<Source<'a>>> {
    let mut taken = HashSet::new();
    let source = |claim: &&'a Arc<ClaimInfo>| {
        if let Some(selected) = &claim.selected_node {
            if **selected != *node.name {
                return None;
            }
        } else if let Some(volume) = matching(claim, volumes, node, &taken) {
            taken.insert(&*volume.name);
            return Some(Source::Volume(volume));
        }
        let class = volumes.class(&claim.wanted.class)?;
        (class.provisions && is_among(&class.topologies, node)).then_some(Source::Provisioner)
    };
    claims.iter().map(source).collect()
}

/// The volume that is set aside for the claim, else the smallest that is free and fits.
fn matching<'a>(
    claim: &ClaimInfo,
    volumes: &'a Volumes,
    node: &NodeInfo,
    taken: &HashSet<&str>,
) -> Option<&'a Arc<VolumeInfo>> {
    let wanted = &claim.wanted;
    let mut smallest: Option<&Arc<VolumeInfo>> = None;
    for volume in volumes.of_class(&wanted.class) {
        let offered = &volume.offered;
        if taken.contains(&*volume.name)
            || (volume.claim.is_some() && !volume.is_for(claim))
            || offered.size < wanted.size
            || offered.block != wanted.block
            || offered.attributes_class != wanted.attributes_class
            || volume.deleting
        {
            continue;
        }
        if volume.is_for(claim) {
            return is_usable(volume, node).then_some(volume);
        }
        let label = |key: &str| crate::labels::get(&volume.labels, key);
        let fits = volume.available
            && claim.selector.as_ref().is_none_or(|selector| selector.matches_with(label))
            && wanted.access_modes.iter().all(|mode| offered.access_modes.contains(mode))
            && is_usable(volume, node);
        if fits && smallest.is_none_or(|smallest| offered.size < smallest.offered.size) {
            smallest = Some(volume);
        }
    }
    smallest
}

/// Whether the node can use the volume. As upstream, its labels decide, and not its name.
fn is_usable(volume: &VolumeInfo, node: &NodeInfo) -> bool {
    volume.nodes.as_ref().is_none_or(|selector| {
        let matches = |term| nodes::matches_term(term, "", |key| node.facts.label(key));
        selector.node_selector_terms.iter().any(matches)
    })
}

/// Whether the node is in one of the topologies; none stand for everywhere.
fn is_among(topologies: &[TopologySelectorTerm], node: &NodeInfo) -> bool {
    let is_in = |term: &TopologySelectorTerm| {
        let expressions = term.match_label_expressions.as_deref().unwrap_or_default();
        let has = |key: &str, values: &[String]| {
            node.facts.label(key).is_some_and(|value| values.iter().any(|v| v == value))
        };
        !expressions.is_empty() && expressions.iter().all(|wanted| has(&wanted.key, &wanted.values))
    };
    topologies.is_empty() || topologies.iter().any(is_in)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cache::NodeFacts;
    use crate::cycle;
    use crate::namespaces::Namespaces;
    use crate::plugins;
    use crate::pod::tests::pod;
    use crate::pod::{UsedClaim, Wishes};
    use crate::resources::Resources;
    use crate::volumes::ClassInfo;

    fn merged(mut base: Value, more: &Value) -> Value {
        match (&mut base, more) {
            (Value::Object(base), Value::Object(more)) => {
                for (key, value) in more {
                    let old = base.remove(key).unwrap_or(Value::Null);
                    base.insert(key.clone(), merged(old, value));
                }
            }
            (base, more) => *base = more.clone(),
        }
        base
    }

    /// A claim of 2Gi in class `late`, changed by `more`.
    fn claim(name: &str, more: &Value) -> Arc<ClaimInfo> {
        let base = json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
            "spec": {"storageClassName": "late", "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "2Gi"}}}});
        Arc::new(ClaimInfo::of(&serde_json::from_value(merged(base, more)).unwrap()))
    }

    /// An available volume of class `late` that nodes of `zone` can use (`-`: all).
    fn volume(name: &str, size: &str, zone: &str, more: &Value) -> Arc<VolumeInfo> {
        let mut base = json!({"metadata": {"name": name}, "spec": {"storageClassName": "late",
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}}, "status": {"phase": "Available"}});
        if zone != "-" {
            let expression =
                json!({"key": "topology.kubernetes.io/zone", "operator": "In", "values": [zone]});
            base["spec"]["nodeAffinity"] =
                json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}});
        }
        Arc::new(VolumeInfo::of(&serde_json::from_value(merged(base, more)).unwrap()))
    }

    fn class(name: &str, mode: &str, provisioner: &str, topologies: Value) -> Arc<ClassInfo> {
        let class = json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode,
            "allowedTopologies": topologies});
        Arc::new(ClassInfo::of(&serde_json::from_value(class).unwrap()))
    }

    fn bound(volume: &str) -> Value {
        json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"volumeName": volume}, "status": {"phase": "Bound"}})
    }

    struct Cluster {
        volumes: Volumes,
        /// Names of nodes; each is in the zone of its name.
        nodes: Vec<&'static str>,
        pods: Vec<PodInfo>,
    }

    fn cluster(claims: Vec<Arc<ClaimInfo>>, volumes: Vec<Arc<VolumeInfo>>) -> Cluster {
        let mut all = Volumes::default();
        claims.into_iter().for_each(|claim| all.set_claim(claim));
        volumes.into_iter().for_each(|volume| all.set_volume(volume));
        all.set_class(class("late", "WaitForFirstConsumer", "kubernetes.io/no-provisioner", Value::Null));
        all.set_class(class("soon", "Immediate", "example.com/disks", Value::Null));
        let topologies =
            json!([{"matchLabelExpressions": [{"key": "topology.kubernetes.io/zone", "values": ["b"]}]}]);
        all.set_class(class("made", "WaitForFirstConsumer", "example.com/disks", topologies));
        Cluster { volumes: all, nodes: vec!["a", "b"], pods: Vec::new() }
    }

    fn user(name: &str, claims: &[&str]) -> PodInfo {
        // `+name`: the claim of an ephemeral volume.
        let used = |text: &&str| match text.strip_prefix('+') {
            Some(volume) => UsedClaim { name: format!("{name}-{volume}").into(), ephemeral: true },
            None => UsedClaim { name: (*text).into(), ephemeral: false },
        };
        let claims = claims.iter().map(used).collect();
        PodInfo { wishes: Box::new(Wishes { claims, ..Wishes::default() }), ..pod(name, 0) }
    }

    /// What the default profile makes of a pod `p` with these claims: the node and the plan, or why there is none.
    fn decided(cluster: &Cluster, claims: &[&str]) -> Result<(String, Plan), String> {
        let node = |name: &&'static str| {
            let labels = [("topology.kubernetes.io/zone".into(), (*name).into())].into();
            let pods: Vec<_> = cluster.pods.iter().filter(|_| *name == "a").cloned().map(Arc::new).collect();
            Arc::new(NodeInfo {
                name: (*name).into(),
                facts: Arc::new(NodeFacts { labels, allowed_pods: 10, ..NodeFacts::default() }),
                pods,
                requested: Resources::default(),
            })
        };
        let nodes: Vec<_> = cluster.nodes.iter().map(node).collect();
        let pod = user("p", claims);
        let namespaces = Namespaces::default();
        let cycle = Cycle { pod: &pod, nodes: &nodes, namespaces: &namespaces, volumes: &cluster.volumes };
        match cycle::decide(&plugins::default_profile(), &cycle, |_| 0) {
            Ok(node) => Ok((node.name.to_string(), plan(&cycle, &node))),
            Err(unschedulable) => Err(unschedulable.to_string()),
        }
    }

    #[test]
    fn claims_that_no_node_helps() {
        #[track_caller]
        fn check(claims: Vec<Arc<ClaimInfo>>, used: &str, expected: &str) {
            let volumes = vec![volume("v", "2Gi", "-", &json!({}))];
            let expected = format!("0/2 nodes are available: {expected}.");
            assert_eq!(decided(&cluster(claims, volumes), &[used]), Err(expected));
        }
        let immediate = "pod has unbound immediate PersistentVolumeClaims";
        check(vec![], "c", "persistentvolumeclaim \"c\" not found");
        let elsewhere = json!({"metadata": {"namespace": "other"}});
        check(vec![claim("c", &elsewhere)], "c", "persistentvolumeclaim \"c\" not found");
        for class in ["soon", "none", ""] {
            check(vec![claim("c", &json!({"spec": {"storageClassName": class}}))], "c", immediate);
        }
        // A volume that it names itself is not its own yet.
        check(vec![claim("c", &json!({"spec": {"volumeName": "v"}}))], "c", immediate);
        let lost = json!({"spec": {"volumeName": "v"}, "status": {"phase": "Lost"}});
        check(
            vec![claim("c", &lost)],
            "c",
            "persistentvolumeclaim \"c\" bound to non-existent persistentvolume \"v\"",
        );
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        check(vec![claim("c", &going)], "c", "persistentvolumeclaim \"c\" is being deleted");
        check(vec![claim("c", &bound("gone"))], "c", "persistentvolume \"gone\" not found");
        check(
            vec![],
            "+e",
            "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-e\"",
        );
        check(
            vec![claim("p-e", &json!({}))],
            "+e",
            "PVC default/p-e was not created for pod default/p (pod is not owner)",
        );
        let mut empty = cluster(vec![], vec![]);
        empty.nodes.clear();
        assert_eq!(decided(&empty, &["c"]), Err("no nodes available to schedule pods".to_owned()));
    }

    #[test]
    fn bound_claims_run_where_their_volumes_are() {
        #[track_caller]
        fn check(volumes: Vec<Arc<VolumeInfo>>, expected: Result<&str, &str>) {
            let names: Vec<String> = volumes.iter().map(|volume| volume.name.to_string()).collect();
            let claims = names.iter().map(|name| claim(name, &bound(name))).collect();
            let used: Vec<&str> = names.iter().map(String::as_str).collect();
            let decided = decided(&cluster(claims, volumes), &used);
            let expected = expected.map(|node| (node.to_owned(), Plan::Ready)).map_err(str::to_owned);
            assert_eq!(decided, expected);
        }
        let plain = json!({});
        let labelled = |zones: &str| json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zones}}});
        let of_old = json!({"metadata": {"labels": {"failure-domain.beta.kubernetes.io/zone": "b"}}});
        check(vec![volume("v", "2Gi", "b", &plain)], Ok("b"));
        check(vec![volume("v", "2Gi", "-", &plain), volume("w", "2Gi", "a", &plain)], Ok("a"));
        let conflict = "0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity.";
        check(vec![volume("v", "2Gi", "b", &plain), volume("w", "2Gi", "a", &plain)], Err(conflict));
        check(vec![volume("v", "2Gi", "-", &labelled("x__b"))], Ok("b"));
        check(vec![volume("v", "2Gi", "-", &of_old)], Ok("b"));
        let zone = "0/2 nodes are available: 2 node(s) had no available volume zone.";
        check(vec![volume("v", "2Gi", "-", &labelled("x"))], Err(zone));
    }

    /// `claim=volume` for each reservation, `claim@node` for each volume to be made.
    #[track_caller]
    fn check_plan(
        cluster: &Cluster,
        used: &[&str],
        expected_node: &str,
        expected_claims: &[&str],
        expected: &[&str],
    ) {
        let (node, plan) = decided(cluster, used).unwrap();
        let Plan::Wait { claims, steps } = plan else { panic!("{node} {plan:?}") };
        let text = |step: &Step| match step {
            Step::Reserve { volume, claim } => format!("{}={}", claim.name, volume.name),
            Step::Provision { claim, node } => format!("{}@{node}", claim.name),
        };
        let steps: Vec<String> = steps.iter().map(text).collect();
        assert_eq!(
            (&*node, claims, steps),
            (
                expected_node,
                expected_claims.iter().map(|name| (*name).to_owned()).collect(),
                expected.iter().map(|step| (*step).to_owned()).collect(),
            )
        );
    }

    #[test]
    fn the_first_consumer_gets_the_smallest_volume_that_fits() {
        let plain = json!({});
        let none = "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind.";
        for unfit in [
            volume("v", "1Gi", "-", &plain),
            volume("v", "2Gi", "elsewhere", &plain),
            volume("v", "2Gi", "-", &json!({"status": {"phase": "Released"}})),
            volume("v", "2Gi", "-", &json!({"spec": {"storageClassName": "other"}})),
            volume("v", "2Gi", "-", &json!({"spec": {"volumeMode": "Block"}})),
            volume("v", "2Gi", "-", &json!({"spec": {"accessModes": ["ReadOnlyMany"]}})),
            volume("v", "2Gi", "-", &json!({"spec": {"volumeAttributesClassName": "gold"}})),
            volume("v", "2Gi", "-", &json!({"spec": {"claimRef": {"namespace": "default", "name": "d"}}})),
            volume(
                "v",
                "2Gi",
                "-",
                &json!({"spec": {"claimRef": {"namespace": "default", "name": "c", "uid": "x"}}}),
            ),
            volume("v", "2Gi", "-", &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
        ] {
            let decided = decided(&cluster(vec![claim("c", &plain)], vec![unfit.clone()]), &["c"]);
            assert_eq!(decided, Err(none.to_owned()), "{unfit:?}");
        }
        let sizes = vec![
            volume("large", "9Gi", "-", &plain),
            volume("medium", "3Gi", "b", &plain),
            volume("small", "1Gi", "-", &plain),
        ];
        let one = cluster(vec![claim("c", &plain)], sizes.clone());
        check_plan(&one, &["c"], "a", &["c"], &["c=large"]);
        // The large claim is not left without, although it comes first in the pod.
        let big = json!({"spec": {"resources": {"requests": {"storage": "5Gi"}}}});
        let mut two = cluster(vec![claim("big", &big), claim("c", &plain)], sizes);
        check_plan(&two, &["big", "c"], "b", &["c", "big"], &["c=medium", "big=large"]);
        two.nodes = vec!["a"];
        assert_eq!(decided(&two, &["big", "c"]), Err(none.replace('2', "1")));
        let mut selective = claim("c", &json!({"spec": {"selector": {"matchLabels": {"kind": "ssd"}}}}));
        let labelled = volume("v", "2Gi", "-", &json!({"metadata": {"labels": {"kind": "ssd"}}}));
        let others = vec![volume("a", "2Gi", "-", &plain), labelled];
        check_plan(&cluster(vec![selective.clone()], others), &["c"], "a", &["c"], &["c=v"]);
        // One that was set aside by a person comes first; once it is the claim's, nothing is left but to wait.
        Arc::make_mut(&mut selective).selector = None;
        for (uid, steps) in [("", &["c=v"][..]), ("uid-c", &[])] {
            let reference = json!({"namespace": "default", "name": "c", "uid": uid});
            let aside = volume(
                "v",
                "5Gi",
                "b",
                &json!({"spec": {"claimRef": reference}, "status": {"phase": "Bound"}}),
            );
            let cluster = cluster(vec![selective.clone()], vec![aside, volume("u", "2Gi", "b", &plain)]);
            check_plan(&cluster, &["c"], "b", &["c"], steps);
        }
    }

    #[test]
    fn volumes_are_made_where_the_pod_goes() {
        let made = |more: Value| claim("c", &merged(json!({"spec": {"storageClassName": "made"}}), &more));
        let first = cluster(vec![made(json!({}))], vec![]);
        check_plan(&first, &["c"], "b", &["c"], &["c@b"]);
        let selected = |node: &str| {
            made(json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}}))
        };
        check_plan(&cluster(vec![selected("b")], vec![]), &["c"], "b", &["c"], &[]);
        // It was asked for elsewhere; whoever makes it says so when it cannot be made there.
        assert_eq!(
            decided(&cluster(vec![selected("a")], vec![]), &["c"]),
            Err("0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind."
                .to_owned())
        );
    }

    #[test]
    fn a_claim_for_one_pod_has_one_pod() {
        let mode = |mode: &str| merged(bound("v"), &json!({"spec": {"accessModes": [mode]}}));
        let with = |access_mode: &str, taken: &str| {
            let volumes = vec![volume("v", "2Gi", "-", &json!({}))];
            let mut cluster = cluster(vec![claim("c", &mode(access_mode))], volumes);
            cluster.pods.push(user("other", &[taken]));
            decided(&cluster, &["c"]).map(|(node, _)| node)
        };
        assert!(with("ReadWriteOnce", "c").is_ok());
        assert!(with("ReadWriteOncePod", "d").is_ok());
        assert_eq!(
            with("ReadWriteOncePod", "c"),
            Err("0/2 nodes are available: 2 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod \
                 access mode already in-use by another pod."
                .to_owned())
        );
    }
}
