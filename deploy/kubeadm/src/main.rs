//! `kubeadm`: the phases of bootstrap that exist so far, under upstream's verbs.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use keelson_component_base::exit;
use kubeadm::certs::{self, ClusterNames};
use kubeadm::kubeconfig;

#[derive(Parser)]
#[command(name = "kubeadm", about = "Bootstraps a Keelson cluster", disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Set up a control plane, one phase at a time
    #[command(subcommand)]
    Init(Init),
    /// Print the version
    Version,
}

#[derive(Subcommand)]
enum Init {
    /// Run a single phase
    #[command(subcommand)]
    Phase(Phase),
}

#[derive(Subcommand)]
enum Phase {
    /// Make certificates and keys
    #[command(subcommand)]
    Certs(Certs),
    /// Make kubeconfig files
    #[command(subcommand)]
    Kubeconfig(Kubeconfigs),
}

#[derive(Subcommand)]
enum Certs {
    /// Make every certificate and key that is not there yet
    All(Options),
}

#[derive(Subcommand)]
enum Kubeconfigs {
    /// Make every kubeconfig file that is not there yet
    All(Options),
}

#[derive(Args)]
struct Options {
    /// Where certificates and keys are
    #[arg(long, default_value = "/etc/kubernetes/pki")]
    cert_dir: PathBuf,
    /// Where kubeconfig files go
    #[arg(long, default_value = "/etc/kubernetes")]
    kubeconfig_dir: PathBuf,
    /// Address that the API server tells others to use
    #[arg(long)]
    apiserver_advertise_address: IpAddr,
    /// Port of the API server
    #[arg(long, default_value_t = 6443)]
    apiserver_bind_port: u16,
    /// More names and addresses for the API server's certificate
    #[arg(long, value_delimiter = ',')]
    apiserver_cert_extra_sans: Vec<String>,
    /// Address of the `kubernetes` Service: the first of the Service range
    #[arg(long, default_value = "10.96.0.1")]
    service_address: IpAddr,
    /// Domain of the cluster's DNS
    #[arg(long, default_value = "cluster.local")]
    service_dns_domain: String,
    /// Name of this node
    #[arg(long)]
    node_name: Option<String>,
}

fn main() -> std::process::ExitCode {
    exit::code("kubeadm", run(Cli::parse()))
}

fn run(cli: Cli) -> Result<(), Box<dyn std::error::Error>> {
    match cli.command {
        Command::Version => println!("kubeadm version: v{}+keelson", env!("CARGO_PKG_VERSION")),
        Command::Init(Init::Phase(Phase::Certs(Certs::All(options)))) => {
            certs::ensure_all(&options.cert_dir, &options.names()?)?;
            println!("[certs] certificates and keys are in {}", options.cert_dir.display());
        }
        Command::Init(Init::Phase(Phase::Kubeconfig(Kubeconfigs::All(options)))) => {
            let names = options.names()?;
            let authority = certs::Authority::ensure(&options.cert_dir.join("ca"), "kubernetes")?;
            let host = match names.advertise_address {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            };
            let server = format!("https://{host}:{}", options.apiserver_bind_port);
            kubeconfig::ensure_all(&options.kubeconfig_dir, &authority, &server, &names.node)?;
            println!("[kubeconfig] files are in {}", options.kubeconfig_dir.display());
        }
    }
    Ok(())
}

impl Options {
    fn names(&self) -> Result<ClusterNames, Box<dyn std::error::Error>> {
        let node = match &self.node_name {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
        };
        Ok(ClusterNames {
            node,
            advertise_address: self.apiserver_advertise_address,
            service_address: self.service_address,
            dns_domain: self.service_dns_domain.clone(),
            extra_sans: self.apiserver_cert_extra_sans.clone(),
        })
    }
}
