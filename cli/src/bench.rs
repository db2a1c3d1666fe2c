//! `trunkline bench`: runs a scenario, prints what it measured, keeps it as asked.

use clap::{ArgMatches, FromArgMatches as _};
use trunkline_bench::args::{BenchCommand, OutputArgs};
use trunkline_bench::echo::{self, pairs};
use trunkline_bench::progress::Lines;
use trunkline_bench::result::RunResult;
use trunkline_bench::scenario::{chat, connect, drain, fanout, idle, slow, soak, storm};
use trunkline_bench::{BenchError, floor, output};

use crate::exit::Failure;

pub fn run(matches: &ArgMatches) -> Result<String, Failure> {
    let command = BenchCommand::from_arg_matches(matches)
        .map_err(|e| Failure::configuration("bench", e.to_string()))?;
    if let Err(error) = trunkline_edge::ring::raise_nofile() {
        eprintln!("trunkline: the limit on open files stays as it is: {error}");
    }
    let progress = Lines::new();
    match command {
        BenchCommand::Connect(args) => finish(connect::run(&args, &progress), &args.output),
        BenchCommand::Idle(args) => finish(idle::run(&args, &progress), &args.output),
        BenchCommand::Chat(args) => finish(chat::run(&args, &progress), &args.output),
        BenchCommand::Fanout(args) => finish(fanout::run(&args, &progress), &args.output),
        BenchCommand::Storm(args) => finish(storm::run(&args, &progress), &args.output),
        BenchCommand::Slow(args) => finish(slow::run(&args, &progress), &args.output),
        BenchCommand::Soak(args) => finish(soak::run(&args, &progress), &args.output),
        BenchCommand::Drain(args) => finish(drain::run(&args, &progress), &args.output),
        BenchCommand::Echo(args) => finish(echo::run(&args, &progress), &args.output),
        BenchCommand::Floor(args) => finish(echo::run_floor(&args, &progress), &args.output),
        BenchCommand::FloorServer(args) => floor::run_server(&args)
            .map(|()| String::new())
            .map_err(failure),
        BenchCommand::Pairs(args) => finish(pairs::run(&args, &progress), &args.output),
    }
}

fn finish(run: Result<RunResult, BenchError>, args: &OutputArgs) -> Result<String, Failure> {
    let mut run = run.map_err(failure)?;
    output::finish(&mut run, args).map_err(failure)?;
    Ok(run.to_string())
}

fn failure(error: BenchError) -> Failure {
    match error {
        BenchError::Usage(message) => Failure::configuration("bench", message),
        other => Failure::Runtime(other.to_string()),
    }
}
