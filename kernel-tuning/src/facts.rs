//! What the kernel says about itself. Reading never fails as a whole: a file that is missing or
//! unreadable is a fact too (`None`).

use std::fs;
use std::path::Path;

use io_uring::{IoUring, Probe, opcode};
use serde::Serialize;

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
    /// The sysctl `kernel.io_uring_disabled`; `None` before Linux 6.6.
    pub io_uring_disabled: Option<u64>,
    /// Soft and hard RLIMIT_NOFILE.
    pub files_per_process: Option<(u64, u64)>,
    /// Soft and hard RLIMIT_MEMLOCK.
    pub memory_locked_bytes: Option<(u64, u64)>,
    pub nr_open: Option<u64>,
    pub file_max: Option<u64>,
    pub files_open: Option<u64>,
    pub port_range: Option<(u64, u64)>,
    /// As written: `7400-7431,9042`.
    pub ports_reserved: String,
    pub somaxconn: Option<u64>,
    pub syn_backlog: Option<u64>,
    /// `None`: connections are not tracked.
    pub conntrack_max: Option<u64>,
}

/// Whether io_uring can be used, and if not, why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Uring {
    /// A ring was created, with the flags that the edge wants.
    pub usable: bool,
    /// The kernel's refusal.
    pub error: Option<String>,
    /// EPERM: a seccomp filter or the sysctl.
    pub forbidden: bool,
    /// Needed operations that this kernel does not have.
    pub missing: Vec<&'static str>,
    /// Direct descriptors can be registered.
    pub direct_descriptors: bool,
}

/// Operations without which the io_uring driver cannot run, and the Linux that brought the newest
/// form in use: multishot receive, 6.0; zero-setup multishot accept into direct descriptors, 5.19.
const OPERATIONS: &[(&str, u8)] = &[
    ("ACCEPT", opcode::Accept::CODE),
    ("CONNECT", opcode::Connect::CODE),
    ("RECV", opcode::Recv::CODE),
    ("SEND", opcode::Send::CODE),
    ("POLL_ADD", opcode::PollAdd::CODE),
    ("POLL_REMOVE", opcode::PollRemove::CODE),
    ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ("SHUTDOWN", opcode::Shutdown::CODE),
    ("CLOSE", opcode::Close::CODE),
    ("SOCKET", opcode::Socket::CODE),
    ("FILES_UPDATE", opcode::FilesUpdate::CODE),
    // Not used as such: it came with Linux 6.0, as multishot receive did, which has no code of its own.
    ("SEND_ZC", opcode::SendZc::CODE),
];

impl Facts {
    /// Asks this machine.
    pub fn read() -> Self {
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            uring: Uring::probe(),
            ..Self::read_files(Path::new("/"))
        }
    }

    /// Only what stands in files, below `root`.
    pub fn read_files(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).ok();
        let number = |path: &str| text(path)?.split_whitespace().next()?.parse::<u64>().ok();
        let limits = text("proc/self/limits").unwrap_or_default();
        let memory = text("proc/meminfo").unwrap_or_default();
        let available = meminfo_bytes(&memory, "MemAvailable");
        let group_limit = number("sys/fs/cgroup/memory.max");
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
            io_uring_disabled: number("proc/sys/kernel/io_uring_disabled"),
            files_per_process: limit(&limits, "Max open files"),
            memory_locked_bytes: limit(&limits, "Max locked memory"),
            nr_open: number("proc/sys/fs/nr_open"),
            file_max: number("proc/sys/fs/file-max"),
            files_open: number("proc/sys/fs/file-nr"),
            port_range: text("proc/sys/net/ipv4/ip_local_port_range").and_then(|t| {
                let mut ports = t.split_whitespace().map(str::parse);
                Some((ports.next()?.ok()?, ports.next()?.ok()?))
            }),
            ports_reserved: text("proc/sys/net/ipv4/ip_local_reserved_ports")
                .map(|t| t.trim().to_owned())
                .unwrap_or_default(),
            somaxconn: number("proc/sys/net/core/somaxconn"),
            syn_backlog: number("proc/sys/net/ipv4/tcp_max_syn_backlog"),
            conntrack_max: number("proc/sys/net/netfilter/nf_conntrack_max"),
        }
    }

    /// Major and minor number of the kernel.
    pub fn kernel_version(&self) -> Option<(u32, u32)> {
        let mut parts = self.kernel.as_deref()?.split(['.', '-']);
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

impl Uring {
    /// Creates a small ring as the edge does, and asks it.
    fn probe() -> Self {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_no_sqarray()
            .setup_submit_all()
            .build(8);
        let ring: IoUring = match ring {
            Ok(ring) => ring,
            Err(e) => {
                return Self {
                    error: Some(e.to_string()),
                    forbidden: e.kind() == std::io::ErrorKind::PermissionDenied,
                    ..Self::default()
                };
            }
        };
        let mut probe = Probe::new();
        let missing = match ring.submitter().register_probe(&mut probe) {
            Ok(()) => OPERATIONS
                .iter()
                .filter(|(_, code)| !probe.is_supported(*code))
                .map(|(name, _)| *name)
                .collect(),
            Err(_) => OPERATIONS.iter().map(|(name, _)| *name).collect(),
        };
        Self {
            usable: true,
            error: None,
            forbidden: false,
            missing,
            direct_descriptors: ring.submitter().register_files_sparse(64).is_ok(),
        }
    }

    /// Whether the edge's io_uring driver can run.
    pub fn serves(&self) -> bool {
        self.usable && self.missing.is_empty() && self.direct_descriptors
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

#[cfg(test)]
mod tests {
    use super::*;

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
    }

    #[test]
    fn a_machine_without_procfs_is_a_fact_and_no_failure() {
        let facts = Facts::read_files(Path::new("/nonexistent"));
        assert_eq!(facts, Facts::default());
        assert_eq!(facts.kernel_version(), None);
    }

    #[test]
    fn this_machine_has_a_kernel_and_memory() {
        let facts = Facts::read();
        assert!(facts.kernel_version().is_some_and(|v| v > (3, 0)));
        assert!(facts.memory_available_bytes.is_some_and(|b| b > 1 << 20));
        assert!(facts.cpus > 0);
    }

    #[test]
    fn kernel_versions_with_suffixes_are_understood() {
        let facts = |text: &str| Facts {
            kernel: Some(text.into()),
            ..Facts::default()
        };
        assert_eq!(facts("6.18.44-fc-v657").kernel_version(), Some((6, 18)));
        assert_eq!(facts("6.1-rc1").kernel_version(), Some((6, 1)));
        assert_eq!(facts("nonsense").kernel_version(), None);
    }
}
