//! The real binary, driven over its own protocol: what it promises when it is killed, restarted, cut off and watched.

mod cluster;
mod durability;
mod harness;
mod protocol;
mod watch;
