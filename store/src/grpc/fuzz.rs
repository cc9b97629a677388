//! Arbitrary requests and commands: what is decoded and passes the checks is applied without a panic, and the state is
//! what its tree says afterwards.

use std::sync::Arc;

use keelson_proto::etcd::etcdserverpb::compare::TargetUnion;
use keelson_proto::etcd::etcdserverpb::{
    AlarmRequest, CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    Member, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request,
};
use keelson_proto::etcd::storepb::command::Operation;
use keelson_proto::etcd::storepb::membership_change::Change;
use keelson_proto::etcd::storepb::{Command, MembershipChange};
use keelson_raft::{ConfChangeV2, ConfState, Entry, EntryType, configuration_change};
use prost::Message;

use super::check;
use crate::apply::State;
use crate::fuzz::{self, Random};
use crate::membership::Members;
use crate::mvcc::{Backend, MemoryBackend, Store, Values, load};

const MAX_OPS: usize = 16;

fn key(random: &mut Random) -> bytes::Bytes {
    match random.below(10) {
        0 => bytes::Bytes::new(),
        1 => vec![0].into(),
        2 => random.bytes(5).into(),
        _ => format!("k{}", random.below(6)).into(),
    }
}

fn number(random: &mut Random) -> i64 {
    random.number() as i64
}

fn range(random: &mut Random) -> RangeRequest {
    RangeRequest {
        key: key(random),
        range_end: key(random),
        limit: if random.percent(20) { number(random) } else { 0 },
        revision: if random.percent(30) { number(random) } else { 0 },
        sort_order: random.below(4) as i32,
        sort_target: random.below(6) as i32,
        serializable: random.percent(20),
        keys_only: random.percent(20),
        count_only: random.percent(20),
        min_mod_revision: if random.percent(10) { number(random) } else { 0 },
        max_mod_revision: if random.percent(10) { number(random) } else { 0 },
        min_create_revision: if random.percent(10) { number(random) } else { 0 },
        max_create_revision: if random.percent(10) { number(random) } else { 0 },
    }
}

fn put(random: &mut Random) -> PutRequest {
    let ignore_value = random.percent(10);
    PutRequest {
        key: key(random),
        value: if ignore_value { Vec::new() } else { random.bytes(5000) }.into(),
        lease: if random.percent(30) { random.below(4) as i64 } else { 0 },
        prev_kv: random.percent(30),
        ignore_value,
        ignore_lease: random.percent(10),
    }
}

fn delete(random: &mut Random) -> DeleteRangeRequest {
    let range_end = if random.percent(50) { key(random) } else { bytes::Bytes::new() };
    DeleteRangeRequest { key: key(random), range_end, prev_kv: random.percent(30) }
}

fn compare(random: &mut Random) -> Compare {
    let one = number(random);
    Compare {
        result: random.below(5) as i32,
        target: random.below(6) as i32,
        key: key(random),
        range_end: if random.percent(20) { key(random) } else { bytes::Bytes::new() },
        target_union: match random.below(6) {
            0 => Some(TargetUnion::Version(one)),
            1 => Some(TargetUnion::CreateRevision(one)),
            2 => Some(TargetUnion::ModRevision(one)),
            3 => Some(TargetUnion::Lease(one)),
            4 => Some(TargetUnion::Value(random.bytes(3).into())),
            _ => None,
        },
    }
}

fn txn(random: &mut Random, depth: usize) -> TxnRequest {
    let operations = |random: &mut Random| -> Vec<RequestOp> {
        let operation = |random: &mut Random| match random.below(if depth > 0 { 10 } else { 9 }) {
            0..3 => Some(Request::RequestRange(range(random))),
            3..6 => Some(Request::RequestPut(put(random))),
            6..8 => Some(Request::RequestDeleteRange(delete(random))),
            8 => None,
            _ => Some(Request::RequestTxn(txn(random, depth - 1))),
        };
        (0..random.below(4)).map(|_| RequestOp { request: operation(random) }).collect()
    };
    TxnRequest {
        compare: (0..random.below(3)).map(|_| compare(random)).collect(),
        success: operations(random),
        failure: operations(random),
    }
}

fn member(random: &mut Random) -> Member {
    Member {
        id: random.below(5) as u64,
        name: "m".to_owned(),
        peer_urls: vec![format!("http://m:{}", random.below(4))],
        client_urls: Vec::new(),
        is_learner: random.percent(50),
    }
}

fn operation(random: &mut Random) -> Operation {
    match random.below(20) {
        0..6 => Operation::Put(put(random)),
        6..9 => Operation::DeleteRange(delete(random)),
        9..15 => Operation::Txn(txn(random, 4)),
        15 => Operation::Compaction(CompactionRequest { revision: number(random), physical: false }),
        16 => Operation::LeaseGrant(LeaseGrantRequest { id: random.below(4) as i64, ttl: number(random) }),
        17 => Operation::LeaseRevoke(LeaseRevokeRequest { id: random.below(4) as i64 }),
        18 => Operation::Publish(member(random)),
        _ => match random.percent(50) {
            // CORRUPT would end all the rest.
            true => Operation::Alarm(AlarmRequest {
                action: random.below(4) as i32,
                member_id: random.below(3) as u64,
                alarm: [0, 1, 7][random.below(3)],
            }),
            false => Operation::Membership(MembershipChange {
                max_learners: random.below(3) as u32,
                change: match random.below(5) {
                    0 => Some(Change::Add(member(random))),
                    1 => Some(Change::Promote(random.below(5) as u64)),
                    2 => Some(Change::Remove(random.below(5) as u64)),
                    3 => Some(Change::Update(member(random))),
                    _ => None,
                },
                replaces: random.below(2) as u64,
            }),
        },
    }
}

/// What the services check before they propose.
fn passes(operation: &Operation) -> bool {
    match operation {
        Operation::Put(put) => check::put(put).is_ok(),
        Operation::DeleteRange(delete) => check::delete_range(delete).is_ok(),
        Operation::Txn(txn) => check::txn(txn, MAX_OPS).is_ok(),
        _ => true,
    }
}

fn state_of(backend: Arc<dyn Backend>) -> Arc<State> {
    let loaded = load(&backend).unwrap();
    let values = Values::new(backend, loaded.applied.0);
    let store = Store::new(loaded.index, values, loaded.in_use);
    let members = Members::bootstrap([Member { id: 1, ..Member::default() }]);
    State::new(store, loaded.leases, members, loaded.applied.0).unwrap()
}

/// Applies commands, and compares what the state says with what its tree says.
fn check_commands(random: &mut Random, mut command: impl FnMut(&mut Random) -> Option<Vec<u8>>) {
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::default());
    let state = state_of(backend.clone());
    let mut revision = state.store.revision();
    let mut index = 0;
    for _ in 0..random.below(30) {
        let Some(data) = command(random) else { continue };
        index += 1;
        let entry = Entry { index, term: 1, data: data.into(), ..Entry::default() };
        if random.percent(10) {
            let mut entry = entry;
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            let change = configuration_change(&entry)
                .unwrap_or_else(|| ConfChangeV2 { context: entry.data.clone(), ..ConfChangeV2::default() });
            state.apply_configuration(&entry, &change, || {
                Ok(ConfState { voters: vec![1], ..ConfState::default() })
            });
        } else {
            state.apply(&entry).unwrap();
        }
        assert!(state.store.revision() >= revision);
        revision = state.store.revision();
        let request = range(random);
        if check::range(&request).is_ok() {
            let _ = state.store.range(&request);
        }
        if random.percent(30) {
            while state.store.values.drain_step().unwrap() {}
        }
        if random.percent(10) {
            while state.store.values.drain_step().unwrap() {}
            let _ = state.store.remove_compacted(state.store.compacted(), i64::MAX).unwrap();
        }
    }
    while state.store.values.drain_step().unwrap() {}
    let reopened = state_of(backend);
    assert_eq!(reopened.store.hash(0).unwrap().0, state.store.hash(0).unwrap().0);
    assert_eq!(reopened.store.in_use(), state.store.in_use());
    assert_eq!(reopened.metadata(1), state.metadata(1));
}

#[test]
fn arbitrary_requests() {
    fuzz::run("requests", 250, |random| {
        check_commands(random, |random| {
            let operation = operation(random);
            passes(&operation)
                .then(|| Command { operation: Some(operation), ..Command::default() }.encode_to_vec())
        });
    });
}

/// As a client encodes them, with bytes changed: what prost makes of that passes the same way.
#[test]
fn mutated_requests() {
    fuzz::run("mutated requests", 250, |random| {
        check_commands(random, |random| {
            let operation = match random.below(3) {
                0 => {
                    let mut bytes = txn(random, 4).encode_to_vec();
                    random.mutate(&mut bytes);
                    Operation::Txn(TxnRequest::decode(&bytes[..]).ok()?)
                }
                1 => {
                    let mut bytes = put(random).encode_to_vec();
                    random.mutate(&mut bytes);
                    Operation::Put(PutRequest::decode(&bytes[..]).ok()?)
                }
                _ => {
                    let mut bytes = delete(random).encode_to_vec();
                    random.mutate(&mut bytes);
                    Operation::DeleteRange(DeleteRangeRequest::decode(&bytes[..]).ok()?)
                }
            };
            passes(&operation)
                .then(|| Command { operation: Some(operation), ..Command::default() }.encode_to_vec())
        });
    });
}

/// What the log may hold that no check has seen: of another version, or of a bug.
#[test]
fn arbitrary_commands() {
    fuzz::run("commands", 250, |random| {
        check_commands(random, |random| {
            let operation = operation(random);
            let mut bytes = Command { operation: Some(operation), ..Command::default() }.encode_to_vec();
            if random.percent(70) {
                random.mutate(&mut bytes);
            }
            Some(bytes)
        });
    });
}

fn nested(puts: usize, deletes: usize) -> TxnRequest {
    let leaf = |operations: Vec<Request>| RequestOp {
        request: Some(Request::RequestTxn(TxnRequest {
            success: operations.into_iter().map(|one| RequestOp { request: Some(one) }).collect(),
            ..TxnRequest::default()
        })),
    };
    let put = |at: usize| {
        Request::RequestPut(PutRequest { key: format!("p{at:x}").into(), ..PutRequest::default() })
    };
    let delete = |at: usize| {
        Request::RequestDeleteRange(DeleteRangeRequest {
            key: format!("d{at:x}").into(),
            ..DeleteRangeRequest::default()
        })
    };
    let leaves = |count: usize, make: &dyn Fn(usize) -> Request| -> Vec<RequestOp> {
        let all: Vec<usize> = (0..count).collect();
        all.chunks(40).map(|part| leaf(part.iter().map(|at| make(*at)).collect())).collect()
    };
    let mut all = leaves(puts, &put);
    all.extend(leaves(deletes, &delete));
    while all.len() > 40 {
        let groups: Vec<Vec<RequestOp>> = all.chunks(40).map(<[RequestOp]>::to_vec).collect();
        all = groups
            .into_iter()
            .map(|success| RequestOp {
                request: Some(Request::RequestTxn(TxnRequest { success, ..TxnRequest::default() })),
            })
            .collect();
    }
    TxnRequest { success: all, ..TxnRequest::default() }
}

/// The largest transaction that a client may send is checked at once: it is checked on a thread that others need.
#[test]
fn a_transaction_of_many_operations_is_checked_soon() {
    let request = nested(45_000, 45_000);
    let size = request.encoded_len();
    assert!(size < 1536 << 10, "{size}");
    let begun = std::time::Instant::now();
    let checked = check::txn(&request, 128);
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{checked:?} took {:?}", begun.elapsed());
    assert!(checked.is_ok(), "{checked:?}");
}
