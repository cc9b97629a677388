//! `bench`: measures a cluster, a store, or both, and prints plain tables with the machine.
//!
//! It takes any kubeconfig and any etcd endpoint, so that it can be pointed at upstream as well.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use e2e::bench::{BenchError, Section, api, machine, pods, processes, store};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Memory of the control plane's processes, before and after the other parts (needs --root)
    Memory,
    /// API server start to ready (needs --root)
    Startup,
    /// Creates, gets, lists, watches (needs --kubeconfig)
    Api,
    /// Pod created to Running (needs --kubeconfig)
    Pods,
    /// Puts, ranges, transactions, watches, beside an etcd that is started for it
    Store,
    /// The store's bars: one member and three under load (only by name: it takes some minutes)
    StoreLoad,
    /// The store's bars: watchers, a million keys, leaders killed (only by name, as that)
    StoreEndurance,
    /// The live set of a store overwritten again and again while it compacts (only by name, as that)
    Churn,
}

impl Part {
    fn is_by_name_only(self) -> bool {
        matches!(self, Part::StoreLoad | Part::StoreEndurance | Part::Churn)
    }
}

#[derive(Debug, Parser)]
#[command(about = "Measurements of a Kubernetes cluster and of an etcd v3 store")]
struct Cli {
    /// What to measure; everything that the other flags allow unless given
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// The cluster to measure
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// A store that runs already; without it kube-store is started in a temporary directory
    #[arg(long, value_delimiter = ',')]
    etcd_endpoints: Vec<String>,
    /// CA of the store's certificate
    #[arg(long)]
    cacert: Option<PathBuf>,
    /// Client certificate for the store
    #[arg(long)]
    cert: Option<PathBuf>,
    /// Key of the client certificate
    #[arg(long)]
    key: Option<PathBuf>,
    /// Root of a local Keelson cluster, for its processes
    #[arg(long)]
    root: Option<PathBuf>,
    /// Directory of Keelson's binaries; that of this program unless given
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// The store to compare with
    #[arg(long, default_value = "/usr/bin/etcd")]
    etcd: PathBuf,
    /// Objects to create, get and list
    #[arg(long, default_value_t = 10_000)]
    objects: usize,
    /// API requests at a time
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// Watchers of one object
    #[arg(long, default_value_t = 100)]
    watchers: usize,
    /// Writes that each watcher is told of
    #[arg(long, default_value_t = 200)]
    writes: usize,
    /// Pods to run, one after the other
    #[arg(long, default_value_t = 30)]
    pods: usize,
    /// The image of those pods; it must be on the nodes
    #[arg(long, default_value = e2e::pods::IMAGE)]
    image: String,
    /// How long each load on the store lasts, in each of three rounds
    #[arg(long, default_value = "2s", value_parser = keelson_component_base::duration::parse)]
    time: Duration,
    /// Small keys for the store's memory and start
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    /// Leaders of the store to kill
    #[arg(long, default_value_t = 50)]
    failovers: usize,
    /// Keys of the live set that is overwritten
    #[arg(long, default_value_t = 100_000)]
    churn_keys: usize,
    /// Bytes of each of its values
    #[arg(long, default_value_t = 256)]
    churn_bytes: usize,
    /// How often it is overwritten
    #[arg(long, default_value_t = 10)]
    churn_rounds: usize,
}

impl Cli {
    /// The parts asked for; an error names the flag that one of them lacks.
    fn parts(&self) -> Result<Vec<Part>, String> {
        let lacks = |part: Part| match part {
            Part::Memory | Part::Startup if self.root.is_none() => Some("--root"),
            Part::Api | Part::Pods if self.kubeconfig.is_none() => Some("--kubeconfig"),
            _ => None,
        };
        if self.parts.is_empty() {
            return Ok(Part::value_variants()
                .iter()
                .copied()
                .filter(|part| lacks(*part).is_none() && !part.is_by_name_only())
                .collect());
        }
        for part in &self.parts {
            if let Some(flag) = lacks(*part) {
                return Err(format!("{part:?} needs {flag}"));
            }
        }
        Ok(self.parts.clone())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    keelson_component_base::tls::install_provider();
    let parts = match cli.parts() {
        Ok(parts) => parts,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::from(2);
        }
    };
    match Box::pin(run(&cli, &parts)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("error: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli, parts: &[Part]) -> Result<(), BenchError> {
    let own = std::env::current_exe()?;
    let binaries = match (&cli.binaries, own.parent()) {
        (Some(directory), _) => directory.clone(),
        (None, Some(directory)) => directory.to_owned(),
        (None, None) => Path::new(".").to_owned(),
    };
    println!("Machine: {}\n", machine::description());
    let tell = |section: &Section| println!("{}", section.table());
    let wanted = |part: Part| parts.contains(&part);
    let cluster = cli.root.as_ref().map(|root| processes::cluster(root, &binaries)).transpose()?;
    let client = match &cli.kubeconfig {
        Some(path) if wanted(Part::Api) || wanted(Part::Pods) => {
            Some(keelson_client::connect(path, "keelson-bench")?)
        }
        _ => None,
    };

    if let Some(cluster) = cluster.as_ref().filter(|_| wanted(Part::Startup)) {
        tell(&processes::startup(cluster).await?);
    }
    if let Some(cluster) = cluster.as_ref().filter(|_| wanted(Part::Memory)) {
        tell(&processes::resident(cluster, "idle")?);
    }
    // Before the parts that leave the cluster's daemons busy for a while.
    let access = (!cli.etcd_endpoints.is_empty()).then(|| store::Access {
        endpoints: cli.etcd_endpoints.clone(),
        ca: cli.cacert.clone(),
        certificate: cli.cert.clone(),
        key: cli.key.clone(),
    });
    let plan = store::Plan {
        access,
        store: binaries.join("kube-store"),
        peer: cli.etcd.clone(),
        time: cli.time,
        keys: cli.keys,
        failovers: cli.failovers,
    };
    if wanted(Part::Store) {
        tell(&store::everyday(&plan).await?);
    }
    if wanted(Part::StoreLoad) {
        for members in [1, 3] {
            tell(&store::throughput(&plan, members).await?);
        }
    }
    if wanted(Part::StoreEndurance) {
        tell(&store::endurance(&plan).await?);
    }
    if wanted(Part::Churn) {
        let plan = store::churn::Plan {
            keys: cli.churn_keys,
            value_bytes: cli.churn_bytes,
            rounds: cli.churn_rounds,
            ..store::churn::Plan::default()
        };
        tell(&store::churn::churn(&binaries.join("kube-store"), &plan).await?);
    }
    if let Some(client) = &client {
        // Pods first: they are to be measured on a cluster that has nothing else to do.
        if wanted(Part::Pods) {
            tell(&pods::run(client, cli.pods, &cli.image).await?);
        }
        if wanted(Part::Api) {
            let plan = api::Plan {
                objects: cli.objects,
                concurrency: cli.concurrency,
                watchers: cli.watchers,
                writes: cli.writes,
            };
            tell(&api::run(client, &plan).await?);
            if let Some(cluster) = cluster.as_ref().filter(|_| wanted(Part::Memory)) {
                tell(&processes::resident(cluster, "after the API measures")?);
            }
        }
    }
    Ok(())
}
