//! A member is removed, and added anew with nothing: step by step, since everything else goes on meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keelson_proto::etcd::etcdserverpb::{
    Member as Listed, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::{sleep, timeout};
use tonic::Status;

use crate::client::Client;
use crate::member::Member;
use crate::shared::Shared;

/// How long a removal that is refused is asked for: a cluster without a quorum allows none.
const REMOVAL: Duration = Duration::from_secs(15);
/// How long one that was removed has to learn of it by itself, before it is ended.
const LEAVE: Duration = Duration::from_secs(4);

enum State {
    /// The others are asked to remove it: true once it is.
    Removing(oneshot::Receiver<bool>),
    /// It is no member any more, since then.
    Leaving(Instant),
    /// The others are asked to add it: what `--initial-cluster` is then.
    Adding(oneshot::Receiver<String>),
    /// It runs: until it has a vote, and has told its name.
    Joining(oneshot::Receiver<()>),
}

pub enum Step {
    /// Its process is to start.
    Start,
    Done(&'static str),
}

pub struct Change {
    pub place: usize,
    shared: Arc<Shared>,
    as_learner: bool,
    state: State,
}

impl Change {
    pub fn new(shared: Arc<Shared>, member: &Member, as_learner: bool) -> Self {
        let asked = begin(remove(shared.clone(), member.place));
        Self { place: member.place, shared, as_learner, state: State::Removing(asked) }
    }

    /// Whether its process may be started again if it ends.
    pub fn may_run(&self) -> bool {
        matches!(self.state, State::Removing(_) | State::Joining(_))
    }

    /// Whether its process ends by itself for good reason, as its log has it.
    pub fn explains(&self, log: &[String]) -> Option<&'static str> {
        let says = |what: &str| log.iter().any(|line| line.contains(what));
        match self.state {
            State::Removing(_) | State::Leaving(_) if says("permanently removed from the cluster") => {
                Some("learned that it was removed")
            }
            // Whoever it asked was cut off, or behind.
            State::Joining(_) if says("cannot fetch cluster info") || says("error validating peerURLs") => {
                Some("could not join yet")
            }
            _ => None,
        }
    }

    /// Goes on, if it can.
    pub fn step(&mut self, member: &mut Member) -> Option<Step> {
        match &mut self.state {
            State::Removing(asked) => {
                if !take(asked)? {
                    return Some(Step::Done("a removal was refused"));
                }
                self.state = State::Leaving(Instant::now());
                None
            }
            State::Leaving(since) => {
                if member.runs() && since.elapsed() < LEAVE {
                    return None;
                }
                member.kill();
                member.wipe();
                let asked = add(self.shared.clone(), self.place, member.name(), self.as_learner);
                self.state = State::Adding(begin(asked));
                None
            }
            State::Adding(asked) => {
                member.cluster = take(asked)?;
                self.state = State::Joining(begin(promote(self.shared.clone(), self.place)));
                Some(Step::Start)
            }
            State::Joining(asked) => {
                take(asked)?;
                Some(Step::Done("joined anew"))
            }
        }
    }
}

/// Has something done meanwhile.
fn begin<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> oneshot::Receiver<T> {
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move { sender.send(task.await) });
    receiver
}

/// What came of it, if it is done.
fn take<T>(asked: &mut oneshot::Receiver<T>) -> Option<T> {
    match asked.try_recv() {
        Ok(answer) => Some(answer),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Closed) => panic!("a task of a change of the membership panicked"),
    }
}

fn peer_url(place: usize) -> String {
    format!("http://10.77.0.{}:2380", place + 1)
}

/// Asks every member but one in turn until something is answered that counts.
async fn ask<T, F>(
    shared: Arc<Shared>,
    but: usize,
    patience: Option<Duration>,
    question: impl Fn(Client) -> F,
) -> Option<T>
where
    F: Future<Output = Result<Option<T>, Status>>,
{
    let begun = Instant::now();
    let mut place = but;
    loop {
        place = (place + 1) % shared.members();
        if place == but {
            continue;
        }
        let asked = timeout(Duration::from_secs(8), question(shared.client(place)));
        if let Ok(Ok(Some(answer))) = asked.await {
            return Some(answer);
        }
        if patience.is_some_and(|patience| begun.elapsed() > patience) {
            return None;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn list(client: &Client) -> Result<Vec<Listed>, Status> {
    let request = MemberListRequest { linearizable: true };
    Ok(client.cluster.clone().member_list(request).await?.into_inner().members)
}

async fn find(client: &Client, place: usize) -> Result<Option<Listed>, Status> {
    let url = peer_url(place);
    Ok(list(client).await?.into_iter().find(|member| member.peer_urls.contains(&url)))
}

/// Whether it is no member any more.
async fn remove(shared: Arc<Shared>, place: usize) -> bool {
    let removed = ask(shared.clone(), place, Some(REMOVAL), |mut client| async move {
        if let Some(member) = find(&client, place).await? {
            client.cluster.member_remove(MemberRemoveRequest { id: member.id }).await?;
        }
        Ok(Some(()))
    });
    if removed.await.is_some() {
        return true;
    }
    // What was asked for last may be done yet: the members let requests time out before that.
    sleep(Duration::from_secs(12)).await;
    let gone =
        ask(shared, place, None, |client| async move { Ok(Some(find(&client, place).await?.is_none())) });
    gone.await.unwrap_or(false)
}

async fn add(shared: Arc<Shared>, place: usize, name: String, is_learner: bool) -> String {
    let members = ask(shared, place, None, |mut client| async move {
        let members = list(&client).await?;
        if members.iter().any(|member| member.peer_urls.contains(&peer_url(place))) {
            // Asked for before, without an answer.
            return Ok(Some(members));
        }
        let request = MemberAddRequest { peer_urls: vec![peer_url(place)], is_learner };
        Ok(Some(client.cluster.member_add(request).await?.into_inner().members))
    });
    let members = members.await.unwrap_or_default();
    let pairs = members.iter().flat_map(|member| {
        let name = if member.peer_urls.contains(&peer_url(place)) { &name } else { &member.name };
        member.peer_urls.iter().map(move |url| format!("{name}={url}"))
    });
    pairs.collect::<Vec<_>>().join(",")
}

/// Waits until it has caught up, has told its name, and has a vote.
async fn promote(shared: Arc<Shared>, place: usize) {
    let promoted = ask(shared, place, None, |mut client| async move {
        let Some(member) = find(&client, place).await? else { return Ok(None) };
        if !member.is_learner {
            return Ok((!member.name.is_empty()).then_some(()));
        }
        client.cluster.member_promote(MemberPromoteRequest { id: member.id }).await?;
        Ok(None)
    });
    promoted.await;
}
