//! Scenario files: TOML that says what one would type, turned into the command line before it is
//! parsed. So there is one definition of every parameter, the command line's.
//!
//! Invariants: a key that is no flag of the scenario is an error that names the nearest; a flag that is
//! typed replaces the file's, repeated ones all of them; what [`example`] prints, with its defaults
//! uncommented, means the same as an empty command line.
//!
//! Called by the binary before it parses its arguments, and by `bench example`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

use crate::budget::Budget;
use crate::catalogue::nearest;

/// Subcommands of `bench` that run no scenario.
pub const TOOLS: [&str; 7] = [
    "compare", "example", "figures", "help", "plan", "report", "run",
];
const SCENARIO_KEY: &str = "scenario";
const BUDGETS_KEY: &str = "budgets";
const BUDGET_FLAG: &str = "budget";
/// Flags of a scenario that mean nothing in its file.
const NOT_IN_A_FILE: [&str; 2] = ["config", "help"];

/// The command line with what the scenario file says in it, where it names one: `bench run FILE …` or
/// `bench SCENARIO --config FILE …`. `bench` is the definition of `trunkline bench`. The error is a
/// list of all that is wrong with the file.
pub fn expand(argv: Vec<OsString>, bench: &Command) -> Result<Vec<OsString>, Vec<String>> {
    let word = |i: usize| argv.get(i).and_then(|w| w.to_str());
    if word(1) != Some("bench") {
        return Ok(argv);
    }
    let (file, named, rest) = match word(2) {
        Some("run") => match argv.get(3) {
            Some(file) if !is_flag(file) => (file.clone(), None, argv[4..].to_vec()),
            _ => return Ok(argv),
        },
        Some(scenario) if !TOOLS.contains(&scenario) => match take_config(&argv[3..]) {
            Some((file, rest)) => (file, Some(scenario.to_owned()), rest),
            None => return Ok(argv),
        },
        _ => return Ok(argv),
    };
    let path = Path::new(&file);
    let text =
        std::fs::read_to_string(path).map_err(|e| vec![format!("{}: {e}", path.display())])?;
    let (scenario, flags) = read(&text, bench, named.as_deref(), &rest).map_err(|problems| {
        let place = |p: String| format!("{}: {p}", path.display());
        problems.into_iter().map(place).collect::<Vec<_>>()
    })?;
    let mut expanded = argv[..2].to_vec();
    expanded.push(scenario.into());
    expanded.extend(flags.into_iter().map(OsString::from));
    expanded.extend(rest);
    Ok(expanded)
}

fn is_flag(word: &OsString) -> bool {
    word.to_str().is_some_and(|w| w.starts_with('-'))
}

/// The value of `--config`, and the arguments without it.
fn take_config(args: &[OsString]) -> Option<(OsString, Vec<OsString>)> {
    let at = args.iter().position(|a| {
        a.to_str()
            .is_some_and(|a| a == "--config" || a.starts_with("--config="))
    })?;
    let mut rest = args.to_vec();
    let flag = rest.remove(at);
    let joined = flag.to_str().and_then(|f| f.strip_prefix("--config="));
    match joined {
        Some(file) => Some((file.into(), rest)),
        None => (at < rest.len()).then(|| (rest.remove(at), rest)),
    }
}

/// The scenario that a file names, and its flags without those that `typed` gives.
fn read(
    text: &str,
    bench: &Command,
    named: Option<&str>,
    typed: &[OsString],
) -> Result<(String, Vec<String>), Vec<String>> {
    let table: Table = text
        .parse()
        .map_err(|e: toml::de::Error| vec![e.to_string().trim_end().to_owned()])?;
    let scenario = scenario_of(&table, bench, named).map_err(|e| vec![e])?;
    let command = bench
        .find_subcommand(&scenario)
        .ok_or_else(|| vec![format!("no scenario {scenario}")])?;
    let typed = typed_flags(command, typed);
    let (mut flags, mut problems) = (Vec::new(), Vec::new());
    for (key, value) in &table {
        let done = match key.as_str() {
            SCENARIO_KEY => continue,
            BUDGETS_KEY => budgets(value).map(|all| (BUDGET_FLAG.to_owned(), all)),
            _ => flag(command, key, value),
        };
        match done {
            Ok((long, _)) if typed.contains(&long) => {}
            Ok((_, words)) => flags.extend(words),
            Err(problem) => problems.push(problem),
        }
    }
    match problems.is_empty() {
        true => Ok((scenario, flags)),
        false => Err(problems),
    }
}

/// Scenarios of the command line.
fn scenarios(bench: &Command) -> Vec<&str> {
    let shown = bench.get_subcommands().filter(|c| !c.is_hide_set());
    let names = shown.map(Command::get_name);
    names.filter(|name| !TOOLS.contains(name)).collect()
}

fn scenario_of(table: &Table, bench: &Command, named: Option<&str>) -> Result<String, String> {
    let known = scenarios(bench);
    let found = match (table.get(SCENARIO_KEY), named) {
        (Some(Value::String(found)), _) => found.clone(),
        (Some(_), _) => return Err("scenario is a name in quotes".to_owned()),
        (None, Some(named)) => named.to_owned(),
        (None, None) => {
            return Err(format!(
                "no scenario: add a line such as scenario = {:?} ({})",
                known.first().copied().unwrap_or_default(),
                known.join(", ")
            ));
        }
    };
    if !known.contains(&found.as_str()) {
        let near = nearest(&found, known.iter().copied());
        let cure = if near.is_empty() { known } else { near };
        return Err(format!(
            "no scenario {found:?}: did you mean {}?",
            cure.join(" or ")
        ));
    }
    match named {
        Some(named) if named != found => Err(format!(
            "the file is for the scenario {found:?}: trunkline bench {found} --config …"
        )),
        _ => Ok(found),
    }
}

/// Long names of the flags that were typed.
fn typed_flags(command: &Command, typed: &[OsString]) -> Vec<String> {
    let mut found = Vec::new();
    let mut words = typed.iter().filter_map(|w| w.to_str());
    while let Some(word) = words.next() {
        let (name, has_value) = match word.split_once('=') {
            Some((name, _)) => (name, true),
            None => (word, false),
        };
        let arg = match (name.strip_prefix("--"), name.strip_prefix('-')) {
            (Some(long), _) => argument(command, long),
            (None, Some(short)) => command
                .get_arguments()
                .find(|a| a.get_short().is_some_and(|s| short.starts_with(s))),
            (None, None) => None,
        };
        let Some(arg) = arg else { continue };
        found.extend(arg.get_long().map(str::to_owned));
        let is_glued = !name.starts_with("--") && name.len() > 2;
        if takes_value(arg) && !has_value && !is_glued {
            words.next();
        }
    }
    found
}

fn argument<'a>(command: &'a Command, long: &str) -> Option<&'a Arg> {
    let is_it = |arg: &&Arg| {
        arg.get_long() == Some(long) || arg.get_all_aliases().is_some_and(|all| all.contains(&long))
    };
    command.get_arguments().find(is_it)
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// A key and its value as words of the command line, with the flag's long name.
fn flag(command: &Command, key: &str, value: &Value) -> Result<(String, Vec<String>), String> {
    let long = key.replace('_', "-");
    let Some(arg) = argument(command, &long).filter(|_| !NOT_IN_A_FILE.contains(&&long[..])) else {
        let mut known: Vec<_> = command.get_arguments().filter_map(Arg::get_long).collect();
        known.extend([SCENARIO_KEY, BUDGETS_KEY]);
        known.retain(|name| !NOT_IN_A_FILE.contains(name));
        let near = nearest(&long, known);
        let cure = match near.is_empty() {
            true => format!(
                "`trunkline bench example {}` lists them",
                command.get_name()
            ),
            false => format!("did you mean {}?", near.join(" or ")),
        };
        return Err(format!("no parameter {key:?}: {cure}"));
    };
    let long = arg.get_long().unwrap_or(&long).to_owned();
    let words = match value {
        Value::Boolean(is_on) if !takes_value(arg) => match is_on {
            true => vec![format!("--{long}")],
            false => Vec::new(),
        },
        _ if !takes_value(arg) => return Err(format!("{key} is true or false")),
        Value::Array(all) if matches!(arg.get_action(), ArgAction::Append) => all
            .iter()
            .map(|v| Some(format!("--{long}={}", word(v)?)))
            .collect::<Option<_>>()
            .ok_or_else(|| format!("{key}: a list of plain values"))?,
        _ => match word(value) {
            Some(word) => vec![format!("--{long}={word}")],
            None => return Err(format!("{key} takes one value")),
        },
    };
    Ok((long, words))
}

fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Some(value.to_string()),
        _ => None,
    }
}

/// A table of figures with their limits, or a list of budgets as one types them.
fn budgets(value: &Value) -> Result<Vec<String>, String> {
    let texts: Vec<String> = match value {
        Value::Table(table) => {
            let one = |(figure, limit): (&String, &Value)| match limit {
                Value::String(limit) => Ok(format!("{figure}{limit}")),
                _ => Err(format!(
                    "budgets: {figure} = {limit}: a limit is text, as in \"{figure}\" = \"<={limit}\""
                )),
            };
            table.iter().map(one).collect::<Result<_, _>>()?
        }
        Value::Array(all) => all
            .iter()
            .map(|v| v.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or("budgets: a list of texts, as in [\"ack.p99_ms<=25\"]")?,
        _ => return Err("budgets: a table [budgets] or a list".to_owned()),
    };
    let checked = texts.into_iter().map(|text| {
        let budget: Budget = text.parse().map_err(|e| format!("budgets: {e}"))?;
        Ok(format!("--{BUDGET_FLAG}={budget}"))
    });
    checked.collect()
}

/// A commented scenario file with the defaults of the command line; the error names the scenarios.
pub fn example(bench: &Command, scenario: &str) -> Result<String, String> {
    let known = scenarios(bench);
    let command = bench
        .find_subcommand(scenario)
        .filter(|_| known.contains(&scenario))
        .ok_or_else(|| format!("no scenario {scenario:?}: one of {}", known.join(", ")))?;
    let mut out = String::new();
    if let Some(about) = command.get_about() {
        comment(&mut out, &about.to_string());
    }
    let _ = writeln!(
        out,
        "# trunkline bench run FILE; a flag that is typed behind it replaces the line here.\n"
    );
    let _ = writeln!(out, "{SCENARIO_KEY} = {scenario:?}");
    let mut heading = None;
    for arg in command.get_arguments() {
        let Some(long) = arg.get_long() else { continue };
        if NOT_IN_A_FILE.contains(&long) || long == BUDGET_FLAG || arg.is_hide_set() {
            continue;
        }
        if arg.get_help_heading() != heading {
            heading = arg.get_help_heading();
            let _ = writeln!(out, "\n# ---- {} ----", heading.unwrap_or("Options"));
        }
        out.push('\n');
        describe(&mut out, arg);
        let key = long.replace('-', "_");
        match default(arg) {
            Some(value) => _ = writeln!(out, "# {key} = {value}"),
            None => _ = writeln!(out, "# {key} = \"\"  # no default"),
        }
    }
    out.push_str(BUDGETS_EXAMPLE);
    Ok(out)
}

const BUDGETS_EXAMPLE: &str = "
# Limits on figures of the result (`trunkline bench figures` lists them); one that is missed makes the
# exit code 1.
# [budgets]
# \"figure\" = \"<=10\"
# \"distribution.p99_ms\" = \"<=25\"
";

fn describe(out: &mut String, arg: &Arg) {
    if let Some(help) = arg.get_help() {
        comment(out, &help.to_string());
    }
    let values: Vec<_> = arg
        .get_possible_values()
        .iter()
        .map(|v| v.get_name().to_owned())
        .collect();
    if takes_value(arg) && !values.is_empty() {
        comment(out, &format!("One of: {}", values.join(", ")));
    }
}

const COLUMNS: usize = 100;

fn comment(out: &mut String, text: &str) {
    for line in text.lines() {
        let mut width = 1;
        out.push('#');
        for word in line.split_whitespace() {
            if width + 1 + word.len() > COLUMNS {
                out.push_str("\n#");
                width = 1;
            }
            width += 1 + word.len();
            out.push(' ');
            out.push_str(word);
        }
        out.push('\n');
    }
}

/// The flag's default as TOML.
fn default(arg: &Arg) -> Option<Value> {
    if !takes_value(arg) {
        return Some(Value::Boolean(false));
    }
    let all: Vec<_> = arg
        .get_default_values()
        .iter()
        .filter_map(|v| v.to_str())
        .map(typed)
        .collect();
    match arg.get_action() {
        ArgAction::Append if !all.is_empty() => Some(Value::Array(all)),
        _ => all.into_iter().next(),
    }
}

/// A number where it is one, and is written the same way as one.
fn typed(text: &str) -> Value {
    let number = match (text.parse::<i64>(), text.parse::<f64>()) {
        (Ok(whole), _) => Value::Integer(whole),
        (_, Ok(part)) if part.is_finite() => Value::Float(part),
        _ => Value::Boolean(text == "true"),
    };
    match number.to_string() == text {
        true => number,
        false => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests;
