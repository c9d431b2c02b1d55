//! `COLLECTIONS_…` variables: a misspelt one would silently leave a default in force, so unknown ones are errors.

use std::collections::HashSet;

use super::Exit;

const PREFIX: &str = "COLLECTIONS_";

/// # Errors
/// The environment holds a `COLLECTIONS_…` variable that no flag reads.
pub fn refuse_unknown(command: &clap::Command) -> Result<(), Exit> {
    let mut known = HashSet::new();
    collect(command, &mut known);
    let mut unknown: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with(PREFIX) && !known.contains(name))
        .collect();
    unknown.sort_unstable();
    if unknown.is_empty() {
        return Ok(());
    }
    // A Service of our name makes Kubernetes set COLLECTIONS_SERVICE_HOST and its kin in every pod beside it.
    let from_kubernetes = unknown.iter().any(|name| name.starts_with("COLLECTIONS_SERVICE_"));
    let advice = if from_kubernetes { "; in Kubernetes, set enableServiceLinks: false" } else { "" };
    Err(Exit::Usage(format!("unknown environment variable {}{advice}", unknown.join(", "))))
}

fn collect(command: &clap::Command, known: &mut HashSet<String>) {
    let variables = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
    known.extend(variables.map(str::to_owned));
    for subcommand in command.get_subcommands() {
        collect(subcommand, known);
    }
}
