//! The schema of every Kubernetes type, and what can be done with values by knowing it: strict decoding, the three
//! patches, server-side apply and OpenAPI documents.
//!
//! Pure: no I/O, no clock, no async. Values are `serde_json::Value`; a type is a [`types::TypeRef`] into a
//! [`types::Schemas`], either the built-in one or one made from a custom resource definition's schema.
//! This crate knows shapes, never meaning: defaults, validation and strategies belong to the registry.

pub mod apply;
pub mod decode;
pub mod facts;
pub mod openapi;
pub mod patch;
pub mod resource;
pub mod types;
