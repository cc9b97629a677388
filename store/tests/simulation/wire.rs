//! What travels between members: as the peers' connections and their service do it, but for what the network does to it.

use bytes::Bytes;
use keelson_raft::{ConfState, Message, MessageType};
use kube_store::node::Event;
use kube_store::snapshot::{Outgoing, Receiver, SnapshotError};

use crate::member::{CLUSTER, Member};
use crate::totals::Fault;
use crate::world::{Action, MILLISECOND, World};

/// Messages of one turn, and where their sender says that it is.
pub struct Batch {
    pub from: usize,
    pub to: usize,
    pub own: Vec<u64>,
    pub messages: Vec<Message>,
}

/// A snapshot on its way.
pub struct Transfer {
    pub from: usize,
    pub to: usize,
    /// Which life of its sender's gets the answer.
    pub life: u64,
    pub message: Box<Message>,
    pub pieces: Vec<Bytes>,
    pub whole: bool,
}

impl World {
    /// Which member listens where `from` would look for the one of this id: it may be another.
    pub fn route(&self, from: usize, id: u64) -> Option<usize> {
        let addresses = self.members[from].process.as_ref()?.outbox.addresses(id);
        let listens = |address: u64| {
            let is_there =
                |member: &Member| member.process.as_ref().is_some_and(|process| process.listens == address);
            self.members.iter().position(is_there)
        };
        addresses.into_iter().find_map(listens)
    }

    pub fn transmit(&mut self, from: usize, id: u64, messages: Vec<Message>) {
        let to = self.route(from, id);
        let Some(to) = to.filter(|to| !self.network.loses(from, *to, &mut self.random)) else {
            match to {
                Some(_) => self.fault_happened(Fault::MessagesLost, 1),
                None => self.note(|| format!("{from} finds nobody where {id} should be")),
            }
            if self.random.percent(10) {
                self.send(from, Event::Unreachable(id));
            }
            return;
        };
        let Some(process) = &self.members[from].process else { return };
        let own = process.outbox.own();
        if self.network.doubles(&mut self.random) {
            let mut twice = messages.clone();
            twice.retain(|message| message.get_msg_type() != MessageType::MsgPropose);
            self.fault_happened(Fault::MessagesDoubled, 1);
            self.carry(Batch { from, to, own: own.clone(), messages: twice });
        }
        self.carry(Batch { from, to, own, messages });
    }

    fn carry(&mut self, batch: Batch) {
        let delay = self.network.delay(&mut self.random);
        if self.network.is_late(delay) {
            self.fault_happened(Fault::MessagesDelayed, 1);
        }
        if self.network.overtakes(batch.from, batch.to, self.now + delay) {
            self.fault_happened(Fault::MessagesOvertaken, 1);
        }
        self.at(delay, Action::Deliver(batch));
    }

    /// The peers' service gets messages.
    pub fn deliver(&mut self, batch: Batch) {
        let Batch { from, to, own, mut messages } = batch;
        for message in &messages {
            self.note(|| format!("  {message:?}"));
        }
        let sender = self.members[from].id;
        let Member { process: Some(process), id, .. } = &self.members[to] else { return };
        if process.state.members.read().is_removed(sender) {
            if !self.network.loses(to, from, &mut self.random) {
                let life = self.members[from].life;
                let delay = self.network.delay(&mut self.random);
                self.at(delay, Action::Removed { member: from, life });
            }
            return;
        }
        process.outbox.introduce(sender, &own);
        messages.retain(|message| message.to == *id);
        self.send(to, Event::Messages { from: sender, messages });
    }

    pub fn transmit_snapshot(&mut self, from: usize, message: Box<Message>, mut outgoing: Outgoing) {
        let life = self.members[from].life;
        let Some(to) = self.route(from, message.to) else {
            let to = message.to;
            self.send(from, Event::SnapshotSent { to, ok: false });
            return;
        };
        let mut pieces = Vec::new();
        let mut whole = true;
        loop {
            match outgoing.piece() {
                Ok(Some(piece)) => pieces.push(piece),
                Ok(None) => break,
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        self.transfers += 1;
        let (random, rough) = (&mut self.random, !self.plan.over);
        if self.network.loses(from, to, random) || (rough && random.percent(5)) {
            whole = false;
            pieces.truncate(random.index(pieces.len() + 1));
            self.fault_happened(Fault::SnapshotTorn, 1);
        }
        let random = &mut self.random;
        let delay = self.network.delay(random) + random.between(1, 300) * MILLISECOND;
        self.totals.event("snapshots sent", 1);
        self.strike_within(delay);
        self.at(delay, Action::Snapshot(Transfer { from, to, life, message, pieces, whole }));
    }

    /// The peers' service gets a snapshot, or what came of it.
    pub fn receive(&mut self, transfer: Transfer) {
        let Transfer { from, to, life, mut message, pieces, whole } = transfer;
        let serial = self.random.next();
        let sender = self.members[from].id;
        let wanted = message.to;
        let Member { process: Some(process), id, .. } = &self.members[to] else { return };
        let (snapshots, shared) = (process.snapshots.clone(), process.shared.clone());
        let refused = *id != wanted || process.state.members.read().is_removed(sender);
        let receive = || -> Result<(u64, u64, ConfState), SnapshotError> {
            if refused {
                return Err(SnapshotError::Malformed("it is for another member, or of one that was removed"));
            }
            let mut receiver = Receiver::new(&snapshots.lock(), serial);
            for piece in pieces {
                receiver.push(piece)?;
            }
            if !whole {
                return Err(SnapshotError::Malformed("the stream broke"));
            }
            let Some(gate) = shared.begin_install() else {
                return Err(SnapshotError::Malformed("another snapshot is being installed"));
            };
            let received = receiver.finish(&mut snapshots.lock(), CLUSTER, wanted)?;
            gate.hand_on();
            Ok(received)
        };
        let ok = match receive() {
            Ok((index, term, conf_state)) => {
                let metadata = message.mut_snapshot().mut_metadata();
                (metadata.index, metadata.term) = (index, term);
                metadata.set_conf_state(conf_state);
                self.send(to, Event::SnapshotReceived { message });
                self.totals.event("snapshots received", 1);
                true
            }
            Err(error) => {
                self.note(|| format!("a snapshot is refused: {error}"));
                false
            }
        };
        self.settle(to, Ok(()));
        self.snapshot_sent(from, wanted, life, ok);
    }

    pub fn snapshot_sent(&mut self, from: usize, to: u64, life: u64, ok: bool) {
        if self.members[from].life == life {
            self.send(from, Event::SnapshotSent { to, ok });
        }
    }
}
