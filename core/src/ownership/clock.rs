//! The clock that leases are measured with: CLOCK_BOOTTIME, which counts the time that the machine
//! was suspended. `Instant` does not, and would let a core that slept believe its lease.

use rustix::time::{ClockId, clock_gettime};

use super::held::BootClock;

/// The kernel's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelClock;

impl BootClock for KernelClock {
    fn now_ns(&self) -> u64 {
        let now = clock_gettime(ClockId::Boottime);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_as_old_as_the_machine_and_goes_on() {
        let uptime = std::fs::read_to_string("/proc/uptime").expect("/proc/uptime");
        let uptime_s: f64 = uptime
            .split_whitespace()
            .next()
            .and_then(|first| first.parse().ok())
            .expect("seconds since the boot");
        let first = KernelClock.now_ns();
        assert!(first as f64 >= uptime_s * 1e9, "{first} after {uptime_s} s");
        assert!(KernelClock.now_ns() >= first);
    }
}
