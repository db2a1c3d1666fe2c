//! The doctor's findings, as a table for people. As JSON it is the struct itself.

use std::fmt::Write as _;

use serde::Serialize;

use crate::capacity::Capacity;
use crate::facts::Facts;

/// Columns of a line of explanation.
const WRAP: usize = 96;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// It will work, but less well than it could.
    Warn,
    /// The target cannot be reached like this.
    Fail,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: String,
    pub status: Status,
    pub found: String,
    /// What it should be, where it is not and that can be said in a word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub wanted: String,
    /// What it means, where it is not as it should be.
    pub why: String,
    /// Commands or settings that mend it.
    pub cure: String,
}

impl Check {
    /// The same, with what it should be.
    pub fn wanting(mut self, wanted: impl Into<String>) -> Self {
        self.wanted = wanted.into();
        self
    }
}

/// All findings against one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Connections that the machine is to hold.
    pub target: u64,
    /// The profile whose lines were looked at.
    pub profile: String,
    pub capacity: Capacity,
    /// Rings that the target needs; absent with epoll.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rings_needed: Option<u64>,
    pub checks: Vec<Check>,
    pub facts: Facts,
}

impl Report {
    /// Whether nothing stands in the target's way.
    pub fn passes(&self) -> bool {
        self.checks.iter().all(|c| c.status != Status::Fail)
    }

    /// The report for a terminal.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let name_width = self.checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
        for check in &self.checks {
            write_check(&mut out, check, name_width);
        }
        self.write_capacity(&mut out);
        self.write_summary(&mut out);
        out
    }

    /// What the machine holds as it is, for each way to wait, with the bound that decides.
    fn write_capacity(&self, out: &mut String) {
        let capacity = &self.capacity;
        let bound = |n: Option<u64>| n.map_or_else(|| "unknown".to_owned(), grouped);
        let both = if capacity.ends == 2 {
            " (both ends of each here)"
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "\nIdle connections that this machine holds as it is{both}:"
        );
        for mode in &capacity.modes {
            let _ = writeln!(
                out,
                "  {:18} {:>13}, limited by {}\n  {:18} {:>13} bytes each; by memory {}, by file-max {}, by files {}{}",
                mode.name,
                grouped(mode.connections),
                mode.limit,
                "",
                grouped(mode.bytes_per_connection),
                bound(mode.by_memory),
                bound(capacity.by_file_max),
                bound(mode.by_process_files),
                capacity
                    .by_conntrack
                    .map_or_else(String::new, |n| format!(", by conntrack {}", grouped(n))),
            );
        }
    }

    fn write_summary(&self, out: &mut String) {
        let rings = self
            .rings_needed
            .map_or_else(String::new, |n| format!(" in {n} ring(s)"));
        let _ = writeln!(
            out,
            "Target {}: {} MiB{rings}. {}",
            grouped(self.target),
            grouped(self.capacity.memory_for(self.target) >> 20),
            if self.passes() {
                "Ready."
            } else {
                "Not ready."
            }
        );
        let shards = self.facts.cpus.max(1) as u64;
        if self.rings_needed.is_some_and(|n| n > shards) {
            let _ = writeln!(
                out,
                "The edge makes so many rings when it is told: --connections-max {}",
                self.target
            );
        }
        let sysctl = |c: &Check| c.status != Status::Ok && c.cure.starts_with("sysctl -w ");
        if self.checks.iter().any(sysctl) {
            let profile = &self.profile;
            let _ = writeln!(
                out,
                "The sysctls of the profile, all at once, and back again:\n  \
                 trunkline doctor apply --profile {profile} --dry-run\n  \
                 trunkline doctor apply --profile {profile}\n  trunkline doctor revert"
            );
        }
    }
}

fn write_check(out: &mut String, check: &Check, name_width: usize) {
    let mark = match check.status {
        Status::Ok => " ok ",
        Status::Warn => "warn",
        Status::Fail => "FAIL",
    };
    let wanted = match check.wanted.as_str() {
        "" => String::new(),
        wanted => format!("; wanted: {wanted}"),
    };
    let _ = writeln!(
        out,
        "{mark}  {:name_width$}  {}{wanted}",
        check.name, check.found
    );
    for line in check.why.lines().flat_map(wrapped) {
        let _ = writeln!(out, "        {line}");
    }
    // Not wrapped: commands are to be copied.
    for line in check.cure.lines() {
        let _ = writeln!(out, "      > {line}");
    }
}

/// A line in pieces of a readable length, broken between words.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].chars().count() + word.chars().count() >= WRAP {
            lines.push(String::new());
        }
        let last = lines.len() - 1;
        if !lines[last].is_empty() {
            lines[last].push(' ');
        }
        lines[last].push_str(word);
    }
    lines
}

/// 1234567 as 1,234,567.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(12_345_678), "12,345,678");
    }

    #[test]
    fn long_reasons_are_broken_between_words() {
        let text = "word ".repeat(60);
        let lines = wrapped(&text);
        assert!(lines.len() > 2 && lines.iter().all(|l| l.len() < WRAP));
        assert_eq!(lines.join(" "), text.trim());
    }
}
