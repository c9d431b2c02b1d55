//! How the program ends: exit codes, and the error that explains them.

use std::{env, ffi::OsString, fmt, process::ExitCode};

use crate::{
    store::ConnectError,
    telemetry::{LogFormat, write_error},
};

/// Why a command ended early, with its exit code.
#[derive(Debug)]
pub enum Exit {
    /// Usage or configuration: 2, or 1 from `healthcheck`.
    Usage(String),
    /// The same, where clap has printed the message.
    Reported,
    /// Anything else: 1.
    Failed(String),
    /// A code of the command's own, with its message.
    Code(u8, String),
}

impl Exit {
    pub(super) fn usage(error: impl fmt::Display) -> Self {
        Self::Usage(error.to_string())
    }

    pub(super) fn failed(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    pub(super) fn database_url(error: ConnectError) -> Self {
        Self::Usage(format!("--database-url: {error}"))
    }

    /// Writes the error as the last line of the log, in the log's format. A log collector that parses JSON lines gets the
    /// reason of a failed start too.
    pub(super) fn report(self, invocation: &Invocation) -> ExitCode {
        let (code, message) = match self {
            Self::Usage(message) => (invocation.usage_code(), message),
            Self::Reported => return ExitCode::from(invocation.usage_code()),
            Self::Failed(message) => (1, message),
            Self::Code(code, message) => (code, message),
        };
        write_error(invocation.log_format(), message);
        ExitCode::from(code)
    }
}

/// The command and the log format that the arguments name. They are read without clap, because they decide how an error in
/// the arguments is reported.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Invocation {
    command: Option<String>,
    log_format: Option<LogFormat>,
}

impl Invocation {
    /// That of this process, from its arguments and its environment.
    pub fn of_process() -> Self {
        Self::new(env::args_os().skip(1), env::var_os("COLLECTIONS_LOG_FORMAT"))
    }

    fn new(arguments: impl IntoIterator<Item = OsString>, variable: Option<OsString>) -> Self {
        let parse = |text: &str| clap::ValueEnum::from_str(text, false).ok();
        let mut invocation =
            Self { log_format: variable.and_then(|text| parse(&text.to_string_lossy())), command: None };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.to_string_lossy().as_ref() {
                "--" => break,
                "--log" => drop(arguments.next()),
                "--log-format" => {
                    let value = arguments.next().unwrap_or_default();
                    invocation.log_format = parse(&value.to_string_lossy()).or(invocation.log_format);
                }
                option if option.starts_with('-') => {
                    let value = option.strip_prefix("--log-format=").and_then(parse);
                    invocation.log_format = value.or(invocation.log_format);
                }
                word => drop(invocation.command.get_or_insert_with(|| word.to_owned())),
            }
        }
        invocation
    }

    /// The format of log lines and of the error that ends the program. Programs read the log of a server, and people that of
    /// other commands.
    pub fn log_format(&self) -> LogFormat {
        let is_server = matches!(self.command.as_deref(), Some("serve" | "gateway"));
        self.log_format.unwrap_or(if is_server { LogFormat::Json } else { LogFormat::Pretty })
    }

    /// 2, but 1 for `healthcheck`, whose codes are those of container probes.
    fn usage_code(&self) -> u8 {
        if self.command.as_deref() == Some("healthcheck") { 1 } else { 2 }
    }
}

#[cfg(test)]
mod tests {
    use super::Invocation;
    use crate::telemetry::LogFormat::{self, Json, Pretty};

    #[test]
    fn the_log_format_is_known_before_the_arguments_are_parsed() {
        let format = |arguments: &[&str], variable: Option<&str>| -> LogFormat {
            let arguments = arguments.iter().map(Into::into);
            Invocation::new(arguments, variable.map(Into::into)).log_format()
        };
        for (arguments, variable, expected) in [
            (&["serve", "--bogus"][..], None, Json),
            (&["gateway"], None, Json),
            (&["migrate", "up"], None, Pretty),
            (&["migrate", "up"], Some("json"), Json),
            (&["serve"], Some("pretty"), Pretty),
            (&["serve"], Some("yaml"), Json),
            (&["serve", "--log-format", "pretty"], Some("json"), Pretty),
            (&["--log-format=json", "verify"], None, Json),
            (&["--log", "serve", "verify"], None, Pretty),
            (&["import", "--", "--log-format=json"], None, Pretty),
            (&[], None, Pretty),
        ] {
            assert_eq!(format(arguments, variable), expected, "{arguments:?} {variable:?}");
        }
    }
}
