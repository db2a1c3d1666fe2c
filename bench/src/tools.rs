//! The subcommands of `trunkline bench` that run no scenario: they look at results, or write and read
//! scenario files.
//!
//! Invariants: whatever was asked to be printed or written is, before a verdict makes the exit code 1.
//!
//! Called by the command line.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::compare::{Comparison, parse_threshold};
use crate::plan::Plan;
use crate::plan::args::PlanArgs;
use crate::stored::{self, Stored};
use crate::{BenchError, html};

/// What a tool says, and whether what it judged is good.
#[derive(Clone, Debug)]
pub struct Told {
    pub text: String,
    pub is_good: bool,
}

impl Told {
    fn good(text: String) -> Self {
        Self {
            text,
            is_good: true,
        }
    }
}

/// `trunkline bench run`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// The scenario file
    pub file: PathBuf,
    /// Flags of the scenario; they replace what the file says
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub flags: Vec<String>,
}

const RUN_EXAMPLES: &str = "\
A file with all parameters of a scenario and their defaults:
  trunkline bench example chat > chat.toml

Run it, with one parameter changed:
  trunkline bench run chat.toml --connections 5000";

/// `trunkline bench example`
#[derive(Clone, Debug, Args)]
pub struct ExampleArgs {
    /// Its name on the command line
    pub scenario: String,
}

/// `trunkline bench report`
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// A result, written by --json
    pub result: PathBuf,
    /// The page; default: beside the result, with the ending .html
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `trunkline bench compare`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = COMPARE_EXAMPLES)]
pub struct CompareArgs {
    /// Results of before, separated by commas
    #[arg(
        value_name = "BEFORE.json,…",
        value_delimiter = ',',
        num_args = 1,
        required = true
    )]
    pub before: Vec<PathBuf>,
    /// Results of after, separated by commas
    #[arg(
        value_name = "AFTER.json,…",
        value_delimiter = ',',
        num_args = 1,
        required = true
    )]
    pub after: Vec<PathBuf>,
    /// What a figure may change by and count as the same
    #[arg(long, value_name = "PART", default_value = "5%", value_parser = parse_threshold)]
    pub threshold: f64,
    /// Write the comparison as a page to look at
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the comparison as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

const COMPARE_EXAMPLES: &str = "\
Exit code 0: nothing is worse by more than the threshold. 1: something is.

Examples:
  trunkline bench compare before.json after.json
  trunkline bench compare a1.json,a2.json,a3.json b1.json,b2.json,b3.json --threshold 3% --html ab.html

Run the two sides in turns (a1 b1 a2 b2 …): what the machine does meanwhile then meets both. With
several runs a difference counts when it shows in most pairs of runs, not in the medians alone.";

/// Writes the page of a stored result.
pub fn report(args: &ReportArgs) -> Result<Told, BenchError> {
    let stored = read(&args.result)?;
    let output = args.output.clone();
    let output = output.unwrap_or_else(|| args.result.with_extension("html"));
    write(&output, html::page(&stored.run).as_bytes())?;
    Ok(Told::good(format!("{}\n", output.display())))
}

/// Compares stored results; bad when something became worse.
pub fn compare(args: &CompareArgs) -> Result<Told, BenchError> {
    let side = |paths: &[PathBuf]| -> Result<Vec<Stored>, BenchError> {
        paths.iter().map(|path| read(path)).collect()
    };
    let (before, after) = (side(&args.before)?, side(&args.after)?);
    let comparison = Comparison::of(&before, &after, args.threshold);
    if let Some(path) = &args.html {
        let page = html::compare::page(&comparison, &before, &after);
        write(path, page.as_bytes())?;
    }
    if let Some(path) = &args.json {
        let json = serde_json::to_vec_pretty(&comparison).map_err(std::io::Error::from)?;
        write(path, &json)?;
    }
    Ok(Told {
        text: comparison.to_string(),
        is_good: !comparison.has_worse(),
    })
}

/// Plans from stored results.
pub fn plan(args: &PlanArgs) -> Result<Told, BenchError> {
    let usage = |e: &dyn std::fmt::Display| BenchError::Usage(e.to_string());
    let found = stored::read_all(&args.from).map_err(|e| usage(&e))?;
    let passed: Vec<_> = found
        .passed_over
        .iter()
        .map(|why| format!("Passed over: {why}"))
        .collect();
    let mut plan = Plan::of(args, &found.results).map_err(|missing| {
        let missing = missing.to_string();
        let lines = missing.lines().map(str::to_owned);
        let lines: Vec<_> = lines.chain(passed.iter().cloned()).collect();
        BenchError::Usage(lines.join("\n"))
    })?;
    plan.notes.extend(passed);
    if !args.json {
        return Ok(Told::good(plan.to_string()));
    }
    let json = serde_json::to_string_pretty(&plan).map_err(std::io::Error::from)?;
    Ok(Told::good(json + "\n"))
}

fn read(path: &Path) -> Result<Stored, BenchError> {
    stored::read(path).map_err(|e| BenchError::Usage(e.to_string()))
}

/// Writes a file; the error names it.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), BenchError> {
    std::fs::write(path, bytes).map_err(|e| BenchError::Usage(format!("{}: {e}", path.display())))
}
