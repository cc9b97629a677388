//! The one table of kinds and, for each kind, pure functions: defaults, preparation, validation, warnings,
//! selectable fields, Table columns and cells, the graceful-deletion rule and scale.
//!
//! Invariants: nothing here does I/O, waits, or reads a clock (`now` is an argument), and no input makes it panic:
//! a field of the wrong type reads as absent (the schema has refused it before it comes here).
//! This crate must never know storage, HTTP or who is asking.
//!
//! The API server reads [`kinds`] and calls the methods of [`Kind`]; it never needs a kind's own module, except for
//! the verb that only one kind has (`core::pod::binding`).

mod apps;
mod batch;
pub mod cause;
pub mod columns;
pub mod core;
mod diff;
mod disruptionbudget;
mod endpointslice;
mod equality;
mod fields;
pub mod kind;
mod lease;
mod metadata;
pub mod names;
mod networking;
mod priorityclass;
mod quantity;
mod rbac;
mod reviews;
mod rules;
pub mod scale;
mod storageclass;
pub mod strategy;
mod table;

pub use cause::{Cause, Reason};
pub use kind::{Column, Conversion, Kind, NameRule, Propagation, Scope};
pub use strategy::Strategy;
pub use table::{kind, kinds};
