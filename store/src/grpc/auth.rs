//! What clients that can authenticate ask first. There are no users and roles here: certificates say who may connect.
//! Such clients go on without a name when they hear that authentication is not enabled, as they do with etcd.

use keelson_proto::etcd::etcdserverpb::auth_server::Auth;
use keelson_proto::etcd::etcdserverpb::{
    AuthStatusRequest, AuthStatusResponse, AuthenticateRequest, AuthenticateResponse,
};
use tonic::{Request, Response, Status};

use super::{Server, status};

/// The revision of an etcd's users and roles that were never touched.
const UNTOUCHED: u64 = 1;

#[tonic::async_trait]
impl Auth for Server {
    async fn authenticate(
        &self,
        _: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        Err(status::auth_not_enabled())
    }

    async fn auth_status(
        &self,
        _: Request<AuthStatusRequest>,
    ) -> Result<Response<AuthStatusResponse>, Status> {
        let header = self.current_header();
        Ok(Response::new(AuthStatusResponse { header, enabled: false, auth_revision: UNTOUCHED }))
    }
}
