//! `deploy/CONFIGURATION.md` is the program's own help. `UPDATE_CONFIGURATION=1 tests/run --test it -- configuration::` writes it.

use std::{fmt::Write, fs, path::Path};

use clap::{Arg, ArgAction, Command, CommandFactory};
use collections_service::cli::Cli;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/CONFIGURATION.md");

const INTRODUCTION: &str = "# Configuration

<!-- Generated from the program's help. To change it, change the help and run:
     UPDATE_CONFIGURATION=1 tests/run --test it -- configuration:: -->

Every flag that has a variable can be given by that variable; a flag on the command line takes precedence. An empty variable
counts as not set. An unknown `COLLECTIONS_…` variable is an error, because a misspelt one would silently leave the default.
A flag that takes several values can be repeated, or its values can be separated by commas. Every command has `--log` and
`--log-format`. A password is accepted in a variable and not on the command line, which other processes can read.

The limits that are not meant to be tuned stand, with their reasons, in [src/config.rs](../src/config.rs) and
[src/config/](../src/config).
";

/// Commands whose flags are listed by heading, in the order of the document.
const SERVERS: [&str; 2] = ["serve", "gateway"];

fn document() -> String {
    let mut program = Cli::command();
    program.build();
    let mut text = INTRODUCTION.to_owned();
    for name in SERVERS {
        describe(&mut text, &program, program.find_subcommand(name).unwrap(), name, true);
    }
    for command in program.get_subcommands().filter(|command| !SERVERS.contains(&command.get_name())) {
        if command.get_name() != "help" {
            describe(&mut text, &program, command, command.get_name(), false);
        }
    }
    text
}

/// One command, and the commands below it.
fn describe(text: &mut String, program: &Command, command: &Command, path: &str, has_headings: bool) {
    let about = command.get_long_about().or(command.get_about()).unwrap();
    let level = "#".repeat(path.split(' ').count() + 1);
    write!(text, "\n{level} {path}\n\n{}\n", sentences(&about.to_string()).replace('\n', "\n\n")).unwrap();
    if command.has_subcommands() {
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            describe(text, program, below, &format!("{path} {}", below.get_name()), false);
        }
        return;
    }
    let is_listed = |flag: &&Arg| match flag.get_id().as_str() {
        "help" | "version" => false,
        "log" | "log_format" => has_headings,
        _ => true,
    };
    let flags: Vec<&Arg> = command.get_arguments().filter(is_listed).collect();
    let mut headings: Vec<Option<&str>> = Vec::new();
    for heading in flags.iter().map(|flag| flag.get_help_heading()) {
        if has_headings && !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    if headings.is_empty() {
        table(text, program, path, &flags);
    }
    for heading in headings {
        write!(text, "\n#{level} {}\n", heading.unwrap_or("Options")).unwrap();
        let below: Vec<_> = flags.iter().copied().filter(|flag| flag.get_help_heading() == heading).collect();
        table(text, program, path, &below);
    }
}

fn table(text: &mut String, program: &Command, path: &str, flags: &[&Arg]) {
    text.push_str("\n| flag | variable | values | default | meaning |\n|---|---|---|---|---|\n");
    for flag in flags {
        let name = match flag.get_long() {
            Some(long) => format!("`--{long}`"),
            None => format!("`{}`", value_name(flag)),
        };
        let variable = flag.get_env().map_or(String::new(), |name| format!("`{}`", name.display()));
        // Only the servers have the whole text of the flag that every command has.
        let is_short = flag.get_id() == "database_url" && !SERVERS.contains(&path);
        let help = if is_short { None } else { flag.get_long_help() };
        let help = help.or(flag.get_help()).unwrap().to_string();
        let (default, help) = match help.split_once(" [default: ") {
            Some((before, after)) => {
                let (default, after) = after.split_once(']').unwrap();
                (default.to_owned(), format!("{before}{after}"))
            }
            None => (default(flag), help),
        };
        let cells =
            [name, variable, values(program, path, flag), default, sentences(&help).replace('\n', " ")];
        writeln!(text, "| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | ")).unwrap();
    }
}

fn value_name(flag: &Arg) -> &str {
    flag.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str())
}

fn default(flag: &Arg) -> String {
    let defaults: Vec<_> =
        flag.get_default_values().iter().map(|value| format!("`{}`", value.display())).collect();
    match (flag.is_required_set(), flag.get_action()) {
        (true, _) => "required".to_owned(),
        (false, ArgAction::SetTrue) => "`false`".to_owned(),
        _ => defaults.join(", "),
    }
}

/// What the flag accepts. The program itself names the range of a number, when it refuses one.
fn values(program: &Command, path: &str, flag: &Arg) -> String {
    if matches!(flag.get_action(), ArgAction::SetTrue) {
        let has_variable = flag.get_env().is_some();
        return if has_variable { "`true`, `false`".to_owned() } else { String::new() };
    }
    let possible = flag.get_possible_values();
    if !possible.is_empty() {
        return possible.iter().map(|value| format!("`{}`", value.get_name())).collect::<Vec<_>>().join(", ");
    }
    let mut text = format!("`{}`", value_name(flag));
    let too_large = i64::MAX.to_string();
    let mut arguments = vec!["collections-service"];
    arguments.extend(path.split(' '));
    let long = flag.get_long().map(|long| format!("--{long}"));
    if let Some(long) = &long {
        arguments.extend([long.as_str(), &too_large]);
        if let Err(refused) = program.clone().try_get_matches_from(arguments)
            && let Some((_, range)) = refused.to_string().split_once(" is not in ")
        {
            text = format!("`{}`", range.lines().next().unwrap().trim());
        }
    }
    if matches!(flag.get_action(), ArgAction::Append) {
        text.push_str(", several");
    }
    text
}

/// Paragraphs of a help text as sentences of one line each.
fn sentences(help: &str) -> String {
    let paragraphs = help.split("\n\n").map(|paragraph| {
        let text = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        if text.ends_with('.') { text } else { format!("{text}.") }
    });
    paragraphs.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_configuration_document_is_the_help() {
    let generated = document();
    if std::env::var_os("UPDATE_CONFIGURATION").is_some() {
        fs::write(FILE, &generated).unwrap();
    }
    let stored = fs::read_to_string(Path::new(FILE)).unwrap_or_default();
    let update = "run UPDATE_CONFIGURATION=1 tests/run --test it -- configuration::";
    assert!(stored == generated, "deploy/CONFIGURATION.md is not the help: {update}");
}
