//! Who a member is when it starts: its data directory says so, or it begins a cluster with others, or it joins one, whose
//! members tell it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keelson_proto::etcd::etcdserverpb::{Member, MemberListResponse};
use keelson_proto::etcd::storepb::{Incarnation, Manifest};
use prost::Message;

use crate::config::{ClusterState, Config, ConfigError, InitialMember, Url};
use crate::env::Env;
use crate::etcd_data;
use crate::rejoin;
use crate::snapshot::SnapshotError;
use crate::start::StartError;
use crate::transport::{REMOVED, ask_members, reason};
use crate::wal::{self, Identity, WalError};

/// How long one that joins tries to learn who the members are.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(500);

/// In a data directory, below `member`: it was made by a member that joined, and has no state before its first snapshot.
const JOINING: &str = "joining";
/// There, too: its member was removed for good.
const GONE: &str = "removed";

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("invalid configuration")]
    Config(#[from] ConfigError),
    #[error("data directory {} cannot be used", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    #[error("{} is a data directory of etcd's own: {}", .0.display(), etcd_data::ADVICE)]
    Etcds(PathBuf),
    #[error("cannot open the write-ahead log")]
    Wal(#[from] WalError),
    #[error(
        "{REMOVED}: data directory {} is of no use any more; remove it, and add the member anew, to let it join again", .0.display()
    )]
    Removed(PathBuf),
    #[error(
        "there is no data in {}, which --force-new-cluster could make a cluster of: check --data-dir and --name. Nothing was changed", .0.display()
    )]
    NoData(PathBuf),
    #[error(
        "member {name} ({id:x}) has already been bootstrapped, but its data directory is empty: remove the member, add it anew and start it with --initial-cluster-state=existing"
    )]
    Bootstrapped { name: String, id: u64 },
    #[error("data directory {} was made for one of {names}, not for {name:?}: check --name and --data-dir", .directory.display())]
    Unnamed { directory: PathBuf, names: String, name: String },
    #[error("--initial-cluster-state=existing: --initial-cluster names no other member to ask")]
    Alone,
    #[error("cannot fetch cluster info from peer urls: {url}: {reason}")]
    Unreachable { url: Url, reason: String },
    #[error(
        "error validating peerURLs: member count is unequal: the cluster has {theirs}, --initial-cluster names {ours}; as `member add` prints it"
    )]
    Count { theirs: usize, ours: usize },
    #[error(
        "error validating peerURLs: no match found for existing member ({id:x}, {urls:?}) in --initial-cluster"
    )]
    NoMatch { id: u64, urls: Vec<String> },
    #[error("cannot read the snapshot")]
    Snapshot(#[from] SnapshotError),
    #[error(
        "its cluster was superseded by one that --force-new-cluster made, and its own data cannot be read"
    )]
    Data(#[source] Box<StartError>),
    #[error("{} is damaged: it says how this member joins the cluster that superseded its own; remove it", .0.display())]
    Note(PathBuf),
    #[error(
        "--force-new-cluster made a new cluster of each of two members ({0}): decide which one is to stay, stop the other one and remove its data directory, then start this one again"
    )]
    Contested(String),
    #[error(
        "--force-new-cluster: other members of this cluster ({0}) have a leader, so a majority lives; stop them first, if they are to be given up"
    )]
    MajorityLives(String),
    #[error(
        "--force-new-cluster: another cluster with this cluster's ID, which --force-new-cluster made or which is from before it, serves at {0}: with this member there would be two. Nothing was changed. To go on with what this member has, first stop the one at {0} and remove its data directory; to go on with what that one has, start this member without --force-new-cluster"
    )]
    Rival(String),
    #[error(
        "its cluster was superseded by one that --force-new-cluster made, which does not await member {0:x} (any more): add it with `member add`"
    )]
    NotAwaited(u64),
    #[error(
        "its cluster was superseded by one that --force-new-cluster made of a member that had less: this one knows entry {committed} of term {term} to be committed, and of term {known}; the last entry of that one, at {url}, was {} of term {}. Nothing was changed. Either, to keep what this one has, first stop the one at {url} and remove its data directory, then use --force-new-cluster on this member instead; or, to give up what only this one has, move {}/member away and start it again while that one runs", .end.0, .end.1, .directory.display()
    )]
    Ahead { url: String, directory: PathBuf, committed: u64, term: u64, known: u64, end: (u64, u64) },
}

/// Where a member comes from.
#[derive(Debug)]
pub enum Origin {
    /// Its data directory says who it is.
    Known(Identity),
    /// It begins a cluster with these members.
    Bootstrap { identity: Identity, members: Vec<Member> },
    /// It joins these members, of which it is one.
    Join {
        identity: Identity,
        /// Which of the clusters with that id: see [`crate::incarnation`].
        incarnation: Incarnation,
        members: Vec<Member>,
        /// It was a member before, and has lost what it promised.
        lost: bool,
    },
}

impl Origin {
    pub fn identity(&self) -> Identity {
        match self {
            Origin::Known(identity) | Origin::Bootstrap { identity, .. } | Origin::Join { identity, .. } => {
                *identity
            }
        }
    }
}

/// As the configuration names them.
pub fn initial_members(members: &[InitialMember]) -> Vec<Member> {
    let urls = |urls: &[Url]| {
        let mut urls: Vec<String> = urls.iter().map(Url::to_string).collect();
        urls.sort();
        urls
    };
    let member = |member: &InitialMember| Member {
        id: member.id,
        name: member.name.clone(),
        peer_urls: urls(&member.peer_urls),
        ..Member::default()
    };
    members.iter().map(member).collect()
}

/// Leaves a durable note in a data directory.
fn note(env: &Env, directory: &Path, name: &str) -> Result<(), JoinError> {
    let place = directory.join("member");
    let write = || {
        env.disk.create_dir(&place)?;
        env.disk.create(&place.join(name))?.sync()?;
        env.disk.sync_dir(&place)
    };
    write().map_err(|error| JoinError::Directory(directory.to_owned(), error))
}

/// Marks a data directory as one of a member that was removed.
///
/// # Errors
/// The disk's.
pub fn mark_removed(env: &Env, directory: &Path) -> Result<(), JoinError> {
    note(env, directory, GONE)
}

/// What a data directory says of who its member is.
pub enum Found {
    Known(Identity),
    /// It began a cluster, and was interrupted.
    Begun,
    /// It was made to join one, and has nothing yet.
    Joining(Identity),
    Nothing,
}

/// Looks into a data directory.
///
/// # Errors
/// That its member was removed, that it is etcd's own, and the disk's.
pub fn find(env: &Env, directory: &Path) -> Result<Found, JoinError> {
    let member = directory.join("member");
    let list =
        |path: &Path| env.disk.list(path).map_err(|error| JoinError::Directory(directory.to_owned(), error));
    let names = list(&member)?;
    let has = |name: &str| names.iter().any(|found| found == name);
    if has(GONE) {
        return Err(JoinError::Removed(directory.to_owned()));
    }
    let etcds = etcd_data::is_etcds(&*env.disk, &member);
    if etcds.map_err(|error| JoinError::Directory(directory.to_owned(), error))? {
        return Err(JoinError::Etcds(directory.to_owned()));
    }
    let begun = list(&member.join("snap"))?.iter().any(|name| crate::snapshot::is_manifest(name));
    Ok(match wal::identity(&*env.disk, &member.join("wal"))? {
        Some(identity) if begun || !has(JOINING) => Found::Known(identity),
        Some(identity) => Found::Joining(identity),
        None if begun => Found::Begun,
        None => Found::Nothing,
    })
}

/// Marks a data directory as one of a member that joins, before it has anything else.
///
/// # Errors
/// The disk's.
pub fn mark_joining(env: &Env, directory: &Path) -> Result<(), JoinError> {
    note(env, directory, JOINING)
}

/// Finds out who this member is.
///
/// # Errors
/// That it may not start, or cannot yet.
pub async fn origin(config: &Config, env: &Env) -> Result<Origin, JoinError> {
    let directory = config.data_directory();
    let found = find(env, &directory)?;
    if config.force_new_cluster {
        if matches!(found, Found::Nothing | Found::Joining(_)) {
            return Err(JoinError::NoData(directory));
        }
        rejoin::forget(env, &directory)?;
    }
    if let Some(note) = rejoin::note(env, &directory)? {
        let (known, begun) = match &found {
            Found::Known(identity) => (Some(*identity), true),
            Found::Begun => (None, true),
            Found::Joining(identity) => (Some(*identity), false),
            Found::Nothing => (None, false),
        };
        let superseded = known.is_some_and(|known| known.member == note.member);
        if superseded {
            rejoin::leave(env, &directory, &note)?;
        }
        if superseded || !begun {
            return rejoin::join(config, env, note).await;
        }
    }
    match found {
        Found::Known(identity) if config.force_new_cluster => {
            rejoin::check_nobody_leads(config, env, identity).await?;
            Ok(Origin::Known(identity))
        }
        Found::Known(identity) => match rejoin::look(config, env, identity).await? {
            Some(note) => rejoin::join(config, env, note).await,
            None => Ok(Origin::Known(identity)),
        },
        Found::Begun => {
            let beginning = begun(config, rejoin::latest(env, &directory)?)?;
            bootstrap(config, env, beginning).await
        }
        Found::Nothing if config.initial_cluster_state == ClusterState::New => {
            let (member, members) = config.members()?;
            let identity = Identity { cluster: Config::cluster_id(&members), member };
            bootstrap(config, env, (identity, initial_members(&members))).await
        }
        Found::Nothing | Found::Joining(_) => {
            let origin = join(config).await?;
            mark_joining(env, &directory)?;
            Ok(origin)
        }
    }
}

/// Who a member is whose directory has a snapshot and no log: one that was restored, or interrupted when it began. As in
/// etcd, what the directory says counts, not what the flags say of the cluster.
fn begun(config: &Config, latest: Option<Manifest>) -> Result<(Identity, Vec<Member>), JoinError> {
    let Manifest { cluster_id, metadata, .. } = latest.unwrap_or_default();
    let members = metadata.unwrap_or_default().members;
    let named = members.iter().find(|member| member.name == config.name);
    match named.or_else(|| rejoin::find(config, &members)) {
        Some(own) => Ok((Identity { cluster: cluster_id, member: own.id }, members)),
        None => {
            let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
            let (directory, name) = (config.data_directory(), config.name.clone());
            Err(JoinError::Unnamed { directory, names: names.join(", "), name })
        }
    }
}

async fn bootstrap(
    config: &Config,
    env: &Env,
    (identity, members): (Identity, Vec<Member>),
) -> Result<Origin, JoinError> {
    let member = identity.member;
    // One that has lost its data must not begin again: it would vote a second time. Those that do not answer cannot
    // know; they may be just about to start.
    let others = members.iter().filter(|other| other.id != member).flat_map(|other| &other.peer_urls);
    let others: Vec<Url> = others.filter_map(|url| url.parse().ok()).collect();
    let answers = rejoin::ask_all(others, &config.peer_credentials(), |_| false).await;
    if let Some(note) = rejoin::begin_again(config, env, identity, &answers)? {
        return rejoin::join(config, env, note).await;
    }
    for answer in answers {
        let own = answer.members.iter().find(|known| known.id == member);
        if answer.cluster == identity.cluster && own.is_some_and(|known| !known.client_urls.is_empty()) {
            return Err(JoinError::Bootstrapped { name: config.name.clone(), id: member });
        }
    }
    Ok(Origin::Bootstrap { identity, members })
}

async fn join(config: &Config) -> Result<Origin, JoinError> {
    let (_, members) = config.members()?;
    let credentials = config.peer_credentials();
    let urls: Vec<&Url> =
        members.iter().filter(|other| other.name != config.name).flat_map(|other| &other.peer_urls).collect();
    let begun = tokio::time::Instant::now();
    loop {
        let mut failed = JoinError::Alone;
        for url in &urls {
            let found = match ask_members(url, &credentials).await {
                Ok(answer) => {
                    let list = MemberListResponse::decode(answer.members).unwrap_or_default();
                    let incarnation = Incarnation::decode(answer.incarnation).unwrap_or_default();
                    identify(config, &members, (answer.cluster_id, incarnation), list.members)
                }
                Err(status) => Err(JoinError::Unreachable { url: (*url).clone(), reason: reason(&status) }),
            };
            match found {
                Ok(origin) => return Ok(origin),
                Err(error) => failed = error,
            }
        }
        // Whoever was asked may be behind, or just starting.
        if matches!(failed, JoinError::Alone) || begun.elapsed() > PATIENCE {
            return Err(failed);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Finds this member among those that the cluster has, by peer URLs; both lists have to be the same.
fn identify(
    config: &Config,
    named: &[InitialMember],
    (cluster, incarnation): (u64, Incarnation),
    existing: Vec<Member>,
) -> Result<Origin, JoinError> {
    if existing.len() != named.len() {
        return Err(JoinError::Count { theirs: existing.len(), ours: named.len() });
    }
    let named = initial_members(named);
    let mut own = None;
    for member in &existing {
        let mut urls = member.peer_urls.clone();
        urls.sort();
        let Some(found) = named.iter().find(|named| named.peer_urls == urls) else {
            return Err(JoinError::NoMatch { id: member.id, urls });
        };
        if found.name == config.name {
            own = Some(member);
        }
    }
    // As many, and each with URLs of its own: so this one is among them.
    let own = own.ok_or_else(|| ConfigError::NotInCluster(config.name.clone()))?;
    let identity = Identity { cluster, member: own.id };
    let lost = !own.name.is_empty();
    Ok(Origin::Join { identity, incarnation, members: existing, lost })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use keelson_proto::etcd::storepb::Metadata;

    use super::*;

    fn existing(id: u64, port: u16, name: &str) -> Member {
        let peer_urls = vec![format!("http://localhost:{port}")];
        Member { id, name: name.to_owned(), peer_urls, ..Member::default() }
    }

    fn check(members: Vec<Member>, expected: Result<(u64, bool), &str>) {
        let config = Config::parse_from([
            "kube-store",
            "--name=b",
            "--initial-cluster=a=http://localhost:1,b=http://localhost:2",
            "--initial-advertise-peer-urls=http://localhost:2",
        ]);
        let (_, named) = config.members().unwrap();
        match (
            identify(&config, &named, (7, Incarnation { id: 3, ..Incarnation::default() }), members),
            expected,
        ) {
            (Ok(Origin::Join { identity, incarnation, lost, .. }), Ok(expected)) => {
                assert_eq!((identity.member, lost), expected);
                assert_eq!((identity.cluster, incarnation.id), (7, 3));
            }
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (found, expected) => panic!("{found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn what_a_directory_says_of_a_beginning_counts() {
        let check = |name: &str, port: u16, expected: Result<u64, &str>| {
            let config = Config::parse_from([
                "kube-store".to_owned(),
                format!("--name={name}"),
                format!("--initial-advertise-peer-urls=http://localhost:{port}"),
                "--initial-cluster-token=other".to_owned(),
            ]);
            let members = vec![existing(10, 1, "a"), existing(20, 2, "b")];
            let metadata = Metadata { members, ..Metadata::default() };
            let manifest = Manifest { cluster_id: 7, metadata: Some(metadata), ..Manifest::default() };
            match (begun(&config, Some(manifest)), expected) {
                (Ok((identity, _)), Ok(member)) => {
                    assert_eq!(identity, Identity { cluster: 7, member }, "{name} {port}");
                }
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (found, expected) => panic!("{found:?}, expected {expected:?}"),
            }
        };
        check("a", 1, Ok(10));
        check("b", 9, Ok(20));
        check("c", 2, Ok(20));
        check("c", 9, Err("for one of a, b, not for \"c\""));
    }

    #[test]
    fn a_member_finds_itself_by_its_peer_urls() {
        check(vec![existing(10, 1, "a"), existing(20, 2, "")], Ok((20, false)));
        check(vec![existing(10, 1, "a"), existing(20, 2, "b")], Ok((20, true)));
        check(vec![existing(10, 1, "a")], Err("member count is unequal"));
        check(vec![existing(10, 1, "a"), existing(20, 3, "")], Err("no match found for existing member (14"));
    }
}
