//! The disk under the store fills up: writes are refused with an error, nothing that was acknowledged is lost, and
//! writes are taken again once there is space.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's own functions fail as it does"
)]

use std::fs;

use e2e::api::{Answer, Api};
use e2e::own::OwnCluster;
use e2e::pods::LONG;
use e2e::wait::until;
use http::Method;
use keelson_local::cluster::Cluster;
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Room for a few log segments above the space that the store keeps free.
const SMALL: &str = "size=160m";
const LARGE: &str = "size=512m";

fn disk(cluster: &Cluster, flags: MsFlags, size: &str) {
    let directory = cluster.layout().store_data(&cluster.hosts[0].name);
    fs::create_dir_all(&directory).unwrap();
    mount(Some("tmpfs"), &directory, Some("tmpfs"), flags, Some(size)).unwrap();
}

fn create(api: &Api, name: &str, bytes: usize) -> Result<Answer, String> {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"filling": "x".repeat(bytes)}});
    api.try_send(Method::POST, CONFIG_MAPS, "application/json", object.to_string().into_bytes())
}

fn names(api: &Api) -> Option<Vec<String>> {
    let list = api.try_send(Method::GET, CONFIG_MAPS, "application/json", Vec::new()).ok()?;
    let items = list.json()["items"].as_array()?.clone();
    Some(
        items.iter().filter_map(|item: &Value| Some(item["metadata"]["name"].as_str()?.to_owned())).collect(),
    )
}

#[test]
fn a_full_disk_refuses_writes_and_loses_none() {
    let own = OwnCluster::start_prepared(|cluster| disk(cluster, MsFlags::empty(), SMALL));
    let api = Api::with_kubeconfig(&own.cluster.layout().admin_kubeconfig());

    let mut acknowledged = Vec::new();
    let refused = (0..1000).find_map(|number| {
        let name = format!("fill-{number}");
        match create(&api, &name, 400 << 10) {
            Ok(answer) if answer.code == 201 => {
                acknowledged.push(name);
                None
            }
            other => Some(other),
        }
    });
    let refused = refused.expect("400 MB do not fit").expect("the API server answers, also then");
    let status = refused.json();
    assert_eq!(status["kind"], "Status", "{refused:?}");
    assert!(refused.code >= 500, "{status}");
    assert!(acknowledged.len() > 5, "the disk was full at once: {acknowledged:?}");
    until("the store says what to do", LONG, || {
        let log = own.log("kube-store");
        if log.contains("space") { Ok(()) } else { Err(log) }
    });

    disk(&own.cluster, MsFlags::MS_REMOUNT, LARGE);
    until("writes are taken again", LONG, || match create(&api, "after", 10) {
        // The answer to an earlier try may have been lost.
        Ok(answer) if matches!(answer.code, 201 | 409) => Ok(()),
        other => Err(format!("{other:?}\n{}", own.log("kube-store"))),
    });
    own.kill("kube-store");
    let found = until("the list is whole after a restart", LONG, || names(&api).ok_or("no list".to_owned()));
    let lost: Vec<_> = acknowledged.iter().filter(|name| !found.contains(name)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert!(found.contains(&"after".to_owned()));
}
