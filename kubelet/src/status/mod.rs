//! A pod's status: computed purely ([`compute`]), then patched to the API server at once ([`publish`]).

pub mod compute;
pub mod conditions;
pub mod publish;
