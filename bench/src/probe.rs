//! What Linux tells about processes and about its own memory: CPU time, resident memory, slabs,
//! sockets. Everything from `/proc`; what cannot be read is `None`, never zero.

use std::collections::BTreeMap;
use std::time::Duration;

/// Clock ticks per second of `/proc/PID/stat`: fixed at 100 on Linux for user space.
const TICKS_PER_SECOND: u64 = 100;
/// Bytes of a page, as `/proc/net/sockstat` counts them: that of every platform we build for.
const PAGE_BYTES: u64 = 4_096;

/// CPU time of a process. In ns, over the threads that live; where the kernel does not tell that, user
/// and system time in clock ticks (proc(5), fields 14 and 15 of `stat`).
pub fn cpu_of(pid: u32) -> Option<Duration> {
    match threads_of(pid).values().sum() {
        0 => cpu_by_ticks(pid),
        ns => Some(Duration::from_nanos(ns)),
    }
}

fn cpu_by_ticks(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis(
        (user + system) * 1000 / TICKS_PER_SECOND,
    ))
}

/// CPU time of a process's living threads by their names; threads of one name are one entry. In ns,
/// from `schedstat` (its first field).
pub fn threads_of(pid: u32) -> BTreeMap<String, u64> {
    let mut times = BTreeMap::new();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    for task in tasks.into_iter().flatten().flatten() {
        let read = |file| std::fs::read_to_string(task.path().join(file)).ok();
        let spent =
            read("schedstat").and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        if let (Some(name), Some(spent)) = (read("comm"), spent) {
            *times.entry(name.trim().to_owned()).or_default() += spent;
        }
    }
    times
}

/// Resident set of a process in bytes.
pub fn resident_of(pid: u32) -> Option<u64> {
    kib_of(&format!("/proc/{pid}/status"), "VmRSS")
}

/// Anonymous memory of a process in bytes: its share of pages that no file backs.
pub fn anonymous_of(pid: u32) -> Option<u64> {
    kib_of(&format!("/proc/{pid}/smaps_rollup"), "Pss_Anon")
}

fn kib_of(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = value.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Memory that the kernel holds for everybody on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelMemory {
    /// Slabs: sockets, file objects, requests that io_uring has armed.
    pub slab_bytes: u64,
    /// Pages in the buffers of TCP sockets.
    pub socket_buffer_bytes: u64,
    /// TCP sockets that are in use, and those in TIME_WAIT.
    pub sockets: u64,
    pub time_wait: u64,
    /// What programs could still have.
    pub available_bytes: u64,
}

/// What the kernel holds now.
pub fn kernel_memory() -> Option<KernelMemory> {
    let sockstat = std::fs::read_to_string("/proc/net/sockstat").ok()?;
    let tcp = sockstat.lines().find(|line| line.starts_with("TCP:"))?;
    let number = |name: &str| -> Option<u64> {
        let mut words = tcp.split_whitespace();
        words.find(|&word| word == name)?;
        words.next()?.parse().ok()
    };
    Some(KernelMemory {
        slab_bytes: kib_of("/proc/meminfo", "Slab")?,
        socket_buffer_bytes: number("mem")? * PAGE_BYTES,
        sockets: number("inuse")?,
        time_wait: number("tw")?,
        available_bytes: kib_of("/proc/meminfo", "MemAvailable")?,
    })
}

/// The kernel's range of ports for outgoing connections, both ends included.
pub fn port_range() -> Option<(u32, u32)> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = text.split_whitespace().map(str::parse);
    Some((ends.next()?.ok()?, ends.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_can_be_looked_at() {
        let me = std::process::id();
        assert!(cpu_of(me).unwrap() > Duration::ZERO);
        assert!(cpu_by_ticks(me).is_some());
        assert_eq!(cpu_of(u32::MAX), None);
        assert!(resident_of(me).unwrap() > 1 << 20);
        assert!(anonymous_of(me).unwrap() > 1 << 12);
        assert!(threads_of(me).values().sum::<u64>() > 0);
        assert_eq!(resident_of(u32::MAX), None);
    }

    #[test]
    fn the_kernel_tells_of_itself() {
        let memory = kernel_memory().unwrap();
        assert!(memory.slab_bytes > 1 << 20, "{memory:?}");
        let (low, high) = port_range().unwrap();
        assert!(low < high && high < 65_536);
    }
}
