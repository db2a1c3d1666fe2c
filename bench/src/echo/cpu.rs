//! CPU time of processes and threads in ns, from the scheduler's own counts
//! (`/proc/PID/task/TID/schedstat`; kernel documentation, "Scheduler Statistics").

use std::collections::BTreeMap;
use std::time::Duration;

/// CPU time of a process so far, thread by thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuSample {
    by_thread_ns: BTreeMap<u32, u64>,
    /// User and system time of the whole process, those of threads that have ended included; in
    /// steps of 10 ms.
    process: Duration,
}

impl CpuSample {
    /// Of a process; none if it is not there.
    pub fn of(pid: u32) -> Option<Self> {
        let process = crate::probe::cpu_of(pid)?;
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let by_thread_ns = threads
            .filter_map(|entry| {
                let thread = entry.ok()?.file_name().to_str()?.parse().ok()?;
                Some((thread, of_thread(pid, thread)?))
            })
            .collect();
        Some(Self {
            by_thread_ns,
            process,
        })
    }

    /// What was used since `before`. When a thread has ended meanwhile its time is known only in the
    /// coarse count, which is then taken.
    pub fn since(&self, before: &Self) -> Duration {
        let threads = &before.by_thread_ns;
        let all_there = threads.keys().all(|t| self.by_thread_ns.contains_key(t));
        if all_there && !threads.is_empty() {
            let sum = |sample: &Self| sample.by_thread_ns.values().sum::<u64>();
            return Duration::from_nanos(sum(self).saturating_sub(sum(before)));
        }
        self.process.saturating_sub(before.process)
    }
}

/// Of one thread in ns.
pub fn of_thread(pid: u32, thread: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// The calling thread's number.
pub fn this_thread() -> Option<u32> {
    let link = std::fs::read_link("/proc/thread-self").ok()?;
    link.file_name()?.to_str()?.parse().ok()
}

/// Of several processes together; none if one is gone, or if there are none.
pub fn sample(pids: &[u32]) -> Option<Vec<CpuSample>> {
    let samples: Option<Vec<_>> = pids.iter().map(|&pid| CpuSample::of(pid)).collect();
    samples.filter(|samples| !samples.is_empty())
}

/// What they used between two samples.
pub fn between(
    before: &Option<Vec<CpuSample>>,
    after: &Option<Vec<CpuSample>>,
) -> Option<Duration> {
    let (before, after) = (before.as_ref()?, after.as_ref()?);
    Some(after.iter().zip(before).map(|(a, b)| a.since(b)).sum())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_shows_where_it_was_done() {
        let pid = std::process::id();
        let thread = this_thread().unwrap();
        let (before, own) = (CpuSample::of(pid).unwrap(), of_thread(pid, thread).unwrap());
        let begin = Instant::now();
        // Until the scheduler has counted it: the count of a running thread moves with the tick.
        while of_thread(pid, thread).unwrap() < own + 20_000_000 {
            assert!(
                begin.elapsed() < Duration::from_secs(30),
                "no CPU time is counted"
            );
        }
        let used = CpuSample::of(pid).unwrap().since(&before);
        assert!(used >= Duration::from_millis(20), "{used:?}");
        assert!(sample(&[u32::MAX]).is_none());
    }

    #[test]
    fn an_ended_thread_leaves_the_coarse_count() {
        let sample = |threads: &[(u32, u64)], ms| CpuSample {
            by_thread_ns: threads.iter().copied().collect(),
            process: Duration::from_millis(ms),
        };
        let before = sample(&[(1, 100), (2, 500)], 10);
        let after = sample(&[(1, 150), (2, 700), (3, 7)], 90);
        assert_eq!(after.since(&before), Duration::from_nanos(257));
        let after = sample(&[(1, 150)], 90);
        assert_eq!(after.since(&before), Duration::from_millis(80));
    }
}
