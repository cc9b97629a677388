//! `keelson-local`: starts, stops and supervises the cluster of one machine for the Makefile.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use keelson_component_base::exit;
use keelson_local::cluster::Cluster;
use keelson_local::images::{BUSYBOX, BUSYBOX_LATEST};
use keelson_local::layout::{DEFAULT_ROOT, Layout};
use keelson_local::{dns_probe, supervisor};

#[derive(Parser)]
#[command(about = "A Keelson cluster on this machine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Place {
    /// Where all state is kept; another root than the default has a network namespace of its own
    #[arg(long, env = "KEELSON_ROOT", default_value = DEFAULT_ROOT)]
    root: PathBuf,
    /// Number of nodes (the default root has one: the machine)
    #[arg(long, default_value_t = 1)]
    nodes: u8,
}

#[derive(Subcommand)]
enum Command {
    /// Start what does not run yet and wait until it works
    Up(Place),
    /// Stop everything and clean up
    Down {
        #[command(flatten)]
        place: Place,
        /// Remove the data as well
        #[arg(long)]
        purge: bool,
    },
    /// Load localhost/busybox, as `latest` and `1`, into the cluster's runtime
    DemoImage {
        #[command(flatten)]
        place: Place,
        /// Debian's busybox-static
        #[arg(long, default_value = "/bin/busybox")]
        busybox: PathBuf,
    },
    /// End all pods, as the machine goes down (used by the unit keelson-pods)
    #[command(hide = true)]
    StopPods(Place),
    /// Ask a DNS server for a name's IPv4 addresses
    Lookup { server: SocketAddr, name: String },
    /// Keep a command running (used by `up`)
    #[command(hide = true)]
    Supervise {
        #[arg(long)]
        file: PathBuf,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    exit::code("keelson-local", runtime.block_on(run(Cli::parse().command)))
}

async fn run(command: Command) -> Result<(), Box<dyn std::error::Error>> {
    match command {
        Command::Up(place) => {
            let cluster = cluster(&place)?;
            cluster.up()?;
            let layout = cluster.layout();
            println!("\nThe cluster is up. Its kubeconfig is {}\n", layout.admin_kubeconfig().display());
            println!("  export $(cat {})", layout.env_file().display());
            println!("  kubectl get nodes,pods -A");
            println!("  make demo-image && kubectl apply -f deploy/local/manifests/tour.yaml");
            println!("  kubectl get deployments,pods,services");
        }
        Command::Down { place, purge } => cluster(&place)?.down(purge).await?,
        Command::DemoImage { place, busybox } => {
            cluster(&place)?.load_demo_image(&busybox)?;
            println!(
                "{BUSYBOX_LATEST} is loaded, also as {BUSYBOX}, for which no pod asks a registry by default"
            );
        }
        Command::StopPods(place) => cluster(&place)?.stop_pods(),
        Command::Lookup { server, name } => {
            for address in dns_probe::lookup(server, &name)? {
                println!("{address}");
            }
        }
        Command::Supervise { file, command } => supervisor::supervise(&file, &command).await?,
    }
    Ok(())
}

fn cluster(place: &Place) -> Result<Cluster, Box<dyn std::error::Error>> {
    if !nix::unistd::geteuid().is_root() {
        return Err("a cluster makes containers and network interfaces: run as root".into());
    }
    let layout = Layout::new(&place.root)?;
    let program = std::env::current_exe()?;
    let binaries = program.parent().ok_or("this program has no directory")?;
    let tell = |what: &str, took: Duration| println!("  {what} ({:.1} s)", took.as_secs_f64());
    Ok(Cluster::new(layout, binaries, place.nodes)?.with_progress(tell))
}
