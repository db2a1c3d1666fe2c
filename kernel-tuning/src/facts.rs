//! What the kernel says about itself. Reading never fails as a whole: a file that is missing or
//! unreadable is a fact too (`None`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::profile::Profile;
use crate::sysctl::{normal, path_of};
use crate::uring::Uring;

/// Bit of CAP_SYS_ADMIN in the sets of capabilities.
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// What a check can ask about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// As in `uname -r`.
    pub kernel: Option<String>,
    pub cpus: usize,
    pub memory_total_bytes: Option<u64>,
    /// What can be had without swapping, within the control group's limit.
    pub memory_available_bytes: Option<u64>,
    pub uring: Uring,
    pub permission: Permission,
    /// Soft and hard RLIMIT_NOFILE.
    pub files_per_process: Option<(u64, u64)>,
    /// Soft and hard RLIMIT_MEMLOCK.
    pub memory_locked_bytes: Option<(u64, u64)>,
    pub nr_open: Option<u64>,
    pub file_max: Option<u64>,
    pub files_open: Option<u64>,
    pub port_range: Option<(u64, u64)>,
    pub conntrack: Option<Conntrack>,
    /// TCP sockets in use.
    pub tcp_sockets: Option<u64>,
    /// Chains of the table of established connections.
    pub established_chains: Option<u64>,
    /// Packets that found a core's queue full, since boot, over all cores.
    pub backlog_drops: Option<u64>,
    /// The keys of the profile, those that exist, in their normal form.
    pub sysctls: BTreeMap<String, String>,
}

/// What decides whether this process may have a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Permission {
    /// The sysctl `kernel.io_uring_disabled`; `None` before Linux 6.6.
    pub disabled: Option<u64>,
    /// The sysctl `kernel.io_uring_group`; -1: no group.
    pub group: Option<i64>,
    /// Whether this process is in that group.
    pub in_group: bool,
    /// Whether this process has CAP_SYS_ADMIN.
    pub admin: bool,
    /// Whether a seccomp filter holds for this process.
    pub seccomp: bool,
}

/// The table of tracked connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Conntrack {
    pub max: u64,
    /// Entries at the moment; none with sockets open means that no rule asks for them.
    pub count: u64,
}

impl Facts {
    /// Asks this machine, for the keys of `profile`.
    pub fn read(profile: &Profile) -> Self {
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            uring: Uring::probe(),
            ..Self::read_files(Path::new("/"), profile)
        }
    }

    /// Only what stands in files, below `root`.
    pub fn read_files(root: &Path, profile: &Profile) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).ok();
        let number = |path: &str| text(path)?.split_whitespace().next()?.parse::<u64>().ok();
        let limits = text("proc/self/limits").unwrap_or_default();
        let memory = text("proc/meminfo").unwrap_or_default();
        let available = meminfo_bytes(&memory, "MemAvailable");
        let group_limit = number("sys/fs/cgroup/memory.max");
        let conntrack = |name: &str| number(&format!("proc/sys/net/netfilter/nf_conntrack_{name}"));
        let sysctl = |key: &str| {
            let path = root.join("proc/sys").join(path_of(key)?);
            Some((key.to_owned(), normal(key, &fs::read_to_string(path).ok()?)))
        };
        Self {
            kernel: text("proc/sys/kernel/osrelease").map(|t| t.trim().to_owned()),
            cpus: 0,
            memory_total_bytes: meminfo_bytes(&memory, "MemTotal"),
            memory_available_bytes: match (available, group_limit) {
                (Some(a), Some(limit)) => {
                    let used = number("sys/fs/cgroup/memory.current").unwrap_or(0);
                    Some(a.min(limit.saturating_sub(used)))
                }
                (available, limit) => available.or(limit),
            },
            uring: Uring::default(),
            permission: Permission::read(
                &text("proc/self/status").unwrap_or_default(),
                number("proc/sys/kernel/io_uring_disabled"),
                text("proc/sys/kernel/io_uring_group").and_then(|t| t.trim().parse().ok()),
            ),
            files_per_process: limit(&limits, "Max open files"),
            memory_locked_bytes: limit(&limits, "Max locked memory"),
            nr_open: number("proc/sys/fs/nr_open"),
            file_max: number("proc/sys/fs/file-max"),
            files_open: number("proc/sys/fs/file-nr"),
            port_range: text("proc/sys/net/ipv4/ip_local_port_range").and_then(|t| {
                let mut ports = t.split_whitespace().map(str::parse);
                Some((ports.next()?.ok()?, ports.next()?.ok()?))
            }),
            conntrack: conntrack("max").map(|max| Conntrack {
                max,
                count: conntrack("count").unwrap_or(0),
            }),
            tcp_sockets: text("proc/net/sockstat").and_then(|t| tcp_in_use(&t)),
            established_chains: number("proc/sys/net/ipv4/tcp_ehash_entries"),
            backlog_drops: text("proc/net/softnet_stat").map(|t| backlog_drops(&t)),
            sysctls: profile
                .settings
                .iter()
                .filter_map(|s| sysctl(&s.key))
                .collect(),
        }
    }

    /// Major and minor number of the kernel.
    pub fn kernel_version(&self) -> Option<(u32, u32)> {
        let mut parts = self.kernel.as_deref()?.split(['.', '-']);
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }

    /// Whether a rule has connections tracked, as far as can be seen from outside.
    pub fn tracks_connections(&self) -> bool {
        self.conntrack.is_some_and(|c| c.count > 0)
    }

    /// The file limit that holds: the edge raises the soft limit to the hard one when it starts.
    pub fn files_limit(&self) -> Option<u64> {
        self.files_per_process.map(|(_, hard)| hard)
    }
}

impl Permission {
    /// From /proc/self/status and the two sysctls.
    fn read(status: &str, disabled: Option<u64>, group: Option<i64>) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name))?;
            line.strip_prefix(':').map(str::trim)
        };
        let groups = ["Gid", "Groups"].into_iter().filter_map(field);
        let in_group = group.is_some_and(|wanted| {
            let mut ids = groups.flat_map(str::split_whitespace);
            wanted >= 0 && ids.any(|id| id.parse() == Ok(wanted))
        });
        let capabilities = field("CapEff").and_then(|c| u64::from_str_radix(c, 16).ok());
        Self {
            disabled,
            group,
            in_group,
            admin: capabilities.is_some_and(|c| c & CAP_SYS_ADMIN != 0),
            seccomp: field("Seccomp").is_some_and(|mode| mode != "0"),
        }
    }

    /// Whether the sysctls let this process have a ring.
    pub fn sysctl_allows(&self) -> bool {
        match self.disabled {
            None | Some(0) => true,
            Some(1) => self.in_group || self.admin,
            Some(_) => false,
        }
    }
}

/// Soft and hard value of a line of /proc/self/limits; `unlimited` is the largest number.
fn limit(limits: &str, name: &str) -> Option<(u64, u64)> {
    let rest = limits.lines().find_map(|l| l.strip_prefix(name))?;
    let mut values = rest.split_whitespace().map(|v| match v {
        "unlimited" => Some(u64::MAX),
        v => v.parse().ok(),
    });
    Some((values.next()??, values.next()??))
}

fn meminfo_bytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The `inuse` of the line `TCP:` in /proc/net/sockstat.
fn tcp_in_use(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|l| l.strip_prefix("TCP:"))?;
    let mut words = line.split_whitespace();
    words.find(|w| *w == "inuse")?;
    words.next()?.parse().ok()
}

/// The second column of /proc/net/softnet_stat, hexadecimal, one line for each core.
fn backlog_drops(softnet: &str) -> u64 {
    let drops = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    softnet.lines().filter_map(drops).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dev() -> Profile {
        Profile::find("dev").unwrap()
    }

    #[test]
    fn limits_and_memory_are_read_as_the_kernel_writes_them() {
        let limits = "Max open files            20000                1048576              files     \n\
                      Max locked memory         8388608              unlimited            bytes     \n";
        assert_eq!(limit(limits, "Max open files"), Some((20_000, 1_048_576)));
        assert_eq!(
            limit(limits, "Max locked memory"),
            Some((8_388_608, u64::MAX))
        );
        assert_eq!(limit(limits, "Max nonsense"), None);
        assert_eq!(
            meminfo_bytes("MemTotal:       1024 kB\n", "MemTotal"),
            Some(1 << 20)
        );
        let sockstat = "sockets: used 23\nTCP: inuse 7 orphan 0 tw 0 alloc 2 mem 0\n";
        assert_eq!(tcp_in_use(sockstat), Some(7));
        let softnet = "0000 0000000a 0\n00001 00000001 0\n";
        assert_eq!(backlog_drops(softnet), 11);
    }

    #[test]
    fn who_may_have_a_ring_is_read_from_status_and_sysctls() {
        let status = "Gid:\t10\t11\t11\t11\nGroups:\t20 30 \nCapEff:\t0000000000000000\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let read = |disabled, group| Permission::read(status, Some(disabled), Some(group));
        assert!(read(0, -1).sysctl_allows());
        assert!(!read(1, -1).sysctl_allows());
        assert!(read(1, 30).sysctl_allows());
        assert!(read(1, 11).sysctl_allows());
        assert!(!read(1, 31).sysctl_allows());
        assert!(!read(2, 30).sysctl_allows());
        assert!(read(0, -1).seccomp);
        let root = Permission::read(
            "CapEff:\t000001ffffffffff\nSeccomp:\t0\n",
            Some(1),
            Some(-1),
        );
        assert!(root.sysctl_allows() && !root.seccomp);
    }

    #[test]
    fn a_machine_without_procfs_is_a_fact_and_no_failure() {
        let facts = Facts::read_files(Path::new("/nonexistent"), &dev());
        assert_eq!(facts, Facts::default());
        assert_eq!(facts.kernel_version(), None);
    }

    #[test]
    fn this_machine_has_a_kernel_and_memory() {
        let facts = Facts::read(&dev());
        assert!(facts.kernel_version().is_some_and(|v| v > (3, 0)));
        assert!(facts.memory_available_bytes.is_some_and(|b| b > 1 << 20));
        assert!(facts.cpus > 0);
        assert!(facts.sysctls.contains_key("net.core.somaxconn"));
    }

    #[test]
    fn kernel_versions_with_suffixes_are_understood() {
        let facts = |text: &str| Facts {
            kernel: Some(text.into()),
            ..Facts::default()
        };
        assert_eq!(facts("6.18.44-custom").kernel_version(), Some((6, 18)));
        assert_eq!(facts("6.1-rc1").kernel_version(), Some((6, 1)));
        assert_eq!(facts("nonsense").kernel_version(), None);
    }
}
