//! The help texts.

use clap::{Command, CommandFactory, error::ErrorKind};
use collections_service::cli::Cli;

/// Calls this for the program and for every command of it, with the words that lead there.
fn for_each(command: &Command, path: &[&str], visit: &mut impl FnMut(&Command, &[&str])) {
    visit(command, path);
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        for_each(below, &[path, &[below.get_name()]].concat(), visit);
    }
}

/// The words of a command line, as a shell splits them. What follows a pipe or a redirection is left out.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in line.split('\'').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    let end = words.iter().position(|word| ["|", ">"].contains(&word.as_str())).unwrap_or(words.len());
    words.truncate(end);
    words
}

#[test]
fn every_command_has_examples_and_they_parse() {
    let program = Cli::command();
    for_each(&program, &[], &mut |command, path| {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples: Vec<_> = help
            .lines()
            .filter_map(|line| Some(line.split_at(line.find("collections-service ")?).1))
            .collect();
        assert!(help.starts_with("Example") && !examples.is_empty(), "{path:?} has no example");
        for example in examples {
            let words = words(example);
            assert!(path.iter().all(|word| words.iter().any(|other| other == word)), "{path:?}: {example}");
            let refused = match program.clone().try_get_matches_from(&words) {
                Ok(_) => continue,
                Err(refused) => refused,
            };
            let text = refused.to_string();
            // What examples leave to variables.
            let missing: Vec<_> = text.lines().filter(|line| line.starts_with("  --")).collect();
            let is_variable =
                |line: &&str| line.contains("--database-url") || line.contains("--credentials-key-file");
            let is_left_out =
                refused.kind() == ErrorKind::MissingRequiredArgument && missing.iter().all(is_variable);
            assert!(is_left_out || refused.kind() == ErrorKind::DisplayHelp, "{example}: {text}");
        }
    });
}

#[test]
fn every_flag_of_a_server_has_a_heading() {
    let mut program = Cli::command();
    program.build();
    for name in ["serve", "gateway"] {
        for flag in program.find_subcommand(name).unwrap().get_arguments() {
            let id = flag.get_id().as_str();
            let is_clap = ["help", "version"].contains(&id);
            assert!(is_clap || flag.get_help_heading().is_some(), "{name} --{id} has no heading");
        }
    }
}
