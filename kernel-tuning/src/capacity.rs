//! How many sessions a machine can hold: sums that can be checked by hand. The kernel's part was
//! measured at a million connections (Linux 6.18): a socket with its inode, dentry and file.

use serde::Serialize;

use crate::facts::Facts;

/// Kernel memory of one established, idle connection: tcp_sock 2,520, inode 862, dentry 195,
/// file 195, security module 90.
pub const KERNEL_SOCKET_BYTES: u64 = 3_860;
/// Kernel memory of an armed multishot receive: request 256, message header 512, poll entry 96.
pub const RECV_ARMED_BYTES: u64 = 864;
/// Kernel memory of an armed multishot poll: a request.
pub const POLL_ARMED_BYTES: u64 = 256;
/// Kernel memory of an epoll item, at least.
pub const EPOLL_ITEM_BYTES: u64 = 128;
/// What the edge is granted for an idle session: slots, timer entry, names. A budget.
pub const EDGE_SESSION_BYTES: u64 = 128;
/// What the core is granted for an idle session: its entry in the registry, its user. A budget.
pub const CORE_SESSION_BYTES: u64 = 128;
/// A generator's own memory for a connection. A budget.
pub const GENERATOR_SESSION_BYTES: u64 = 64;
/// Kernel memory of a tracked connection: entry 256, extensions up to 128.
pub const CONNTRACK_BYTES: u64 = 384;
/// Share of the memory that idle connections may take; the rest is for traffic and everybody else.
pub const MEMORY_SHARE_PERCENT: u64 = 80;
/// Share of a ring's descriptor table that is filled where there are several rings: connections do
/// not spread evenly.
pub const RING_FILL_PERCENT: u64 = 85;
/// Share of the table of a shard's only ring: accepting stops at 95 %.
pub const RING_ALONE_PERCENT: u64 = 94;
/// Descriptors that a process needs besides connections.
pub const FILES_RESERVED: u64 = 256;
/// io_uring instances that one process is ever given.
pub const RINGS_MAX: u64 = 1_024;

/// One way to wait for bytes on an idle connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mode {
    pub name: &'static str,
    /// Bytes of memory, kernel and processes, of one idle connection.
    pub bytes_per_connection: u64,
    pub by_memory: Option<u64>,
    /// By the descriptors of the process (epoll), or of as many rings as it may have (io_uring).
    pub by_process_files: Option<u64>,
    /// The least of the bounds.
    pub connections: u64,
    /// Which one that is.
    pub limit: &'static str,
}

/// What bounds the number of connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// The driver that the edge would choose.
    pub driver: &'static str,
    /// Ends of each connection on this machine: 2 with a load generator.
    pub ends: u64,
    /// By the descriptors of the whole machine.
    pub by_file_max: Option<u64>,
    /// By the table of tracked connections, where a rule uses it.
    pub by_conntrack: Option<u64>,
    /// Connections that one ring takes where there are several; only with io_uring.
    pub per_ring: Option<u64>,
    /// The modes, what the edge does by default first.
    pub modes: Vec<Mode>,
    #[serde(skip)]
    shards: u64,
    #[serde(skip)]
    files_limit: Option<u64>,
}

impl Capacity {
    /// What `facts` amount to, without or with a load generator on the same machine.
    pub fn of(facts: &Facts, generator: bool) -> Self {
        let uring = facts.uring.serves();
        let ends = if generator { 2 } else { 1 };
        let files_limit = facts.files_limit();
        let per_ring = files_limit
            .filter(|_| uring)
            .map(|n| n / 100 * RING_FILL_PERCENT);
        let mut capacity = Self {
            driver: if uring { "uring" } else { "epoll" },
            ends,
            by_file_max: facts.file_max.map(|max| {
                max.saturating_sub(facts.files_open.unwrap_or(0))
                    .saturating_sub(FILES_RESERVED)
                    / ends
            }),
            by_conntrack: facts
                .conntrack
                .filter(|_| facts.tracks_connections())
                .map(|c| c.max),
            per_ring,
            modes: Vec::new(),
            shards: facts.cpus.max(1) as u64,
            files_limit,
        };
        let armed: &[(&'static str, u64)] = if uring {
            &[
                ("multishot receive", RECV_ARMED_BYTES),
                ("multishot poll", POLL_ARMED_BYTES),
            ]
        } else {
            &[("epoll", EPOLL_ITEM_BYTES)]
        };
        capacity.modes = armed
            .iter()
            .map(|&(name, armed)| capacity.mode(facts, name, armed))
            .collect();
        capacity
    }

    fn mode(&self, facts: &Facts, name: &'static str, armed: u64) -> Mode {
        let tracked = if facts.tracks_connections() {
            CONNTRACK_BYTES
        } else {
            0
        };
        let bytes = self.ends * (KERNEL_SOCKET_BYTES + armed)
            + EDGE_SESSION_BYTES
            + CORE_SESSION_BYTES
            + (self.ends - 1) * GENERATOR_SESSION_BYTES
            + tracked;
        let by_memory = facts
            .memory_available_bytes
            .map(|b| b / 100 * MEMORY_SHARE_PERCENT / bytes);
        let by_process_files = match self.per_ring {
            Some(n) => Some(n.saturating_mul(RINGS_MAX)),
            None => self.files_limit.map(|n| n.saturating_sub(FILES_RESERVED)),
        };
        let bounds = [
            ("memory", by_memory),
            ("fs.file-max", self.by_file_max),
            ("RLIMIT_NOFILE", by_process_files),
            ("nf_conntrack_max", self.by_conntrack),
        ];
        let (limit, connections) = bounds
            .into_iter()
            .filter_map(|(name, n)| Some((name, n?)))
            .min_by_key(|(_, n)| *n)
            .unwrap_or(("nothing is known", 0));
        Mode {
            name,
            bytes_per_connection: bytes,
            by_memory,
            by_process_files,
            connections,
            limit,
        }
    }

    /// What the edge does by default.
    pub fn usual(&self) -> &Mode {
        &self.modes[0]
    }

    /// Rings that `target` connections need, as the edge counts them with `connections_max`: for each
    /// shard one, or as many as its share needs; `None` with epoll.
    pub fn rings_for(&self, target: u64) -> Option<u64> {
        let per_ring = self.per_ring.filter(|n| *n > 0)?;
        // A shard may get somewhat more than its share.
        let share = target.div_ceil(self.shards) / 8 * 9 + 64;
        let alone = self.files_limit? / 100 * RING_ALONE_PERCENT;
        let rings = if share < alone {
            1
        } else {
            share.div_ceil(per_ring)
        };
        Some(self.shards * rings)
    }

    /// Memory that `target` idle connections take.
    pub fn memory_for(&self, target: u64) -> u64 {
        target.saturating_mul(self.usual().bytes_per_connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Conntrack;
    use crate::uring::Uring;

    fn machine(uring: bool) -> Facts {
        Facts {
            cpus: 2,
            memory_available_bytes: Some(10 << 30),
            files_per_process: Some((1_024, 20_000)),
            file_max: Some(4_000_000),
            files_open: Some(1_000),
            uring: Uring {
                usable: uring,
                direct_descriptors: uring,
                ..Uring::default()
            },
            ..Facts::default()
        }
    }

    #[test]
    fn with_io_uring_the_hard_file_limit_counts_per_ring_and_memory_decides() {
        let capacity = Capacity::of(&machine(true), false);
        let usual = capacity.usual();
        assert_eq!(usual.bytes_per_connection, 3_860 + 864 + 128 + 128);
        assert_eq!(usual.connections, (10_u64 << 30) / 100 * 80 / 4_980);
        assert_eq!(usual.limit, "memory");
        let low = &capacity.modes[1];
        assert_eq!(low.bytes_per_connection, 3_860 + 256 + 128 + 128);
        assert!(low.connections > usual.connections);
        assert_eq!(capacity.per_ring, Some(17_000));
        assert_eq!(capacity.rings_for(10_000), Some(2), "one for each shard");
        // 562,564 for each shard: 34 rings.
        assert_eq!(capacity.rings_for(1_000_000), Some(68));
    }

    #[test]
    fn a_generator_here_has_the_other_end_of_everything() {
        let capacity = Capacity::of(&machine(true), true);
        let usual = capacity.usual();
        assert_eq!(usual.bytes_per_connection, 2 * (3_860 + 864) + 256 + 64);
        assert_eq!(capacity.by_file_max, Some((4_000_000 - 1_256) / 2));
    }

    #[test]
    fn a_rule_that_tracks_costs_memory_and_caps() {
        let mut facts = machine(true);
        facts.conntrack = Some(Conntrack {
            max: 262_144,
            count: 0,
        });
        assert_eq!(Capacity::of(&facts, false).by_conntrack, None);
        facts.conntrack = Some(Conntrack {
            max: 262_144,
            count: 1,
        });
        let capacity = Capacity::of(&facts, false);
        assert_eq!(capacity.usual().limit, "nf_conntrack_max");
        assert_eq!(capacity.usual().connections, 262_144);
        assert_eq!(capacity.usual().bytes_per_connection, 4_980 + 384);
    }

    #[test]
    fn with_epoll_the_file_limit_of_the_process_decides() {
        let capacity = Capacity::of(&machine(false), false);
        assert_eq!(capacity.driver, "epoll");
        assert_eq!(capacity.usual().connections, 20_000 - 256);
        assert_eq!(capacity.usual().limit, "RLIMIT_NOFILE");
        assert_eq!(capacity.rings_for(1_000_000), None);
    }

    #[test]
    fn a_machine_that_says_nothing_can_hold_nothing() {
        let capacity = Capacity::of(&Facts::default(), false);
        assert_eq!(capacity.usual().connections, 0);
    }
}
