//! Which cluster a member belongs to, of those that `--force-new-cluster` made one out of another.
//!
//! All of them have one cluster id, for clients. What members say to each other carries that id mixed with the
//! incarnation's, so that two never mix; and each knows those before it, so that a member that comes back can be told
//! from a stranger. Pure: who is asked, and what becomes of the data, is [`crate::rejoin`]'s.

use keelson_proto::etcd::etcdserverpb::Member;
use keelson_proto::etcd::storepb::{Incarnation, Superseded};

/// What members of an incarnation say as their cluster's id to each other.
pub fn peer_cluster(cluster: u64, incarnation: u64) -> u64 {
    // The first has none, so its members understand those of versions without incarnations.
    cluster ^ incarnation
}

/// Where an incarnation ended in which one that came later began; none if it did not come out of that one.
pub fn end_of(incarnation: &Incarnation, before: u64) -> Option<&Superseded> {
    incarnation.past.iter().find(|past| past.id == before)
}

/// The next one, which a survivor begins with the log that it has; that the one before it ended at `end` is noted with
/// its id, whatever `end` says of it. `others` are the members that it leaves behind.
pub fn next(before: &Incarnation, end: Superseded, id: u64, others: &[u64]) -> Incarnation {
    let mut next = before.clone();
    next.past.push(Superseded { id: before.id, ..end });
    next.absent.extend(others);
    next.id = id.max(1);
    next
}

/// Whether the survivor, whose log ended there, had all that a member knows to be committed: its last such entry is of
/// `entry`, and it knows of `term`.
pub fn has_all(end: &Superseded, entry: (u64, u64), term: u64) -> bool {
    let (committed, committed_term) = entry;
    // What was committed in a term is in the log of every later leader; so only a log that ends in that term, and not
    // before the entry, or in a later term, can have it. A survivor that did not know of a term can have nothing that was
    // committed in it.
    (committed_term, committed) <= (end.last_term, end.index) && committed <= end.index && term <= end.term
}

/// What a member that was asked says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// Where it was asked.
    pub url: String,
    pub cluster: u64,
    pub incarnation: Incarnation,
    pub leader: u64,
    pub members: Vec<Member>,
}

/// What becomes of a member, as others see it.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// Nobody knows of a later incarnation.
    Current,
    /// There is a later one, but others of this one still have a leader, and so a majority.
    Parted(Answer),
    /// There is a later one, and this one is no more as far as anyone knows.
    Superseded(Answer),
    /// Two members were each made a new cluster of.
    Contested,
}

/// Judges the answers of others about incarnation `own` of a cluster. One that knows of a later incarnation is enough, if
/// no other says that this one has a leader: of three members the survivor may be the only one left to ask. So answers
/// have to be members', asked for at their own URLs; what anybody says unasked is none.
pub fn judge(cluster: u64, own: u64, answers: &[Answer]) -> Verdict {
    let answers = || answers.iter().filter(|answer| answer.cluster == cluster);
    let later = || answers().filter(|answer| end_of(&answer.incarnation, own).is_some());
    let Some(last) = later().max_by_key(|answer| answer.incarnation.past.len()) else {
        return Verdict::Current;
    };
    let one_line = |other: &Answer| {
        other.incarnation.id == last.incarnation.id
            || end_of(&last.incarnation, other.incarnation.id).is_some()
    };
    if !later().all(one_line) {
        return Verdict::Contested;
    }
    match answers().any(|answer| answer.incarnation.id == own && answer.leader != 0) {
        true => Verdict::Parted(last.clone()),
        false => Verdict::Superseded(last.clone()),
    }
}

/// Where others say that they follow or are a leader of another incarnation of the cluster than `own`, so that two of them
/// serve clients; in words for the log.
pub fn rivals(cluster: u64, own: u64, answers: &[Answer]) -> Option<String> {
    places(answers, |answer| answer.cluster == cluster && answer.incarnation.id != own && answer.leader != 0)
}

/// The URLs of those answers, in words; none if there are none.
pub fn places(answers: &[Answer], of: impl Fn(&Answer) -> bool) -> Option<String> {
    let mut urls: Vec<&str> =
        answers.iter().filter(|answer| of(answer)).map(|answer| answer.url.as_str()).collect();
    urls.sort_unstable();
    urls.dedup();
    (!urls.is_empty()).then(|| urls.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(line: &[u64], leader: u64) -> Answer {
        let mut incarnation = Incarnation::default();
        for id in &line[1..] {
            incarnation = next(&incarnation, Superseded::default(), *id, &[]);
        }
        let url = format!("http://m{leader}:1");
        Answer { url, cluster: 5, incarnation, leader, members: Vec::new() }
    }

    fn check(answers: &[Answer], expected: &Verdict) {
        assert_eq!(judge(5, 0, answers), *expected, "{answers:?}");
    }

    #[test]
    fn rivals_are_those_with_a_leader_of_another_incarnation() {
        let check = |own, answers: &[Answer], expected: Option<&str>| {
            assert_eq!(rivals(5, own, answers).as_deref(), expected, "{own}: {answers:?}");
        };
        let (old, leading) = (answer(&[0], 0), answer(&[0], 2));
        let (forced, other) = (answer(&[0, 7], 1), answer(&[0, 9], 3));
        let stranger = Answer { cluster: 6, ..other.clone() };
        check(0, &[], None);
        check(0, &[old.clone(), leading.clone(), stranger], None);
        check(0, std::slice::from_ref(&forced), Some("http://m1:1"));
        check(9, &[forced.clone(), old, other.clone()], Some("http://m1:1"));
        check(9, &[leading, forced.clone()], Some("http://m1:1 and http://m2:1"));
        check(7, &[other, forced], Some("http://m3:1"));
    }

    #[test]
    fn verdicts() {
        let (old, leading) = (answer(&[0], 0), answer(&[0], 2));
        let (forced, again, other) = (answer(&[0, 7], 1), answer(&[0, 7, 8], 1), answer(&[0, 9], 3));
        check(&[], &Verdict::Current);
        check(&[old.clone(), leading.clone()], &Verdict::Current);
        check(&[Answer { cluster: 6, ..forced.clone() }], &Verdict::Current);
        check(&[old.clone(), forced.clone()], &Verdict::Superseded(forced.clone()));
        check(&[again.clone(), forced.clone()], &Verdict::Superseded(again.clone()));
        check(&[leading, forced.clone()], &Verdict::Parted(forced.clone()));
        check(&[forced.clone(), other.clone()], &Verdict::Contested);
        check(&[other, again.clone()], &Verdict::Contested);
        assert_eq!(judge(5, 7, &[forced, old]), Verdict::Current, "they are of it, or behind it");
        assert_eq!(judge(5, 8, &[again]), Verdict::Current);
    }

    #[test]
    fn what_the_survivor_had() {
        let check = |(last_term, index), term, entry, known, expected: bool| {
            let end = Superseded { id: 0, index, term, last_term };
            assert_eq!(has_all(&end, entry, known), expected, "{end:?}, {entry:?} of term {known}");
        };
        check((2, 60), 2, (50, 2), 2, true);
        check((2, 60), 2, (60, 2), 2, true);
        check((2, 60), 2, (61, 2), 2, false);
        // It knew of a term of which it had nothing, when its entries had been replaced elsewhere.
        check((2, 60), 3, (50, 3), 3, false);
        check((3, 60), 3, (50, 2), 3, true);
        check((3, 60), 3, (50, 2), 4, false);
        // Which cannot be, so nobody knows.
        check((3, 40), 3, (50, 2), 3, false);
    }

    #[test]
    fn a_line_of_incarnations() {
        let end = |index, term, last_term| Superseded { id: 0, index, term, last_term };
        let first = next(&Incarnation::default(), end(10, 2, 1), 7, &[2, 3]);
        let second = next(&first, end(20, 4, 4), 8, &[4]);
        assert_eq!(end_of(&second, 0), Some(&end(10, 2, 1)));
        assert_eq!(end_of(&second, 7), Some(&Superseded { id: 7, ..end(20, 4, 4) }));
        assert_eq!(end_of(&second, 8), None);
        assert_eq!(second.absent, [2, 3, 4]);
        let clusters = [0, 7, 8].map(|incarnation| peer_cluster(5, incarnation));
        assert_eq!(clusters[0], 5);
        assert!(clusters[1] != clusters[0] && clusters[2] != clusters[1] && clusters[2] != clusters[0]);
    }
}
