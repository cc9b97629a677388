//! gRPC's own health service. As in etcd there is one status, of the server as a whole, and it serves as long as it can
//! be asked: its port is open only once it does. What ails a member is told by `/health`.

use keelson_proto::health::health_check_response::ServingStatus;
use keelson_proto::health::health_server::Health;
use keelson_proto::health::{HealthCheckRequest, HealthCheckResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Service;

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match request.into_inner().service.as_str() {
            "" => Ok(Response::new(answer(ServingStatus::Serving))),
            _ => Err(Status::not_found("unknown service")),
        }
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    /// A service that is not known yet might come to be, so the stream stays open (as gRPC has it).
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = request.into_inner().service.is_empty();
        let (answers, stream) = mpsc::channel(2);
        let stopping = self.stopping.clone();
        let now = if known { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
        tokio::spawn(async move {
            if answers.send(Ok(answer(now))).await.is_err() {
                return;
            }
            tokio::select! {
                () = answers.closed() => {}
                () = stopping.cancelled() => {
                    if known {
                        // Whoever asked may be gone.
                        let _ = answers.send(Ok(answer(ServingStatus::NotServing))).await;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
