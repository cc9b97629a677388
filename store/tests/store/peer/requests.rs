//! Random requests: right ones of every kind, and ones that have to be refused.

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_proto::etcd::etcdserverpb::request_op::Request as OpRequest;
use keelson_proto::etcd::etcdserverpb::watch_create_request::FilterType;
use keelson_proto::etcd::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest, WatchCreateRequest,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Bytes of a request, beyond which both servers refuse it.
pub const REQUEST_BYTES: usize = 64 << 10;
pub const TXN_OPS: usize = 8;
/// Streams of watches, each with its own ids.
pub const STREAMS: usize = 3;

/// Few, so that requests meet. No more than six of them share a range that is sorted by something else: beyond that
/// etcd's order of equals is chance.
const KEYS: [&[u8]; 10] = [b"a", b"a/1", b"a/2", b"a/2/x", b"a\xff", b"b", b"b\0", b"c", b"\xff\xff", b"\0"];
const LEASES: [i64; 5] = [1, 2, 3, -7, i64::MAX];

#[derive(Debug, Clone)]
pub enum Request {
    Range(RangeRequest),
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    Grant(LeaseGrantRequest),
    /// A grant that would run out while the test runs, or whose id the server chooses; it is revoked at once.
    GrantBriefly(LeaseGrantRequest),
    Revoke(i64),
    KeepAlive(i64),
    TimeToLive {
        id: i64,
        keys: bool,
    },
    Leases,
    HashKv(i64),
    Alarms,
    Watch {
        stream: usize,
        create: WatchCreateRequest,
    },
    Cancel {
        stream: usize,
        id: i64,
    },
    Progress {
        stream: usize,
    },
}

pub struct Generator {
    random: StdRng,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed) }
    }

    fn one_in(&mut self, count: u32) -> bool {
        self.random.random_ratio(1, count)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.random.random_range(0..from.len())].clone()
    }

    /// The next request, at the store's `revision`. `puts` are revisions of single puts: others are not compacted, since
    /// etcd up to 3.5.15 forgets a deletion at the very revision that is compacted.
    pub fn next(&mut self, revision: i64, compacted: i64, puts: &[i64]) -> Request {
        match self.random.random_range(0..100) {
            0..25 => Request::Range(self.range(revision)),
            25..45 => Request::Put(self.put()),
            45..52 => Request::DeleteRange(self.delete()),
            52..77 => Request::Txn(self.txn(revision, 0)),
            77..79 => Request::Compact(self.compact(revision, compacted, puts)),
            79..82 => self.grant(),
            82..84 => Request::Revoke(self.lease()),
            84..86 => Request::KeepAlive(self.lease()),
            86..88 => Request::TimeToLive { id: self.lease(), keys: self.one_in(2) },
            88 => Request::Leases,
            89 => {
                let at = self.revision(revision).max(0);
                // Of the very revision that is compacted etcd tells it from 3.5.12 and 3.4.30 on.
                Request::HashKv(if at == compacted { 0 } else { at })
            }
            90 => Request::Alarms,
            91..95 => {
                Request::Watch { stream: self.random.random_range(0..STREAMS), create: self.watch(revision) }
            }
            95..97 => Request::Cancel {
                stream: self.random.random_range(0..STREAMS),
                id: self.random.random_range(0..12),
            },
            97 => Request::Put(self.put()),
            98 => Request::Txn(self.txn(revision, 0)),
            _ => Request::Progress { stream: self.random.random_range(0..STREAMS) },
        }
    }

    fn key(&mut self) -> Bytes {
        if self.one_in(60) {
            return Bytes::new();
        }
        self.pick(&KEYS).into()
    }

    /// Single keys, prefixes, everything from a key, and ranges that hold nothing.
    fn end(&mut self, key: &Bytes) -> Bytes {
        match self.random.random_range(0..8) {
            0..3 => Bytes::new(),
            3 => Bytes::from_static(b"\0"),
            4..6 => {
                let mut end = key.to_vec();
                match end.last_mut() {
                    Some(last) if *last < u8::MAX => *last += 1,
                    _ => end.push(0),
                }
                end.into()
            }
            _ => self.key(),
        }
    }

    fn revision(&mut self, now: i64) -> i64 {
        match self.random.random_range(0..12) {
            0..6 => 0,
            6..9 => (now - self.random.random_range(0..20)).max(1),
            9 => self.random.random_range(1..=now),
            10 => now + self.random.random_range(0..3),
            _ => self.pick(&[-1, -2, i64::MIN, i64::MAX, 1]),
        }
    }

    fn range(&mut self, now: i64) -> RangeRequest {
        let key = self.key();
        let mut request = RangeRequest {
            range_end: self.end(&key),
            key,
            revision: self.revision(now),
            serializable: self.one_in(4),
            keys_only: self.one_in(5),
            count_only: self.one_in(8),
            ..RangeRequest::default()
        };
        if self.one_in(3) {
            request.limit = self.pick(&[1, 2, 3, 100, i64::MAX, -1, 5]);
        }
        if self.one_in(3) {
            request.sort_order = self.pick(&[SortOrder::None, SortOrder::Ascend, SortOrder::Descend]) as i32;
            let target = self.pick(&[
                SortTarget::Key,
                SortTarget::Version,
                SortTarget::Create,
                SortTarget::Mod,
                SortTarget::Value,
            ]);
            request.sort_target = target as i32;
            if target != SortTarget::Key {
                (request.key, request.range_end) = ("a".into(), "b".into());
            }
        }
        for bound in [
            &mut request.min_mod_revision,
            &mut request.max_mod_revision,
            &mut request.min_create_revision,
            &mut request.max_create_revision,
        ] {
            if self.random.random_ratio(1, 8) {
                *bound = (now - self.random.random_range(-1..15)).max(-1);
            }
        }
        request
    }

    fn value(&mut self) -> Bytes {
        match self.random.random_range(0..40) {
            0 => vec![b'x'; REQUEST_BYTES + 1000].into(),
            1..4 => vec![self.pick(b"xyz"); self.random.random_range(1000..9000)].into(),
            4..8 => Bytes::new(),
            _ => vec![self.pick(b"abc"); self.random.random_range(0..3)].into(),
        }
    }

    fn lease(&mut self) -> i64 {
        if self.one_in(6) { self.pick(&[99, 0, -1]) } else { self.pick(&LEASES) }
    }

    fn put(&mut self) -> PutRequest {
        let mut request = PutRequest {
            key: self.key(),
            value: self.value(),
            prev_kv: self.one_in(3),
            ignore_value: self.one_in(10),
            ignore_lease: self.one_in(10),
            ..PutRequest::default()
        };
        if request.ignore_value && !self.one_in(4) {
            request.value = Bytes::new();
        }
        if self.one_in(4) && (!request.ignore_lease || self.one_in(3)) {
            request.lease = self.lease();
        }
        request
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let key = self.key();
        DeleteRangeRequest { range_end: self.end(&key), key, prev_kv: self.one_in(2) }
    }

    fn compare(&mut self, now: i64) -> Compare {
        let target = self.pick(&[
            CompareTarget::Version,
            CompareTarget::Create,
            CompareTarget::Mod,
            CompareTarget::Value,
            CompareTarget::Lease,
        ]);
        let number = match self.random.random_range(0..4) {
            0 => 0,
            1 => self.random.random_range(0..4),
            2 => now - self.random.random_range(0..10),
            _ => self.pick(&LEASES),
        };
        // Now and then the value is of another kind than the target, or missing.
        let kind = if self.one_in(12) { self.pick(&[0, 1, 2, 3, 4, 5]) } else { target as i32 };
        let target_union = match kind {
            0 => Some(TargetUnion::Version(number)),
            1 => Some(TargetUnion::CreateRevision(number)),
            2 => Some(TargetUnion::ModRevision(number)),
            3 => Some(TargetUnion::Value(vec![self.pick(b"abc"); self.random.random_range(0..3)].into())),
            4 => Some(TargetUnion::Lease(number)),
            _ => None,
        };
        let key = self.key();
        let range_end = if self.one_in(3) { self.end(&key) } else { Bytes::new() };
        let results =
            [CompareResult::Equal, CompareResult::Greater, CompareResult::Less, CompareResult::NotEqual];
        Compare { result: self.pick(&results) as i32, target: target as i32, key, range_end, target_union }
    }

    fn ops(&mut self, now: i64, depth: usize) -> Vec<RequestOp> {
        let most = if self.one_in(25) { TXN_OPS + 1 } else { 4 };
        let count = self.random.random_range(0..=most);
        (0..count).map(|_| self.op(now, depth)).collect()
    }

    fn op(&mut self, now: i64, depth: usize) -> RequestOp {
        let request = match self.random.random_range(0..20) {
            0..6 => OpRequest::RequestRange(self.range(now)),
            6..13 => OpRequest::RequestPut(self.put()),
            13..16 => {
                let mut delete = self.delete();
                if delete.range_end == b"\0"[..] {
                    // See `deviations` in the module above.
                    delete.range_end = "\u{7f}".into();
                }
                OpRequest::RequestDeleteRange(delete)
            }
            16..19 if depth < 3 => OpRequest::RequestTxn(self.txn(now, depth + 1)),
            _ if self.one_in(10) => return RequestOp { request: None },
            _ => OpRequest::RequestRange(self.range(now)),
        };
        RequestOp { request: Some(request) }
    }

    fn txn(&mut self, now: i64, depth: usize) -> TxnRequest {
        let compares = self.random.random_range(0..3);
        let compare = (0..compares).map(|_| self.compare(now)).collect();
        let mut request =
            TxnRequest { compare, success: self.ops(now, depth), failure: self.ops(now, depth) };
        if self.one_in(5) {
            // Only reads, which take another way through both servers.
            for ops in [&mut request.success, &mut request.failure] {
                for op in ops {
                    op.request = Some(OpRequest::RequestRange(self.range(now)));
                }
            }
        }
        request
    }

    /// `puts`: see [`Self::next`].
    fn compact(&mut self, now: i64, compacted: i64, puts: &[i64]) -> CompactionRequest {
        let revision = match self.random.random_range(0..6) {
            0 => compacted,
            1 => now + 1,
            2 => self.pick(&[-1, i64::MAX]),
            _ if puts.is_empty() => compacted,
            3 => puts[puts.len() - 1],
            _ => self.pick(puts),
        };
        CompactionRequest { revision, physical: self.one_in(2) }
    }

    fn grant(&mut self) -> Request {
        let id = self.lease();
        if id == 0 || self.one_in(4) {
            let ttl = self.pick(&[0, -5, 1, 100, 9_000_000_000, 9_000_000_001]);
            return Request::GrantBriefly(LeaseGrantRequest { id, ttl });
        }
        Request::Grant(LeaseGrantRequest { id, ttl: self.pick(&[1000, 5000, 9_000_000_001]) })
    }

    fn watch(&mut self, now: i64) -> WatchCreateRequest {
        let key = self.key();
        let mut filters = Vec::new();
        if self.one_in(5) {
            filters.push(FilterType::Noput as i32);
        }
        if self.one_in(5) {
            filters.push(FilterType::Nodelete as i32);
        }
        WatchCreateRequest {
            range_end: self.end(&key),
            key,
            start_revision: self.start(now),
            filters,
            prev_kv: self.one_in(2),
            watch_id: if self.one_in(4) { self.random.random_range(1..12) } else { 0 },
            fragment: self.one_in(3),
            // Its notifications come by the clock; the request for progress is compared instead.
            progress_notify: false,
        }
    }

    fn start(&mut self, now: i64) -> i64 {
        match self.random.random_range(0..8) {
            0..4 => 0,
            4..6 => (now - self.random.random_range(0..30)).max(1),
            6 => now + self.random.random_range(0..10),
            _ if self.one_in(3) => self.pick(&[-1, -2, i64::MIN]),
            _ => self.random.random_range(1..=now),
        }
    }
}
