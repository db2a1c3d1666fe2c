//! `trunkline doctor`: is this machine ready, and what makes it so? The command line of it, and
//! what it says; the work is done in `kernel-tuning`.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command};
use trunkline_kernel_tuning::profile::{BUILT_IN, BuiltIn, SECCOMP, UNITS};
use trunkline_kernel_tuning::state::DEFAULT_PATH;
use trunkline_kernel_tuning::tune::{self, Options, PERSIST_PATH, Plan, Tree, TuneError};
use trunkline_kernel_tuning::{Facts, Profile, Wish, examine};

use crate::exit::Failure;
use crate::settings::value::parse_count;

/// The target where neither it nor a profile is named.
const TARGET_DEFAULT: u64 = 10_000;

/// What `print` can print.
const PAPERS: [&str; 5] = ["sysctl", "limits", "systemd", "unit", "seccomp"];

/// The command line of `trunkline doctor`.
pub fn command() -> Command {
    Command::new("doctor")
        .about("Check what this machine's kernel allows, say how to allow more, and do it")
        .args_conflicts_with_subcommands(true)
        .arg(
            Arg::new("target")
                .long("target")
                .value_name("CONNECTIONS")
                .help(
                    "How many connections the machine is to hold: 10k, 100k, 1M, 1_000_000 \
                     [default: the profile's, or else 10k]",
                ),
        )
        .arg(
            profile_flag()
                .help("Whose settings are looked at [default: the smallest for the target]"),
        )
        .arg(
            Arg::new("generator")
                .long("generator")
                .action(ArgAction::SetTrue)
                .help("The load generator runs on this machine too: both ends of all connections"),
        )
        .arg(json_flag())
        .subcommand(apply_command())
        .subcommand(verify_command())
        .subcommand(revert_command())
        .subcommand(print_command())
        .after_help(
            "Without a command it changes nothing: it looks at the kernel, limits, memory and the \
             sysctls of a profile.\n\n\
             Exit code 0: the machine can hold the target (there may be warnings). 1: something \
             stands in the way. 64: bad arguments.\n\n\
             Profiles: dev (10,000 connections), 100k, 1m, 2m.\n\n\
             Examples:\n  \
             trunkline doctor                                is it ready for 10,000?\n  \
             trunkline doctor --target 1M --json\n  \
             trunkline doctor --target 1M --generator        with trunkline bench on it as well\n  \
             trunkline doctor apply --profile 1m --dry-run   what would be set?\n  \
             trunkline doctor apply --profile 1m             set it, until the next boot\n  \
             trunkline doctor verify --profile 1m            is it still so?\n  \
             trunkline doctor revert                         as it was before",
        )
}

fn apply_command() -> Command {
    Command::new("apply")
        .about("Set the sysctls of a profile: all of them, or none")
        .arg(profile_flag().required(true).help("Which settings"))
        .arg(
            Arg::new("dry_run")
                .long("dry-run")
                .action(ArgAction::SetTrue)
                .help("Only say what would be set, and whether it could be"),
        )
        .arg(
            Arg::new("persist")
                .long("persist")
                .value_name("FILE")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value(PERSIST_PATH)
                .value_parser(clap::value_parser!(PathBuf))
                .help(format!(
                    "Write them for the next boot too; without =FILE to {PERSIST_PATH}"
                )),
        )
        .arg(
            Arg::new("skip_missing")
                .long("skip-missing")
                .action(ArgAction::SetTrue)
                .help("Set the others where this kernel lacks some"),
        )
        .arg(state_flag())
        .arg(proc_flag())
        .after_help(
            "A ceiling that is higher already stays; ports reserved already stay reserved. What was \
             there before is kept in the state file, for `trunkline doctor revert`. Needs root, on \
             the host.\n\n\
             Exit code 0: it is as the profile wants. 1: it is not, and nothing was changed (or it \
             says what could not be put back). 64: bad arguments.\n\n\
             Examples:\n  \
             trunkline doctor apply --profile 1m --dry-run\n  \
             trunkline doctor apply --profile 1m --persist\n  \
             trunkline doctor apply --profile ./my.conf     a sysctl.d file of your own",
        )
}

fn verify_command() -> Command {
    Command::new("verify")
        .about("Hold the sysctls against a profile, and nothing else")
        .arg(profile_flag().required(true).help("Which settings"))
        .arg(json_flag())
        .arg(proc_flag())
        .after_help(
            "More of a ceiling is as good.\n\n\
             Exit code 0: all are as wanted. 1: some differ. 64: bad arguments.\n\nExamples:\n  trunkline doctor verify --profile 1m",
        )
}

fn revert_command() -> Command {
    Command::new("revert")
        .about("Give back what was there before the first apply")
        .arg(
            Arg::new("dry_run")
                .long("dry-run")
                .action(ArgAction::SetTrue)
                .help("Only say what would be set"),
        )
        .arg(state_flag())
        .arg(proc_flag())
        .after_help(
            "Removes what --persist wrote, and the state file.\n\n\
             Exit code 0: all is as it was, or nothing was applied. 1: it could not be done, and \
             nothing was changed (or it says what could not be put back).\n\n\
             Examples:\n  trunkline doctor revert",
        )
}

fn print_command() -> Command {
    Command::new("print")
        .about("Print a file of a profile, a unit for systemd, or the seccomp profile")
        .arg(
            Arg::new("what")
                .value_name("WHAT")
                .required(true)
                .value_parser(PAPERS)
                .help("Of a profile: sysctl, limits, systemd (a drop-in). For all: unit, seccomp"),
        )
        .arg(
            profile_flag()
                .value_name("dev|100k|1m|2m")
                .required_if_eq_any([("what", "sysctl"), ("what", "limits"), ("what", "systemd")])
                .help("Of which profile"),
        )
        .arg(
            Arg::new("role")
                .long("role")
                .value_name("ROLE")
                .value_parser(UNITS.map(|(role, _)| role))
                .default_value("serve")
                .help("The unit of which role"),
        )
        .after_help(
            "Examples:\n  \
             trunkline doctor print sysctl --profile 1m > /etc/sysctl.d/90-trunkline.conf\n  \
             trunkline doctor print unit --role edge > /etc/systemd/system/trunkline-edge.service\n  \
             trunkline doctor print seccomp > edge.json",
        )
}

fn profile_flag() -> Arg {
    Arg::new("profile")
        .long("profile")
        .value_name("dev|100k|1m|2m|FILE")
}

fn json_flag() -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Print the report as JSON")
}

fn state_flag() -> Arg {
    Arg::new("state")
        .long("state")
        .value_name("FILE")
        .default_value(DEFAULT_PATH)
        .value_parser(clap::value_parser!(PathBuf))
        .help("Where what was there before is kept")
}

fn proc_flag() -> Arg {
    Arg::new("proc")
        .long("proc")
        .value_name("DIR")
        .default_value("/proc")
        .value_parser(clap::value_parser!(PathBuf))
        .help("Where procfs is mounted: in a privileged container perhaps the host's, /host/proc")
}

/// Does what was asked; fails with exit code 1 when the answer is no.
pub fn run(matches: &ArgMatches) -> Result<String, Failure> {
    match matches.subcommand() {
        Some(("apply", matches)) => apply(matches),
        Some(("verify", matches)) => verify(matches),
        Some(("revert", matches)) => revert(matches),
        Some(("print", matches)) => print(matches),
        _ => report(matches),
    }
}

fn report(matches: &ArgMatches) -> Result<String, Failure> {
    let given = matches
        .get_one::<String>("target")
        .map(|text| target(text))
        .transpose()?;
    let profile = match (matches.get_one::<String>("profile"), given) {
        (Some(name), _) => find(name)?,
        (None, target) => Profile::for_connections(target.unwrap_or(TARGET_DEFAULT))
            .map_err(|e| Failure::Runtime(e.to_string()))?,
    };
    let target = given.or(profile.connections).unwrap_or(TARGET_DEFAULT);
    let wish = Wish {
        target,
        generator: matches.get_flag("generator"),
    };
    let report = examine(&Facts::read(&profile), wish, &profile);
    let out = if matches.get_flag("json") {
        json(&report)?
    } else {
        report.to_text()
    };
    answer(report.passes(), out)
}

fn target(text: &str) -> Result<u64, Failure> {
    match parse_count(text) {
        Ok(0) => Err(Failure::configuration("--target", "0 is no target")),
        Ok(target) => Ok(target),
        Err(e) => Err(Failure::configuration("--target", e)),
    }
}

fn verify(matches: &ArgMatches) -> Result<String, Failure> {
    let profile = profile(matches)?;
    let plan = Plan::make(&tree(matches), &profile).map_err(failure)?;
    let out = if matches.get_flag("json") {
        json(&plan)?
    } else if plan.holds() {
        format!(
            "All {} sysctls are as profile {} wants.\n",
            plan.satisfied.len(),
            plan.profile
        )
    } else {
        format!(
            "Not as profile {} wants:\n{}{} others are.\nTo set them: trunkline doctor apply --profile {}\n",
            plan.profile,
            plan.to_text(),
            plan.satisfied.len(),
            matches.get_one::<String>("profile").map_or("", |p| p),
        )
    };
    answer(plan.holds(), out)
}

fn apply(matches: &ArgMatches) -> Result<String, Failure> {
    let profile = profile(matches)?;
    let kernel = tree(matches);
    let options = Options {
        state: path(matches, "state"),
        persist: matches.get_one::<PathBuf>("persist").cloned(),
        skip_missing: matches.get_flag("skip_missing"),
    };
    if matches.get_flag("dry_run") {
        let plan = Plan::make(&kernel, &profile).map_err(failure)?;
        print!("{}", told(&plan, "would be set"));
        tune::prepare(&kernel, &profile, &options).map_err(failure)?;
        return Ok(String::new());
    }
    let plan = tune::apply(&kernel, &profile, &options).map_err(failure)?;
    let mut out = told(&plan, "set");
    if !plan.changes.is_empty() {
        let _ = writeln!(
            out,
            "What was there before is kept in {}: `trunkline doctor revert` gives it back.",
            options.state.display()
        );
    }
    match &options.persist {
        Some(path) => {
            let _ = writeln!(out, "{} sets them at each boot.", path.display());
        }
        None if !plan.changes.is_empty() => {
            let _ = writeln!(out, "They hold until the next boot; --persist keeps them.");
        }
        None => {}
    }
    if profile.connections.is_some() {
        let _ = writeln!(
            out,
            "Limits of a process are no sysctls: trunkline doctor print systemd --profile {}",
            profile.name
        );
    }
    Ok(out)
}

/// What a plan comes to, in a few lines.
fn told(plan: &Plan, verb: &str) -> String {
    let mut out = format!(
        "Profile {}: {} {verb}, {} as wanted already",
        plan.profile,
        plan.changes.len(),
        plan.satisfied.len()
    );
    if !plan.absent.is_empty() {
        let _ = write!(out, ", not in this kernel: {}", plan.absent.join(", "));
    }
    out += ".\n";
    out += &plan.to_text();
    out
}

fn revert(matches: &ArgMatches) -> Result<String, Failure> {
    let state = path(matches, "state");
    let dry_run = matches.get_flag("dry_run");
    let done = tune::revert(&tree(matches), &state, dry_run).map_err(failure)?;
    let Some(profile) = done.profile else {
        return Ok(format!(
            "Nothing is applied: there is no state at {}.\n",
            state.display()
        ));
    };
    let would = if dry_run { "would be " } else { "" };
    let mut out = format!(
        "Profile {profile}: {} {would}as before.\n",
        done.restored.len()
    );
    let width = done.restored.iter().map(|(k, ..)| k.len()).max();
    for (key, now, was) in &done.restored {
        let was = if was.is_empty() { "(nothing)" } else { was };
        let touched = if done.touched.contains(key) {
            "  (changed by somebody after the apply)"
        } else {
            ""
        };
        let width = width.unwrap_or(0);
        let _ = writeln!(out, "  {key:width$}  {now} -> {was}{touched}");
    }
    for key in &done.gone {
        let _ = writeln!(out, "  {key}: not here any more");
    }
    if let Some(path) = &done.removed {
        let _ = writeln!(out, "{} {would}removed.", path.display());
    }
    if let Some(path) = &done.kept {
        let _ = writeln!(
            out,
            "{} is not as `apply --persist` wrote it, and stays: look at it.",
            path.display()
        );
    }
    Ok(out)
}

fn print(matches: &ArgMatches) -> Result<String, Failure> {
    let what = matches.get_one::<String>("what").map_or("", |w| w);
    if what == "seccomp" {
        return Ok(SECCOMP.to_owned());
    }
    if what == "unit" {
        let role = matches.get_one::<String>("role").map_or("", |r| r);
        let unit = UNITS.iter().find(|(name, _)| *name == role);
        return unit
            .map(|(_, text)| (*text).to_owned())
            .ok_or_else(|| Failure::configuration("--role", "there is no such role"));
    }
    let name = matches.get_one::<String>("profile").map_or("", |p| p);
    let built_in: &BuiltIn = BUILT_IN
        .iter()
        .find(|p| p.name.eq_ignore_ascii_case(name))
        .ok_or_else(|| Failure::configuration("--profile", "one of dev, 100k, 1m, 2m"))?;
    Ok(match what {
        "limits" => built_in.limits,
        "systemd" => built_in.systemd,
        _ => built_in.sysctl,
    }
    .to_owned())
}

fn profile(matches: &ArgMatches) -> Result<Profile, Failure> {
    find(matches.get_one::<String>("profile").map_or("", |p| p))
}

fn find(name: &str) -> Result<Profile, Failure> {
    Profile::find(name).map_err(|e| Failure::configuration("--profile", e.to_string()))
}

fn tree(matches: &ArgMatches) -> Tree {
    Tree::of(&path(matches, "proc"))
}

fn path(matches: &ArgMatches, name: &str) -> PathBuf {
    matches
        .get_one::<PathBuf>(name)
        .cloned()
        .unwrap_or_default()
}

fn failure(error: TuneError) -> Failure {
    Failure::Runtime(error.to_string())
}

fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|e| Failure::Runtime(format!("report: {e}")))
}

/// Text for stdout, and whether the exit code says yes or no.
fn answer(yes: bool, out: String) -> Result<String, Failure> {
    if yes {
        return Ok(out);
    }
    print!("{out}");
    Err(Failure::Reported)
}
