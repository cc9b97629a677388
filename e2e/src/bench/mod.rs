//! Measurements of an API server, a store, pods and memory, on any kubeconfig or etcd endpoint.
//!
//! Load generator and servers share the machine, so that figures compare only with figures of the
//! same run. Sections run one after the other and clean up what they made.

pub mod api;
pub mod machine;
pub mod pods;
pub mod processes;
pub mod stats;
pub mod store;

use std::fmt::Write as _;

/// What a value has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bar {
    /// At least so many times the peer's.
    AtLeast(f64),
    /// At most so many times the peer's.
    AtMost(f64),
    /// At most this, whatever the peer's is.
    Within(f64),
}

/// One measured line.
#[derive(Debug, Clone)]
pub struct Row {
    pub what: String,
    pub unit: &'static str,
    /// The subject's value: the median where it was measured more than once.
    pub value: f64,
    /// The peer's value, measured in the same run.
    pub peer: Option<f64>,
    pub bar: Option<Bar>,
}

impl Row {
    pub fn new(what: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self { what: what.into(), unit, value, peer: None, bar: None }
    }

    #[must_use]
    pub fn bar(self, bar: Option<Bar>) -> Self {
        Self { bar, ..self }
    }

    /// The bar, and whether it is met; empty without one.
    fn verdict(&self) -> String {
        let ratio = self.peer.map(|peer| self.value / peer);
        let (met, text) = match (self.bar, ratio) {
            (Some(Bar::AtLeast(bar)), Some(ratio)) => (ratio >= bar, format!("≥ {bar:.2}")),
            (Some(Bar::AtMost(bar)), Some(ratio)) => (ratio <= bar, format!("≤ {bar:.2}")),
            (Some(Bar::Within(bar)), _) => (self.value <= bar, format!("≤ {} {}", number(bar), self.unit)),
            _ => return String::new(),
        };
        format!("{text} {}", if met { "met" } else { "missed" })
    }
}

/// Rows under a heading.
#[derive(Debug)]
pub struct Section {
    pub title: String,
    /// The peer's name, where rows have one.
    pub peer: Option<String>,
    pub rows: Vec<Row>,
}

impl Section {
    /// The section as a Markdown table that reads well as plain text too.
    pub fn table(&self) -> String {
        let mut header = vec!["measure".to_owned(), "unit".to_owned(), "value".to_owned()];
        if let Some(peer) = &self.peer {
            header.extend([peer.clone(), "ratio".to_owned()]);
        }
        let barred = self.rows.iter().any(|row| row.bar.is_some());
        if barred {
            header.push("bar".to_owned());
        }
        let mut lines = vec![header];
        for row in &self.rows {
            let mut line = vec![row.what.clone(), row.unit.to_owned(), number(row.value)];
            if self.peer.is_some() {
                line.push(row.peer.map(number).unwrap_or_default());
                line.push(row.peer.map(|peer| format!("{:.2}", row.value / peer)).unwrap_or_default());
            }
            if barred {
                line.push(row.verdict());
            }
            lines.push(line);
        }
        let columns = lines[0].len();
        let widths: Vec<usize> = (0..columns)
            .map(|c| lines.iter().map(|line| line[c].chars().count()).max().unwrap_or(0))
            .collect();
        let mut text = format!("## {}\n\n", self.title);
        for (index, line) in lines.iter().enumerate() {
            for (column, cell) in line.iter().enumerate() {
                let width = widths[column];
                // Words to the left, numbers to the right; writing to a String cannot fail.
                let _ = if column < 2 {
                    write!(text, "| {cell:width$} ")
                } else {
                    write!(text, "| {cell:>width$} ")
                };
            }
            text.push_str("|\n");
            if index == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(width + 1);
                    text.push_str(&if column < 2 { format!("|{dashes}-") } else { format!("|{dashes}:") });
                }
                text.push_str("|\n");
            }
        }
        text
    }
}

/// Three digits or more, without a false show of accuracy.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("cannot reach the API server as the kubeconfig says")]
    Connect(#[from] keelson_client::ConnectError),
    #[error("the API server refused a request")]
    Api(#[from] kube::Error),
    #[error("the store cannot be reached as told")]
    Channel(#[from] tonic::transport::Error),
    #[error("the store refused a request")]
    Store(#[source] Box<tonic::Status>),
    #[error("a file or process cannot be used")]
    File(#[from] std::io::Error),
    #[error("the cluster's processes cannot be managed")]
    Cluster(#[from] keelson_local::cluster::ClusterError),
    #[error("a process cannot be stopped")]
    Supervisor(#[from] keelson_local::supervisor::SupervisorError),
    #[error("a task of the load generator ended early")]
    Task(#[from] tokio::task::JoinError),
    #[error("{0}")]
    Unexpected(String),
}

impl From<tonic::Status> for BenchError {
    fn from(status: tonic::Status) -> Self {
        Self::Store(Box::new(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_have_ratios() {
        let rows =
            vec![Row { peer: Some(1000.0), ..Row::new("puts", "1/s", 1500.4) }, Row::new("p50", "ms", 0.25)];
        let section = Section { title: "Store".into(), peer: Some("etcd".into()), rows };
        let expected = "## Store\n\n\
            | measure | unit | value | etcd | ratio |\n\
            |---------|------|------:|-----:|------:|\n\
            | puts    | 1/s  |  1500 | 1000 |  1.50 |\n\
            | p50     | ms   | 0.250 |      |       |\n";
        assert_eq!(section.table(), expected);
    }

    #[test]
    fn bars_are_met_or_missed() {
        let check = |value, peer, bar, expected: &str| {
            let row = Row { peer, ..Row::new("x", "s", value) }.bar(Some(bar));
            assert_eq!(row.verdict(), expected, "{value} beside {peer:?}");
        };
        check(3.0, Some(2.0), Bar::AtLeast(1.5), "≥ 1.50 met");
        check(2.9, Some(2.0), Bar::AtLeast(1.5), "≥ 1.50 missed");
        check(1.0, Some(2.0), Bar::AtMost(0.5), "≤ 0.50 met");
        check(1.1, Some(2.0), Bar::AtMost(0.5), "≤ 0.50 missed");
        check(2.0, None, Bar::Within(2.0), "≤ 2.00 s met");
        check(2.1, Some(9.0), Bar::Within(2.0), "≤ 2.00 s missed");
        // Without a peer there is no ratio.
        check(2.0, None, Bar::AtMost(0.5), "");
    }
}
