//! Flags from the environment, as etcd takes them: `ETCD_DATA_DIR` says what `--data-dir` does. A flag on the command line
//! wins. Pure: who reads the environment and logs is `main`.

/// What variables become.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// As on the command line.
    pub arguments: Vec<String>,
    /// What to say of them: those that are used, then those that are not.
    pub used: Vec<String>,
    pub warnings: Vec<String>,
}

/// Read by etcd, and no flag of it.
const NOT_FLAGS: &[&str] = &["ETCD_UNSUPPORTED_ARCH"];
/// Says everything that flags say: to go on without it would be another member.
const CONFIGURATION: &str = "ETCD_CONFIG_FILE";

/// The flags of those of `variables` that are etcd's. `given` is the command line; `names` are all names of a flag that is
/// known, itself first, or none.
///
/// # Errors
/// A configuration file.
pub fn take(
    variables: impl IntoIterator<Item = (String, String)>,
    given: &[String],
    names: impl Fn(&str) -> Option<Vec<String>>,
) -> Result<Taken, String> {
    let mut taken = Taken::default();
    let mut variables: Vec<(String, String)> = variables.into_iter().collect();
    variables.sort();
    for (variable, value) in variables {
        let Some(rest) = variable.strip_prefix("ETCD_") else { continue };
        // As with etcd, an empty one is none.
        if value.is_empty() || NOT_FLAGS.contains(&variable.as_str()) {
            continue;
        }
        if variable == CONFIGURATION {
            return Err(format!("{variable}={value}: kube-store reads no configuration file, only flags"));
        }
        let flag = rest.to_lowercase().replace('_', "-");
        match names(&flag) {
            None => taken
                .warnings
                .push(format!("unrecognized environment variable {variable}={value}: it is ignored")),
            Some(names) if given.iter().any(|argument| names.iter().any(|name| is(argument, name))) => taken
                .warnings
                .push(format!("the environment variable {variable}={value} is not used: --{flag} is given")),
            Some(_) => {
                taken.used.push(format!("the environment variable {variable} is used as --{flag}={value}"));
                taken.arguments.push(format!("--{flag}={value}"));
            }
        }
    }
    Ok(taken)
}

/// Whether an argument is that flag, with its value or before it.
fn is(argument: &str, flag: &str) -> bool {
    let rest = argument.strip_prefix("--").and_then(|argument| argument.strip_prefix(flag));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(variables: &[(&str, &str)], given: &[&str], expected: Result<(&[&str], &[&str]), &str>) {
        let owned = |text: &str| text.to_owned();
        let names = |flag: &str| match flag {
            "name" | "data-dir" | "client-cert-auth" | "snapshot-count" => Some(vec![owned(flag)]),
            "max-learners" | "experimental-max-learners" => {
                Some(vec![owned("max-learners"), owned("experimental-max-learners")])
            }
            _ => None,
        };
        let given: Vec<String> = given.iter().map(|argument| owned(argument)).collect();
        let variables = variables.iter().map(|(name, value)| (owned(name), owned(value)));
        match (take(variables, &given, names), expected) {
            (Ok(taken), Ok((arguments, warnings))) => {
                assert_eq!(taken.arguments, arguments);
                assert_eq!(taken.used.len(), arguments.len());
                let said = |(warning, expected): (&String, &&str)| warning.contains(*expected);
                assert_eq!(taken.warnings.len(), warnings.len(), "{:?}", taken.warnings);
                assert!(taken.warnings.iter().zip(warnings).all(said), "{:?}", taken.warnings);
            }
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
            (found, expected) => panic!("{found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn variables_are_flags() {
        check(&[("ETCD_NAME", "a"), ("NAME", "b"), ("ETCDCTL_API", "3")], &[], Ok((&["--name=a"], &[])));
        check(&[("ETCD_DATA_DIR", "/x y")], &["--name=a"], Ok((&["--data-dir=/x y"], &[])));
        check(&[("ETCD_CLIENT_CERT_AUTH", "true")], &[], Ok((&["--client-cert-auth=true"], &[])));
        check(&[("ETCD_SNAPSHOT_COUNT", "5")], &[], Ok((&["--snapshot-count=5"], &[])));
        check(&[("ETCD_NAME", ""), ("ETCD_UNSUPPORTED_ARCH", "arm")], &[], Ok((&[], &[])));
        for given in [&["--name=b"][..], &["--name", "b"]] {
            check(&[("ETCD_NAME", "a")], given, Ok((&[], &["ETCD_NAME=a is not used: --name is given"])));
        }
        check(&[("ETCD_NAME", "a")], &["--names=b"], Ok((&["--name=a"], &[])));
        let both = ["--experimental-max-learners=2"];
        check(&[("ETCD_MAX_LEARNERS", "3")], &both, Ok((&[], &["--max-learners is given"])));
        check(&[("ETCD_NO_SUCH", "1")], &[], Ok((&[], &["unrecognized environment variable ETCD_NO_SUCH"])));
        check(&[("ETCD_CONFIG_FILE", "/etc/etcd.yaml")], &[], Err("reads no configuration file"));
    }
}
