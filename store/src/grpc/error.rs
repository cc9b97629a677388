//! etcd's error codes and messages, which clients compare literally.

use tonic::Status;

use crate::apply::Rejected;
use crate::membership::Refusal;
use crate::mvcc::{BackendError, MvccError};
use crate::node::{Chain, Refused};

pub mod status {
    use tonic::{Code, Status};

    macro_rules! statuses {
        ($($name:ident: $code:ident, $message:literal;)*) => {
            $(pub fn $name() -> Status {
                Status::new(Code::$code, concat!("etcdserver: ", $message))
            })*
        };
    }

    statuses! {
        empty_key: InvalidArgument, "key is not provided";
        key_not_found: InvalidArgument, "key not found";
        value_provided: InvalidArgument, "value is provided";
        lease_provided: InvalidArgument, "lease is provided";
        too_many_ops: InvalidArgument, "too many operations in txn request";
        duplicate_key: InvalidArgument, "duplicate key given in txn request";
        invalid_sort: InvalidArgument, "invalid sort option";
        compacted: OutOfRange, "mvcc: required revision has been compacted";
        future_revision: OutOfRange, "mvcc: required revision is a future revision";
        no_space: ResourceExhausted, "mvcc: database space exceeded";
        lease_not_found: NotFound, "requested lease not found";
        lease_exists: FailedPrecondition, "lease already exists";
        lease_ttl_too_large: OutOfRange, "too large lease TTL";
        member_not_found: NotFound, "member not found";
        request_too_large: InvalidArgument, "request is too large";
        too_many_requests: ResourceExhausted, "too many requests";
        no_leader: Unavailable, "no leader";
        not_leader: FailedPrecondition, "not leader";
        stopped: Unavailable, "server stopped";
        timeout: Unavailable, "request timed out";
        corrupt: DataLoss, "corrupt cluster";
        bad_transferee: FailedPrecondition, "bad leader transferee";
        member_exists: FailedPrecondition, "member ID already exist";
        peer_url_exists: FailedPrecondition, "Peer URLs already exists";
        not_enough_started: FailedPrecondition, "re-configuration failed due to not enough started members";
        bad_member_urls: InvalidArgument, "given member URLs are invalid";
        member_not_learner: FailedPrecondition, "can only promote a learner member";
        learner_not_ready: FailedPrecondition, "can only promote a learner member which is in sync with leader";
        too_many_learners: FailedPrecondition, "too many learner members in cluster";
        unhealthy: Unavailable, "unhealthy cluster";
        not_for_learner: FailedPrecondition, "rpc not supported for learner";
        auth_not_enabled: FailedPrecondition, "authentication is not enabled";
        no_users: Unimplemented, "users and roles are not supported by kube-store";
        no_downgrade: Unimplemented, "downgrade is not supported by kube-store";
    }
}

pub fn mvcc(error: &MvccError) -> Status {
    match error {
        MvccError::Compacted => status::compacted(),
        MvccError::FutureRevision => status::future_revision(),
        MvccError::KeyNotFound => status::key_not_found(),
        MvccError::LeaseNotFound => status::lease_not_found(),
        MvccError::Backend(error) => {
            tracing::error!(error = %Chain(error), "cannot read a value");
            match error {
                BackendError::Damaged(_) => status::corrupt(),
                // A tree whose disk fails, or is full, ends the process: another member, or its next life, answers.
                BackendError::Tree(_) => status::stopped(),
            }
        }
    }
}

pub fn rejected(rejected: &Rejected) -> Status {
    match rejected {
        Rejected::Mvcc(error) => mvcc(error),
        Rejected::Corrupt => status::corrupt(),
        Rejected::LeaseExists => status::lease_exists(),
        Rejected::LeaseTtlTooLarge => status::lease_ttl_too_large(),
        Rejected::Membership(refusal) => membership(*refusal),
        Rejected::Unknown => Status::unimplemented("etcdserver: unknown operation"),
    }
}

pub fn membership(refusal: Refusal) -> Status {
    match refusal {
        Refusal::IdExists => status::member_exists(),
        Refusal::NotFound => status::member_not_found(),
        Refusal::PeerUrlExists => status::peer_url_exists(),
        Refusal::NotLearner => status::member_not_learner(),
        Refusal::TooManyLearners => status::too_many_learners(),
        Refusal::NotEnoughStarted => status::not_enough_started(),
        Refusal::Unhealthy => status::unhealthy(),
        Refusal::LearnerNotReady => status::learner_not_ready(),
        Refusal::Impossible => Status::internal("etcdserver: consensus refuses the change of membership"),
    }
}

pub fn refused(refused: Refused) -> Status {
    match refused {
        Refused::Timeout => status::timeout(),
        Refused::NotLeader => status::not_leader(),
        Refused::Stopped => status::stopped(),
    }
}
