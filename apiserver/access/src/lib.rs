//! Who may do what: authentication, authorization, admission, service account tokens and the
//! bootstrap policy of the API server.
//!
//! Invariants
//! - Objects are seen only through [`observed::Observer::observe`], which the server feeds from its
//!   watch caches; nothing here reads storage, opens a socket or parses JSON on the request path.
//! - [`authz::Authorizer::authorize`] runs on every request: it neither blocks nor formats.
//! - Every refusal becomes a [`status::Status`] with upstream's code, reason and message.
//!
//! It must not know HTTP routing, the registry of kinds or how objects are stored.

pub mod admission;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod observed;
mod pod_references;
pub mod state;
pub mod status;
pub mod token;
pub mod user;
