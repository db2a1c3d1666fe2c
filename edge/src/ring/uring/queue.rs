//! One io_uring as a queue of requests and a queue of completions, with the accounting around
//! `io_uring_enter`. Knows nothing about connections.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, squeue, types};

use super::buffers::BufferRing;
use crate::ring::DriverStats;

/// `IORING_ENTER_GETEVENTS`: run deferred task work. Without it nothing completes.
const GETEVENTS: u32 = 1;
/// `IORING_ENTER_EXT_ARG`: the argument carries a timeout.
const EXT_ARG: u32 = 8;
/// `IORING_ENTER_NO_IOWAIT` (6.15): a wait counts as idle in the host's statistics, not as waiting
/// for a disk.
const NO_IOWAIT: u32 = 1 << 7;

/// What an enter that also waited is charged as work, at most: the rest was waiting. A send on a
/// warm socket takes 3.3 µs.
const ENTER_WORK_NS: u64 = 4_000;
const ENTRY_WORK_NS: u64 = 5_000;

/// A completion, copied out of the ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) user_data: u64,
    pub(super) result: i32,
    pub(super) flags: u32,
}

/// A ring with its receive buffers. Field order is drop order: the ring goes before its buffers.
pub(super) struct Queue {
    ring: IoUring,
    pub(super) buffers: BufferRing,
    /// Requests for which the submission queue had no room though the kernel was asked to take some.
    /// Bounded by what the connections of the table can have under way.
    spill: VecDeque<squeue::Entry>,
    /// Completions taken from the ring and not handled yet.
    inbox: Vec<Completion>,
    /// The kernel's own count of completions it had to drop.
    dropped: u32,
    /// Flags of an enter that waits.
    wait_flags: u32,
}

impl Queue {
    /// Takes over a ring in the disabled state and enables it for the calling thread.
    pub(super) fn new(mut ring: IoUring, mut buffers: BufferRing) -> io::Result<Self> {
        buffers.register(&ring)?;
        ring.submitter().register_enable_rings()?;
        let capacity = ring.completion().capacity();
        let no_iowait = if ring.params().is_feature_no_iowait() {
            NO_IOWAIT
        } else {
            0
        };
        Ok(Self {
            ring,
            buffers,
            spill: VecDeque::new(),
            inbox: Vec::with_capacity(capacity),
            dropped: 0,
            wait_flags: GETEVENTS | EXT_ARG | no_iowait,
        })
    }

    /// Queues a request; it reaches the kernel with the next enter, or now if the queue is full.
    /// What it points to must stay until then (or longer, where the request demands it).
    pub(super) fn push(&mut self, entry: squeue::Entry, stats: &mut DriverStats) {
        if self.spill.is_empty() {
            if self.try_push(&entry) {
                return;
            }
            // An error shows again at the turn's own enter, which reports it.
            let _ = self.enter_once(0, None, stats);
            if self.try_push(&entry) {
                return;
            }
        }
        self.spill.push_back(entry);
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: whoever built the entry keeps what it points to, as `push` demands.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Is everything pushed with the kernel?
    pub(super) fn all_submitted(&mut self) -> bool {
        self.spill.is_empty() && self.ring.submission().is_empty()
    }

    /// Is there anything to do without waiting?
    pub(super) fn has_work(&mut self) -> bool {
        if !self.inbox.is_empty() || !self.spill.is_empty() {
            return true;
        }
        let queue = self.ring.submission();
        if !queue.is_empty() || queue.taskrun() || queue.cq_overflow() {
            return true;
        }
        drop(queue);
        !self.ring.completion().is_empty()
    }

    /// Submits all, runs deferred work, and waits (`Some`) until there is a completion or the time
    /// is over.
    pub(super) fn enter(
        &mut self,
        wait: Option<Duration>,
        stats: &mut DriverStats,
    ) -> io::Result<()> {
        loop {
            while let Some(entry) = self.spill.front().cloned() {
                if !self.try_push(&entry) {
                    break;
                }
                self.spill.pop_front();
            }
            if self.spill.is_empty() {
                let wait = if self.inbox.is_empty() { wait } else { None };
                return self.enter_once(if wait.is_some() { 1 } else { 0 }, wait, stats);
            }
            let before = self.ring.submission().len();
            self.enter_once(0, None, stats)?;
            if self.ring.submission().len() == before {
                // The kernel takes nothing now: completions must be handled first.
                return Ok(());
            }
        }
    }

    fn enter_once(
        &mut self,
        want: u32,
        timeout: Option<Duration>,
        stats: &mut DriverStats,
    ) -> io::Result<()> {
        let (pending, taskrun) = {
            let queue = self.ring.submission();
            (queue.len() as u32, queue.taskrun() || queue.cq_overflow())
        };
        let ready = want == 0 || taskrun || !self.ring.completion().is_empty();
        let began = Instant::now();
        let result = match timeout {
            Some(timeout) if want > 0 => {
                let timespec = types::Timespec::from(timeout);
                let args = types::SubmitArgs::new().timespec(&timespec);
                // SAFETY: the argument is of the type that EXT_ARG says, and lives through the call.
                unsafe {
                    self.ring
                        .submitter()
                        .enter(pending, want, self.wait_flags, Some(&args))
                }
            }
            // SAFETY: no argument is passed.
            _ => unsafe {
                self.ring
                    .submitter()
                    .enter::<libc::sigset_t>(pending, want, GETEVENTS, None)
            },
        };
        account(stats, elapsed_ns(began), pending, ready);
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Time over; a signal; short of memory or full of completions: the caller goes on
                // and comes back.
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Moves all completions to the inbox, those of the kernel's overflow list too.
    pub(super) fn reap(&mut self, stats: &mut DriverStats) -> io::Result<()> {
        loop {
            let mut completions = self.ring.completion();
            let dropped = completions.overflow();
            self.inbox
                .extend((&mut completions).map(|entry| Completion {
                    user_data: entry.user_data(),
                    result: entry.result(),
                    flags: entry.flags(),
                }));
            drop(completions);
            stats.cq_overflow += u64::from(dropped.wrapping_sub(self.dropped));
            self.dropped = dropped;
            if !self.ring.submission().cq_overflow() {
                return Ok(());
            }
            stats.cq_overflow += 1;
            self.enter_once(0, None, stats)?;
        }
    }

    /// Bytes of both queues as the kernel and we share them, and of our own beside them.
    pub(super) fn bytes(&self) -> usize {
        let params = self.ring.params();
        params.sq_entries() as usize * size_of::<squeue::Entry>()
            + params.cq_entries() as usize * size_of::<cqueue::Entry>()
            + self.spill.capacity() * size_of::<squeue::Entry>()
            + self.inbox.capacity() * size_of::<Completion>()
    }

    /// Takes the inbox; give the vector back with [`Self::put_back`] to keep its memory.
    pub(super) fn take_inbox(&mut self) -> Vec<Completion> {
        std::mem::take(&mut self.inbox)
    }

    /// Returns the inbox's memory. What arrived meanwhile stays.
    pub(super) fn put_back(&mut self, mut handled: Vec<Completion>) {
        handled.clear();
        handled.append(&mut self.inbox);
        self.inbox = handled;
    }

    /// Takes the one completion with that user data out of the inbox.
    pub(super) fn take_completion(&mut self, user_data: u64) -> Option<Completion> {
        let index = self
            .inbox
            .iter()
            .position(|completion| completion.user_data == user_data)?;
        Some(self.inbox.remove(index))
    }

    /// Has the kernel write to `eventfd` when there is work, from the next
    /// [`Self::enable_signal`] on.
    pub(super) fn register_signal(&mut self, eventfd: i32) -> io::Result<()> {
        self.ring.submitter().register_eventfd(eventfd)?;
        self.disable_signal();
        Ok(())
    }

    pub(super) fn enable_signal(&mut self) {
        self.ring.completion().enable_eventfd();
    }

    pub(super) fn disable_signal(&mut self) {
        self.ring.completion().disable_eventfd();
    }
}

pub(super) fn elapsed_ns(began: Instant) -> u64 {
    began.elapsed().as_nanos() as u64
}

/// Divides the time of an enter into work and waiting. If it found work ready it did not wait;
/// otherwise it is charged for what it submitted, and the rest was waiting.
fn account(stats: &mut DriverStats, elapsed: u64, submitted: u32, ready: bool) {
    let work = if ready {
        elapsed
    } else {
        elapsed.min(if submitted == 0 {
            0
        } else {
            ENTER_WORK_NS + u64::from(submitted) * ENTRY_WORK_NS
        })
    };
    stats.enters += 1;
    stats.kernel_ns += work;
    stats.idle_ns += elapsed - work;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_idle_and_submitting_is_work() {
        let mut stats = DriverStats::default();
        account(&mut stats, 1_000_000, 0, false);
        assert_eq!((stats.kernel_ns, stats.idle_ns), (0, 1_000_000));
        account(&mut stats, 7_000, 0, true);
        assert_eq!((stats.kernel_ns, stats.idle_ns), (7_000, 1_000_000));
        account(&mut stats, 1_000_000, 1, false);
        assert_eq!(stats.kernel_ns, 7_000 + ENTER_WORK_NS + ENTRY_WORK_NS);
        assert_eq!(stats.enters, 3);
    }
}
