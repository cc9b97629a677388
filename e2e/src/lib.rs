//! placeholder header, replaced by the crate owner.
