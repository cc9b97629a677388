//! kube-store: config, build, run, drain.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use clap::{CommandFactory, Parser};
use keelson_component_base::{logging, memory, tls};
use kube_store::config::Config;
use kube_store::environment;
use kube_store::ignored;
use kube_store::node::Chain;
use kube_store::run::{self, Ended};
use kube_store::tool::{self, Tool};

/// Runs the same program in this process's place: nothing of what it had open is left.
fn begin_anew() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let error = Command::new("/proc/self/exe").arg0(name).args(arguments).exec();
    tracing::error!(%error, "cannot begin anew");
    ExitCode::FAILURE
}

/// All names of a flag, if there is one of that name.
fn names(command: &clap::Command, flag: &str) -> Option<Vec<String>> {
    let of = |argument: &clap::Arg| -> Vec<String> {
        let aliases = argument.get_all_aliases().unwrap_or_default();
        argument.get_long().into_iter().chain(aliases).map(str::to_owned).collect()
    };
    let known = command.get_arguments().map(of).find(|names| names.iter().any(|name| name == flag));
    known.or_else(|| ignored::is_one(flag).then(|| vec![flag.to_owned()]))
}

fn refuse(command: &clap::Command, error: String) -> ! {
    command.clone().error(clap::error::ErrorKind::InvalidValue, error).exit()
}

fn main() -> ExitCode {
    tls::install_provider();
    memory::trim_when_idle();
    if tool::is_meant(std::env::args().nth(1).as_deref()) {
        return Tool::parse().run();
    }
    let command = Config::command();
    let mut arguments: Vec<String> = std::env::args().collect();
    // A value that is no text is none of a flag's.
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let environment = match environment::take(variables, &arguments, |flag| names(&command, flag)) {
        Ok(taken) => taken,
        Err(error) => refuse(&command, error),
    };
    // Before the others: the last of those may lack its value.
    let begin = arguments.len().min(1);
    arguments.splice(begin..begin, environment.arguments);
    let acts = |flag: &str| command.get_arguments().any(|argument| argument.get_long() == Some(flag));
    let (arguments, ignored) = match ignored::take_out(arguments, acts) {
        Ok(taken) => taken,
        Err(error) => refuse(&command, error),
    };
    let config = Config::parse_from(arguments);
    // Only in builds for tests: steps at which the process ends, from the environment.
    let _failpoints = fail::has_failpoints().then(fail::FailScenario::setup);
    if let Err(error) = logging::init(&config.log) {
        eprintln!("kube-store: cannot set up logging: {error}");
        return ExitCode::FAILURE;
    }
    for used in environment.used {
        tracing::info!("{used}");
    }
    for warning in environment.warnings {
        tracing::warn!("{warning}");
    }
    for flag in ignored {
        tracing::warn!("--{flag} has nothing to act on in kube-store: it is ignored");
    }
    for gate in &config.feature_gates.ignored {
        tracing::warn!("the feature gate {gate} has nothing to act on in kube-store: it is ignored");
    }
    // The threads that own the state have names, and the process ends with them (with the node too: see `node::run`); a
    // task that serves a client ends alone.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, "a bug");
        if matches!(std::thread::current().name(), Some("wal" | "tree" | "keeper")) {
            std::process::abort();
        }
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run::run(&config)),
        Err(error) => Err(run::RunError::Runtime(error)),
    };
    match result {
        Ok(Ended::Stopped) => ExitCode::SUCCESS,
        Ok(Ended::Superseded) => begin_anew(),
        Err(error) => {
            tracing::error!("{}", Chain(&error));
            ExitCode::FAILURE
        }
    }
}
