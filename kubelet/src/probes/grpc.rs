//! Probes of the gRPC health service (grpc.health.v1).

use std::time::Duration;

use tonic::{client::Grpc, transport::Endpoint};

/// `HealthCheckRequest` of grpc/health/v1/health.proto.
#[derive(Clone, PartialEq, prost::Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// `HealthCheckResponse`; 1 is SERVING.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

fn status_name(status: i32) -> &'static str {
    match status {
        SERVING => "SERVING",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}

/// Passes if the service says that it is serving.
pub async fn probe(host: &str, port: u16, service: &str, limit: Duration) -> Result<(), String> {
    let address = super::join(host, port);
    let timed_out = || {
        format!(
            "timeout: failed to connect service {address:?} within {}s: context deadline exceeded",
            limit.as_secs()
        )
    };
    let check = async {
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|_| timed_out())?;
        let mut client = Grpc::new(channel);
        client.ready().await.map_err(|error| error.to_string())?;
        let path = http_path();
        let question = tonic::Request::new(Question { service: service.to_owned() });
        let codec = tonic_prost::ProstCodec::<Question, Answer>::default();
        let answer = client.unary(question, path, codec).await.map_err(|status| match status.code() {
            tonic::Code::Unimplemented => {
                format!("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}", status.message())
            }
            _ => format!("error: health rpc probe failed: {}", crate::runtime::RuntimeError::from(status)),
        })?;
        match answer.into_inner().status {
            SERVING => Ok(()),
            other => Err(format!("service unhealthy (responded with {:?})", status_name(other))),
        }
    };
    tokio::time::timeout(limit, check).await.unwrap_or_else(|_| Err(timed_out()))
}

fn http_path() -> http::uri::PathAndQuery {
    http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check")
}
