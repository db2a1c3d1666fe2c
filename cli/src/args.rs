//! The command line, made from the table of settings.

use std::path::PathBuf;

use clap::builder::StyledStr;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, Subcommand as _};
use trunkline_bench::args::BenchCommand;

use crate::settings::table::{CONFIG_VARIABLE, Role, Setting, TABLE};
use crate::settings::value::Kind;

const ABOUT: &str = "A chat platform in one binary: an edge that holds the sockets, a core that \
orders and keeps the messages.";

const PRECEDENCE: &str = "\
Settings: flags over environment (TRUNKLINE_WS for --ws) over --config FILE over defaults.
`trunkline config default` prints them all with what they mean.";

/// The flag and its id.
const UPGRADE: &str = "upgrade";

/// The whole command line.
pub fn command() -> Command {
    Command::new("trunkline")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .after_help(format!(
            "Without a subcommand: serve.\n\n{PRECEDENCE}\n\nExamples:\n  \
             trunkline                          all in one, on loopback, data in ./data\n  \
             trunkline token --user alice       a token to connect with\n  \
             trunkline doctor --target 100k     is this machine ready for 100,000 sockets?"
        ))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .max_term_width(100)
        .subcommand(role_command(
            Role::Serve,
            "Run edge and core in one process, messages in the data directory (the default)",
            "  trunkline serve\n  trunkline serve --data /var/lib/trunkline --ws 127.0.0.1:0 \
             --ports-file ports.json\n  TRUNKLINE_JWT_SECRET=… trunkline serve --ws 0.0.0.0:7400",
        ))
        .subcommand(role_command(
            Role::Edge,
            "Run an edge: it holds client sockets and attaches to a core",
            "  TRUNKLINE_JWT_SECRET=… trunkline edge --core http://10.0.0.5:7420\n  \
             trunkline edge --upgrade --core http://10.0.0.5:7420   # in place of the one that runs\n  \
             trunkline edge --echo --ws 127.0.0.1:9001",
        ))
        .subcommand(role_command(
            Role::Core,
            "Run a core: it orders messages, keeps them and finds their readers",
            "  TRUNKLINE_JWT_SECRET=… trunkline core --grpc 10.0.0.5:7420 --data /var/lib/trunkline",
        ))
        .subcommand(
            // The derive would put the enum's own description over ours.
            BenchCommand::augment_subcommands(
                Command::new("bench")
                    .subcommand_required(true)
                    .arg_required_else_help(true),
            )
            .about("Put a server under load and measure what it does"),
        )
        .subcommand(crate::cluster::command())
        .subcommand(crate::doctor::command())
        .subcommand(token_command())
        .subcommand(config_command())
}

fn role_command(role: Role, about: &'static str, examples: &'static str) -> Command {
    Command::new(role.as_str())
        .about(about)
        .arg(config_flag())
        .arg(upgrade_flag(role))
        .args(
            TABLE
                .iter()
                .filter(|s| s.applies_to(role))
                .map(|s| setting_flag(s, Some(role))),
        )
        .after_help(format!("{PRECEDENCE}\n\nExamples:\n{examples}"))
}

fn config_flag() -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help(format!(
            "Read settings from this TOML file [env: {CONFIG_VARIABLE}]"
        ))
}

/// No setting: in a file or the environment it would hold for every start.
fn upgrade_flag(role: Role) -> Arg {
    Arg::new(UPGRADE)
        .long(UPGRADE)
        .action(ArgAction::SetTrue)
        // Known everywhere, so that the refusal says why.
        .hide(role != Role::Edge)
        .help(
            "Take the sockets and sessions of the edge that runs over: no client is disconnected, \
             and the old process ends",
        )
}

fn setting_flag(setting: &Setting, role: Option<Role>) -> Arg {
    let default = match role {
        Some(role) => setting.default_for(role),
        None => setting.default,
    };
    let shown = default.map_or_else(String::new, |d| format!(" [default: {d}]"));
    let arg = Arg::new(setting.key)
        .long(setting.flag())
        .value_name(setting.kind.placeholder())
        .help_heading(setting.group)
        .help(StyledStr::from(format!("{}{shown}", setting.doc)))
        .allow_hyphen_values(true)
        .action(ArgAction::Set);
    if setting.kind == Kind::Switch {
        return arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true");
    }
    arg
}

fn token_command() -> Command {
    Command::new("token")
        .about("Print a token for a user, and nothing else")
        .arg(config_flag())
        .arg(
            Arg::new("user")
                .long("user")
                .value_name("USER")
                .required(true)
                .help("The user id: 1-64 bytes of A-Za-z0-9._:@-"),
        )
        .arg(
            Arg::new("ttl")
                .long("ttl")
                .value_name("DURATION")
                .default_value("1h")
                .help("How long the token is good: 500ms, 30s, 1h, 7d"),
        )
        .arg(
            Arg::new("jwt_secret")
                .long("secret")
                .visible_alias("jwt-secret")
                .value_name("SECRET")
                .allow_hyphen_values(true)
                .conflicts_with("data")
                .help("Sign with this secret"),
        )
        .arg(
            Arg::new("data")
                .long("data")
                .value_name("DIR")
                .help("Sign with the development secret of this data directory"),
        )
        .after_help(
            "Without --secret and --data: the configured jwt_secret, or else the development \
             secret of the configured data directory (./data).\n\nExamples:\n  \
             trunkline token --user alice\n  trunkline token --user alice --ttl 7d --data /srv/chat",
        )
}

fn config_command() -> Command {
    let role = Arg::new("role")
        .long("role")
        .value_name("ROLE")
        .value_parser(Role::ALL.map(Role::as_str))
        .default_value("serve")
        .help("For which subcommand");
    let with_settings = |name: &'static str, about: &'static str| {
        Command::new(name)
            .about(about)
            .arg(role.clone())
            .arg(config_flag())
            .args(TABLE.iter().map(|s| setting_flag(s, None)))
            .after_help(PRECEDENCE)
    };
    Command::new("config")
        .about("Check, show or print the configuration")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(with_settings(
            "check",
            "Check all settings and print every problem; exit code 64 if there is one",
        ))
        .subcommand(with_settings(
            "show",
            "Print the settings in effect and where each came from; secrets are masked",
        ))
        .subcommand(Command::new("default").about("Print a commented trunkline.toml"))
        .after_help(
            "Examples:\n  trunkline config default > trunkline.toml\n  \
             trunkline config check --config trunkline.toml\n  \
             trunkline config show --role edge --send-rate 50",
        )
}

/// `trunkline` and `trunkline --ws …` mean `trunkline serve …`.
pub fn with_default_subcommand(mut args: Vec<std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    const OWN_FLAGS: [&str; 4] = ["-h", "--help", "-V", "--version"];
    let is_serve = match args.get(1).and_then(|a| a.to_str()) {
        None => args.len() < 2,
        Some(first) => first.starts_with('-') && !OWN_FLAGS.contains(&first),
    };
    if is_serve {
        args.insert(1.min(args.len()), Role::Serve.as_str().into());
    }
    args
}

/// The settings that were given as flags.
pub fn given_settings(matches: &ArgMatches) -> Vec<(&'static str, String)> {
    let given = |s: &&Setting| {
        matches.try_contains_id(s.key).unwrap_or(false)
            && matches.value_source(s.key) == Some(ValueSource::CommandLine)
    };
    TABLE
        .iter()
        .filter(given)
        .filter_map(|s| Some((s.key, matches.get_one::<String>(s.key)?.clone())))
        .collect()
}

/// Whether `--upgrade` was given.
pub fn is_upgrade(matches: &ArgMatches) -> bool {
    matches.get_flag(UPGRADE)
}

/// `--config`, if given.
pub fn given_config(matches: &ArgMatches) -> Option<PathBuf> {
    matches.get_one::<PathBuf>("config").cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        with_default_subcommand(text.split(' ').map(Into::into).collect())
            .into_iter()
            .map(|w| w.into_string().unwrap())
            .collect()
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn serve_is_what_runs_when_no_subcommand_is_named() {
        assert_eq!(words("trunkline"), ["trunkline", "serve"]);
        assert_eq!(
            words("trunkline --ws x"),
            ["trunkline", "serve", "--ws", "x"]
        );
        assert_eq!(words("trunkline --help"), ["trunkline", "--help"]);
        assert_eq!(words("trunkline edge"), ["trunkline", "edge"]);
        assert_eq!(words("trunkline srve"), ["trunkline", "srve"]);
    }
}
