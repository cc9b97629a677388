//! Process basics shared by every daemon: configuration files, flags, logging, metrics, health, TLS, the
//! HTTP server for `/healthz` and `/metrics`, and shutdown.
//!
//! This crate knows nothing of Kubernetes: no API types, no client. A daemon's `main` reads as
//! `tls::install_provider` → `logging::init` → `config::load` → build → `systemd::notify_ready` → run until
//! `shutdown::signalled`.

pub mod config;
pub mod duration;
pub mod exit;
pub mod flags;
pub mod health;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod process;
pub mod serve;
pub mod shutdown;
pub mod systemd;
pub mod tls;
