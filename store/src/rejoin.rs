//! A member whose cluster was superseded, by one that `--force-new-cluster` made of a survivor, sets aside what it has and
//! joins that one with nothing.
//!
//! It believes nobody who calls it: it asks the members that it knows, at the URLs that it knows, before it takes part in
//! anything, and does so only if none of them still has a leader. Data is renamed, never removed; and not even that if it
//! holds entries known to be committed that the survivor did not have: then the operator decides. A note in the data
//! directory comes first, so that a member killed at any moment goes on where it was.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keelson_proto::etcd::etcdserverpb::{Member, MemberListResponse};
use keelson_proto::etcd::storepb::membership_change::Change;
use keelson_proto::etcd::storepb::{Incarnation, Manifest, MembershipChange, Metadata, Rejoining};
use keelson_proto::peer::MembersResponse;
use prost::Message as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Url};
use crate::env::{self, Env};
use crate::grpc::Server;
use crate::incarnation::{Answer, Verdict, end_of, has_all, judge, peer_cluster, places, rivals};
use crate::join::{JoinError, Origin, mark_joining};
use crate::snapshot::Snapshots;
use crate::start::{self, Purpose};
use crate::transport::{Credentials, ask_change, ask_members};
use crate::wal::Identity;

/// In a data directory: a [`Rejoining`] behind its checksum.
const NOTE: &str = "rejoining";
/// There, too: peer URLs of members as this one last knew them, one a line.
const KNOWN: &str = "superseded-by";
/// There, too: data that was set aside, and of which incarnation and member it is.
const ASIDE: &str = "superseded-";
const TEMPORARY: &str = ".tmp";
const AGAIN: Duration = Duration::from_millis(500);
/// Attempts between two lines of the log that say why it takes so long.
const SAY: u32 = 20;
/// How often the others are asked before a member is made the only one: what they say of a leader may be stale.
const LOOKS: u32 = 8;

fn unusable(directory: &Path) -> impl FnOnce(std::io::Error) -> JoinError {
    let directory = directory.to_owned();
    |error| JoinError::Directory(directory, error)
}

/// Puts a file of a data directory in place as a whole, durably.
fn write(env: &Env, directory: &Path, name: &str, bytes: &[u8]) -> Result<(), JoinError> {
    let temporary = directory.join(format!("{name}{TEMPORARY}"));
    let write = || {
        let file = env.disk.create(&temporary)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        env.disk.rename(&temporary, &directory.join(name))?;
        env.disk.sync_dir(directory)
    };
    write().map_err(unusable(directory))
}

fn has(env: &Env, directory: &Path, name: &str) -> Result<bool, JoinError> {
    let names = env.disk.list(directory).map_err(unusable(directory))?;
    Ok(names.iter().any(|found| found == name))
}

fn write_note(env: &Env, directory: &Path, note: &Rejoining) -> Result<(), JoinError> {
    let body = note.encode_to_vec();
    write(env, directory, NOTE, &[&crc32fast::hash(&body).to_le_bytes()[..], &body].concat())
}

/// What a member is in the middle of, if it is.
///
/// # Errors
/// The disk's, and a note that is damaged.
pub fn note(env: &Env, directory: &Path) -> Result<Option<Rejoining>, JoinError> {
    if !has(env, directory, NOTE)? {
        return Ok(None);
    }
    let path = directory.join(NOTE);
    let bytes = env::read(&*env.disk, &path).map_err(unusable(directory))?;
    let note = bytes.split_first_chunk::<4>().and_then(|(check, body)| {
        (u32::from_le_bytes(*check) == crc32fast::hash(body)).then(|| Rejoining::decode(body).ok())?
    });
    note.map(Some).ok_or(JoinError::Note(path))
}

/// Leaves the peer URLs that are known, for [`look`] to ask: they may have changed since the last snapshot.
fn remember<'a>(
    env: &Env,
    directory: &Path,
    urls: impl Iterator<Item = &'a String>,
) -> Result<(), JoinError> {
    let lines: String = urls.flat_map(|url| [url.as_str(), "\n"]).collect();
    write(env, directory, KNOWN, lines.as_bytes())
}

/// Asks all at once who the members are, until an answer is enough. Those that do not answer say nothing.
pub async fn ask_all(
    urls: impl IntoIterator<Item = Url>,
    credentials: &Credentials,
    enough: impl Fn(&Answer) -> bool,
) -> Vec<Answer> {
    let ask = |url: Url| {
        let credentials = credentials.clone();
        async move { ask_members(&url, &credentials).await.map(|answer| read(&url, answer)) }
    };
    let mut asking = urls.into_iter().map(ask).collect::<JoinSet<_>>();
    let mut answers = Vec::new();
    while let Some(asked) = asking.join_next().await {
        let answer = asked.ok().and_then(Result::ok);
        let last = answer.as_ref().is_some_and(&enough);
        answers.extend(answer);
        if last {
            break;
        }
    }
    answers
}

/// Whether whoever answers follows or is a leader of that incarnation: then a majority of it lives.
fn lives(answer: &Answer, cluster: u64, incarnation: u64) -> bool {
    answer.cluster == cluster && answer.incarnation.id == incarnation && answer.leader != 0
}

fn read(url: &Url, answer: MembersResponse) -> Answer {
    Answer {
        url: url.to_string(),
        cluster: answer.cluster_id,
        incarnation: Incarnation::decode(answer.incarnation).unwrap_or_default(),
        leader: answer.leader,
        members: MemberListResponse::decode(answer.members).unwrap_or_default().members,
    }
}

/// The others' peer URLs, as the configuration says them.
fn configured(config: &Config) -> Vec<Url> {
    let members = config.members().map(|(_, members)| members).unwrap_or_default();
    members.into_iter().filter(|other| other.name != config.name).flat_map(|other| other.peer_urls).collect()
}

/// What a data directory says of the membership, as of its last snapshot.
fn last_known(env: &Env, directory: &Path) -> Result<Metadata, JoinError> {
    Ok(latest(env, directory)?.and_then(|latest| latest.metadata).unwrap_or_default())
}

/// The latest snapshot in a data directory.
///
/// # Errors
/// That it is damaged, and the disk's.
pub fn latest(env: &Env, directory: &Path) -> Result<Option<Manifest>, JoinError> {
    let snapshots = Snapshots::inspect(env.disk.clone(), &directory.join("member/snap"))?;
    Ok(snapshots.latest().cloned())
}

/// The others' peer URLs, from everywhere that this member trusts.
fn known_urls(config: &Config, env: &Env, own: u64, known: &Metadata) -> Result<Vec<Url>, JoinError> {
    let directory = config.data_directory();
    let mut urls = configured(config);
    let of_state = known.members.iter().filter(|other| other.id != own).flat_map(|other| &other.peer_urls);
    urls.extend(of_state.filter_map(|url| url.parse().ok()));
    if has(env, &directory, KNOWN)? {
        let lines = env::read(&*env.disk, &directory.join(KNOWN)).map_err(unusable(&directory))?;
        urls.extend(String::from_utf8_lossy(&lines).lines().filter_map(|line| line.parse().ok()));
    }
    urls.sort_by_key(Url::to_string);
    urls.dedup();
    Ok(urls)
}

/// Finds out before a member starts whether its cluster was superseded. Then its data is set aside, and what it has to
/// join comes back.
///
/// # Errors
/// That it may not do so, and the disk's.
pub async fn look(config: &Config, env: &Env, identity: Identity) -> Result<Option<Rejoining>, JoinError> {
    let directory = config.data_directory();
    let known = last_known(env, &directory)?;
    let own = known.incarnation.clone().unwrap_or_default().id;
    let urls = known_urls(config, env, identity.member, &known)?;
    // With a majority nobody has superseded it rightly, and whoever is away need not be waited for.
    let enough = |answer: &Answer| lives(answer, identity.cluster, own);
    let answers = ask_all(urls, &config.peer_credentials(), enough).await;
    let answer = match judge(identity.cluster, own, &answers) {
        Verdict::Current => {
            if let Some(rivals) = rivals(identity.cluster, own, &answers) {
                tracing::error!(
                    "two clusters with this cluster's ID serve clients: this member, and {rivals}, of another cluster that \
                     --force-new-cluster made, or from before it. They do not mix, and what clients write to one of them is \
                     not in the other: decide which one is to stay, stop the other one's members and remove their data \
                     directories"
                );
            }
            return Ok(None);
        }
        Verdict::Contested => return Err(contested(&answers)),
        Verdict::Parted(answer) => {
            tracing::error!(
                "--force-new-cluster made a new cluster of another member, at {}, although a majority of this one lives: two \
                 clusters serve clients. Stop that member and remove its data, or stop all members of this one and start \
                 them again",
                answer.url
            );
            return Ok(None);
        }
        Verdict::Superseded(answer) => answer,
    };
    let note = awaited(config, identity, own, &answer)?;
    let give_up = || {
        let _lock = start::lock(&directory).map_err(|error| JoinError::Data(Box::new(error)))?;
        check_nothing_lost(env, &directory, identity, own, &answer)?;
        fail::fail_point!("rejoin_before_note");
        write_note(env, &directory, &note)?;
        fail::fail_point!("rejoin_after_note");
        set_aside(env, &directory, &note)
    };
    tokio::task::block_in_place(give_up)?;
    Ok(Some(note))
}

/// As [`look`], of a member that has lost its data and would begin a cluster anew.
///
/// # Errors
/// That it may not join, and the disk's.
pub fn begin_again(
    config: &Config,
    env: &Env,
    identity: Identity,
    answers: &[Answer],
) -> Result<Option<Rejoining>, JoinError> {
    let answer = match judge(identity.cluster, 0, answers) {
        // A majority that lives knows what became of this member.
        Verdict::Current | Verdict::Parted(_) => return Ok(None),
        Verdict::Contested => return Err(contested(answers)),
        Verdict::Superseded(answer) => answer,
    };
    let note = awaited(config, identity, 0, &answer)?;
    let directory = config.data_directory();
    env.disk.create_dir(&directory).map_err(unusable(&directory))?;
    write_note(env, &directory, &note)?;
    if has(env, &directory, "member")? {
        // A beginning that was not finished.
        leave(env, &directory, &note)?;
    }
    Ok(Some(note))
}

/// Forgets a note of a member that is to be the only one.
///
/// # Errors
/// The disk's.
pub fn forget(env: &Env, directory: &Path) -> Result<(), JoinError> {
    if !has(env, directory, NOTE)? {
        return Ok(());
    }
    let remove = || env.disk.remove(&directory.join(NOTE)).and_then(|()| env.disk.sync_dir(directory));
    remove().map_err(unusable(directory))
}

/// Goes on where a member was killed between its note and the renaming.
///
/// # Errors
/// Another process uses the data, and the disk's.
pub fn leave(env: &Env, directory: &Path, note: &Rejoining) -> Result<(), JoinError> {
    let _lock = start::lock(directory).map_err(|error| JoinError::Data(Box::new(error)))?;
    set_aside(env, directory, note)
}

fn own_urls(config: &Config) -> Vec<String> {
    let mut urls: Vec<String> = config.initial_advertise_peer_urls.iter().map(Url::to_string).collect();
    urls.sort();
    urls
}

/// This member among others, by its peer URLs.
pub fn find<'a>(config: &Config, members: &'a [Member]) -> Option<&'a Member> {
    let own = own_urls(config);
    members.iter().find(|member| {
        let mut urls = member.peer_urls.clone();
        urls.sort();
        urls == own
    })
}

fn awaited(
    config: &Config,
    Identity { cluster, member }: Identity,
    incarnation: u64,
    answer: &Answer,
) -> Result<Rejoining, JoinError> {
    if !answer.incarnation.absent.contains(&member) && find(config, &answer.members).is_none() {
        return Err(JoinError::NotAwaited(member));
    }
    let peer_urls = answer.members.iter().flat_map(|other| other.peer_urls.clone()).collect();
    Ok(Rejoining { cluster_id: cluster, incarnation, member, peer_urls, asked: false })
}

/// Of two new clusters, where they are.
fn contested(answers: &[Answer]) -> JoinError {
    let forced = |answer: &Answer| !answer.incarnation.past.is_empty();
    JoinError::Contested(places(answers, forced).unwrap_or_default())
}

/// Whether the survivor had everything that this member knows to be committed.
fn check_nothing_lost(
    env: &Env,
    directory: &Path,
    identity: Identity,
    own: u64,
    answer: &Answer,
) -> Result<(), JoinError> {
    let Some(end) = end_of(&answer.incarnation, own) else {
        return Err(contested(std::slice::from_ref(answer)));
    };
    let disks = start::open(env, directory, &Origin::Known(identity), Purpose::Continue)
        .map_err(|error| JoinError::Data(Box::new(error)))?;
    let committed = disks.recovered.hard_state.commit.max(disks.loaded.applied.0);
    let known = disks.recovered.hard_state.term.max(disks.loaded.applied.1);
    // Every entry behind what is applied is there.
    let term = disks.recovered.term(committed).unwrap_or(known);
    if has_all(end, (committed, term), known) {
        return Ok(());
    }
    let (directory, end) = (directory.to_owned(), (end.index, end.last_term));
    let url = answer.url.clone();
    Err(JoinError::Ahead { url, directory, committed, term, known, end })
}

/// Renames the data of a superseded member.
fn set_aside(env: &Env, directory: &Path, note: &Rejoining) -> Result<(), JoinError> {
    let names = env.disk.list(directory).map_err(unusable(directory))?;
    let name = format!("{ASIDE}{:x}-{:x}", note.incarnation, note.member);
    let free = |name: &String| !names.contains(name);
    let name = Some(name.clone())
        .into_iter()
        .chain((2..).map(|serial: u32| format!("{name}-{serial}")))
        .find(free)
        .unwrap_or_default();
    let aside: PathBuf = directory.join(name);
    let rename =
        || env.disk.rename(&directory.join("member"), &aside).and_then(|()| env.disk.sync_dir(directory));
    rename().map_err(unusable(directory))?;
    fail::fail_point!("rejoin_after_rename");
    tracing::warn!(
        kept = %aside.display(),
        "this member's cluster was superseded by one that --force-new-cluster made: its data was set aside, and it joins \
         that one with nothing. Remove what was kept when nobody needs it any more"
    );
    Ok(())
}

/// Ends when a member that runs, without a leader, has been told that its cluster was superseded and found that to be so.
pub async fn found_superseded(server: Arc<Server>, config: &Config, env: &Env) {
    let mut told = server.shared.watch_superseded();
    let directory = config.data_directory();
    while told.changed().await.is_ok() {
        let (incarnation, known) = {
            let members = server.state.members.read();
            let others = members.values().filter(|other| other.id != server.member);
            let known: Vec<String> = others.flat_map(|other| other.peer_urls.clone()).collect();
            (members.incarnation().id, known)
        };
        let urls = known.iter().filter_map(|url| url.parse().ok());
        let enough = |answer: &Answer| lives(answer, server.cluster, incarnation);
        let answers = ask_all(urls, &config.peer_credentials(), enough).await;
        if matches!(judge(server.cluster, incarnation, &answers), Verdict::Superseded(_))
            && server.shared.leader() == 0
        {
            if let Err(error) = remember(env, &directory, known.iter()) {
                tracing::warn!(%error, "cannot note who told this member that its cluster was superseded");
            }
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
    // Nobody is there to tell any more: the node has ended.
    std::future::pending().await
}

/// Joins, and asks to be added if nobody did: it takes as long as it takes.
///
/// # Errors
/// That it may not join, and the disk's.
pub async fn join(config: &Config, env: &Env, mut note: Rejoining) -> Result<Origin, JoinError> {
    let directory = config.data_directory();
    let credentials = config.peer_credentials();
    let mut urls: Vec<Url> = note.peer_urls.iter().filter_map(|url| url.parse().ok()).collect();
    urls.extend(configured(config));
    let own = own_urls(config);
    urls.retain(|url| !own.contains(&url.to_string()));
    for attempt in 0u32.. {
        let mut reason = "no member of it answers".to_owned();
        for url in &urls {
            let Ok(answer) = ask_members(url, &credentials).await.map(|answer| read(url, answer)) else {
                continue;
            };
            if answer.cluster != note.cluster_id || end_of(&answer.incarnation, note.incarnation).is_none() {
                continue;
            }
            let cluster = peer_cluster(answer.cluster, answer.incarnation.id);
            if let Some(found) = find(config, &answer.members) {
                let identity = Identity { cluster: note.cluster_id, member: found.id };
                let (incarnation, lost) = (answer.incarnation, !found.name.is_empty());
                mark_joining(env, &directory)?;
                return Ok(Origin::Join { identity, incarnation, members: answer.members, lost });
            }
            if !answer.incarnation.absent.contains(&note.member) {
                return Err(JoinError::NotAwaited(note.member));
            }
            if !note.asked {
                note.asked = true;
                write_note(env, &directory, &note)?;
            }
            // It does not count for the quorum until it holds what the others do.
            let id = (env.seed ^ note.member).max(1);
            let member = Member { id, peer_urls: own.clone(), is_learner: true, ..Member::default() };
            let change = MembershipChange {
                change: Some(Change::Add(member)),
                replaces: note.member,
                ..MembershipChange::default()
            };
            match ask_change(url, &credentials, cluster, change.encode_to_vec()).await {
                Ok(_) => tracing::info!(member = format!("{id:x}"), "was added as a learner"),
                Err(refused) => reason = refused.message().to_owned(),
            }
            fail::fail_point!("rejoin_after_add");
        }
        if attempt % SAY == SAY - 1 {
            tracing::warn!(reason, "cannot join the cluster that superseded this member's yet");
        }
        tokio::time::sleep(AGAIN).await;
    }
    Err(JoinError::Alone)
}

/// A member that joined by itself asks to be promoted; then nothing is left to do.
pub async fn complete(server: Arc<Server>, config: Config, env: Env, stopping: CancellationToken) {
    let directory = config.data_directory();
    let note = match note(&env, &directory) {
        Ok(Some(note)) => note,
        Ok(None) => return,
        Err(error) => return tracing::error!(%error, "cannot tell whether this member is to be promoted"),
    };
    let complete = async {
        loop {
            let own = server.state.members.read().get(&server.member).cloned();
            // Until it has a snapshot it knows what it was told before it joined.
            let told = !server.state.members.read().configuration().voters.is_empty();
            match own.filter(|_| told) {
                Some(own) if !own.is_learner || !note.asked => return,
                Some(own) => match server.change_membership(Change::Promote(own.id)).await {
                    Ok(_) => tracing::info!("was promoted: it votes again"),
                    Err(error) => tracing::debug!(error = error.message(), "cannot be promoted yet"),
                },
                None => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    tokio::select! {
        () = stopping.cancelled() => return,
        () = complete => {}
    }
    let remove = |name| env.disk.remove(&directory.join(name));
    let known = has(&env, &directory, KNOWN).unwrap_or(false);
    let removed = remove(NOTE)
        .and_then(|()| if known { remove(KNOWN) } else { Ok(()) })
        .and_then(|()| env.disk.sync_dir(&directory));
    match removed {
        Ok(()) => tracing::info!("has joined the cluster that superseded its own"),
        Err(error) => tracing::warn!(%error, "cannot remove the note of having joined again"),
    }
}

/// Refuses to make a member the only one while others have a leader, be it of another incarnation.
///
/// # Errors
/// That they have, and the disk's.
pub async fn check_nobody_leads(config: &Config, env: &Env, identity: Identity) -> Result<(), JoinError> {
    let known = last_known(env, &config.data_directory())?;
    let own = known.incarnation.clone().unwrap_or_default().id;
    let urls = known_urls(config, env, identity.member, &known)?;
    let mut refused = JoinError::Alone;
    for look in 1..=LOOKS {
        let majority = |answer: &Answer| lives(answer, identity.cluster, own);
        let answers = ask_all(urls.clone(), &config.peer_credentials(), majority).await;
        refused = match (places(&answers, majority), rivals(identity.cluster, own, &answers)) {
            (Some(urls), _) => JoinError::MajorityLives(urls),
            (None, Some(urls)) => JoinError::Rival(urls),
            (None, None) => return Ok(()),
        };
        if look < LOOKS {
            tokio::time::sleep(AGAIN).await;
        }
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    use keelson_proto::etcd::storepb::Superseded;
    use keelson_raft::{Entry, HardState};

    use super::*;
    use crate::incarnation;

    /// One led in term 2 and has 41 to 60, which nobody else has. In term 3 another one led, and 41 to 50 were committed;
    /// the first heard of that term and of nothing in it, and was made the only one.
    #[test]
    fn what_was_committed_in_a_term_of_which_the_survivor_has_nothing() {
        let identity = Identity { cluster: 5, member: 2 };
        let check = |last_term, expected: bool| {
            let (directory, env) = (tempfile::tempdir().unwrap(), Env::real());
            let members = (1..=3).map(|id| Member { id, ..Member::default() }).collect();
            let origin = Origin::Bootstrap { identity, members };
            let mut disks = start::open(&env, directory.path(), &origin, Purpose::Continue).unwrap();
            let entries = (2..=50).map(|index| (index, if index <= 40 { 1 } else { 3 }));
            let entries: Vec<Entry> =
                entries.map(|(index, term)| Entry { index, term, ..Entry::default() }).collect();
            let state = HardState { term: 3, commit: 50, ..HardState::default() };
            disks.wal.append(Some(&state), None, &entries);
            disks.wal.commit().unwrap();
            drop(disks);
            let end = Superseded { id: 0, index: 60, term: 3, last_term };
            let incarnation = incarnation::next(&Incarnation::default(), end, 7, &[2]);
            let answer = Answer { incarnation, ..Answer::default() };
            match check_nothing_lost(&env, directory.path(), identity, 0, &answer) {
                Err(JoinError::Ahead { committed: 50, term: 3, known: 3, end, .. }) => {
                    assert!(!expected && end == (60, last_term));
                }
                other => assert!(expected && other.is_ok(), "{other:?}"),
            }
        };
        check(2, false);
        check(3, true);
    }
}
