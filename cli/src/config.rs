//! `trunkline config`: the settings, checked, shown or explained.

use std::fmt::Write as _;

use clap::ArgMatches;

use crate::args;
use crate::exit::Failure;
use crate::settings::Settings;
use crate::settings::layers::Layers;
use crate::settings::table::{Role, Setting, TABLE};
use crate::settings::value::{Kind, parse_bytes};

/// Runs `config check|show|default`; what it prints goes to stdout.
pub fn run(matches: &ArgMatches, environment: &[(String, String)]) -> Result<String, Failure> {
    match matches.subcommand() {
        Some(("default", _)) => Ok(default_file()),
        Some((verb, matches)) => {
            // clap has checked the name against the list of roles.
            let role = matches
                .get_one::<String>("role")
                .and_then(|r| Role::parse(r))
                .unwrap_or(Role::Serve);
            let flags = args::given_settings(matches);
            let config = args::given_config(matches);
            let (layers, mut problems) = Layers::collect(&flags, config.as_deref(), environment);
            Settings::from_layers(role, &layers, &mut problems);
            if !problems.is_empty() {
                return Err(Failure::Configuration(problems));
            }
            Ok(match verb {
                "show" => show(role, &layers),
                _ => format!("{}: the configuration is good\n", role.as_str()),
            })
        }
        None => Ok(default_file()),
    }
}

/// The settings in effect, as TOML that could be read again (but for the masked secrets).
fn show(role: Role, layers: &Layers) -> String {
    let mut out = format!("# trunkline {}\n", role.as_str());
    for setting in TABLE.iter().filter(|s| s.applies_to(role)) {
        let line = match layers.get(setting, role) {
            Some((_, source)) if setting.kind.is_secret() => {
                format!("{} = \"********\"  # {source}", setting.key)
            }
            Some((text, source)) => {
                format!(
                    "{} = {}  # {source}",
                    setting.key,
                    toml_value(setting, text)
                )
            }
            None => format!("# {} is not set", setting.key),
        };
        let _ = writeln!(out, "{line}");
    }
    out
}

fn toml_value(setting: &Setting, text: &str) -> String {
    let text = text.trim();
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    match setting.kind {
        Kind::Count { .. } => text.to_owned(),
        Kind::Switch => setting.kind.parse(text).map_or_else(
            |_| quoted(text),
            |v| (v == crate::settings::value::Value::Switch(true)).to_string(),
        ),
        Kind::List(_) => {
            let items: Vec<_> = text.split(',').map(|i| quoted(i.trim())).collect();
            format!("[{}]", items.join(", "))
        }
        Kind::Bytes { .. } if parse_bytes(text).is_ok_and(|n| n.to_string() == text) => {
            text.to_owned()
        }
        _ => quoted(text),
    }
}

/// A trunkline.toml that says what every key means. Keys stand commented out where writing their
/// default down would change something: not set, or not the same for every subcommand.
pub fn default_file() -> String {
    let mut out = String::from(
        "# Trunkline's settings and their defaults. Flags and TRUNKLINE_… variables win over this \
         file.\n# Check it with: trunkline config check --config trunkline.toml\n",
    );
    let mut group = "";
    for setting in TABLE {
        if setting.group != group {
            group = setting.group;
            let _ = write!(out, "\n# ---- {group} ----\n");
        }
        out.push('\n');
        for line in wrapped(setting.doc, 96) {
            let _ = writeln!(out, "# {line}");
        }
        let on: Vec<_> = setting.on.iter().map(|r| r.as_str()).collect();
        let _ = writeln!(
            out,
            "# {}; --{}; {}",
            on.join(", "),
            setting.flag(),
            setting.variable()
        );
        let _ = writeln!(out, "{}", default_line(setting));
    }
    out
}

fn default_line(setting: &Setting) -> String {
    let key = setting.key;
    match (setting.default, setting.default_core) {
        (Some(text), None) => format!("{key} = {}", toml_value(setting, text)),
        (Some(text), Some(core)) => format!(
            "# {key} = {}  # core: {}",
            toml_value(setting, text),
            toml_value(setting, core)
        ),
        (None, _) => format!("# {key} = {}", toml_value(setting, example(setting))),
    }
}

/// A value to show for a key that has no default.
fn example(setting: &Setting) -> &'static str {
    match setting.kind {
        Kind::Address => "127.0.0.1:7400",
        Kind::Path => "ports.json",
        Kind::Text(_) => "example",
        Kind::Secret => "a long random string",
        Kind::Count { .. } => "4",
        Kind::Duration { .. } => "30s",
        Kind::Bytes { .. } => "64 KiB",
        Kind::Switch => "false",
        Kind::Choice(choices) => choices.first().copied().unwrap_or_default(),
        Kind::List("NETWORK") => "10.0.0.0/8",
        Kind::List(_) => "https://chat.example.org",
        Kind::Filter => "info",
    }
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_default_file_would_be_good_uncommented() {
        for setting in TABLE {
            let line = default_line(setting);
            let line = line.strip_prefix("# ").unwrap_or(&line);
            let table: toml::Table = line.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
            assert!(table.contains_key(setting.key), "{line}");
        }
    }
}
