//! Source translation of pod traffic that leaves the cluster, in an nftables table of our own.

use std::io;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::plan::Range;

const TABLE: &str = "keelson-network";

/// Why the table could not be set.
#[derive(Debug, thiserror::Error)]
pub enum MasqueradeError {
    #[error("cannot run nft")]
    Run(#[from] io::Error),
    #[error("nft refused the table: {0}")]
    Refused(String),
}

/// Packets from `cluster_range` to anywhere outside it get the host's address, except those that stay
/// on the host. `add` then `flush` makes the program safe to repeat; nft applies it as one transaction.
fn program(cluster_range: Range) -> String {
    let family = if cluster_range.address.is_ipv4() { "ip" } else { "ip6" };
    format!(
        "add table {family} {TABLE}\n\
         add chain {family} {TABLE} postrouting {{ type nat hook postrouting priority 110 ; }}\n\
         flush chain {family} {TABLE} postrouting\n\
         add rule {family} {TABLE} postrouting {family} saddr {cluster_range} {family} daddr != {cluster_range} \
         fib daddr type != {{ local, multicast, broadcast }} masquerade\n"
    )
}

pub async fn ensure(cluster_range: Range) -> Result<(), MasqueradeError> {
    nft(&program(cluster_range)).await
}

/// Removes the table of both families; none there is no error.
pub async fn remove() -> Result<(), MasqueradeError> {
    // A table that is added just before it is deleted is always there to delete.
    let lines = ["ip", "ip6"].map(|f| format!("add table {f} {TABLE}\ndelete table {f} {TABLE}\n"));
    nft(&lines.concat()).await
}

async fn nft(program: &str) -> Result<(), MasqueradeError> {
    let mut child =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(program.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    Err(MasqueradeError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_follows_the_range() {
        assert!(
            program("10.244.0.0/16".parse().unwrap())
                .contains("ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16")
        );
        assert!(program("fd01::/48".parse().unwrap()).starts_with("add table ip6 keelson-network\n"));
    }
}
