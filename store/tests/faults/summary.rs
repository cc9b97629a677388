//! What a run was and showed, for people.

use std::collections::BTreeMap;

use crate::history::check::Verdict;
use crate::shared::Shared;

pub struct Totals {
    seed: u64,
    seconds: u64,
    rounds: u64,
    found: BTreeMap<&'static str, usize>,
}

impl Totals {
    pub fn new(seed: u64, seconds: u64) -> Self {
        Self { seed, seconds, rounds: 0, found: BTreeMap::new() }
    }

    pub fn add(&mut self, verdict: &Verdict) {
        self.rounds += 1;
        for (what, count) in [
            ("revisions", verdict.revisions),
            ("acknowledged writes", verdict.acknowledged),
            ("unknown writes that happened", verdict.unknown_applied),
            ("leases that ended", verdict.expired),
        ] {
            *self.found.entry(what).or_default() += count;
        }
        // Those of all rounds before are among them.
        self.found.insert("unknown writes that did not", verdict.open.len());
    }

    /// `logs`: of all members.
    pub fn print(&self, shared: &Shared, logs: &str) {
        let counts = shared.counts.lock();
        println!("seed {}: {} s of load with faults in {} rounds", self.seed, self.seconds, self.rounds);
        println!("{:<20} {:>9} {:>9} {:>9}", "calls", "ok", "refused", "unknown");
        let mut kinds: BTreeMap<&str, [u64; 3]> = BTreeMap::new();
        for ((kind, outcome), count) in &counts.calls {
            let column = ["ok", "refused", "unknown"].iter().position(|name| name == outcome).unwrap();
            for row in [kind, "all"] {
                kinds.entry(row).or_default()[column] += count;
            }
        }
        for (kind, [ok, refused, unknown]) in kinds {
            println!("{kind:<20} {ok:>9} {refused:>9} {unknown:>9}");
        }
        println!("faults:");
        for (what, count) in &counts.faults {
            println!("{count:>9} {what}");
        }
        println!("history:");
        for (what, count) in &self.found {
            println!("{count:>9} {what}");
        }
        println!(
            "{:>9} events, by {} watch streams, {} of them told of a compaction",
            counts.events, counts.resumed, counts.compacted_away
        );
        for what in [
            "became leader",
            "made a snapshot",
            "installed a peer's snapshot",
            "a smaller tree of values is in use",
        ] {
            println!("{:>9} times in a member's log: {what}", logs.matches(&format!("\"{what}\"")).count());
        }
        println!("{:>9} terms with a leader", counts.leaders.len());
        println!("longest time without an accepted write: {:.1} s", counts.longest as f64 / 1e9);
        println!("verdict: strictly serializable, watches whole, leases kept, all members level");
    }
}
