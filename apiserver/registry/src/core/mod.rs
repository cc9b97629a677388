//! Kinds of the core group, `v1`.

mod claim;
mod componentstatus;
mod configmap;
mod endpoints;
mod event;
mod limits;
mod namespace;
mod node;
pub mod pod;
mod quota;
mod replicationcontroller;
mod secret;
mod service;
mod serviceaccount;

pub(crate) use claim::{CLAIM, VOLUME, claim_spec, default_claim_spec};
pub(crate) use componentstatus::KIND as COMPONENT_STATUS;
pub(crate) use configmap::KIND as CONFIG_MAP;
pub(crate) use endpoints::KIND as ENDPOINTS;
pub(crate) use event::{CORE as EVENT, EVENTS as EVENTS_EVENT};
pub(crate) use limits::LIMIT_RANGE;
pub(crate) use namespace::KIND as NAMESPACE;
pub(crate) use node::KIND as NODE;
pub(crate) use pod::BINDING;
pub(crate) use quota::RESOURCE_QUOTA;
pub(crate) use replicationcontroller::{KIND as REPLICATION_CONTROLLER, POD_TEMPLATE};
pub(crate) use secret::KIND as SECRET;
pub(crate) use service::KIND as SERVICE;
pub(crate) use serviceaccount::KIND as SERVICE_ACCOUNT;
