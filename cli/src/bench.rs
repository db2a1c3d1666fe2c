//! `trunkline bench`: runs a scenario, prints what it measured, keeps it as JSON.

use clap::{ArgMatches, FromArgMatches as _};
use trunkline_bench::BenchError;
use trunkline_bench::args::BenchCommand;

use crate::exit::Failure;

pub fn run(matches: &ArgMatches) -> Result<String, Failure> {
    let command = BenchCommand::from_arg_matches(matches)
        .map_err(|e| Failure::configuration("bench", e.to_string()))?;
    if let Err(error) = trunkline_edge::ring::raise_nofile() {
        eprintln!("trunkline: the limit on open files stays as it is: {error}");
    }
    match command {
        BenchCommand::Chat(args) => {
            let report = trunkline_bench::chat::run(&args).map_err(|e| match e {
                BenchError::Usage(message) => Failure::configuration("bench chat", message),
                other => Failure::Runtime(other.to_string()),
            })?;
            if let Some(path) = &args.json {
                let text = serde_json::to_vec_pretty(&report)
                    .map_err(|e| Failure::Runtime(e.to_string()))?;
                std::fs::write(path, text)
                    .map_err(|e| Failure::Runtime(format!("{}: {e}", path.display())))?;
            }
            Ok(report.to_string())
        }
    }
}
