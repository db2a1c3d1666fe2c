//! How many sockets a machine can hold: sums that can be checked by hand. The kernel's part was
//! measured at a million connections (Linux 6.18): a socket with its inode, dentry and file.

use serde::Serialize;

use crate::facts::Facts;

/// Kernel memory of one established, idle connection: tcp_sock 2,520, inode 862, dentry 195,
/// file 195, security module 90.
pub const KERNEL_SOCKET_BYTES: u64 = 3_860;
/// Kernel memory of an armed receive (io_uring): request 256, message header 512, poll entry 96.
pub const RECV_ARMED_BYTES: u64 = 864;
/// Kernel memory of an epoll item, at least.
pub const EPOLL_ITEM_BYTES: u64 = 128;
/// What the edge itself is granted for an idle session: slot, timer entry, names. A budget, on the
/// safe side of what it takes.
pub const EDGE_SESSION_BYTES: u64 = 1_024;
/// Share of the memory that idle connections may take; the rest is for traffic and everybody else.
pub const MEMORY_SHARE_PERCENT: u64 = 80;
/// Share of a ring's descriptor table that is filled: connections do not spread evenly.
pub const RING_FILL_PERCENT: u64 = 85;
/// Descriptors that a process needs besides connections.
pub const FILES_RESERVED: u64 = 256;
/// io_uring instances that one process is ever given.
pub const RINGS_MAX: u64 = 1_024;

/// What bounds the number of connections, one bound each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// The driver that the edge would choose.
    pub driver: &'static str,
    /// Bytes of memory, kernel and process, of one idle connection.
    pub bytes_per_connection: u64,
    pub by_memory: Option<u64>,
    /// By the descriptors of the whole machine.
    pub by_file_max: Option<u64>,
    /// By the descriptors of the process (epoll), or of as many rings as it may have (io_uring).
    pub by_process_files: Option<u64>,
    /// Connections that one ring takes; only with io_uring.
    pub per_ring: Option<u64>,
    /// The least of the bounds.
    pub connections: u64,
}

impl Capacity {
    /// What `facts` amount to.
    pub fn of(facts: &Facts) -> Self {
        let uring = facts.uring.serves();
        let armed = if uring {
            RECV_ARMED_BYTES
        } else {
            EPOLL_ITEM_BYTES
        };
        let bytes_per_connection = KERNEL_SOCKET_BYTES + armed + EDGE_SESSION_BYTES;
        let by_memory = facts
            .memory_available_bytes
            .map(|b| b / 100 * MEMORY_SHARE_PERCENT / bytes_per_connection);
        let by_file_max = facts.file_max.map(|max| {
            max.saturating_sub(facts.files_open.unwrap_or(0))
                .saturating_sub(FILES_RESERVED)
        });
        let soft = facts.files_per_process.map(|(soft, _)| soft);
        let per_ring = soft.filter(|_| uring).map(|n| n / 100 * RING_FILL_PERCENT);
        let by_process_files = match per_ring {
            Some(n) => Some(n.saturating_mul(RINGS_MAX)),
            None => soft.map(|n| n.saturating_sub(FILES_RESERVED)),
        };
        let connections = [by_memory, by_file_max, by_process_files]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(0);
        Self {
            driver: if uring { "uring" } else { "epoll" },
            bytes_per_connection,
            by_memory,
            by_file_max,
            by_process_files,
            per_ring,
            connections,
        }
    }

    /// Rings that `target` connections need; `None` with epoll.
    pub fn rings_for(&self, target: u64) -> Option<u64> {
        let per_ring = self.per_ring.filter(|n| *n > 0)?;
        Some(target.div_ceil(per_ring).max(1))
    }

    /// Memory that `target` idle connections take.
    pub fn memory_for(&self, target: u64) -> u64 {
        target.saturating_mul(self.bytes_per_connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Uring;

    fn machine(uring: bool) -> Facts {
        Facts {
            memory_available_bytes: Some(10 << 30),
            files_per_process: Some((20_000, 20_000)),
            file_max: Some(2_000_000),
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
    fn with_io_uring_the_file_limit_counts_per_ring_and_memory_decides() {
        let capacity = Capacity::of(&machine(true));
        assert_eq!(capacity.bytes_per_connection, 3_860 + 864 + 1_024);
        assert_eq!(capacity.per_ring, Some(17_000));
        assert_eq!(capacity.connections, (10_u64 << 30) / 100 * 80 / 5_748);
        assert_eq!(capacity.rings_for(1_000_000), Some(59));
    }

    #[test]
    fn with_epoll_the_file_limit_of_the_process_decides() {
        let capacity = Capacity::of(&machine(false));
        assert_eq!(capacity.driver, "epoll");
        assert_eq!(capacity.connections, 20_000 - 256);
        assert_eq!(capacity.rings_for(1_000_000), None);
    }

    #[test]
    fn a_machine_that_says_nothing_can_hold_nothing() {
        assert_eq!(Capacity::of(&Facts::default()).connections, 0);
    }
}
