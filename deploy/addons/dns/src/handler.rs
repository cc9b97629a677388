//! From a request to a response: the cluster's records, or what an upstream resolver says.

use std::sync::Arc;

use hickory_proto::op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use crate::records::{Answer, Zone};
use crate::services::Caches;
use crate::upstream::Upstream;

/// The largest answer over UDP that no link has to cut (the figure of DNS flag day 2020); others come again by TCP.
const MAX_PAYLOAD: u16 = 1232;

/// The server's metrics, under CoreDNS's names where one exists.
#[derive(Clone)]
pub struct Metrics {
    pub requests: Counter,
    pub duration: Histogram,
    pub forwarded: Counter,
    pub failed: Counter,
}

pub struct Handler {
    pub zone: Zone,
    pub caches: Arc<Caches>,
    pub upstream: Upstream,
    pub metrics: Metrics,
}

/// What goes into a response.
struct Reply {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    authority: Vec<Record>,
}

impl Reply {
    fn error(code: ResponseCode) -> Self {
        Self { code, authoritative: false, answers: Vec::new(), authority: Vec::new() }
    }
}

impl Handler {
    async fn reply(&self, request: &Request) -> Reply {
        if request.metadata.message_type != MessageType::Query || request.metadata.op_code != OpCode::Query {
            return Reply::error(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else { return Reply::error(ResponseCode::FormErr) };
        let name = Name::from(info.query.name());
        let kind = info.query.query_type();
        match self.zone.answer(&*self.caches, &name, kind) {
            Answer::NotOurs => self.forward(request).await,
            // Not knowing a name yet is no reason to deny it: clients would remember that.
            _ if !self.caches.have_synced() => Reply::error(ResponseCode::ServFail),
            Answer::NoSuchName => Reply {
                code: ResponseCode::NXDomain,
                authoritative: true,
                answers: Vec::new(),
                authority: vec![self.zone.authority()],
            },
            Answer::Records(mut answers) => {
                self.follow_alias(&mut answers, kind).await;
                let authority = if answers.is_empty() { vec![self.zone.authority()] } else { Vec::new() };
                Reply { code: ResponseCode::NoError, authoritative: true, answers, authority }
            }
        }
    }

    /// Resolvers of C libraries do not ask again for an alias's target: its addresses go with it.
    async fn follow_alias(&self, answers: &mut Vec<Record>, kind: RecordType) {
        let [record] = answers.as_slice() else { return };
        let RData::CNAME(target) = &record.data else { return };
        if kind == RecordType::CNAME {
            return;
        }
        match self.zone.answer(&*self.caches, &target.0, kind) {
            Answer::Records(more) => answers.extend(more),
            Answer::NoSuchName => {}
            Answer::NotOurs => {
                let mut question =
                    hickory_proto::op::Message::new(rand::random(), MessageType::Query, OpCode::Query);
                question.metadata.recursion_desired = true;
                question.add_query(hickory_proto::op::Query::query(target.0.clone(), kind));
                if let Ok(bytes) = question.to_vec()
                    && let Ok(message) = self.upstream.forward(&bytes).await
                {
                    answers.extend(message.answers);
                }
            }
        }
    }

    async fn forward(&self, request: &Request) -> Reply {
        self.metrics.forwarded.inc();
        match self.upstream.forward(request.as_slice()).await {
            Ok(message) => Reply {
                code: message.metadata.response_code,
                authoritative: message.metadata.authoritative,
                answers: message.answers,
                authority: message.authorities,
            },
            Err(error) => {
                self.metrics.failed.inc();
                tracing::debug!("cannot forward: {error}");
                Reply::error(ResponseCode::ServFail)
            }
        }
    }
}

/// What a client that speaks EDNS is told: as much as it takes, up to what fits one packet anywhere.
fn edns(request: &Request) -> Option<Edns> {
    let asked = request.edns.as_ref()?;
    let mut edns = Edns::new();
    edns.set_max_payload(asked.max_payload().clamp(512, MAX_PAYLOAD));
    Some(edns)
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let started = std::time::Instant::now();
        self.metrics.requests.inc();
        let reply = self.reply(request).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.recursion_available = true;
        let edns = edns(request);
        let builder = MessageResponseBuilder::new(&request.queries, edns.as_ref());
        let response = builder.build(metadata, &reply.answers, &reply.authority, [], []);
        let sent = response_handle.send_response(response).await;
        self.metrics.duration.observe(started.elapsed().as_secs_f64());
        sent.unwrap_or_else(|error| {
            tracing::debug!(client = %request.src(), "cannot answer: {error}");
            Header { metadata, counts: HeaderCounts::default() }.into()
        })
    }
}
