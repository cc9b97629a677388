//! Kinds of the core group, `v1`.

mod configmap;

pub(crate) use configmap::KIND as CONFIG_MAP;
