//! The simulator's command line: runs seeds, says which failed and how to run them again.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use trunkline_sim::bugs::Bug;
use trunkline_sim::coverage::{Coverage, SEEDS_FOR_MINIMUM};
use trunkline_sim::fence::defects::Defect;
use trunkline_sim::fence::runs as fence;
use trunkline_sim::runs::{self, BUG_SEEDS};
use trunkline_sim::world::Outcome;

/// Runs the whole platform in virtual time, from seeds, under faults, and checks its promises.
#[derive(Parser)]
#[command(
    name = "trunkline-sim",
    version,
    args_conflicts_with_subcommands = true
)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many seeds to run.
    #[arg(long, default_value_t = SEEDS_FOR_MINIMUM)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Run this one alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Print everything that happens (with --seed).
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Plant a defect; the run is expected to fail.
    #[arg(long, value_parser = parse_bug)]
    bug: Option<Bug>,
    /// Plant each defect in turn and see that it is noticed.
    #[arg(long, value_parser = ["all"], conflicts_with_all = ["seed", "bug"])]
    bugs: Option<String>,
    /// Seeds at once; each is run by one thread.
    #[arg(long, default_value_t = default_threads())]
    threads: usize,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the fenced store on replicas that lose, delay and reorder, under cores that come and go.
    Fence(FenceArgs),
}

#[derive(clap::Args)]
struct FenceArgs {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Run this one alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Print everything that happens (with --seed).
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Take a rule out; the run is expected to fail.
    #[arg(long, value_parser = parse_defect)]
    defect: Option<Defect>,
    /// Take each rule out in turn and see that it is noticed.
    #[arg(long, value_parser = ["all"], conflicts_with_all = ["seed", "defect"])]
    defects: Option<String>,
    /// Seeds at once; each is run by one thread.
    #[arg(long, default_value_t = default_threads())]
    threads: usize,
}

fn parse_defect(name: &str) -> Result<Defect, String> {
    Defect::parse(name).ok_or_else(|| {
        let names: Vec<String> = Defect::all().iter().map(|d| d.name()).collect();
        format!("no such defect; there are: {}", names.join(", "))
    })
}

fn parse_bug(name: &str) -> Result<Bug, String> {
    Bug::parse(name).ok_or_else(|| {
        let names: Vec<&str> = Bug::ALL.iter().map(|b| b.name()).collect();
        format!("no such defect; there are: {}", names.join(", "))
    })
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let passed = match (&args.command, &args.bugs, args.seed) {
        (Some(Command::Fence(args)), ..) => fenced(args),
        (None, Some(_), _) => all_bugs(args.threads),
        (None, None, Some(seed)) => one_seed(seed, &args),
        (None, None, None) => many_seeds(&args),
    };
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn one_seed(seed: u64, args: &Args) -> bool {
    let outcome = runs::run(seed, args.bug, args.trace);
    if let Some(text) = &outcome.text {
        print!("{text}");
    }
    println!(
        "seed {seed}: {} events, {} s of virtual time, trace of {} lines, {:016x}",
        outcome.events,
        outcome.virtual_ns / 1_000_000_000,
        outcome.lines,
        outcome.hash
    );
    report(&outcome, args.bug);
    outcome.violations.is_empty()
}

fn report(outcome: &Outcome, bug: Option<Bug>) {
    let Some(first) = outcome.violations.first() else {
        return;
    };
    println!("seed {} FAILED: {first}", outcome.seed);
    for more in &outcome.violations[1..] {
        println!("    and {more}");
    }
    println!("    again: {}", runs::command(outcome.seed, bug));
}

fn many_seeds(args: &Args) -> bool {
    let last = args.from.saturating_add(args.seeds.saturating_sub(1));
    let summary = runs::run_all(args.from..=last, args.bug, args.threads, |o| {
        report(o, args.bug)
    });
    print_coverage(&summary.coverage);
    println!(
        "{} events, {} s of virtual time, quiet at the latest {} s after the healing",
        summary.events,
        summary.virtual_ns / 1_000_000_000,
        summary.quiet_after_ns / 1_000_000_000
    );
    let missing = summary.coverage.missing(summary.seeds);
    if args.bug.is_none() {
        for what in &missing {
            println!("too rare: {what}");
        }
    }
    println!("{} seeds, {} failed", summary.seeds, summary.failures.len());
    summary.failures.is_empty() && (args.bug.is_some() || missing.is_empty())
}

fn print_coverage(coverage: &Coverage) {
    for (name, count, _, what) in coverage.rows() {
        println!("{name:<26} {count:>10}  {what}");
    }
}

fn all_bugs(threads: usize) -> bool {
    let found = runs::notice_all(threads);
    println!("{:<22} {:>5}  noticed by", "defect", "seed");
    let mut all = true;
    for (bug, first) in found {
        match first {
            Some((seed, what)) => println!("{:<22} {seed:>5}  {what}", bug.name()),
            None => {
                all = false;
                println!(
                    "{:<22} {:>5}  NOT NOTICED within {BUG_SEEDS} seeds",
                    bug.name(),
                    "-"
                );
            }
        }
    }
    all
}

fn fenced(args: &FenceArgs) -> bool {
    match (&args.defects, args.seed) {
        (Some(_), _) => all_defects(args.threads),
        (None, Some(seed)) => one_fenced(seed, args),
        (None, None) => many_fenced(args),
    }
}

fn one_fenced(seed: u64, args: &FenceArgs) -> bool {
    let outcome = fence::run(seed, args.defect, args.trace);
    if let Some(text) = &outcome.text {
        print!("{text}");
    }
    println!(
        "seed {seed}: {} steps, {} ms of virtual time, trace of {} lines, {:016x}",
        outcome.steps,
        outcome.virtual_ns / 1_000_000,
        outcome.lines,
        outcome.hash
    );
    for what in &outcome.violations {
        println!("seed {seed} FAILED: {what}");
    }
    outcome.violations.is_empty()
}

fn many_fenced(args: &FenceArgs) -> bool {
    let last = args.from.saturating_add(args.seeds.saturating_sub(1));
    let summary = fence::run_all(args.from..=last, args.defect, args.threads);
    for (what, count) in &summary.counts {
        println!("{what:<26} {count:>10}");
    }
    for (seed, what) in &summary.failures {
        println!("seed {seed} FAILED: {what}");
        println!("    again: {}", fence::command(*seed, args.defect));
    }
    println!(
        "{} steps, {} seeds, {} failed",
        summary.steps,
        summary.seeds,
        summary.failures.len()
    );
    summary.failures.is_empty()
}

fn all_defects(threads: usize) -> bool {
    let found = fence::notice_all(threads);
    println!("{:<30} {:>5}  noticed by", "without", "seed");
    for (defect, first) in &found {
        match first {
            Some((seed, what)) => println!("{:<30} {seed:>5}  {what}", defect.name()),
            None => println!(
                "{:<30} {:>5}  NOT NOTICED within {} seeds",
                defect.name(),
                "-",
                fence::DEFECT_SEEDS
            ),
        }
    }
    found.iter().all(|(_, first)| first.is_some())
}
