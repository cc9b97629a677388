//! The one line of memberships that all members go along: each the one before it with one change that somebody asked for.
//!
//! Members tell each membership that they follow ([`kube_store::node::Network::follow`]). The first to follow a change adds
//! it to the line; whoever else follows it must find the same one there. So no change is ever undone, and no two
//! configurations exist whose majorities do not meet.

use std::collections::{BTreeMap, BTreeSet};

use keelson_proto::etcd::etcdserverpb::Member;
use keelson_proto::etcd::storepb::Configuration;
use keelson_proto::etcd::storepb::membership_change::Change;
use kube_store::membership::Members;

/// Who the members are, as far as everyone has to agree at once: what they say of themselves comes by other entries.
#[derive(Debug, Clone, PartialEq)]
pub struct Membership {
    /// Peer URLs, and whether it learns only.
    members: BTreeMap<u64, (Vec<String>, bool)>,
    removed: BTreeSet<u64>,
    configuration: Configuration,
}

impl Membership {
    fn of(members: &Members) -> Self {
        let facts = |member: &Member| (member.id, (member.peer_urls.clone(), member.is_learner));
        let mut configuration = members.configuration().clone();
        // Sets, in whatever order.
        let Configuration { voters, learners, .. } = &mut configuration;
        voters.sort_unstable();
        learners.sort_unstable();
        Self {
            members: members.values().map(facts).collect(),
            removed: members.removed().clone(),
            configuration,
        }
    }

    pub fn contains(&self, id: u64) -> bool {
        self.members.contains_key(&id)
    }

    pub fn has_removed(&self, id: u64) -> bool {
        self.removed.contains(&id)
    }

    /// Where a member is to be found.
    pub fn urls(&self, id: u64) -> &[String] {
        self.members.get(&id).map_or(&[], |(urls, _)| urls)
    }

    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.members.keys().copied()
    }

    pub fn voters(&self) -> BTreeSet<u64> {
        self.members.iter().filter(|(_, (_, learner))| !learner).map(|(id, _)| *id).collect()
    }

    pub fn learners(&self) -> BTreeSet<u64> {
        self.members.iter().filter(|(_, (_, learner))| *learner).map(|(id, _)| *id).collect()
    }

    /// Whether a list of members, as a client is given it, is this one.
    pub fn is_listed(&self, list: &[Member]) -> bool {
        list.iter()
            .map(|member| (member.id, (member.peer_urls.clone(), member.is_learner)))
            .collect::<BTreeMap<_, _>>()
            == self.members
    }

    /// The one change that leads to the next membership.
    fn change_to(&self, next: &Self) -> Change {
        let mut changes = Vec::new();
        for (id, (urls, learner)) in &next.members {
            match self.members.get(id) {
                None => {
                    let (peer_urls, is_learner) = (urls.clone(), *learner);
                    changes.push(Change::Add(Member { id: *id, peer_urls, is_learner, ..Member::default() }));
                }
                Some((known, _)) if known != urls => {
                    let peer_urls = urls.clone();
                    changes.push(Change::Update(Member { id: *id, peer_urls, ..Member::default() }));
                }
                Some((_, true)) if !learner => changes.push(Change::Promote(*id)),
                Some((_, known)) => assert_eq!(known, learner, "a voter {id} became a learner"),
            }
        }
        let gone = self.members.keys().filter(|id| !next.members.contains_key(id));
        changes.extend(gone.map(|id| Change::Remove(*id)));
        assert_eq!(changes.len(), 1, "not one change: from {self:#?} to {next:#?}");
        let change = changes.remove(0);
        let mut removed = self.removed.clone();
        if let Change::Remove(id) = change {
            removed.insert(id);
        }
        assert_eq!(removed, next.removed, "other members are removed than were");
        change
    }

    fn check(&self) {
        let Configuration { voters, learners, voters_outgoing, learners_next, .. } = &self.configuration;
        assert_eq!(
            voters.iter().copied().collect::<BTreeSet<_>>(),
            self.voters(),
            "other voters than members"
        );
        assert_eq!(
            learners.iter().copied().collect::<BTreeSet<_>>(),
            self.learners(),
            "other learners than members"
        );
        assert!(
            voters_outgoing.is_empty() && learners_next.is_empty(),
            "nobody asked for a joint configuration"
        );
        assert!(!voters.is_empty(), "nobody votes any more");
    }
}

pub struct Lineage {
    line: Vec<Membership>,
    /// What led to each but the first.
    changes: Vec<Change>,
}

impl Lineage {
    /// Begins with the members that begin the cluster.
    pub fn new(founders: &Members) -> Self {
        Self { line: vec![Membership::of(founders)], changes: Vec::new() }
    }

    /// The newest one that anybody has followed.
    pub fn newest(&self) -> &Membership {
        &self.line[self.end()]
    }

    /// The place of the newest one.
    pub fn end(&self) -> usize {
        self.line.len() - 1
    }

    pub fn at(&self, place: usize) -> &Membership {
        &self.line[place]
    }

    /// How many times who votes and learns has changed since. (Where members are is nothing to consensus.)
    pub fn changes_since(&self, place: usize) -> usize {
        self.line[place..].windows(2).filter(|two| two[0].configuration != two[1].configuration).count()
    }

    /// Where a change led to; each is made once at most.
    pub fn place_of(&self, change: &Change) -> Option<usize> {
        self.changes.iter().position(|made| made == change).map(|before| before + 1)
    }

    /// A member that stands at `place`, or begins, follows `members`. Gives its place, and the change if it is the first
    /// one there.
    ///
    /// # Panics
    /// It left the line.
    pub fn follow(&mut self, place: Option<usize>, members: &Members) -> (usize, Option<Change>) {
        let found = Membership::of(members);
        found.check();
        // Back only by beginning again, and several steps only by a snapshot, or on a start.
        let from = place.unwrap_or(0);
        if let Some(known) = self.line[from..].iter().position(|known| *known == found) {
            return (from + known, None);
        }
        assert!(
            place.is_none_or(|place| place == self.end()),
            "after {:#?} it is {:#?}, but here it became {found:#?}",
            self.line[from],
            self.line.get(from + 1)
        );
        let change = self.newest().change_to(&found);
        assert!(self.place_of(&change).is_none(), "{change:?} is made again");
        self.line.push(found);
        self.changes.push(change.clone());
        (self.end(), Some(change))
    }
}
