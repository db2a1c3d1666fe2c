//! The profiles, compiled into the binary: what a machine for so many connections should be like.
//! A profile is a folder of files that can also be installed by hand; here they are read.

use std::fs;
use std::path::Path;

use crate::sysctl::{self, ParseError, Setting};

/// The files of one profile.
#[derive(Clone, Copy, Debug)]
pub struct BuiltIn {
    pub name: &'static str,
    /// Connections that it is made for.
    pub connections: u64,
    /// For /etc/sysctl.d.
    pub sysctl: &'static str,
    /// For /etc/security/limits.d.
    pub limits: &'static str,
    /// A drop-in for the units.
    pub systemd: &'static str,
}

macro_rules! built_in {
    ($name:literal, $connections:literal) => {
        BuiltIn {
            name: $name,
            connections: $connections,
            sysctl: include_str!(concat!("../profiles/", $name, "/sysctl.conf")),
            limits: include_str!(concat!("../profiles/", $name, "/limits.conf")),
            systemd: include_str!(concat!("../profiles/", $name, "/systemd.conf")),
        }
    };
}

/// All profiles, the smallest first.
pub const BUILT_IN: [BuiltIn; 4] = [
    built_in!("dev", 10_000),
    built_in!("100k", 100_000),
    built_in!("1m", 1_000_000),
    built_in!("2m", 2_000_000),
];

/// Units for systemd, for each role.
pub const UNITS: [(&str, &str); 3] = [
    ("serve", include_str!("../units/trunkline.service")),
    ("edge", include_str!("../units/trunkline-edge.service")),
    ("core", include_str!("../units/trunkline-core.service")),
];

/// What containers may call, for Docker, containerd and Kubernetes.
pub const SECCOMP: &str = include_str!("../seccomp/edge.json");

/// What is to be held against the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// A built-in name, or the path of a file.
    pub name: String,
    /// Connections that it is made for; `None` for a file of one's own.
    pub connections: Option<u64>,
    /// The sysctl.d file as written.
    pub text: String,
    pub settings: Vec<Setting>,
    /// Wanted RLIMIT_NOFILE.
    pub nofile: Option<u64>,
}

/// Why there is no such profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error(
        "there is no profile {0:?}: the profiles are dev, 100k, 1m and 2m; a file of your own is named by its path, for example ./my.conf"
    )]
    Unknown(String),
    #[error("cannot read {path}: {error}")]
    Read {
        path: String,
        #[source]
        error: std::io::Error,
    },
    #[error("{path}, {error}")]
    Line {
        path: String,
        #[source]
        error: ParseError,
    },
}

impl Profile {
    /// A built-in profile by its name, or the sysctl.d file at a path (with a `/` in it).
    pub fn find(name: &str) -> Result<Self, ProfileError> {
        if name.contains('/') {
            return Self::read(name);
        }
        let built_in = BUILT_IN
            .iter()
            .find(|p| p.name.eq_ignore_ascii_case(name))
            .ok_or_else(|| ProfileError::Unknown(name.to_owned()))?;
        Self::built_in(built_in)
    }

    /// The smallest profile for so many connections, or the largest that there is.
    pub fn for_connections(connections: u64) -> Result<Self, ProfileError> {
        let fits = BUILT_IN.iter().find(|p| p.connections >= connections);
        Self::built_in(fits.unwrap_or(&BUILT_IN[BUILT_IN.len() - 1]))
    }

    fn built_in(built_in: &BuiltIn) -> Result<Self, ProfileError> {
        Ok(Self {
            connections: Some(built_in.connections),
            nofile: limit(built_in.limits, "nofile"),
            ..Self::parse(built_in.name, built_in.sysctl)?
        })
    }

    fn read(path: &str) -> Result<Self, ProfileError> {
        let error = |error| ProfileError::Read {
            path: path.to_owned(),
            error,
        };
        let text = fs::read_to_string(path).map_err(error)?;
        // The name goes into the state: it must mean the same file from every directory.
        let whole = fs::canonicalize(Path::new(path)).map_err(error)?;
        Self::parse(&whole.to_string_lossy(), &text)
    }

    fn parse(name: &str, text: &str) -> Result<Self, ProfileError> {
        let settings = sysctl::parse(text).map_err(|error| ProfileError::Line {
            path: name.to_owned(),
            error,
        })?;
        Ok(Self {
            name: name.to_owned(),
            connections: None,
            text: text.to_owned(),
            settings,
            nofile: None,
        })
    }
}

/// The hard limit that a limits.d file names.
fn limit(limits: &str, item: &str) -> Option<u64> {
    limits.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [_, "hard", name, value] if name == item => value.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_targets_get_the_smallest_that_fits() {
        assert_eq!(Profile::find("1M").unwrap().name, "1m");
        for (connections, name) in [
            (1, "dev"),
            (10_000, "dev"),
            (10_001, "100k"),
            (100_001, "1m"),
            (1_000_001, "2m"),
            (50_000_000, "2m"),
        ] {
            assert_eq!(Profile::for_connections(connections).unwrap().name, name);
        }
        let error = Profile::find("3m").unwrap_err().to_string();
        assert!(error.contains("dev, 100k, 1m and 2m"), "{error}");
    }

    #[test]
    fn every_line_of_every_profile_has_a_reason() {
        for built_in in &BUILT_IN {
            let profile = Profile::built_in(built_in).unwrap();
            assert!(!profile.settings.is_empty());
            for setting in &profile.settings {
                let name = format!("{}: {}", profile.name, setting.key);
                assert!(setting.why.len() > 40, "{name}");
            }
        }
    }

    #[test]
    fn a_profile_is_enough_for_the_connections_in_its_name() {
        for built_in in &BUILT_IN {
            let profile = Profile::built_in(built_in).unwrap();
            let value = |key: &str| {
                let setting = profile.settings.iter().find(|s| s.key == key)?;
                setting.wanted.split(' ').next_back()?.parse::<u64>().ok()
            };
            let connections = built_in.connections;
            // The kernel's own defaults where a profile says nothing.
            let nr_open = value("fs.nr_open").unwrap_or(1 << 20);
            let nofile = profile.nofile.unwrap();
            assert!(nofile <= nr_open, "{}", profile.name);
            // One ring, or epoll: the edge asks for 100/94 of what it is to hold.
            assert!(nofile > connections * 100 / 94, "{}", profile.name);
            if let Some(max) = value("fs.file-max") {
                assert!(max >= 2 * connections, "both ends: {}", profile.name);
            }
            if let Some(max) = value("net.netfilter.nf_conntrack_max") {
                assert!(max >= connections + connections / 5, "{}", profile.name);
            }
            if let Some(pages) = value("net.ipv4.tcp_mem") {
                assert!(pages >= connections, "{}", profile.name);
            }
            let wanted = format!("LimitNOFILE={nofile}");
            assert!(built_in.systemd.lines().any(|l| l == wanted), "{wanted}");
        }
    }

    /// `1,234` and `5.7` as numbers.
    fn number(text: &str) -> f64 {
        text.replace(',', "").parse().unwrap()
    }

    #[test]
    fn the_sums_in_the_reasons_are_right_and_of_the_line_below_them() {
        let mut sums = 0;
        for built_in in &BUILT_IN {
            let profile = Profile::built_in(built_in).unwrap();
            for setting in &profile.settings {
                let words: Vec<&str> = setting.memory.split_whitespace().collect();
                // COUNT x SIZE bytes … = TOTAL UNIT
                for at in
                    (1..words.len()).filter(|&at| words[at] == "x" && words[at + 2] == "bytes")
                {
                    let (count, size) = (number(words[at - 1]), number(words[at + 1]));
                    let equals = at + words[at..].iter().position(|w| *w == "=").unwrap();
                    let total = number(words[equals + 1]);
                    let unit = match words[equals + 2].trim_end_matches(['.', ',', ';']) {
                        "MiB" => f64::from(1 << 20),
                        "GiB" => f64::from(1 << 30),
                        unit => panic!("{unit}"),
                    };
                    let name = format!("{}: {}: {total}", profile.name, setting.key);
                    let off = (count * size / unit - total).abs();
                    // Written without decimals, or with one.
                    assert!(
                        off <= if total.fract() == 0.0 { 0.5 } else { 0.05 },
                        "{name}"
                    );
                    let values = setting.wanted.split(' ').map(|v| v.parse::<f64>().ok());
                    let nofile = profile.nofile.map(|n| n as f64);
                    assert!(values.chain([nofile]).any(|v| v == Some(count)), "{name}");
                    sums += 1;
                }
            }
        }
        assert!(sums > 15, "{sums} sums found");
    }

    #[test]
    fn a_file_of_ones_own_is_named_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("my.conf");
        fs::write(&path, "# Mine.\nnet.core.somaxconn = 5\n").unwrap();
        let profile = Profile::find(path.to_str().unwrap()).unwrap();
        assert_eq!(profile.settings.len(), 1);
        fs::write(&path, "nonsense\n").unwrap();
        let error = Profile::find(path.to_str().unwrap()).unwrap_err();
        assert!(error.to_string().contains("line 1"), "{error}");
    }
}
