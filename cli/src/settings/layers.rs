//! Where values come from: flags over environment over file over defaults. Collecting never stops
//! at the first mistake; the reader wants them all.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::settings::table::{
    CONFIG_VARIABLE, FOREIGN_VARIABLES, Role, Setting, TABLE, VARIABLE_PREFIX, find,
};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Default,
    File(PathBuf),
    Variable,
    Flag,
}

impl Source {
    /// The value's own name there, as the person who wrote it knows it.
    pub fn name_of(&self, setting: &Setting) -> String {
        match self {
            Self::Default => format!("default of {}", setting.key),
            Self::File(path) => format!("{}: {}", path.display(), setting.key),
            Self::Variable => setting.variable(),
            Self::Flag => format!("--{}", setting.flag()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable => f.write_str("environment"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// Something wrong with the configuration: where, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: String,
    pub message: String,
}

impl Problem {
    pub fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Texts by key, each from the strongest layer that has one.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    texts: BTreeMap<&'static str, (String, Source)>,
}

impl Layers {
    /// Collects. `flags`: (key, text) as given on the command line.
    pub fn collect(
        flags: &[(&'static str, String)],
        config: Option<&Path>,
        environment: &[(String, String)],
    ) -> (Self, Vec<Problem>) {
        let mut layers = Self::default();
        let mut problems = Vec::new();
        let from_variable = environment
            .iter()
            .find(|(name, _)| name == CONFIG_VARIABLE)
            .map(|(_, path)| PathBuf::from(path));
        if let Some(path) = config.map(Path::to_owned).or(from_variable) {
            layers.add_file(&path, &mut problems);
        }
        layers.add_environment(environment, &mut problems);
        for (key, text) in flags {
            layers.texts.insert(key, (text.clone(), Source::Flag));
        }
        (layers, problems)
    }

    /// The text of a setting and its source; `None`: not set, and no default either.
    pub fn get(&self, setting: &Setting, role: Role) -> Option<(&str, Source)> {
        match self.texts.get(setting.key) {
            Some((text, source)) => Some((text, source.clone())),
            None => setting.default_for(role).map(|t| (t, Source::Default)),
        }
    }

    fn add_environment(&mut self, environment: &[(String, String)], problems: &mut Vec<Problem>) {
        for (name, text) in environment {
            let is_ours = name.starts_with(VARIABLE_PREFIX)
                && name != CONFIG_VARIABLE
                && !FOREIGN_VARIABLES.contains(&&**name);
            if !is_ours {
                continue;
            }
            match TABLE.iter().find(|s| s.variable() == *name) {
                Some(s) => {
                    self.texts.insert(s.key, (text.clone(), Source::Variable));
                }
                None => {
                    let known = TABLE.iter().map(Setting::variable);
                    problems.push(unknown(name.clone(), "variable", name, known));
                }
            }
        }
    }

    fn add_file(&mut self, path: &Path, problems: &mut Vec<Problem>) {
        let place = path.display().to_string();
        let table = std::fs::read_to_string(path)
            .map_err(|e| format!("cannot be read: {e}"))
            .and_then(|text| {
                text.parse::<toml::Table>()
                    .map_err(|e| format!("is not TOML: {}", e.to_string().trim_end()))
            });
        let table = match table {
            Ok(table) => table,
            Err(message) => return problems.push(Problem::new(place, message)),
        };
        for (key, value) in table {
            let Some(setting) = find(&key) else {
                let known = TABLE.iter().map(|s| s.key.to_owned());
                problems.push(unknown(format!("{place}: {key}"), "key", &key, known));
                continue;
            };
            match toml_text(&value) {
                Some(text) => {
                    let source = Source::File(path.to_owned());
                    self.texts.insert(setting.key, (text, source));
                }
                None => problems.push(Problem::new(
                    format!("{place}: {key}"),
                    "must be a string, a whole number, true, false, or a list of strings",
                )),
            }
        }
    }
}

/// TOML's own types in the text form that flags and variables have.
fn toml_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(s) => Some(s.clone()),
        toml::Value::Integer(n) => Some(n.to_string()),
        toml::Value::Boolean(b) => Some(b.to_string()),
        toml::Value::Array(items) => items
            .iter()
            .map(|i| i.as_str())
            .collect::<Option<Vec<_>>>()
            .map(|items| items.join(",")),
        _ => None,
    }
}

fn unknown(place: String, what: &str, name: &str, known: impl Iterator<Item = String>) -> Problem {
    let nearest = known.min_by_key(|k| strsim::damerau_levenshtein(name, k));
    Problem::new(
        place,
        match nearest {
            Some(nearest) => format!("unknown {what}; did you mean {nearest}?"),
            None => format!("unknown {what}"),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_in_toml_read_as_lists_in_flags() {
        let value: toml::Table = "a = [\"x\", \"y\"]\nb = [1]".parse().unwrap();
        assert_eq!(toml_text(&value["a"]), Some("x,y".into()));
        assert_eq!(toml_text(&value["b"]), None);
    }

    #[test]
    fn variables_of_others_are_none_of_our_business() {
        let environment = ["HOME", "TRUNKLINE_BIN"].map(|name| (name.to_owned(), "/".to_owned()));
        let (_, problems) = Layers::collect(&[], None, &environment);
        assert_eq!(problems, []);
    }
}
