//! `trunkline doctor`: is this machine ready?

use clap::ArgMatches;
use trunkline_kernel_tuning::{Facts, examine};

use crate::exit::Failure;
use crate::settings::value::parse_count;

/// Prints the report; fails (exit code 1) when something stands in the target's way.
pub fn run(matches: &ArgMatches) -> Result<String, Failure> {
    let text = matches
        .get_one::<String>("target")
        .map_or("10k", String::as_str);
    let target = parse_count(text).map_err(|e| Failure::configuration("--target", e))?;
    let report = examine(&Facts::read(), target);
    let out = if matches.get_flag("json") {
        serde_json::to_string_pretty(&report)
            .map_err(|e| Failure::Runtime(format!("report: {e}")))?
            + "\n"
    } else {
        report.to_text()
    };
    if report.passes() {
        return Ok(out);
    }
    print!("{out}");
    Err(Failure::Reported)
}
