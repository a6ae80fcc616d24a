//! The edge: arguments in, the way through, words and exit codes out.
//!
//! Only this module touches the terminal, the clock, the environment variables and the home directory.

mod args;
mod cache;
mod config;
mod containerize;
mod failure;
mod interrupt;
mod platforms;
mod progress;
mod proxy;
mod push;
mod registries;
mod report;
mod secrets;
mod share;
mod size;
mod substituters;
mod surroundings;
mod table;

use std::process::ExitCode;

use clap::error::{ContextValue, ErrorKind};
use clap::{Arg, CommandFactory, FromArgMatches};

use crate::{crash, host};
use args::{Cli, Command};
use failure::Failure;
use progress::{Progress, Verbosity};

/// Runs the command line and says how it ended: 0 done, 1 failed, 2 wrong usage, 3 damage found, 130 interrupted.
pub fn run() -> ExitCode {
    host::return_what_is_freed();
    host::make_room_for_open_files();
    let mut grammar = without_empty_variables(Cli::command());
    let cli = match parse(&mut grammar) {
        Ok(cli) => cli,
        Err(error) => {
            let exit_code = u8::try_from(error.exit_code()).unwrap_or(2);
            // clap knows which of help, version and error goes where, and what that exits with. A reader that has
            // gone away is no failure.
            let _ = without_secrets(error).print();
            return ExitCode::from(exit_code);
        }
    };
    let verbosity = match (cli.general.quiet, cli.general.verbose) {
        (true, _) => Verbosity::Quiet,
        (false, 0) => Verbosity::Normal,
        (false, level) => Verbosity::Verbose(level),
    };
    let progress = Progress::new(verbosity, interrupt::flag());
    let outcome = arm_crash_point().and_then(|()| match cli.command {
        Command::Containerize(args) => containerize::run(&args, &progress),
        Command::Push(args) => push::run(&args, &progress),
        Command::Cache(command) => cache::run(&command, &progress),
        Command::Completions { shell } => print_generated(|out| {
            clap_complete::generate(shell, &mut without_hidden_options(Cli::command()), "layerhold", out);
            Ok(())
        }),
        Command::Man => print_generated(manual),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(&progress),
    }
}

/// Reads the arguments.
fn parse(grammar: &mut clap::Command) -> Result<Cli, clap::Error> {
    let matches = grammar.try_get_matches_from_mut(std::env::args_os())?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(grammar))?;
    // clap compares what stands before a command, and what stands behind it, each for itself.
    if cli.general.quiet && cli.general.verbose > 0 {
        let message = "the argument '--quiet' cannot be used with '--verbose...'";
        return Err(grammar.error(ErrorKind::ArgumentConflict, message));
    }
    Ok(cli)
}

/// The same command line, to which a variable that is set to nothing counts as not set.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &Arg| arg.get_env().is_some_and(|name| surroundings::variable(name).is_none());
    let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(None::<&'static str>) } else { arg });
    command.mut_subcommands(without_empty_variables)
}

/// clap repeats what it could not take; a secret in that is nobody's to read.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    let told = |value: &ContextValue| match value {
        ContextValue::String(text) => Some(ContextValue::String(secrets::without(text))),
        ContextValue::Strings(texts) => {
            let texts = texts.iter().map(|text| secrets::without(text));
            Some(ContextValue::Strings(texts.collect()))
        }
        _ => None,
    };
    let told: Vec<_> = error.context().filter_map(|(kind, value)| Some((kind, told(value)?))).collect();
    for (kind, value) in told {
        error.insert(kind, value);
    }
    error
}

/// In a debug build `LAYERHOLD_CRASH_AT` makes the process kill itself at a named point: for tests.
fn arm_crash_point() -> Result<(), Failure> {
    let wanted = if cfg!(debug_assertions) { std::env::var("LAYERHOLD_CRASH_AT").ok() } else { None };
    let Some(wanted) = wanted else { return Ok(()) };
    crash::arm(wanted.parse().map_err(|error: crash::InvalidCrashAt| Failure::usage(error, None))?);
    Ok(())
}

/// The same command line without the options that are not for people: completions would offer them.
fn without_hidden_options(command: clap::Command) -> clap::Command {
    const NAME: &str = "containerize";
    command.mut_subcommands(|command| {
        if command.get_name() != NAME {
            return command;
        }
        // clap takes no option away: so it is the command anew, with what completions are made of.
        let shown = command.get_arguments().filter(|arg| !arg.is_hide_set()).cloned();
        clap::Command::new(NAME).about(command.get_about().cloned().unwrap_or_default()).args(shown)
    })
}

/// The manual page: the tool's own, then each command's, and behind that its own commands'.
fn manual(out: &mut Vec<u8>) -> std::io::Result<()> {
    let mut command = Cli::command();
    command.build();
    pages(&command, "layerhold".to_owned(), out)
}

fn pages(command: &clap::Command, title: String, out: &mut Vec<u8>) -> std::io::Result<()> {
    clap_mangen::Man::new(command.clone()).title(&title).render(out)?;
    let mut below = command.get_subcommands().filter(|below| !below.is_hide_set());
    below.try_for_each(|below| pages(below, format!("{title}-{}", below.get_name()), out))
}

/// Prints a generated text in one piece.
fn print_generated(generate: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> Result<(), Failure> {
    use std::io::Write;
    let mut text = Vec::new();
    generate(&mut text).map_err(Failure::output)?;
    std::io::stdout().lock().write_all(&text).map_err(Failure::output)
}
