//! The state machine, and the only code that changes it: entry in, answer out, the same on every member.
//!
//! An entry's changes and its applied index go to the tree in one batch. What an entry refuses it refuses without a
//! change; a failure of the tree itself is no answer but the end of the process ([`Fatal`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, CompactionResponse, DeleteRangeResponse,
    LeaseGrantResponse, LeaseRevokeResponse, Member, PutResponse, TxnResponse, alarm_request::AlarmAction,
};
use keelson_proto::etcd::storepb::{
    Command, Configuration, Incarnation, LeaseRecord, MembershipChange, Metadata, command::Operation,
};
use keelson_raft::{ConfChangeV2, ConfState, Entry};
use parking_lot::RwLock;
use prost::Message;

use crate::alarm::{ALARM_PREFIX, Alarms, alarm_key, parse_alarm_key};
use crate::lease::{Leases, MAX_TTL};
use crate::membership::{Members, Refusal, step};
use crate::mvcc::{BackendError, Change as TreeChange, KeyChange, Loaded, MvccError, Store, WriteTxn};
use crate::watch::{Change, Hub};

/// What a client gets for its entry; headers are the gRPC layer's.
#[derive(Debug, Clone)]
pub enum Response {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    Compaction(CompactionResponse),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    Published,
    Alarm(AlarmResponse),
    /// The members afterwards, and the log's index of the change.
    Membership {
        members: Vec<Member>,
        index: u64,
    },
}

/// Why an entry changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    #[error("the store refuses it")]
    Mvcc(#[from] MvccError),
    #[error("lease already exists")]
    LeaseExists,
    #[error("too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("corrupt cluster")]
    Corrupt,
    #[error("the membership does not change")]
    Membership(#[from] Refusal),
    #[error("the entry holds no operation that this version knows")]
    Unknown,
}

/// The state machine cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("cannot apply entry {index}")]
pub struct Fatal {
    pub index: u64,
    #[source]
    pub source: BackendError,
}

/// An applied entry, for whoever proposed it.
#[derive(Debug)]
pub struct Applied {
    pub member: u64,
    pub epoch: u64,
    pub request: u64,
    /// The store's revision afterwards.
    pub revision: i64,
    pub result: Result<Response, Rejected>,
    pub effect: Effect,
}

/// What else the node has to do about an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    None,
    Granted { lease: i64, ttl: i64 },
    Revoked { lease: i64 },
    Compacted { revision: i64 },
    Membership,
}

/// Where leases, members and the ids of removed members lie in the tree.
pub const LEASE_PREFIX: u8 = b'l';
pub const MEMBER_PREFIX: u8 = b'p';
pub const REMOVED_PREFIX: u8 = b'x';
/// Where Raft's configuration lies in the tree. It is there since the first change of it, or since the tree was made of a
/// snapshot; then the tree has all members, before that only what they said of themselves.
pub const CONFIGURATION_KEY: &[u8] = b"m/configuration";
/// Where the cluster's incarnation lies, if it is not the first.
pub const INCARNATION_KEY: &[u8] = b"m/incarnation";

/// Bytes of a transaction that records may share.
const SHARED: usize = 1 << 10;

pub fn lease_key(id: i64) -> Vec<u8> {
    [&[LEASE_PREFIX][..], &id.to_be_bytes()].concat()
}

pub fn member_key(id: u64) -> Vec<u8> {
    [&[MEMBER_PREFIX][..], &id.to_be_bytes()].concat()
}

pub fn removed_key(id: u64) -> Vec<u8> {
    [&[REMOVED_PREFIX][..], &id.to_be_bytes()].concat()
}

/// The state, shared with readers.
pub struct State {
    pub store: Store,
    pub leases: RwLock<Leases>,
    pub members: RwLock<Members>,
    pub alarms: RwLock<Alarms>,
    pub hub: Hub,
    applied: AtomicU64,
}

impl State {
    /// From what was loaded; `members` are those that the tree need not have.
    ///
    /// # Errors
    /// The tree's.
    pub fn new(
        store: Store,
        leases: Leases,
        members: Members,
        applied: u64,
    ) -> Result<Arc<Self>, BackendError> {
        let backend = store.values.backend();
        let (leases, members) = read_metadata(&*backend, leases, members)?;
        let hub = Hub::new(store.revision());
        Ok(Arc::new(Self {
            store,
            leases: RwLock::new(leases),
            members: RwLock::new(members),
            alarms: RwLock::new(read_alarms(&*backend)?),
            hub,
            applied: AtomicU64::new(applied),
        }))
    }

    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// Everything but the revisions, for a snapshot of this very moment. Only the applying thread may ask.
    pub fn metadata(&self, term: u64) -> Metadata {
        let mut metadata = Metadata {
            applied_index: self.applied(),
            applied_term: term,
            revision: self.store.revision(),
            compact_revision: self.store.compacted(),
            leases: self
                .leases
                .read()
                .iter()
                .map(|(id, granted_ttl)| LeaseRecord { id, granted_ttl })
                .collect(),
            alarms: self.alarms.read().iter().collect(),
            ..Metadata::default()
        };
        self.members.read().describe(&mut metadata);
        metadata
    }

    /// Puts the state that a snapshot was loaded into in place of this one.
    ///
    /// # Errors
    /// The tree's; then nothing was replaced.
    pub fn install(
        &self,
        mut loaded: Loaded,
        backend: Arc<dyn crate::mvcc::Backend>,
    ) -> Result<(), BackendError> {
        let leases = std::mem::take(&mut loaded.leases);
        let (leases, members) = read_metadata(&*backend, leases, self.members.read().clone())?;
        let alarms = read_alarms(&*backend)?;
        let (index, revision) = (loaded.applied.0, loaded.index.revision);
        self.store.replace(loaded, backend);
        *self.leases.write() = leases;
        *self.members.write() = members;
        *self.alarms.write() = alarms;
        self.applied.store(index, Ordering::Release);
        self.hub.reset(revision);
        Ok(())
    }

    /// Applies one entry. None: it is not a client's.
    ///
    /// # Errors
    /// The tree failed; the entry may be applied in part, and the process has to stop.
    pub fn apply(&self, entry: &Entry) -> Result<Option<Applied>, Fatal> {
        let applied =
            if entry.data.is_empty() { None } else { self.apply_data(entry.data.clone(), entry.index)? };
        self.store.values.seal(entry.index, entry.term);
        self.applied.store(entry.index, Ordering::Release);
        Ok(applied)
    }

    /// Applies one change of Raft's configuration. `switch` makes consensus follow, should the change be accepted; on its
    /// error nothing has changed. None: it is not a client's.
    pub fn apply_configuration(
        &self,
        entry: &Entry,
        change: &ConfChangeV2,
        switch: impl FnOnce() -> keelson_raft::Result<ConfState>,
    ) -> Option<Applied> {
        let command = Command::decode(change.context.clone()).unwrap_or_default();
        let (made, result) = match command.operation {
            Some(Operation::Membership(made)) => {
                let checked = self.members.read().check(&made);
                let checked = checked.and_then(|()| match made.change.as_ref().and_then(step) {
                    Some(_) => Ok(()),
                    None => Err(Refusal::Impossible),
                });
                (Some(made), checked)
            }
            // A joint configuration is left.
            None if change.context.is_empty() => (None, Ok(())),
            _ => (None, Err(Refusal::Impossible)),
        };
        let is_client = made.is_some();
        let result = result.and_then(|()| {
            let conf_state = switch().map_err(|error| {
                tracing::error!(%error, index = entry.index, "consensus does not allow a change of membership");
                Refusal::Impossible
            })?;
            Ok(self.change_members(made, Some(conf_state), entry.index))
        });
        self.store.values.seal(entry.index, entry.term);
        self.applied.store(entry.index, Ordering::Release);
        let effect = if result.is_ok() { Effect::Membership } else { Effect::None };
        let Command { member, epoch, request, .. } = command;
        let (revision, result) = (self.store.revision(), result.map_err(Rejected::from));
        let applied = Applied { member, epoch, request, revision, result, effect };
        (is_client || applied.effect != Effect::None).then_some(applied)
    }

    /// Makes a change that was checked, and puts all that is known of the members into the tree.
    fn change_members(
        &self,
        made: Option<MembershipChange>,
        configuration: Option<ConfState>,
        index: u64,
    ) -> Response {
        let mut members = self.members.write();
        let mut gone: Vec<u64> = members.keys().copied().collect();
        members.apply(made, configuration);
        gone.retain(|id| !members.contains_key(id));
        let mut metadata = Metadata::default();
        members.describe(&mut metadata);
        let list = members.list();
        drop(members);
        for id in &gone {
            self.store.values.put_metadata(member_key(*id), None);
        }
        for (key, value) in member_changes(&metadata) {
            self.store.values.put_metadata(key, value);
        }
        // Nobody else would ever disarm them.
        let alarms = self.alarms.read().list(AlarmType::None);
        for AlarmMember { member_id, alarm } in
            alarms.into_iter().filter(|alarm| gone.contains(&alarm.member_id))
        {
            let action = AlarmAction::Deactivate as i32;
            self.alarm(&AlarmRequest { action, member_id, alarm });
        }
        Response::Membership { members: list, index }
    }

    fn apply_data(&self, data: Bytes, index: u64) -> Result<Option<Applied>, Fatal> {
        // The proposer encoded it, and checksums guard it: what does not parse is of a newer version.
        let mut command = Command::decode(data.clone()).unwrap_or_default();
        if data.len() > SHARED && matches!(command.operation, Some(Operation::Txn(_))) {
            // What is kept of it would keep the whole of it in memory, compares and all.
            command = Command::decode(&data[..]).unwrap_or_default();
        }
        let (result, effect) = match command.operation {
            Some(operation) => self.execute(operation, index),
            None => (Err(Rejected::Unknown), Effect::None),
        };
        if let Err(Rejected::Mvcc(MvccError::Backend(source))) = result {
            return Err(Fatal { index, source });
        }
        let Command { member, epoch, request, .. } = command;
        let revision = self.store.revision();
        Ok(Some(Applied { member, epoch, request, revision, result, effect }))
    }

    fn execute(&self, operation: Operation, index: u64) -> (Result<Response, Rejected>, Effect) {
        let plain = |result| (result, Effect::None);
        let harmless =
            matches!(operation, Operation::Alarm(_) | Operation::Publish(_) | Operation::Membership(_));
        if !harmless && self.alarms.read().any(AlarmType::Corrupt) {
            return plain(Err(Rejected::Corrupt));
        }
        match operation {
            Operation::Put(put) => plain(self.mutate(|txn, leases| {
                txn.check_lease(&put, leases)?;
                txn.check_previous(&put)?;
                let prev_kv = txn.put(&put, leases)?;
                Ok(Response::Put(PutResponse { header: None, prev_kv }))
            })),
            Operation::DeleteRange(delete) => plain(self.mutate(|txn, leases| {
                let (deleted, prev_kvs) = txn.delete_range(&delete, leases)?;
                Ok(Response::DeleteRange(DeleteRangeResponse { header: None, deleted, prev_kvs }))
            })),
            Operation::Txn(request) => {
                plain(self.mutate(|txn, leases| Ok(Response::Txn(txn.txn(&request, leases)?))))
            }
            Operation::Compaction(request) => match self.store.write().compact(request.revision) {
                Ok(()) => (
                    Ok(Response::Compaction(CompactionResponse::default())),
                    Effect::Compacted { revision: request.revision },
                ),
                Err(error) => plain(Err(error.into())),
            },
            Operation::LeaseGrant(request) => match self.grant(request.id, request.ttl) {
                Ok(response) => {
                    let (lease, ttl) = (request.id, response.ttl);
                    (Ok(Response::LeaseGrant(response)), Effect::Granted { lease, ttl })
                }
                Err(error) => plain(Err(error)),
            },
            Operation::LeaseRevoke(request) => {
                let result = self.revoke(request.id);
                let effect =
                    if result.is_ok() { Effect::Revoked { lease: request.id } } else { Effect::None };
                (result, effect)
            }
            Operation::Publish(member) => plain(Ok(self.publish(member))),
            Operation::Alarm(request) => plain(Ok(self.alarm(&request))),
            Operation::Membership(change) => match self.check_update(&change) {
                Ok(()) => (Ok(self.change_members(Some(change), None, index)), Effect::Membership),
                Err(refusal) => plain(Err(refusal.into())),
            },
        }
    }

    /// Runs one transaction and publishes what it changed.
    fn mutate(
        &self,
        run: impl FnOnce(&mut WriteTxn<'_>, &mut Leases) -> Result<Response, MvccError>,
    ) -> Result<Response, Rejected> {
        let mut leases = self.leases.write();
        let mut txn = self.store.write();
        let result = run(&mut txn, &mut leases);
        let (revision, changes) = txn.commit();
        drop(leases);
        self.announce(revision, changes)?;
        Ok(result?)
    }

    fn announce(&self, revision: i64, changes: Vec<KeyChange>) -> Result<(), MvccError> {
        if changes.is_empty() {
            return Ok(());
        }
        // Read now: later a compaction might have removed it.
        let previous = self.hub.wants_previous();
        let changes = changes
            .into_iter()
            .map(|change| {
                let previous = match change.previous {
                    Some(at) if previous => self.store.values.get(at)?,
                    _ => None,
                };
                Ok(Change { record: change.record, previous })
            })
            .collect::<Result<Vec<_>, BackendError>>()?;
        self.hub.publish(revision, &changes);
        Ok(())
    }

    fn grant(&self, id: i64, ttl: i64) -> Result<LeaseGrantResponse, Rejected> {
        if id == 0 {
            // No lease has it: to a key it means none.
            return Err(MvccError::LeaseNotFound.into());
        }
        if ttl > MAX_TTL {
            return Err(Rejected::LeaseTtlTooLarge);
        }
        // A lease without one is taken for one that is gone when the tree is read.
        let ttl = ttl.max(1);
        let mut leases = self.leases.write();
        if leases.exists(id) {
            return Err(Rejected::LeaseExists);
        }
        leases.grant(id, ttl);
        self.store.values.put_metadata(lease_key(id), Some(ttl.to_be_bytes().to_vec()));
        Ok(LeaseGrantResponse { header: None, id, ttl, error: String::new() })
    }

    fn revoke(&self, id: i64) -> Result<Response, Rejected> {
        let mut leases = self.leases.write();
        let keys = leases.revoke(id).ok_or(MvccError::LeaseNotFound)?;
        let mut txn = self.store.write();
        for key in keys {
            txn.delete(key, &mut leases);
        }
        let (revision, changes) = txn.commit();
        drop(leases);
        self.store.values.put_metadata(lease_key(id), None);
        self.announce(revision, changes)?;
        Ok(Response::LeaseRevoke(LeaseRevokeResponse::default()))
    }

    /// Only what consensus need not know of comes outside of a change of its configuration.
    fn check_update(&self, change: &MembershipChange) -> Result<(), Refusal> {
        self.members.read().check(change)?;
        match change.change.as_ref().and_then(step) {
            None => Ok(()),
            Some(_) => Err(Refusal::Impossible),
        }
    }

    /// A member says its name and its clients' URLs; who is a member is not its to say.
    fn publish(&self, member: Member) -> Response {
        let mut members = self.members.write();
        if let Some(known) = members.publish(member) {
            self.store.values.put_metadata(member_key(known.id), Some(known.encode_to_vec()));
        }
        Response::Published
    }

    /// Answers with the alarm, if the request changed or confirmed one.
    fn alarm(&self, request: &AlarmRequest) -> Response {
        let alarm = AlarmMember { member_id: request.member_id, alarm: request.alarm };
        // What a member said before it heard of its removal.
        let late = self.members.read().is_removed(alarm.member_id);
        let mut alarms = self.alarms.write();
        let (touched, value) = match request.action() {
            AlarmAction::Get => (false, None),
            _ if request.alarm() == AlarmType::None => (false, None),
            AlarmAction::Activate if late => (false, None),
            AlarmAction::Activate => {
                if alarms.raise(&alarm) {
                    tracing::error!(
                        member = format!("{:x}", alarm.member_id),
                        alarm = alarm.alarm().as_str_name(),
                        "an alarm is raised"
                    );
                }
                (true, Some(Vec::new()))
            }
            AlarmAction::Deactivate => (alarms.disarm(&alarm), None),
        };
        if touched {
            if value.is_none() {
                let (member, alarm) = (format!("{:x}", alarm.member_id), alarm.alarm().as_str_name());
                tracing::info!(member, alarm, "an alarm is disarmed");
            }
            self.store.values.put_metadata(alarm_key(&alarm), value);
        }
        Response::Alarm(AlarmResponse {
            header: None,
            alarms: touched.then_some(alarm).into_iter().collect(),
        })
    }
}

/// Alarms as the tree has them.
fn read_alarms(backend: &dyn crate::mvcc::Backend) -> Result<Alarms, BackendError> {
    let mut alarms = Alarms::default();
    backend.scan(&[ALARM_PREFIX], &[ALARM_PREFIX + 1], &mut |key, _| {
        if let Some(alarm) = parse_alarm_key(key) {
            alarms.raise(&alarm);
        }
        true
    })?;
    Ok(alarms)
}

/// Leases and members as the tree has them.
fn read_metadata(
    backend: &dyn crate::mvcc::Backend,
    mut leases: Leases,
    mut members: Members,
) -> Result<(Leases, Members), BackendError> {
    backend.scan(&[LEASE_PREFIX], &[LEASE_PREFIX + 1], &mut |key, value| {
        if let (Some(id), Ok(ttl)) = (key.get(1..).and_then(|id| id.try_into().ok()), value.try_into()) {
            leases.grant(i64::from_be_bytes(id), i64::from_be_bytes(ttl));
        }
        true
    })?;
    leases.retain_granted();
    let mut found = Vec::new();
    backend.scan(&[MEMBER_PREFIX], &[MEMBER_PREFIX + 1], &mut |_, value| {
        found.extend(Member::decode(value).ok());
        true
    })?;
    let mut removed = BTreeSet::new();
    backend.scan(&[REMOVED_PREFIX], &[REMOVED_PREFIX + 1], &mut |key, _| {
        removed.extend(key.get(1..).and_then(|id| id.try_into().ok()).map(u64::from_be_bytes));
        true
    })?;
    match backend.get(CONFIGURATION_KEY)? {
        Some(bytes) => {
            let configuration = Configuration::decode(&bytes[..]).map_err(|_| BackendError::Damaged(0))?;
            let incarnation = backend.get(INCARNATION_KEY)?.unwrap_or_default();
            let incarnation = Incarnation::decode(&incarnation[..]).map_err(|_| BackendError::Damaged(0))?;
            members = Members::new(found, removed, configuration, incarnation);
        }
        None => found.into_iter().for_each(|member| members.overlay(member)),
    }
    Ok((leases, members))
}

/// What the membership is, as far as metadata says it.
fn member_changes(metadata: &Metadata) -> Vec<TreeChange> {
    let mut changes: Vec<TreeChange> = Vec::new();
    for member in &metadata.members {
        changes.push((member_key(member.id), Some(member.encode_to_vec())));
    }
    for id in &metadata.removed {
        changes.push((removed_key(*id), Some(Vec::new())));
    }
    if let Some(configuration) = &metadata.configuration {
        changes.push((CONFIGURATION_KEY.to_vec(), Some(configuration.encode_to_vec())));
    }
    if let Some(incarnation) = metadata.incarnation.as_ref().filter(|incarnation| incarnation.id != 0) {
        changes.push((INCARNATION_KEY.to_vec(), Some(incarnation.encode_to_vec())));
    }
    changes
}

/// Metadata as changes of a tree: what a snapshot says, put into a fresh one.
pub fn metadata_changes(metadata: &Metadata) -> Vec<TreeChange> {
    let mut changes: Vec<TreeChange> = Vec::new();
    for lease in &metadata.leases {
        changes.push((lease_key(lease.id), Some(lease.granted_ttl.to_be_bytes().to_vec())));
    }
    changes.extend(member_changes(metadata));
    for alarm in &metadata.alarms {
        changes.push((alarm_key(alarm), Some(Vec::new())));
    }
    let compacted = metadata.compact_revision.to_be_bytes().to_vec();
    changes.push((crate::mvcc::COMPACTED_KEY.to_vec(), Some(compacted)));
    changes
}
