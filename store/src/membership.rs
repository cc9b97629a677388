//! Who the members are: replicated state, what a change of it has to fulfil on every member alike ([`Members::check`]),
//! and when a leader may propose one at all ([`Standing::check`]). Pure: [`crate::apply`] alone changes the state.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use keelson_proto::etcd::etcdserverpb::Member;
use keelson_proto::etcd::storepb::membership_change::Change;
use keelson_proto::etcd::storepb::{Configuration, Incarnation, MembershipChange, Metadata};
use keelson_raft::{Change as Step, ConfState};

/// Why the membership does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("member ID already exists")]
    IdExists,
    #[error("member not found")]
    NotFound,
    #[error("peer URLs already exist")]
    PeerUrlExists,
    #[error("only a learner can be promoted")]
    NotLearner,
    #[error("too many learners")]
    TooManyLearners,
    #[error("not enough started members would be left")]
    NotEnoughStarted,
    #[error("too few members are connected")]
    Unhealthy,
    #[error("the learner is not in sync with the leader")]
    LearnerNotReady,
    #[error("consensus does not allow it")]
    Impossible,
}

/// The members by id, the ids that were removed for good, and Raft's configuration, which follows from the members but
/// for the time of a joint one.
#[derive(Debug, Clone, Default)]
pub struct Members {
    current: BTreeMap<u64, Member>,
    removed: BTreeSet<u64>,
    configuration: Configuration,
    incarnation: Incarnation,
}

impl Deref for Members {
    type Target = BTreeMap<u64, Member>;

    fn deref(&self) -> &Self::Target {
        &self.current
    }
}

fn by_id(members: impl IntoIterator<Item = Member>) -> BTreeMap<u64, Member> {
    members.into_iter().map(|member| (member.id, member)).collect()
}

impl Members {
    /// The members of a group that begins.
    pub fn bootstrap(members: impl IntoIterator<Item = Member>) -> Self {
        let current = by_id(members);
        let configuration =
            Configuration { voters: current.keys().copied().collect(), ..Configuration::default() };
        Self { current, configuration, ..Self::default() }
    }

    /// As a member that joins was told: enough to reach them, not to count votes.
    pub fn hearsay(members: impl IntoIterator<Item = Member>, incarnation: Incarnation) -> Self {
        Self { current: by_id(members), incarnation, ..Self::default() }
    }

    pub fn new(
        members: impl IntoIterator<Item = Member>,
        removed: BTreeSet<u64>,
        configuration: Configuration,
        incarnation: Incarnation,
    ) -> Self {
        Self { current: by_id(members), removed, configuration, incarnation }
    }

    /// Adds or replaces what a member says of itself.
    pub fn publish(&mut self, member: Member) -> Option<&Member> {
        let known = self.current.get_mut(&member.id)?;
        (known.name, known.client_urls) = (member.name, member.client_urls);
        Some(known)
    }

    /// As [`Self::publish`], also of one that is not known.
    pub fn overlay(&mut self, member: Member) {
        self.current.insert(member.id, member);
    }

    pub fn is_removed(&self, id: u64) -> bool {
        self.removed.contains(&id)
    }

    pub fn removed(&self) -> &BTreeSet<u64> {
        &self.removed
    }

    pub fn is_learner(&self, id: u64) -> bool {
        self.current.get(&id).is_some_and(|member| member.is_learner)
    }

    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Which of the clusters of one id they are the members of.
    pub fn incarnation(&self) -> &Incarnation {
        &self.incarnation
    }

    /// For Raft.
    pub fn conf_state(&self) -> ConfState {
        let Configuration { voters, learners, voters_outgoing, learners_next, auto_leave } =
            self.configuration.clone();
        ConfState { voters, learners, voters_outgoing, learners_next, auto_leave, ..ConfState::default() }
    }

    /// Puts what a snapshot needs of it into its metadata.
    pub fn describe(&self, metadata: &mut Metadata) {
        metadata.members = self.current.values().cloned().collect();
        metadata.configuration = Some(self.configuration.clone());
        metadata.removed = self.removed.iter().copied().collect();
        metadata.incarnation = Some(self.incarnation.clone());
    }

    /// As clients see them: in the order of their peer URLs.
    pub fn list(&self) -> Vec<Member> {
        self.current.values().cloned().collect()
    }

    fn voters(&self) -> impl Iterator<Item = &Member> {
        self.current.values().filter(|member| !member.is_learner)
    }

    /// Whether a change may be applied; every member that applies it decides the same.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, change: &MembershipChange) -> Result<(), Refusal> {
        let known = |id| self.current.get(&id).ok_or(Refusal::NotFound);
        match change.change.as_ref().ok_or(Refusal::Impossible)? {
            Change::Add(member) => {
                if self.removed.contains(&member.id) {
                    return Err(Refusal::NotFound);
                }
                if self.current.contains_key(&member.id) {
                    return Err(Refusal::IdExists);
                }
                if change.replaces != 0 && !self.incarnation.absent.contains(&change.replaces) {
                    return Err(Refusal::NotFound);
                }
                self.check_urls(member)?;
                let learners = self.current.values().filter(|member| member.is_learner).count();
                if member.is_learner && learners >= change.max_learners as usize {
                    return Err(Refusal::TooManyLearners);
                }
            }
            Change::Promote(id) => {
                if !known(*id)?.is_learner {
                    return Err(Refusal::NotLearner);
                }
            }
            Change::Remove(id) => {
                if !known(*id)?.is_learner && self.voters().count() == 1 {
                    return Err(Refusal::NotEnoughStarted);
                }
            }
            Change::Update(member) => {
                known(member.id)?;
                self.check_urls(member)?;
            }
        }
        Ok(())
    }

    fn check_urls(&self, member: &Member) -> Result<(), Refusal> {
        let mut others = self.current.values().filter(|other| other.id != member.id);
        let taken = others.any(|other| other.peer_urls.iter().any(|url| member.peer_urls.contains(url)));
        if taken { Err(Refusal::PeerUrlExists) } else { Ok(()) }
    }

    /// Makes a change that was checked; a configuration comes with those that consensus takes part in.
    pub fn apply(&mut self, change: Option<MembershipChange>, configuration: Option<ConfState>) {
        let (change, replaces) = change.map_or((None, 0), |made| (made.change, made.replaces));
        match change {
            Some(Change::Add(member)) => {
                self.incarnation.absent.retain(|id| *id != replaces);
                self.current.insert(member.id, member);
            }
            Some(Change::Promote(id)) => {
                if let Some(member) = self.current.get_mut(&id) {
                    member.is_learner = false;
                }
            }
            Some(Change::Remove(id)) => {
                self.current.remove(&id);
                self.removed.insert(id);
            }
            Some(Change::Update(member)) => {
                if let Some(known) = self.current.get_mut(&member.id) {
                    known.peer_urls = member.peer_urls;
                }
            }
            None => {}
        }
        if let Some(conf_state) = configuration {
            let ConfState { voters, learners, voters_outgoing, learners_next, auto_leave, .. } = conf_state;
            self.configuration =
                Configuration { voters, learners, voters_outgoing, learners_next, auto_leave };
        }
    }
}

/// What a change means to consensus; none for one that it need not know of.
pub fn step(change: &Change) -> Option<Step> {
    Some(match change {
        Change::Add(member) if member.is_learner => Step::AddLearner(member.id),
        Change::Add(member) => Step::AddVoter(member.id),
        Change::Promote(id) => Step::AddVoter(*id),
        Change::Remove(id) => Step::Remove(*id),
        Change::Update(_) => return None,
    })
}

/// A change in one line of a log.
pub fn describe(change: &Change) -> String {
    match change {
        Change::Add(Member { id, peer_urls, is_learner, .. }) => {
            format!("add {id:x} at {}{}", peer_urls.join(","), if *is_learner { " as learner" } else { "" })
        }
        Change::Promote(id) => format!("promote {id:x}"),
        Change::Remove(id) => format!("remove {id:x}"),
        Change::Update(Member { id, peer_urls, .. }) => format!("move {id:x} to {}", peer_urls.join(",")),
    }
}

/// What the leader knows of the members besides the replicated state.
pub struct Standing<'a> {
    pub leader: u64,
    /// Whether a member has been heard from lately.
    pub connected: &'a dyn Fn(u64) -> bool,
    /// The log's index that a member is known to hold, if the leader sends to it.
    pub matched: &'a dyn Fn(u64) -> Option<u64>,
}

/// A learner in sync holds at least nine tenths of what the leader does, as in etcd.
fn in_sync(learner: u64, leader: u64) -> bool {
    u128::from(learner) * 10 >= u128::from(leader) * 9
}

impl Standing<'_> {
    /// etcd's strict check of a reconfiguration, and its check of learners: those that would cost the quorum are refused.
    ///
    /// # Errors
    /// Why it is refused for now.
    pub fn check(&self, members: &Members, change: &Change, strict: bool) -> Result<(), Refusal> {
        if let Change::Promote(id) = change {
            let learner = (self.matched)(*id).ok_or(Refusal::NotFound)?;
            let leader = (self.matched)(self.leader).unwrap_or(u64::MAX);
            if !in_sync(learner, leader) {
                return Err(Refusal::LearnerNotReady);
            }
        }
        if !strict {
            return Ok(());
        }
        let voters: Vec<&Member> = members.voters().collect();
        let is_connected = |member: &&&Member| member.id == self.leader || (self.connected)(member.id);
        let connected = voters.iter().filter(is_connected).count();
        let is_started = |member: &&Member| !member.name.is_empty();
        let started = voters.iter().copied().filter(is_started).count();
        let quorum = |count: usize| count / 2 + 1;
        match change {
            Change::Add(member) => {
                let first = voters.len() == 1;
                if !member.is_learner && started < quorum(voters.len() + 1) && !(first && started == 1) {
                    return Err(Refusal::NotEnoughStarted);
                }
                // The new member counts as one that is away.
                if !first && connected < quorum(voters.len() + 1) {
                    return Err(Refusal::Unhealthy);
                }
            }
            Change::Promote(_) if started + 1 < quorum(voters.len() + 1) => {
                return Err(Refusal::NotEnoughStarted);
            }
            Change::Remove(id) if !members.is_learner(*id) => {
                let left = voters.iter().copied().filter(|member| member.id != *id);
                let (count, started) = (left.clone().count(), left.filter(is_started).count());
                if started < quorum(count) {
                    return Err(Refusal::NotEnoughStarted);
                }
                // One that is away is no part of the quorum that there is.
                let away = *id != self.leader && !(self.connected)(*id);
                if !away && connected - 1 < 1 + (voters.len() - 1) / 2 {
                    return Err(Refusal::Unhealthy);
                }
            }
            Change::Promote(_) | Change::Remove(_) | Change::Update(_) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, name: &str) -> Member {
        Member {
            id,
            name: name.to_owned(),
            peer_urls: vec![format!("http://127.0.0.1:{id}")],
            ..Member::default()
        }
    }

    fn learner(id: u64) -> Member {
        Member { is_learner: true, ..member(id, "") }
    }

    fn change(change: Change) -> MembershipChange {
        MembershipChange { max_learners: 1, change: Some(change), replaces: 0 }
    }

    fn returning(id: u64, replaces: u64) -> MembershipChange {
        MembershipChange { replaces, ..change(Change::Add(member(id, ""))) }
    }

    #[test]
    fn who_is_absent_comes_back_once() {
        let incarnation = Incarnation { id: 7, absent: vec![2, 3], ..Incarnation::default() };
        let mut members =
            Members::new([member(1, "a")], BTreeSet::from([2, 3]), Configuration::default(), incarnation);
        assert_eq!(members.check(&returning(9, 1)), Err(Refusal::NotFound));
        assert_eq!(members.check(&returning(2, 2)), Err(Refusal::NotFound), "not with the same id");
        assert_eq!(members.check(&returning(9, 2)), Ok(()));
        members.apply(Some(returning(9, 2)), None);
        assert_eq!(members.incarnation().absent, [3]);
        assert_eq!(members.check(&returning(10, 2)), Err(Refusal::NotFound));
        assert_eq!(members.check(&returning(10, 3)), Ok(()));
    }

    #[test]
    fn what_is_applied_is_checked() {
        let mut members = Members::bootstrap([member(1, "a"), member(2, "b")]);
        members.apply(Some(change(Change::Add(learner(3)))), None);
        members.apply(Some(change(Change::Remove(2))), None);
        let check = |made: Change, expected: Result<(), Refusal>| {
            assert_eq!(members.check(&change(made.clone())), expected, "{made:?}");
        };
        check(Change::Add(member(4, "")), Ok(()));
        check(Change::Add(member(2, "")), Err(Refusal::NotFound));
        check(Change::Add(member(1, "")), Err(Refusal::IdExists));
        check(Change::Add(Member { id: 9, ..member(1, "") }), Err(Refusal::PeerUrlExists));
        check(Change::Add(learner(4)), Err(Refusal::TooManyLearners));
        check(Change::Promote(3), Ok(()));
        check(Change::Promote(1), Err(Refusal::NotLearner));
        check(Change::Promote(2), Err(Refusal::NotFound));
        check(Change::Remove(3), Ok(()));
        check(Change::Remove(1), Err(Refusal::NotEnoughStarted));
        check(Change::Remove(2), Err(Refusal::NotFound));
        check(Change::Update(member(1, "")), Ok(()));
        check(Change::Update(Member { id: 3, ..member(1, "") }), Err(Refusal::PeerUrlExists));
        check(Change::Update(member(2, "")), Err(Refusal::NotFound));
        assert_eq!(members.check(&MembershipChange::default()), Err(Refusal::Impossible));
    }

    /// `started` and `connected` count from the first voter, which leads.
    fn strict(voters: u64, started: u64, connected: u64, made: &Change) -> Result<(), Refusal> {
        let names = |id| if id <= started { "name" } else { "" };
        let mut all: Vec<Member> = (1..=voters).map(|id| member(id, names(id))).collect();
        all.push(learner(100));
        let standing =
            Standing { leader: 1, connected: &|id| id <= connected, matched: &|id| Some(1000 - id) };
        standing.check(&Members::bootstrap(all), made, true)
    }

    #[test]
    fn a_change_never_costs_the_quorum() {
        let add = Change::Add(member(50, ""));
        let add_learner = Change::Add(learner(50));
        for (voters, started, connected, made, expected) in [
            (1, 1, 1, &add, Ok(())),
            (1, 0, 1, &add, Err(Refusal::NotEnoughStarted)),
            (2, 1, 2, &add, Err(Refusal::NotEnoughStarted)),
            (2, 2, 1, &add, Err(Refusal::Unhealthy)),
            (2, 2, 2, &add, Ok(())),
            (3, 3, 2, &add, Err(Refusal::Unhealthy)),
            (3, 3, 2, &add_learner, Err(Refusal::Unhealthy)),
            (3, 2, 3, &add, Err(Refusal::NotEnoughStarted)),
            (3, 2, 3, &add_learner, Ok(())),
            (5, 5, 4, &add, Ok(())),
            (1, 1, 1, &Change::Remove(1), Err(Refusal::NotEnoughStarted)),
            (2, 2, 2, &Change::Remove(1), Ok(())),
            (3, 3, 3, &Change::Remove(1), Ok(())),
            (3, 3, 2, &Change::Remove(2), Err(Refusal::Unhealthy)),
            (3, 3, 2, &Change::Remove(3), Ok(())),
            (3, 1, 3, &Change::Remove(3), Err(Refusal::NotEnoughStarted)),
            (1, 1, 1, &Change::Remove(100), Ok(())),
            (1, 1, 1, &Change::Promote(100), Ok(())),
            (3, 1, 3, &Change::Promote(100), Err(Refusal::NotEnoughStarted)),
        ] {
            let found = strict(voters, started, connected, made);
            assert_eq!(found, expected, "{voters} {started} {connected} {made:?}");
        }
    }

    #[test]
    fn a_learner_that_lags_is_not_promoted() {
        let members = Members::bootstrap([member(1, "a"), learner(2)]);
        for (matched, expected) in [
            (Some(900), Ok(())),
            (Some(899), Err(Refusal::LearnerNotReady)),
            (Some(0), Err(Refusal::LearnerNotReady)),
            (None, Err(Refusal::NotFound)),
        ] {
            let matched = |id| if id == 1 { Some(1000) } else { matched };
            let standing = Standing { leader: 1, connected: &|_| true, matched: &matched };
            assert_eq!(standing.check(&members, &Change::Promote(2), false), expected);
        }
    }
}
