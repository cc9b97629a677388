//! Pure rules about API objects, the same for the API server and for every daemon: selectors, quantities, owners,
//! node selectors, pod conditions and resources, taints, names, hashes, times and the primitives of validation.
//!
//! Nothing here does I/O, reads a clock or draws random numbers: what is needed of those comes in as arguments.
//! Primitives work on strings, so that the API server can use them on values; whole-object rules take
//! `k8s_openapi` types.

pub mod addresses;
pub mod durations;
pub mod fields;
pub mod hashes;
pub mod intstr;
pub mod labels;
pub mod names;
pub mod nodes;
pub mod owners;
pub mod pods;
pub mod quantity;
pub mod resources;
pub mod taints;
pub mod times;
pub mod validation;

/// The API's own types, so that users of these rules name the same version of them.
pub use k8s_openapi;
