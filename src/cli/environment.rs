//! `COLLECTIONS_…` variables. Unknown ones are errors, because a misspelt variable would silently leave the default. An
//! empty one counts as not set.

use std::{collections::HashSet, env};

use clap::{Arg, Command};

use super::Exit;

const PREFIX: &str = "COLLECTIONS_";
/// Variables whose empty value differs from none: here, the process as a whole instead of the service.
const MAY_BE_EMPTY: [&str; 1] = ["COLLECTIONS_HEALTHCHECK_SERVICE"];
/// Variables of the build, not of the program. Cargo also sets them for the programs that it runs.
const OF_THE_BUILD: [&str; 1] = ["COLLECTIONS_REVISION"];

/// Makes clap ignore the variables that are empty.
pub fn ignore_empty(command: Command) -> Command {
    command.mut_args(ignore_if_empty).mut_subcommands(ignore_empty)
}

fn ignore_if_empty(argument: Arg) -> Arg {
    let variable = argument.get_env().and_then(|name| name.to_str());
    let is_ignored = variable.is_some_and(|name| {
        !MAY_BE_EMPTY.contains(&name) && env::var_os(name).is_some_and(|value| value.is_empty())
    });
    if is_ignored { argument.env(None::<&str>) } else { argument }
}

/// # Errors
/// The environment has a `COLLECTIONS_…` variable that no flag reads, and that is not empty.
pub fn refuse_unknown(command: &Command) -> Result<(), Exit> {
    let mut known = HashSet::from(OF_THE_BUILD.map(str::to_owned));
    collect(command, &mut known);
    let mut unknown: Vec<String> = env::vars_os()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with(PREFIX) && !known.contains(name))
        .collect();
    unknown.sort_unstable();
    if unknown.is_empty() {
        return Ok(());
    }
    let advice = if unknown.iter().any(|name| is_service_link(name)) {
        "; Kubernetes sets such variables for Services named collections…: set enableServiceLinks: false in the pod's spec"
    } else {
        ""
    };
    Err(Exit::Usage(format!("unknown environment variable {}{advice}", unknown.join(", "))))
}

/// Whether Kubernetes sets this variable in the pods of a namespace that has a Service named `collections` or
/// `collections-…`: `…_SERVICE_HOST`, `…_SERVICE_PORT`, `…_SERVICE_PORT_<name>`, `…_PORT`, `…_PORT_<number>_<protocol>`
/// and the last one's `_PROTO`, `_PORT` and `_ADDR`.
fn is_service_link(name: &str) -> bool {
    let is_port = |text: &str| {
        let mut parts = text.split('_');
        let is_number = parts.next().is_some_and(|number| number.parse::<u16>().is_ok());
        let is_protocol = parts.next().is_some_and(|protocol| ["TCP", "UDP", "SCTP"].contains(&protocol));
        let is_detail = parts.next().is_none_or(|detail| ["PROTO", "PORT", "ADDR"].contains(&detail));
        is_number && is_protocol && is_detail && parts.next().is_none()
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.rsplit_once("_PORT_").is_some_and(|(_, port)| is_port(port))
}

fn collect(command: &Command, known: &mut HashSet<String>) {
    let variables = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
    known.extend(variables.map(str::to_owned));
    for subcommand in command.get_subcommands() {
        collect(subcommand, known);
    }
}

#[cfg(test)]
mod tests {
    use super::is_service_link;

    #[test]
    fn service_links_are_recognized() {
        for name in [
            "COLLECTIONS_SERVICE_HOST",
            "COLLECTIONS_SERVICE_PORT",
            "COLLECTIONS_PORT",
            "COLLECTIONS_SERVICE_SERVICE_HOST",
            "COLLECTIONS_SERVICE_PORT_50051_TCP_ADDR",
            "COLLECTIONS_REDIS_SERVICE_HOST",
            "COLLECTIONS_REDIS_SERVICE_PORT_TLS_REDIS",
            "COLLECTIONS_REDIS_PORT",
            "COLLECTIONS_REDIS_PORT_6379_TCP",
            "COLLECTIONS_REDIS_PORT_6379_TCP_PROTO",
            "COLLECTIONS_REDIS_PORT_6379_TCP_PORT",
            "COLLECTIONS_PORT_PORT_53_UDP_ADDR",
        ] {
            assert!(is_service_link(name), "{name}");
        }
        for name in [
            "COLLECTIONS_DATABASE_ULR",
            "COLLECTIONS_REDIS_PORT_URL",
            "COLLECTIONS_PORT_6379",
            "COLLECTIONS_PORT_6379_TCP_NAME",
            "COLLECTIONS_HEALTHCHECK_SERVICES",
        ] {
            assert!(!is_service_link(name), "{name}");
        }
    }
}
