//! Wire types: the etcd v3 protocol, gRPC's health service, what store members say to each other, and the CRI.
//!
//! Only what the `.proto` files below `proto/` generate (messages, tonic clients and servers) and how their messages are
//! put into buffers. No behaviour belongs here.

pub mod codec;

/// The etcd v3 protocol (field numbers of v3.5).
#[allow(clippy::all, reason = "generated code")]
pub mod etcd {
    /// Keys, values and events.
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    /// The services KV, Watch, Lease, Cluster and Maintenance.
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    /// The service Lock.
    pub mod v3lockpb {
        tonic::include_proto!("v3lockpb");
    }
    /// The service Election.
    pub mod v3electionpb {
        tonic::include_proto!("v3electionpb");
    }
    /// The descriptors of all that kube-store's clients may call, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/reflected.bin"));
    /// What the store's log entries and snapshots carry: etcd's requests, wrapped.
    pub mod storepb {
        tonic::include_proto!("storepb");
    }
}

/// What the members of a store say to each other.
#[allow(clippy::all, reason = "generated code")]
pub mod peer {
    tonic::include_proto!("keelson.peer");
}

/// gRPC's own health service.
#[allow(clippy::all, reason = "generated code")]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// The Container Runtime Interface, v1: `RuntimeService` and `ImageService`.
#[allow(clippy::all, reason = "generated code")]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}
