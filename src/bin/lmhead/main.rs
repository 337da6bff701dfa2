//! The `lmhead` program: one file per subcommand. It sits on the public API and has no arithmetic of its own.

mod args;
mod check;
mod doctor;
mod input;
mod output;
mod ranks;
mod report;
mod row_data;
mod run;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// A sharded LM head: gather -> matmul -> exchange, checked against float64.
#[derive(Parser)]
#[command(name = "lmhead", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compute a head over data-parallel ranks, each a thread with its own shard of the vocabulary
    Run(Box<args::RunArgs>),
    /// What this machine can run, and what to do where it cannot
    Doctor(doctor::DoctorArgs),
}

/// Why the program ends, other than well.
pub enum Failure {
    /// Exit 2: the user's input.
    Input(lmhead::Error),
    /// Exit 3: ranks failed; each with its error.
    Ranks(Vec<(usize, String)>),
}

impl From<lmhead::Error> for Failure {
    fn from(error: lmhead::Error) -> Self {
        Failure::Input(error)
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Doctor(args) => doctor::doctor(&args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Failure::Input(error)) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
        Err(Failure::Ranks(failed)) => {
            for (rank, error) in failed {
                eprintln!("error: rank {rank}: {error}");
            }
            ExitCode::from(3)
        }
    }
}
