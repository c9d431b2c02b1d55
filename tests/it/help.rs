//! The help texts.

use clap::{Command, CommandFactory, error::ErrorKind};
use collections_service::cli::Cli;

use super::support::program::command;

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

/// The help of every command as a terminal of 100 columns shows it.
#[tokio::test]
async fn help_is_as_stored() {
    let mut paths = Vec::new();
    for_each(&Cli::command(), &[], &mut |_, path| {
        paths.push(path.iter().map(ToString::to_string).collect::<Vec<_>>());
    });
    assert!(paths.len() > 15, "{paths:?}");
    for path in paths {
        let mut arguments: Vec<_> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let output = command(&arguments).env("COLUMNS", "100").output().await.unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{path:?}");
        let name = if path.is_empty() { "program".to_owned() } else { path.join("_") };
        insta::assert_snapshot!(name, String::from_utf8(output.stdout).unwrap());
    }
}
