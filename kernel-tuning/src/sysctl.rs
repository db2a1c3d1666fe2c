//! Lines of a sysctl.d file, and what each kind of value asks of the kernel.
//!
//! A profile says what a machine needs *at least*: applied to a machine that has more already, it
//! must not take anything away. So every key has a [`Rule`], and [`Setting::effective`] gives the
//! value that the kernel should have, from the one that it has. Pure; used by the checks and by
//! [`crate::tune`].

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

/// Longest value that is read or written: far beyond what any key of a profile takes.
pub const VALUE_BYTES_MAX: u64 = 64 << 10;

/// Ports that a list may name.
const PORT_MAX: u32 = 65_535;

/// How a wanted value is held against a found one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The value itself.
    Exact,
    /// A ceiling: more is as good, for each number of the value by itself.
    AtLeast,
    /// A range of ports: a wider one is as good.
    Covers,
    /// A list of ports: others may be on it.
    Includes,
}

/// Ceilings among the keys that people tune for sockets, whether or not our own profiles name them.
const CEILINGS: &[&str] = &[
    "fs.file-max",
    "fs.nr_open",
    "net.core.netdev_max_backlog",
    "net.core.rmem_max",
    "net.core.somaxconn",
    "net.core.wmem_max",
    "net.ipv4.tcp_max_orphans",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_max_tw_buckets",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_syncookies",
    "net.netfilter.nf_conntrack_buckets",
    "net.netfilter.nf_conntrack_max",
    "vm.max_map_count",
];

impl Rule {
    /// The rule of a key, by its name with dots.
    pub fn of(key: &str) -> Self {
        match key {
            "net.ipv4.ip_local_port_range" => Self::Covers,
            "net.ipv4.ip_local_reserved_ports" => Self::Includes,
            key if CEILINGS.contains(&key) => Self::AtLeast,
            _ => Self::Exact,
        }
    }
}

/// One line of a sysctl.d file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// With dots: `net.core.somaxconn`.
    pub key: String,
    /// As the kernel prints it.
    pub wanted: String,
    /// Written with a `-` before it: a kernel without the key is no mistake.
    pub optional: bool,
    /// The comment above the line, as far as it says why.
    pub why: String,
    /// The rest of it, from the word "Memory": what it costs.
    pub memory: String,
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    pub line: usize,
    pub message: String,
}

impl Setting {
    /// The value that the kernel should have, where it has `found`.
    pub fn effective(&self, found: &str) -> String {
        let found = normal(&self.key, found);
        match Rule::of(&self.key) {
            Rule::Exact => self.wanted.clone(),
            Rule::AtLeast => greater(&found, &self.wanted).unwrap_or_else(|| self.wanted.clone()),
            Rule::Covers => wider(&found, &self.wanted).unwrap_or_else(|| self.wanted.clone()),
            Rule::Includes => {
                let both = [ports(&found), ports(&self.wanted)];
                show_ports(&both.into_iter().flatten().flatten().collect())
            }
        }
    }

    /// Whether `found` does.
    pub fn satisfied_by(&self, found: &str) -> bool {
        self.effective(found) == normal(&self.key, found)
    }
}

/// Reads a sysctl.d file: `key = value`, `-key = value`, comments with `#` or `;`.
pub fn parse(text: &str) -> Result<Vec<Setting>, ParseError> {
    let mut settings: Vec<Setting> = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    // Lines without a comment between them share the one above.
    let mut used = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(text) = line.strip_prefix(['#', ';']) {
            if std::mem::take(&mut used) {
                comment.clear();
            }
            comment.push(text.trim());
            continue;
        }
        if line.is_empty() {
            comment.clear();
            continue;
        }
        used = true;
        let error = |message: String| ParseError {
            line: index + 1,
            message,
        };
        let (key, value) = line
            .split_once('=')
            .ok_or_else(|| error(format!("{line:?} is not `key = value`")))?;
        let key = key.trim();
        let optional = key.starts_with('-');
        let key = dotted(key.trim_start_matches('-')).map_err(error)?;
        let wanted = normal(&key, value);
        if wanted.is_empty() {
            return Err(error(format!("{key} has no value")));
        }
        if settings.iter().any(|s| s.key == key) {
            return Err(error(format!("{key} stands here twice")));
        }
        let comment = comment.join(" ");
        let (why, memory) = comment.split_at(comment.find("Memory").unwrap_or(comment.len()));
        settings.push(Setting {
            key,
            wanted,
            optional,
            why: why.trim_end().to_owned(),
            memory: memory.to_owned(),
        });
    }
    Ok(settings)
}

/// The key with dots between its parts; `net/ipv4/…` is understood as well.
fn dotted(key: &str) -> Result<String, String> {
    let good = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        !part.is_empty() && part.chars().all(plain)
    };
    let parts: Vec<&str> = key.split(['.', '/']).collect();
    if parts.len() < 2 || !parts.iter().all(|p| good(p)) {
        return Err(format!("{key:?} is not the name of a sysctl"));
    }
    Ok(parts.join("."))
}

/// Where a key lies below `/proc/sys`; `None` where it is not the name of one.
pub fn path_of(key: &str) -> Option<PathBuf> {
    Some(dotted(key).ok()?.split('.').collect())
}

/// A value in the form in which two of them can be compared.
pub fn normal(key: &str, value: &str) -> String {
    if Rule::of(key) == Rule::Includes
        && let Some(ports) = ports(value.trim())
    {
        return show_ports(&ports);
    }
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The greater of each pair of numbers; `None` where they are not numbers, or not as many.
fn greater(found: &str, wanted: &str) -> Option<String> {
    let numbers = |text: &str| {
        text.split(' ')
            .map(|n| n.parse::<i128>().ok())
            .collect::<Option<Vec<_>>>()
    };
    let (found, wanted) = (numbers(found)?, numbers(wanted)?);
    if found.len() != wanted.len() {
        return None;
    }
    let each = found.iter().zip(&wanted).map(|(f, w)| f.max(w).to_string());
    Some(each.collect::<Vec<_>>().join(" "))
}

/// The range over both.
fn wider(found: &str, wanted: &str) -> Option<String> {
    let range = |text: &str| {
        let (low, high) = text.split_once(' ')?;
        Some((low.parse::<u32>().ok()?, high.parse::<u32>().ok()?))
    };
    let (found, wanted) = (range(found)?, range(wanted)?);
    Some(format!(
        "{} {}",
        found.0.min(wanted.0),
        found.1.max(wanted.1)
    ))
}

/// `7400-7402,9042` as its ports; `None` where it is not such a list.
pub fn ports(text: &str) -> Option<BTreeSet<u32>> {
    let mut all = BTreeSet::new();
    for range in text.split(',').map(str::trim).filter(|r| !r.is_empty()) {
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        let (low, high) = (low.parse::<u32>().ok()?, high.parse::<u32>().ok()?);
        if low > high || high > PORT_MAX {
            return None;
        }
        all.extend(low..=high);
    }
    Some(all)
}

/// As the kernel prints it: neighbours joined.
fn show_ports(ports: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &port in ports {
        match ranges.last_mut() {
            Some((_, high)) if *high + 1 == port => *high = port,
            _ => ranges.push((port, port)),
        }
    }
    let show = |&(low, high): &(u32, u32)| match low == high {
        true => low.to_string(),
        false => format!("{low}-{high}"),
    };
    ranges.iter().map(show).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(key: &str, wanted: &str) -> Setting {
        parse(&format!("{key} = {wanted}")).unwrap().remove(0)
    }

    #[test]
    fn lines_are_read_with_their_reasons() {
        let text = "# Of the file.\n\n# One\n# two. Memory: none.\nnet.core.somaxconn=65535\na.b=1\n; three\n-net/ipv4/tcp_mem =  1\t2 3 \n";
        let mut settings = parse(text).unwrap();
        assert_eq!(settings.len(), 3);
        assert_eq!(settings[1].why, "One two.", "shared");
        settings.remove(1);
        assert_eq!(settings[0].why, "One two.");
        assert_eq!(settings[0].memory, "Memory: none.");
        assert_eq!(settings[1].why, "three");
        assert_eq!(settings[1].key, "net.ipv4.tcp_mem");
        assert_eq!(settings[1].wanted, "1 2 3");
        assert!(settings[1].optional && !settings[0].optional);
    }

    #[test]
    fn what_is_no_sysctl_is_refused_with_its_line() {
        for (text, line) in [
            ("a.b = 1\nnonsense\n", 2),
            ("..etc.passwd = 1\n", 1),
            ("../../etc/passwd = 1\n", 1),
            ("/etc/passwd = 1\n", 1),
            ("a.b =\n", 1),
            ("a.b = 1\na/b = 2\n", 2),
            ("single = 1\n", 1),
        ] {
            assert_eq!(parse(text).unwrap_err().line, line, "{text}");
        }
        assert_eq!(path_of("../x"), None);
        assert_eq!(
            path_of("net.core.somaxconn"),
            Some("net/core/somaxconn".into())
        );
    }

    #[test]
    fn more_than_a_ceiling_is_left_alone() {
        let s = setting("fs.file-max", "2000000");
        assert!(s.satisfied_by("9223372036854775807"));
        assert!(!s.satisfied_by("1999999"));
        let s = setting("net.ipv4.tcp_mem", "10 20 30");
        assert_eq!(s.effective("5 25 30"), "10 25 30");
        assert!(s.satisfied_by("10\t20\t31\n"));
        let s = setting("net.ipv4.tcp_notsent_lowat", "65536");
        assert!(!s.satisfied_by("4294967295"));
    }

    #[test]
    fn ranges_widen_and_lists_keep_what_they_have() {
        let s = setting("net.ipv4.ip_local_port_range", "1024 65535");
        assert_eq!(s.effective("32768\t60999"), "1024 65535");
        assert!(s.satisfied_by("1000\t65535"));
        let s = setting("net.ipv4.ip_local_reserved_ports", "7400-7431,9042");
        assert_eq!(s.effective("22,7432\n"), "22,7400-7432,9042");
        assert_eq!(s.effective("\n"), "7400-7431,9042");
        assert!(s.satisfied_by("7000-7500,9042"));
        assert!(!s.satisfied_by("7000-7430,9042"));
    }
}
