//! The `lmhead` program: one file per subcommand. It sits on the public API and has no arithmetic of its own.

// `println!` and `eprintln!` panic when the stream cannot be written; `print` and `tell` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod backends;
mod bench;
mod doctor;
mod draft;
mod input;
#[allow(unsafe_code, reason = "signal handlers")]
mod interrupt;
mod job;
mod output;
mod plan;
mod quantize;
mod ranks;
mod report;
mod row_data;
mod run;
mod sampling_args;
mod terminal;
mod threads;
mod times;
mod values;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser, Subcommand};
use std::fmt;
use std::process::ExitCode;

/// A sharded LM head: gather -> matmul -> exchange, checked against float64.
#[derive(Parser)]
#[command(name = "lmhead", version, arg_required_else_help = true, styles = clap::builder::Styles::plain())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compute a head over data-parallel ranks, each with its own shard of the vocabulary: a thread, or a
    /// process where mpirun starts several
    Run(Box<args::RunArgs>),
    /// Who shares a head, what each rank holds and exchanges, and what a step would take; nothing is computed
    Plan(Box<plan::PlanArgs>),
    /// Write the int8 form of a float head as a file of its own, and say how far it is from the original
    Quantize(Box<quantize::QuantizeArgs>),
    /// Time a head's stages on this machine, by type and rows, beside what its memory and arithmetic could do
    Bench(Box<bench::BenchArgs>),
    /// What this machine can run, and what to do where it cannot
    Doctor(doctor::DoctorArgs),
}

/// Why the program failed. Each variant has its exit code.
pub enum Failure {
    /// Exit 2: the user's input.
    Input(lmhead::Error),
    /// Exit 3: these ranks failed, each with its error.
    Ranks(Vec<(usize, String)>),
    /// Exit 2: invalid input that the first of several processes reports for all of them.
    Said,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Input(error) => write!(f, "{}", with_option_names(error.clone())),
            Failure::Ranks(failed) => {
                let words: Vec<String> =
                    failed.iter().map(|(rank, error)| format!("rank {rank}: {error}")).collect();
                f.write_str(&words.join("; "))
            }
            Failure::Said => f.write_str("as the first process says"),
        }
    }
}

impl From<lmhead::Error> for Failure {
    fn from(error: lmhead::Error) -> Self {
        Failure::Input(error)
    }
}

/// Writes to standard output. A closed pipe (`| head`) is not a failure.
pub fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    write_result(writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()))
}

/// Turns a failed write to standard output into a [`Failure`], except on a closed pipe.
fn write_result(result: std::io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::Input(lmhead::Error::File {
            path: "standard output".into(),
            problem: format!("cannot be written: {e}"),
            fix: "send it somewhere that takes it".into(),
        })),
        _ => Ok(()),
    }
}

/// Writes a line to standard error, wrapped on a terminal, in one piece, because the other processes of a job
/// may write there too. A failed write is ignored: the exit code still reports the failure.
pub fn tell(line: impl std::fmt::Display) {
    use std::io::Write;
    let line = terminal::for_stderr(line.to_string());
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Renames the settings in the library's errors to the options that set them here.
pub fn with_option_names(error: lmhead::Error) -> lmhead::Error {
    let option = |key: String| match key.as_str() {
        "quantize" | "preset" | "threads" | "machine" => format!("--{key}"),
        "lmhead_tp_size" => "--lmhead-tp-size".into(),
        "request topk" => "--request topk:K".into(),
        "request logprobs" => "--request logprobs:N, sample:N".into(),
        // A word that is no request.
        key if key.starts_with("request") => format!("--{key}"),
        _ => key,
    };
    match error {
        lmhead::Error::Config { key, wanted, got, fix } => {
            lmhead::Error::Config { key: option(key), wanted, got, fix }
        }
        lmhead::Error::Request { what, wanted, got, fix } => {
            lmhead::Error::Request { what: option(what), wanted, got, fix }
        }
        other => other,
    }
}

/// The error of a value parser of [`values`], where clap reports one.
fn value_parser_error(error: &clap::Error) -> Option<lmhead::Error> {
    std::error::Error::source(error)?.downcast_ref::<lmhead::Error>().cloned()
}

/// The error of a word that is no subcommand, where clap reports one.
fn unknown_subcommand(error: &clap::Error) -> Option<lmhead::Error> {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let names: Vec<String> = Cli::command().get_subcommands().map(|c| c.get_name().to_string()).collect();
    let [others @ .., last] = &names[..] else { return None };
    let wanted = format!("{} or {last}", others.join(", "));
    Some(values::refused("subcommand", &wanted, word, "`lmhead --help` says what each does"))
}

/// Runs a subcommand that is for a single process.
fn single_process(name: &str, run: impl FnOnce() -> Result<bool, Failure>) -> Result<bool, Failure> {
    job::refuse_several(name)?;
    run()
}

fn main() -> ExitCode {
    let result = match Cli::try_parse().map(|cli| cli.command) {
        Ok(command) => {
            interrupt::watch();
            match command {
                Command::Run(mut args) => run::run(&mut args),
                Command::Plan(args) => single_process("plan", || plan::plan(&args)),
                Command::Quantize(args) => single_process("quantize", || quantize::quantize(&args)),
                Command::Bench(args) => single_process("bench", || bench::bench(&args)),
                Command::Doctor(args) => doctor::doctor(&args),
            }
        }
        Err(error) if error.use_stderr() => {
            match value_parser_error(&error).or_else(|| unknown_subcommand(&error)) {
                Some(error) => Err(job::say_once(Failure::Input(error))),
                // Other parse errors, such as an unknown option: clap prints them. A failed write is ignored.
                None => {
                    let _ = error.print();
                    return ExitCode::from(2);
                }
            }
        }
        // Help or version, as the user asked.
        Err(help) => write_result(help.print()).map(|()| true),
    };
    let code = match &result {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(Failure::Ranks(failed)) => {
            failed.iter().for_each(|(rank, error)| tell(format_args!("error: rank {rank}: {error}")));
            3
        }
        Err(Failure::Said) => 2,
        Err(failure @ Failure::Input(_)) => {
            let rank = job::rank().map(|rank| format!("rank {rank}: ")).unwrap_or_default();
            tell(format_args!("error: {rank}{failure}"));
            2
        }
    };
    job::end_unfinished(code);
    ExitCode::from(code)
}
