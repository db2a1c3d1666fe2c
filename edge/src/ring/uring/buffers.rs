//! The provided-buffer ring: receive buffers that belong to no connection. The kernel takes one
//! when bytes have arrived and names it in the completion; it goes back when the event was handled.
//!
//! Invariant: a buffer is the kernel's from [`BufferRing::give`] until a completion names it, and
//! ours from then until the next `give`.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::{IoUring, types};

/// The only buffer group of a ring.
pub(super) const GROUP: u16 = 0;

/// Anonymous memory, zeroed, page-aligned and not resident until touched.
struct Mapping {
    start: *mut u8,
    length: usize,
}

impl Mapping {
    fn new(length: usize) -> io::Result<Self> {
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start.cast(),
            length,
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; nobody has a reference once the owner is dropped.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}

/// A ring of equal buffers. Must outlive the io_uring it is registered with.
pub(super) struct BufferRing {
    entries: Mapping,
    memory: Mapping,
    count: u16,
    size: u32,
    tail: u16,
}

impl BufferRing {
    /// `count` (a power of two) buffers of `size` bytes, not yet registered.
    pub(super) fn new(count: u16, size: u32) -> io::Result<Self> {
        debug_assert!(count.is_power_of_two() && size > 0);
        Ok(Self {
            entries: Mapping::new(usize::from(count) * size_of::<types::BufRingEntry>())?,
            memory: Mapping::new(usize::from(count) * size as usize)?,
            count,
            size,
            tail: 0,
        })
    }

    /// Registers with `ring` and gives it all buffers.
    pub(super) fn register(&mut self, ring: &IoUring) -> io::Result<()> {
        // SAFETY: the mapping holds `count` entries, page-aligned, and outlives the ring (the owner
        // drops the ring first).
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                self.entries.start as u64,
                self.count,
                GROUP,
                0,
            )?;
        }
        for buffer in 0..self.count {
            self.give(buffer);
        }
        self.commit();
        Ok(())
    }

    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// Bytes of each.
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// Bytes of all, and of the ring that names them.
    pub(super) fn bytes(&self) -> usize {
        self.memory.length + self.entries.length
    }

    /// The first `length` bytes of a buffer that a completion named.
    pub(super) fn filled(&mut self, buffer: u16, length: usize) -> &mut [u8] {
        assert!(buffer < self.count && length <= self.size as usize);
        // SAFETY: in bounds by the assertion; the buffer is ours until it is given back, for which
        // `self` must be borrowed anew; the memory is initialised (mapped zeroed).
        unsafe { std::slice::from_raw_parts_mut(self.start_of(buffer), length) }
    }

    /// Puts a buffer back; the kernel sees it after [`Self::commit`].
    pub(super) fn give(&mut self, buffer: u16) {
        let address = self.start_of(buffer) as u64;
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: `index` is below `count`, which the mapping has room for; the kernel reads an
        // entry only after the tail has passed it.
        let entry = unsafe { &mut *self.entries.start.cast::<types::BufRingEntry>().add(index) };
        entry.set_addr(address);
        entry.set_len(self.size);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel all that was given.
    pub(super) fn commit(&mut self) {
        // SAFETY: the tail lies within the first entry of the mapping and is shared with the kernel
        // as a 16-bit word that only we write.
        let tail = unsafe {
            &*types::BufRingEntry::tail(self.entries.start.cast::<types::BufRingEntry>())
                .cast::<AtomicU16>()
        };
        tail.store(self.tail, Ordering::Release);
    }

    fn start_of(&self, buffer: u16) -> *mut u8 {
        debug_assert!(buffer < self.count);
        // SAFETY: below `count` buffers of `size` bytes, which the mapping holds.
        unsafe {
            self.memory
                .start
                .add(usize::from(buffer) * self.size as usize)
        }
    }
}
