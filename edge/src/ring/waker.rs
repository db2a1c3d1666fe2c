//! Ends a shard's wait from another thread: an eventfd behind a flag, so that a busy shard costs
//! its callers no system call, and many calls within one sleep cost one.
//!
//! Protocol: the shard sets `sleeping` before it waits and *then* looks at its inboxes once more;
//! a caller puts its item into the inbox first and then calls [`Waker::wake`], which writes the
//! eventfd only if it was the one to clear the flag. SeqCst on both sides makes one of them see the
//! other.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Wakes one shard. Cheap to clone, callable from any thread.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    sleeping: AtomicBool,
    eventfd: File,
}

impl Waker {
    /// A waker with its own non-blocking eventfd.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and owned by nobody else.
        let eventfd = unsafe { File::from_raw_fd(fd) };
        Ok(Self {
            shared: Arc::new(Shared {
                sleeping: AtomicBool::new(false),
                eventfd,
            }),
        })
    }

    /// Ends the current or the next wait. Call after the reason to wake is visible.
    pub fn wake(&self) {
        if self.shared.sleeping.swap(false, Ordering::SeqCst) {
            // A full counter wakes just as well.
            let _ = (&self.shared.eventfd).write(&1u64.to_ne_bytes());
        }
    }

    /// The shard says that it is about to wait. It must look at its inboxes after this call.
    pub fn going_to_sleep(&self) {
        self.shared.sleeping.store(true, Ordering::SeqCst);
    }

    /// The shard says that it runs: no eventfd writes are needed.
    pub fn awake(&self) {
        self.shared.sleeping.store(false, Ordering::SeqCst);
    }

    /// Takes the counter, so that the eventfd is no longer readable.
    pub(crate) fn clear(&self) {
        let mut buffer = [0; 8];
        let _ = (&self.shared.eventfd).read(&mut buffer);
    }

    /// For the driver to wait on.
    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.shared.eventfd.as_raw_fd()
    }
}
