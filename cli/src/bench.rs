//! `trunkline bench`: runs a scenario, prints what it measured, keeps it as asked.

use std::ffi::OsString;

use clap::{ArgMatches, FromArgMatches as _};
use trunkline_bench::args::{BenchCommand, OutputArgs};
use trunkline_bench::echo::{self, pairs};
use trunkline_bench::progress::Progress;
use trunkline_bench::progress::console::for_stderr;
use trunkline_bench::result::RunResult;
use trunkline_bench::scenario::{chat, connect, drain, fanout, idle, slow, soak, storm};
use trunkline_bench::tools::{self, Told};
use trunkline_bench::{BenchError, catalogue, floor, output, preset};

use crate::exit::Failure;
use crate::settings::layers::Problem;

pub fn run(matches: &ArgMatches) -> Result<String, Failure> {
    let command = BenchCommand::from_arg_matches(matches)
        .map_err(|e| Failure::configuration("bench", e.to_string()))?;
    if let Err(error) = trunkline_edge::ring::raise_nofile() {
        eprintln!("trunkline: the limit on open files stays as it is: {error}");
    }
    match command {
        BenchCommand::Connect(a) => scenario(&a.output, |p| connect::run(&a, p)),
        BenchCommand::Idle(a) => scenario(&a.output, |p| idle::run(&a, p)),
        BenchCommand::Chat(a) => scenario(&a.output, |p| chat::run(&a, p)),
        BenchCommand::Fanout(a) => scenario(&a.output, |p| fanout::run(&a, p)),
        BenchCommand::Storm(a) => scenario(&a.output, |p| storm::run(&a, p)),
        BenchCommand::Slow(a) => scenario(&a.output, |p| slow::run(&a, p)),
        BenchCommand::Soak(a) => scenario(&a.output, |p| soak::run(&a, p)),
        BenchCommand::Drain(a) => scenario(&a.output, |p| drain::run(&a, p)),
        BenchCommand::Echo(a) => scenario(&a.output, |p| echo::run(&a, p)),
        BenchCommand::Floor(a) => scenario(&a.output, |p| echo::run_floor(&a, p)),
        BenchCommand::FloorServer(a) => floor::run_server(&a)
            .map(|()| String::new())
            .map_err(failure),
        BenchCommand::Pairs(a) => scenario(&a.output, |p| pairs::run(&a, p)),
        BenchCommand::Run(_) => Err(Failure::configuration(
            "bench run",
            "the scenario file comes first: trunkline bench run FILE --connections 5",
        )),
        BenchCommand::Example(a) => {
            let bench = crate::args::command();
            let bench = bench.find_subcommand("bench");
            let text = bench.map(|bench| preset::example(bench, &a.scenario));
            text.unwrap_or_else(|| Err("no such subcommand".to_owned()))
                .map_err(|e| Failure::configuration("bench example", e))
        }
        BenchCommand::Report(a) => told(tools::report(&a)),
        BenchCommand::Compare(a) => told(tools::compare(&a)),
        BenchCommand::Plan(a) => told(tools::plan(&a)),
        BenchCommand::Figures => Ok(catalogue::text()),
    }
}

/// The command line with what a scenario file says in it, where one is named.
pub fn with_scenario_file(args: Vec<OsString>) -> Result<Vec<OsString>, Failure> {
    if args.get(1).is_none_or(|word| word != "bench") {
        return Ok(args);
    }
    let all = crate::args::command();
    let Some(bench) = all.find_subcommand("bench") else {
        return Ok(args);
    };
    preset::expand(args, bench).map_err(|problems| {
        let place = |p| Problem::new("bench", p);
        Failure::Configuration(problems.into_iter().map(place).collect())
    })
}

/// Runs a scenario and gives its result as text; fails (exit code 1) when a budget was missed, after
/// everything is written.
fn scenario(
    output: &OutputArgs,
    run: impl FnOnce(&dyn Progress) -> Result<RunResult, BenchError>,
) -> Result<String, Failure> {
    output::check(output).map_err(failure)?;
    let progress = for_stderr(output.quiet);
    let run = run(&*progress);
    drop(progress);
    let mut run = run.map_err(failure)?;
    let written = output::finish(&mut run, output).map_err(failure);
    let text = run.to_string();
    if let Err(failure) = written {
        // What was measured is not lost because a disk is full.
        print!("{text}");
        return Err(failure);
    }
    judged(text, run.keeps_budgets())
}

fn told(told: Result<Told, BenchError>) -> Result<String, Failure> {
    let told = told.map_err(failure)?;
    judged(told.text, told.is_good)
}

/// Prints what was judged bad, and makes the exit code 1.
fn judged(text: String, is_good: bool) -> Result<String, Failure> {
    if is_good {
        return Ok(text);
    }
    print!("{text}");
    Err(Failure::Reported)
}

fn failure(error: BenchError) -> Failure {
    match error {
        BenchError::Usage(message) => Failure::configuration("bench", message),
        other => Failure::Runtime(other.to_string()),
    }
}
