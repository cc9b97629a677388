//! The commands beside the server: `kube-store snapshot …` and `kube-store verify`.

mod snapshot;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::node::Chain;

#[derive(Debug, Parser)]
#[command(name = "kube-store", version)]
pub struct Tool {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Save a member's state to a file, look at such a file, make a data directory of it
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Check that log, snapshot and tree of a data directory agree, without changing anything
    Verify(verify::Arguments),
}

/// Whether the command line is for a command, not for the server.
pub fn is_meant(first: Option<&str>) -> bool {
    matches!(first, Some("snapshot" | "verify"))
}

impl Tool {
    /// Runs the command: 0, or 1 if it failed or found something wrong.
    pub fn run(self) -> ExitCode {
        let done = match self.command {
            Command::Snapshot(command) => command.run().map_err(|error| Chain(&error).to_string()),
            Command::Verify(arguments) => arguments.run().map_err(|error| Chain(&error).to_string()),
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("Error: {error}");
                ExitCode::FAILURE
            }
        }
    }
}
