//! The doctor's findings, as a table for people. As JSON it is the struct itself.

use std::fmt::Write as _;

use serde::Serialize;

use crate::capacity::Capacity;
use crate::facts::Facts;

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
    pub name: &'static str,
    pub status: Status,
    pub found: String,
    /// What it means, where it is not as it should be.
    pub why: String,
    /// Commands or settings that mend it.
    pub cure: String,
}

/// All findings against one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Connections that the machine is to hold.
    pub target: u64,
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
            let mark = match check.status {
                Status::Ok => " ok ",
                Status::Warn => "warn",
                Status::Fail => "FAIL",
            };
            let _ = writeln!(out, "{mark}  {:name_width$}  {}", check.name, check.found);
            for (label, text) in [("why", &check.why), ("cure", &check.cure)] {
                for (i, line) in text.lines().enumerate() {
                    let label = if i == 0 { label } else { "" };
                    let _ = writeln!(out, "      {:name_width$}  {label:>4}: {line}", "");
                }
            }
        }
        self.write_summary(&mut out);
        out
    }

    fn write_summary(&self, out: &mut String) {
        let capacity = &self.capacity;
        let bound = |n: Option<u64>| n.map_or_else(|| "unknown".to_owned(), grouped);
        let _ = writeln!(
            out,
            "\nAs it is, this machine holds {} idle connections with {} at {} bytes each\n\
             (memory: {}, file-max: {}, process: {}).",
            grouped(capacity.connections),
            capacity.driver,
            grouped(capacity.bytes_per_connection),
            bound(capacity.by_memory),
            bound(capacity.by_file_max),
            bound(capacity.by_process_files),
        );
        let rings = self
            .rings_needed
            .map_or_else(String::new, |n| format!(" in {n} ring(s)"));
        let _ = writeln!(
            out,
            "Target {}: {} MiB{rings}. {}",
            grouped(self.target),
            grouped(capacity.memory_for(self.target) >> 20),
            if self.passes() {
                "Ready."
            } else {
                "Not ready."
            }
        );
    }
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
    use super::grouped;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(12_345_678), "12,345,678");
    }
}
