//! The filter chain: everything that happens to a request before its endpoint, as one list.
//!
//! A filter sees the request on its way in and the response on its way out; [`chain`] is the order, outermost
//! first. Filters know nothing of particular resources.

use std::{net::SocketAddr, sync::Arc};

use futures::future::BoxFuture;
use http::{HeaderMap, Request};
use hyper::body::Incoming;
use keelson_access::user::UserInfo;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

use super::{
    body::Response,
    filters::{
        AuditId, Authentication, Authorization, Impersonation, InFlight, Metrics, PanicRecovery,
        RequestInformation, Timeout, Warnings,
    },
};
use crate::{
    request::{Query, RequestInfo},
    server::Server,
};

/// The filters, outermost first.
pub fn chain(server: &Arc<Server>) -> Vec<Box<dyn Filter>> {
    vec![
        Box::new(RequestInformation),
        Box::new(AuditId),
        Box::new(Metrics(server.clone())),
        Box::new(PanicRecovery),
        Box::new(Timeout::new(server)),
        Box::new(Warnings),
        Box::new(Authentication(server.clone())),
        Box::new(Impersonation(server.clone())),
        Box::new(InFlight::new(server)),
        Box::new(Authorization(server.clone())),
    ]
}

/// Who is at the other end of a connection.
#[derive(Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// Leaf first; empty when the client showed none.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// One request on its way through the chain.
pub struct Exchange {
    pub request: Request<Incoming>,
    pub peer: Arc<Peer>,
    pub info: RequestInfo,
    pub query: Query,
    /// Anonymous until the authentication filter has run.
    pub user: UserInfo,
    /// Texts for `Warning` headers; filters and endpoints add to it.
    pub warnings: WarningList,
}

impl Exchange {
    pub fn headers(&self) -> &HeaderMap {
        self.request.headers()
    }

    /// A header as text; absent and non-ASCII values are empty.
    pub fn header(&self, name: &http::HeaderName) -> &str {
        self.request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Warnings of one request, shared with the filter that writes the headers. Duplicates are dropped.
#[derive(Debug, Clone, Default)]
pub struct WarningList(Arc<Mutex<Vec<String>>>);

impl WarningList {
    pub fn add(&self, text: impl Into<String>) {
        let text = text.into();
        let mut all = self.0.lock();
        if !all.contains(&text) {
            all.push(text);
        }
    }

    pub fn extend(&self, texts: impl IntoIterator<Item = String>) {
        texts.into_iter().for_each(|text| self.add(text));
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// One step of the chain.
pub trait Filter: Send + Sync {
    fn call<'a>(&'a self, exchange: Exchange, next: Next<'a>) -> BoxFuture<'a, Response>;
}

/// What is left of the chain, ending in the endpoints.
pub struct Next<'a> {
    pub(super) rest: &'a [Box<dyn Filter>],
    pub(super) server: &'a Arc<Server>,
}

impl<'a> Next<'a> {
    pub fn run(self, exchange: Exchange) -> BoxFuture<'a, Response> {
        match self.rest.split_first() {
            Some((filter, rest)) => filter.call(exchange, Next { rest, server: self.server }),
            None => Box::pin(crate::endpoints::route(self.server, exchange)),
        }
    }
}
