//! Flags of etcd's server that have nothing to act on here. They are taken out of the command line with a warning, so
//! that manifests written for etcd work; values that ask for what kube-store does not do are refused.

/// What a flag may say.
enum Takes {
    /// Anything: it tunes or names what does not exist here, or asks for less safety than there is.
    Value,
    /// As `Value`; a switch, whose value comes with `=` or not at all.
    Switch,
    /// One of these: others ask for something that is not done here.
    Only(&'static [&'static str]),
    OnlySwitch(&'static [&'static str]),
}

use Takes::{Only, OnlySwitch, Switch, Value};

const FALSE: &[&str] = &["false", "f", "F", "0", "FALSE", "False"];
const EMPTY: &[&str] = &[""];

#[rustfmt::skip]
const FLAGS: &[(&str, Takes)] = &[
    ("auth-token", Value), ("auth-token-ttl", Value), ("bcrypt-cost", Value),
    ("auto-tls", OnlySwitch(FALSE)), ("peer-auto-tls", OnlySwitch(FALSE)), ("self-signed-cert-validity", Value),
    ("backend-batch-interval", Value), ("backend-batch-limit", Value), ("backend-bbolt-freelist-type", Value),
    ("bootstrap-defrag-threshold-megabytes", Value), ("cipher-suites", Value),
    ("client-cert-allowed-hostname", Only(EMPTY)), ("client-cert-file", Value), ("client-key-file", Value),
    ("client-crl-file", Only(EMPTY)), ("compact-hash-check-time", Value), ("compaction-batch-limit", Value),
    ("compaction-sleep-interval", Value), ("cors", Value), ("discovery", Only(EMPTY)), ("discovery-cert", Value),
    ("discovery-dial-timeout", Value), ("discovery-endpoints", Only(EMPTY)), ("discovery-fallback", Value),
    ("discovery-proxy", Value), ("discovery-srv", Only(EMPTY)), ("discovery-srv-name", Value),
    ("discovery-token", Only(EMPTY)), ("distributed-tracing-address", Value),
    ("distributed-tracing-instance-id", Value), ("distributed-tracing-sampling-rate", Value),
    ("distributed-tracing-service-name", Value), ("downgrade-check-time", Value),
    ("enable-distributed-tracing", Switch), ("enable-grpc-gateway", Switch), ("enable-log-rotation", Switch),
    ("enable-pprof", Switch), ("enable-v2", OnlySwitch(FALSE)),
    ("experimental-backend-bbolt-freelist-type", Value),
    ("experimental-bootstrap-defrag-threshold-megabytes", Value),
    ("experimental-compact-hash-check-enabled", Switch), ("experimental-compact-hash-check-time", Value),
    ("experimental-compaction-batch-limit", Value), ("experimental-compaction-sleep-interval", Value),
    ("experimental-distributed-tracing-address", Value), ("experimental-distributed-tracing-instance-id", Value),
    ("experimental-distributed-tracing-sampling-rate", Value),
    ("experimental-distributed-tracing-service-name", Value), ("experimental-downgrade-check-time", Value),
    ("experimental-enable-distributed-tracing", Switch), ("experimental-enable-lease-checkpoint", Switch),
    ("experimental-enable-lease-checkpoint-persist", Switch), ("experimental-enable-v2v3", Only(EMPTY)),
    ("experimental-memory-mlock", Switch),
    ("experimental-peer-skip-client-san-verification", Switch), ("experimental-snapshot-catchup-entries", Value),
    ("experimental-stop-grpc-service-on-defrag", Switch),
    ("experimental-txn-mode-write-with-shared-buffer", Switch),
    ("experimental-wait-cluster-ready-timeout", Value), ("experimental-warning-apply-duration", Value),
    ("experimental-warning-unary-request-duration", Value), ("grpc-keepalive-interval", Value),
    ("grpc-keepalive-min-time", Value), ("grpc-keepalive-timeout", Value), ("host-whitelist", Value),
    ("initial-election-tick-advance", Switch), ("listen-client-http-urls", Only(EMPTY)), ("log-format", Value),
    ("log-level", Value), ("log-outputs", Value), ("log-package-levels", Value),
    ("log-rotation-config-json", Value), ("logger", Value), ("max-concurrent-streams", Value),
    ("max-snapshots", Value), ("max-wals", Value), ("memory-mlock", Switch),
    ("peer-cert-allowed-cn", Only(EMPTY)), ("peer-cert-allowed-hostname", Only(EMPTY)),
    ("peer-crl-file", Only(EMPTY)), ("peer-skip-client-san-verification", Switch), ("pre-vote", Switch),
    ("proxy", Only(&["off"])), ("proxy-dial-timeout", Value), ("proxy-failure-wait", Value),
    ("proxy-read-timeout", Value), ("proxy-refresh-interval", Value), ("proxy-write-timeout", Value),
    ("raft-read-timeout", Value), ("raft-write-timeout", Value), ("snapshot-catchup-entries", Value),
    ("snapshot-count", Value), ("socket-reuse-address", Switch), ("socket-reuse-port", Switch),
    ("tls-max-version", Only(&["", "TLS1.3"])),
    ("tls-min-version", Only(&["", "TLS1.2"])), ("unsafe-no-fsync", Switch),
    ("v2-deprecation", Value), ("wal-dir", Only(EMPTY)), ("warning-apply-duration", Value),
    ("warning-unary-request-duration", Value),
];

/// Whether a flag is one of them.
pub fn is_one(name: &str) -> bool {
    FLAGS.iter().any(|(flag, _)| *flag == name)
}

/// Takes them out of `arguments`, the program's name first; `known` are the flags that do act. Returns the rest and the
/// flags taken out.
///
/// # Errors
/// A value that asks for something that is not done.
pub fn take_out(
    arguments: impl IntoIterator<Item = String>,
    known: impl Fn(&str) -> bool,
) -> Result<(Vec<String>, Vec<&'static str>), String> {
    let (mut rest, mut ignored) = (Vec::new(), Vec::new());
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let flag = argument.strip_prefix("--").unwrap_or_default();
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        let found = FLAGS.iter().find(|(flag, _)| *flag == name);
        let Some((name, takes)) = found.filter(|_| !known(name)) else {
            rest.push(argument);
            continue;
        };
        let value = match (takes, value) {
            (_, Some(value)) => value.to_owned(),
            (Switch | OnlySwitch(_), None) => "true".to_owned(),
            (Value | Only(_), None) => {
                arguments.next().ok_or_else(|| format!("a value is required for '--{name}'"))?
            }
        };
        match takes {
            Only(allowed) | OnlySwitch(allowed) if !allowed.contains(&value.as_str()) => {
                return Err(format!("--{name}={value}: kube-store does not do this"));
            }
            _ => ignored.push(*name),
        }
    }
    Ok((rest, ignored))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &[&str], expected: Result<(&[&str], &[&str]), &str>) {
        let found =
            take_out(arguments.iter().map(|&argument| argument.to_owned()), |flag| flag == "max-wals");
        let expected = expected
            .map(|(rest, ignored)| (rest.iter().map(|&flag| flag.to_owned()).collect(), ignored.to_vec()))
            .map_err(str::to_owned);
        assert_eq!(found, expected, "{arguments:?}");
    }

    #[test]
    fn taken_out() {
        check(&["x", "--name=a", "--snapshot-count=10000"], Ok((&["x", "--name=a"], &["snapshot-count"])));
        check(&["--snapshot-count", "10000", "--name", "a"], Ok((&["--name", "a"], &["snapshot-count"])));
        check(&["--pre-vote", "--name", "a"], Ok((&["--name", "a"], &["pre-vote"])));
        check(&["--max-wals=3"], Ok((&["--max-wals=3"], &[])));
        check(&["--auto-tls=false"], Ok((&[], &["auto-tls"])));
        check(&["--auto-tls"], Err("--auto-tls=true: kube-store does not do this"));
        check(&["--wal-dir=/x"], Err("--wal-dir=/x: kube-store does not do this"));
        check(&["--logger"], Err("a value is required for '--logger'"));
        check(&["--no-such-flag=1"], Ok((&["--no-such-flag=1"], &[])));
    }
}
