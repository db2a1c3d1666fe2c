//! The way into the engine's thread: many put items in, one takes them out in that order.
//!
//! Invariants:
//! 1. Whoever puts something in makes a system call only when the taker sleeps, and then once for
//!    all that comes until it is awake.
//! 2. The taker sleeps at once when there is nothing: it does not spin, which on a machine with few
//!    cores takes the time from those who would bring something.
//! 3. A taker that rests wakes for what is urgent, and for nothing else before its time.
//! 4. What is in the queue when the taker goes is dropped, and from then on nothing is taken in.
//!
//! It has no bound of its own: see [`super`], invariant 2. Called by [`super`] and
//! [`super::turns`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// What the taker is to be woken for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wakes {
    /// It is awake.
    Never,
    Urgent,
    Anything,
}

struct State<T> {
    items: VecDeque<T>,
    /// One of them is urgent.
    urgent: bool,
    wakes: Wakes,
    closed: bool,
}

impl<T> State<T> {
    /// All that is there, into `to`, which is empty.
    fn take(&mut self, to: &mut VecDeque<T>) {
        self.urgent = false;
        std::mem::swap(to, &mut self.items);
    }
}

struct Shared<T> {
    state: Mutex<State<T>>,
    came: Condvar,
    /// Items put in and not yet taken out.
    depth: AtomicUsize,
}

/// A new queue's two ends.
pub(super) fn queue<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            items: VecDeque::new(),
            urgent: false,
            wakes: Wakes::Never,
            closed: false,
        }),
        came: Condvar::new(),
        depth: AtomicUsize::new(0),
    });
    let receiver = Receiver {
        shared: Arc::clone(&shared),
        taken: VecDeque::new(),
    };
    (Sender { shared }, receiver)
}

/// Puts items in.
pub(super) struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

/// The taker has gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed;

impl<T> Sender<T> {
    /// Never blocks for longer than it takes to put another item in.
    pub(super) fn send(&self, item: T) -> Result<(), Closed> {
        self.put(item, false)
    }

    /// The same, for what a taker that rests is woken for.
    pub(super) fn send_urgent(&self, item: T) -> Result<(), Closed> {
        self.put(item, true)
    }

    fn put(&self, item: T, urgent: bool) -> Result<(), Closed> {
        let mut state = self.shared.state.lock();
        if state.closed {
            return Err(Closed);
        }
        self.shared.depth.fetch_add(1, Ordering::Relaxed);
        state.items.push_back(item);
        state.urgent |= urgent;
        let wake = match state.wakes {
            Wakes::Never => false,
            Wakes::Urgent => urgent,
            Wakes::Anything => true,
        };
        if wake {
            state.wakes = Wakes::Never;
        }
        drop(state);
        if wake {
            self.shared.came.notify_one();
        }
        Ok(())
    }

    /// Items that wait.
    pub(super) fn len(&self) -> usize {
        self.shared.depth.load(Ordering::Relaxed)
    }
}

/// Takes items out.
pub(super) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// Moved here all at once, so that a run of items costs one lock.
    taken: VecDeque<T>,
}

impl<T> Receiver<T> {
    /// The next item, if there is one.
    pub(super) fn try_recv(&mut self) -> Option<T> {
        if self.taken.is_empty() {
            self.shared.state.lock().take(&mut self.taken);
        }
        self.pop()
    }

    /// Lets items come together for `time`, or until one of them is urgent.
    pub(super) fn rest(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.shared.state.lock();
        while !state.urgent {
            state.wakes = Wakes::Urgent;
            let is_over = self.shared.came.wait_until(&mut state, until).timed_out();
            state.wakes = Wakes::Never;
            if is_over {
                return;
            }
        }
    }

    /// The next item; sleeps until there is one, at most for `timeout` if given.
    pub(super) fn recv(&mut self, timeout: Option<Duration>) -> Option<T> {
        if self.taken.is_empty() {
            let until = timeout.map(|timeout| Instant::now() + timeout);
            let mut state = self.shared.state.lock();
            while state.items.is_empty() {
                state.wakes = Wakes::Anything;
                let is_over = match until {
                    Some(until) => self.shared.came.wait_until(&mut state, until).timed_out(),
                    None => {
                        self.shared.came.wait(&mut state);
                        false
                    }
                };
                state.wakes = Wakes::Never;
                if is_over {
                    break;
                }
            }
            state.take(&mut self.taken);
        }
        self.pop()
    }

    fn pop(&mut self) -> Option<T> {
        let item = self.taken.pop_front()?;
        self.shared.depth.fetch_sub(1, Ordering::Relaxed);
        Some(item)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        let left = std::mem::take(&mut state.items);
        drop(state);
        self.shared.depth.store(0, Ordering::Relaxed);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_out_in_order_whoever_sleeps() {
        let (sender, mut receiver) = queue();
        let senders: Vec<_> = (0..4u64)
            .map(|from| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for number in 0..2_000u64 {
                        sender.send((from, number)).expect("the taker is here");
                        if number % 97 == 0 {
                            std::thread::sleep(Duration::from_micros(50));
                        }
                    }
                })
            })
            .collect();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut next = [0; 4];
            for turn in 0..8_000 {
                let ready = (turn % 3 == 0).then(|| receiver.try_recv()).flatten();
                // Without a timeout: one who is not woken sleeps for ever.
                let (from, number) = ready.or_else(|| receiver.recv(None)).expect("an item");
                assert_eq!(number, next[from as usize]);
                next[from as usize] += 1;
            }
            done.send(next).expect("the test waits");
        });
        let next = is_done.recv_timeout(Duration::from_secs(20));
        assert_eq!(next, Ok([2_000; 4]), "all, within 20 s");
        for sender in senders {
            sender.join().expect("a sender");
        }
    }

    #[test]
    fn nothing_comes_out_of_an_empty_queue() {
        let (sender, mut receiver) = queue::<u8>();
        assert_eq!(receiver.try_recv(), None);
        assert_eq!(receiver.recv(Some(Duration::ZERO)), None);
        sender.send(1).expect("open");
        sender.send(2).expect("open");
        assert_eq!(sender.len(), 2);
        assert_eq!(receiver.recv(None), Some(1));
        assert_eq!((sender.len(), receiver.try_recv()), (1, Some(2)));
    }

    #[test]
    fn a_rest_ends_for_what_is_urgent_and_for_nothing_else() {
        let (sender, mut receiver) = queue();
        sender.send(1).expect("open");
        let begun = Instant::now();
        receiver.rest(Duration::from_millis(20));
        assert!(begun.elapsed() >= Duration::from_millis(20));
        sender.send_urgent(2).expect("open");
        // Urgent items that are there already let nobody rest: this one would never end.
        receiver.rest(Duration::from_secs(3_600));
        assert_eq!(receiver.recv(None), Some(1));
        assert_eq!(receiver.recv(None), Some(2));
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            receiver.rest(Duration::from_secs(3_600));
            done.send(receiver.try_recv()).expect("the test waits");
        });
        for _ in 0..3 {
            sender.send(3).expect("open");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(is_done.try_recv().is_err(), "it rests");
        sender.send_urgent(4).expect("open");
        let first = is_done.recv_timeout(Duration::from_secs(20));
        assert_eq!(first, Ok(Some(3)), "woken, and in order");
    }

    #[test]
    fn what_is_left_goes_with_the_taker() {
        let (sender, mut receiver) = queue();
        let item = Arc::new(());
        for _ in 0..3 {
            sender.send(Arc::clone(&item)).expect("open");
        }
        drop(receiver.recv(None));
        drop(receiver);
        assert_eq!(Arc::strong_count(&item), 1);
        assert_eq!(sender.send(Arc::clone(&item)), Err(Closed));
        assert_eq!(sender.len(), 0);
    }
}
