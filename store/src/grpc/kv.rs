//! The service KV.

use keelson_proto::etcd::etcdserverpb::kv_server::Kv;
use keelson_proto::etcd::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use keelson_proto::etcd::storepb::command::Operation;
use prost::Message;
use tonic::{Request, Response, Status};

use super::{Server, check, long, status};
use crate::apply::Response as Applied;
use crate::mvcc;

impl Server {
    fn check_size(&self, size: usize) -> Result<(), Status> {
        if size > self.limits.request_bytes { Err(status::request_too_large()) } else { Ok(()) }
    }
}

#[tonic::async_trait]
impl Kv for Server {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        check::range(&request)?;
        self.metrics.range.inc();
        if !request.serializable {
            if self.shared.is_learner() {
                return Err(status::not_for_learner());
            }
            self.read_barrier().await?;
        }
        self.check_intact()?;
        let read = || self.state.store.range(&request);
        let found = if request.range_end.is_empty() { read() } else { long(read) };
        let (mut response, revision) = found.map_err(|error| self.read_failed(error))?;
        response.header = self.header(revision);
        Ok(Response::new(response))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let request = request.into_inner();
        check::put(&request)?;
        self.check_size(request.encoded_len())?;
        self.check_space()?;
        self.metrics.put.inc();
        match self.propose(Operation::Put(request)).await? {
            (revision, Applied::Put(mut response)) => {
                response.header = self.header(revision);
                Ok(Response::new(response))
            }
            _ => Err(Self::mismatch()),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let request = request.into_inner();
        check::delete_range(&request)?;
        self.check_size(request.encoded_len())?;
        self.metrics.delete.inc();
        match self.propose(Operation::DeleteRange(request)).await? {
            (revision, Applied::DeleteRange(mut response)) => {
                response.header = self.header(revision);
                Ok(Response::new(response))
            }
            _ => Err(Self::mismatch()),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let request = request.into_inner();
        check::txn(&request, self.limits.txn_ops)?;
        self.check_size(request.encoded_len())?;
        self.metrics.txn.inc();
        let (revision, mut response) = if mvcc::is_read_only(&request) {
            if !mvcc::is_serializable(&request) {
                self.read_barrier().await?;
            }
            self.check_intact()?;
            let read = || self.state.store.txn(&request);
            let (response, revision) = long(read).map_err(|error| self.read_failed(error))?;
            (revision, response)
        } else {
            if check::puts(&request) {
                self.check_space()?;
            }
            match self.propose(Operation::Txn(request)).await? {
                (revision, Applied::Txn(response)) => (revision, response),
                _ => return Err(Self::mismatch()),
            }
        };
        response.header = self.header(revision);
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        // Compaction removes things in the background; `physical` would only delay the answer until that is done, and
        // what is compacted cannot be read any more in either case.
        match self.propose(Operation::Compaction(request.into_inner())).await? {
            (revision, Applied::Compaction(mut response)) => {
                response.header = self.header(revision);
                Ok(Response::new(response))
            }
            _ => Err(Self::mismatch()),
        }
    }
}
