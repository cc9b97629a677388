//! How processes begin and end.

use std::path::Path;

use kube_store::join::{JoinError, mark_removed};
use kube_store::snapshot::SnapshotError;
use kube_store::start::StartError;
use kube_store::wal::WalError;

use crate::disk::{Faults, Flip, Loss};
use crate::member::{Booted, DIRECTORY, Fate, Member, Process, TICK, boot, env};
use crate::totals::Fault;
use crate::world::{Action, MILLISECOND, World};

impl World {
    /// Ends a member's process; it is started again after a while.
    pub fn end(&mut self, member: usize, loss: Loss) {
        let Member { process, disk, life, provoked, paused_until, .. } = &mut self.members[member];
        if process.is_none() {
            return;
        }
        // Files that are being received are removed by the process, which is gone: its disk does nothing more.
        disk.set_faults(Faults { fuse: Some(0), ..Default::default() });
        *process = None;
        *life += 1;
        (*provoked, *paused_until) = (false, 0);
        disk.end(loss, &mut self.random);
        self.disk_tells(member);
        let free = self.clients.lost(member);
        self.watches.lost(member);
        self.free(free);
        self.note(|| format!("member {member} ended, {loss:?}"));
        self.flip(member);
        let longest = if self.random.one_in(3) { 50 } else { 3000 };
        let delay = self.random.between(5, longest) * MILLISECOND;
        self.at(delay, Action::Start { member });
    }

    /// A member has ended since it was removed: its process marks its data, if it can.
    pub fn end_removed(&mut self, member: usize) {
        let Member { id, disk, clock, .. } = &self.members[member];
        assert!(self.lineage.newest().has_removed(*id), "member {member} takes itself for removed");
        let marked = mark_removed(&env(disk, clock, 0), Path::new(DIRECTORY)).is_ok() && !disk.is_blown();
        self.end(member, Loss::Process);
        if marked {
            self.ended_removed(member);
        }
    }

    fn ended_removed(&mut self, member: usize) {
        self.members[member].fate = Fate::Ended;
        self.totals.event("ended after their removal", 1);
        self.note(|| format!("member {member} is gone for good"));
    }

    pub fn start(&mut self, member: usize) {
        if self.members[member].process.is_some() || self.members[member].fate != Fate::Lives {
            return;
        }
        let seed = self.random.next();
        let told = self.ask_members(member);
        if self.plan.crashes_at_start(&mut self.random) {
            let fuse = Some(self.random.below(40));
            self.members[member].disk.set_faults(Faults { fuse, ..Default::default() });
        }
        let booted = boot(&self.members[member], &self.founders, told, seed);
        let Member { id, disk, flips, .. } = &mut self.members[member];
        match booted {
            _ if disk.is_blown() => self.start_failed(member),
            Ok(Booted::Process(process)) => {
                disk.set_faults(Faults::default());
                // The log was read as a whole: what flipped there means nothing, or was cut off with a torn write.
                flips.retain(|flip| !flip.in_log);
                self.started(member, process);
            }
            Ok(Booted::Unknown) if self.lineage.newest().has_removed(*id) => self.ended_removed(member),
            Ok(Booted::Unknown) => {
                disk.set_faults(Faults::default());
                self.at(500 * MILLISECOND, Action::Start { member });
            }
            Err(StartError::Join(JoinError::Removed(_))) => {
                assert!(self.lineage.newest().has_removed(*id), "member {member} takes itself for removed");
                self.ended_removed(member);
            }
            Err(
                StartError::Wal(
                    WalError::Corrupt { .. } | WalError::DamagedEnd { .. } | WalError::Short { .. },
                )
                | StartError::Join(JoinError::Wal(WalError::Corrupt { .. }))
                | StartError::Snapshot(SnapshotError::Damaged(_)),
            ) if !flips.is_empty() => {
                // Found, as it has to be; the operator brings the file back.
                flips.drain(..).for_each(Flip::mend);
                self.totals.event("damage found", 1);
                self.start_failed(member);
            }
            Err(error) => panic!("member {member} cannot start: {error:?}"),
        }
    }

    fn started(&mut self, member: usize, process: Box<Process>) {
        self.totals.event("started", 1);
        let applied = process.state.applied();
        self.note(|| format!("member {member} starts at {applied}"));
        let Member { process: place, life, place: followed, .. } = &mut self.members[member];
        (*place, *followed) = (Some(*process), None);
        let life = *life;
        self.watches.began(member, &self.members);
        let delay = self.random.between(0, TICK.as_nanos() as u64);
        self.at(delay, Action::Tick { member, life });
        self.at(delay, Action::Publish { member, life });
        self.settle(member, Ok(()));
    }

    /// A member that begins with nothing asks another one who the members are.
    fn ask_members(&mut self, member: usize) -> Option<Vec<keelson_proto::etcd::etcdserverpb::Member>> {
        if self.members[member].founder {
            return None;
        }
        let running: Vec<usize> =
            (0..self.members.len()).filter(|other| self.members[*other].process.is_some()).collect();
        if running.is_empty() {
            return None;
        }
        let other = running[self.random.index(running.len())];
        let random = &mut self.random;
        if self.network.loses(member, other, random) || self.network.loses(other, member, random) {
            return None;
        }
        let process = self.members[other].process.as_ref()?;
        let list = process.state.members.read().list();
        Some(list)
    }

    fn start_failed(&mut self, member: usize) {
        self.members[member].disk.end(Loss::Power, &mut self.random);
        self.disk_tells(member);
        self.fault_happened(Fault::EndedAtStart, 1);
        let delay = self.random.between(10, 500) * MILLISECOND;
        self.at(delay, Action::Start { member });
    }
}
