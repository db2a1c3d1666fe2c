//! The one binary. `main` is a checklist; what each line does stands in its module.

use std::io::Write as _;
use std::process::ExitCode;

use clap::error::ErrorKind;

mod args;
mod bench;
mod cluster;
mod config;
mod doctor;
mod exit;
mod run;
mod settings;
mod token;

use exit::{EXIT_CONFIGURATION, EXIT_SIGNALLED, Failure};
use run::Ended;
use settings::table::Role;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // 1. What was asked. clap ends with 2 on a usage error; ours is 64 like all bad configuration.
    let args = args::with_default_subcommand(std::env::args_os().collect());
    let args = match bench::with_scenario_file(args) {
        Ok(args) => args,
        Err(failure) => return failure.report(),
    };
    let matches = match args::command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(e) => {
            // Nothing can be done about a closed terminal.
            let _ = e.print();
            return match e.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => EXIT_CONFIGURATION.into(),
            };
        }
    };
    // 2. The environment, read once, here.
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, text)| {
            Some((
                name.into_string().ok()?,
                text.to_string_lossy().into_owned(),
            ))
        })
        .collect();
    // 3. Do it.
    let done = match matches.subcommand() {
        Some(("token", matches)) => token::run(matches, &environment),
        Some(("config", matches)) => config::run(matches, &environment),
        Some(("doctor", matches)) => doctor::run(matches),
        Some(("bench", matches)) => bench::run(matches),
        Some(("cluster", matches)) => cluster::run(matches),
        Some((role, matches)) => return run_role(role, matches, &environment),
        None => Err(Failure::Runtime("no such subcommand".into())),
    };
    // 4. Say how it went.
    match done {
        Ok(text) => {
            // A reader that closed the pipe early has what it wanted.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(failure) => failure.report(),
    }
}

/// A subcommand that runs until a signal ends it.
fn run_role(role: &str, matches: &clap::ArgMatches, environment: &[(String, String)]) -> ExitCode {
    let Some(role) = Role::parse(role) else {
        return Failure::Runtime(format!("no subcommand {role}")).report();
    };
    match run::run(role, matches, environment) {
        Ok(Ended::Drained | Ended::HandedOver) => ExitCode::SUCCESS,
        Ok(Ended::Stopped(signal)) => EXIT_SIGNALLED
            .saturating_add(u8::try_from(signal).unwrap_or(0))
            .into(),
        Err(failure) => failure.report(),
    }
}
