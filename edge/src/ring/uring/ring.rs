//! One ring and the connections in its table: what is armed, and what each completion means.
//!
//! A turn: submit and wait, take the completions, hand out events, put buffers back, and queue the
//! requests that follow from it, which leave with the next enter. The rest of the connection's life
//! is in `accept`, `connect`, `send` and `close`.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use bytes::Bytes;
use io_uring::{cqueue, opcode, types};

use super::accept::{Acceptor, Name};
use super::buffers::{BufferRing, GROUP};
use super::poll;
use super::queue::{Completion, Queue};
use super::setup::{self, Abilities, RingInitError};
use crate::ring::slots::{Arrival, Slots, flag};
use crate::ring::sockets::kind_of;
use crate::ring::token::{Operation, Token};
use crate::ring::{ConnId, DriverConfig, DriverStats, Event, Hold, ReceiveMode, Waker};

/// A send of this turn, kept until the kernel has copied it.
pub(super) struct QueuedSend {
    pub(super) conn: ConnId,
    pub(super) bytes: Bytes,
}

/// An eventfd that the ring reads, and where its counter goes.
struct EventfdRead {
    fd: RawFd,
    operation: Operation,
    counter: Box<u64>,
}

/// One ring. Field order is drop order: the queue, and with it the ring, goes before everything that
/// the kernel may write to.
pub(super) struct Ring {
    pub(super) queue: Queue,
    pub(super) slots: Slots,
    pub(super) stats: DriverStats,
    pub(super) abilities: Abilities,
    pub(super) acceptor: Acceptor,
    /// Accepted in this turn, not announced yet; the peer's name of each is in `names`.
    pub(super) arrivals: Vec<Arrival>,
    pub(super) names: Box<[Name]>,
    pub(super) sends: Vec<QueuedSend>,
    /// Shutdowns that wait to see whether this turn's send went out whole.
    pub(super) shutdowns: Vec<ConnId>,
    /// Cancels that found nothing, to be tried again if what they sought is still there.
    pub(super) recancels: Vec<ConnId>,
    /// Connections whose receive found no buffer.
    pub(super) parked: VecDeque<ConnId>,
    pub(super) receive_mode: ReceiveMode,
    /// What is not to be done at present.
    pub(super) held: Hold,
    eventfds: Vec<EventfdRead>,
    /// The main ring's: told as soon as the wait is over.
    waker: Option<Waker>,
}

impl Ring {
    /// A ring whose slots count from `base`, for the calling thread.
    pub(super) fn new(config: &DriverConfig, base: u32) -> Result<Self, RingInitError> {
        let (ring, abilities) = setup::build(config)?;
        let buffers = BufferRing::new(config.buffers, config.buffer_size)
            .map_err(RingInitError::os("mapping receive buffers"))?;
        let queue =
            Queue::new(ring, buffers).map_err(RingInitError::os("registering receive buffers"))?;
        Ok(Self {
            queue,
            slots: Slots::new(base, config.slots_per_ring()),
            stats: DriverStats::default(),
            abilities,
            acceptor: Acceptor::new(config),
            arrivals: Vec::new(),
            names: Name::array(config.accept_budget),
            sends: Vec::new(),
            shutdowns: Vec::new(),
            recancels: Vec::new(),
            parked: VecDeque::new(),
            receive_mode: config.receive,
            held: Hold::Nothing,
            eventfds: Vec::new(),
            waker: None,
        })
    }

    /// Waits for `waker` too.
    pub(super) fn watch_waker(&mut self, waker: Waker) {
        self.watch_eventfd(waker.as_raw_fd(), Operation::Wake);
        self.waker = Some(waker);
    }

    /// Waits for `fd` too; each time it was written to is a completion of `operation`.
    pub(super) fn watch_eventfd(&mut self, fd: RawFd, operation: Operation) {
        self.eventfds.push(EventfdRead {
            fd,
            operation,
            counter: Box::new(0),
        });
        self.read_eventfd(operation);
    }

    fn read_eventfd(&mut self, operation: Operation) {
        let Some(watched) = self
            .eventfds
            .iter_mut()
            .find(|watched| watched.operation == operation)
        else {
            return;
        };
        let counter: *mut u64 = &mut *watched.counter;
        let entry = opcode::Read::new(types::Fd(watched.fd), counter.cast(), 8)
            .build()
            .user_data(Token::new(operation, 0, 0).pack());
        self.queue.push(entry, &mut self.stats);
    }

    /// Is there anything to do without waiting?
    pub(super) fn has_work(&mut self) -> bool {
        self.must_not_wait() || self.queue.has_work()
    }

    /// Things to go on with that no completion will announce.
    fn must_not_wait(&self) -> bool {
        !self.parked.is_empty()
            || !self.arrivals.is_empty()
            || !self.shutdowns.is_empty()
            || self.acceptor.has_admissible()
    }

    /// The longest that the ring may wait, of `timeout`.
    pub(super) fn wait_limit(&self, timeout: Duration) -> Duration {
        match self.acceptor.retry_at() {
            Some(at) => timeout.min(at.saturating_duration_since(Instant::now())),
            None => timeout,
        }
    }

    /// Submits what is queued, waits if there is nothing to do (`None`: never), handles what
    /// completed. Announces at most `arrivals` new connections, and takes them off.
    pub(super) fn turn(
        &mut self,
        wait: Option<Duration>,
        arrivals: &mut u32,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> io::Result<()> {
        let wait = if self.must_not_wait() {
            None
        } else {
            wait.map(|timeout| self.wait_limit(timeout))
        };
        let entered = self.queue.enter(wait, &mut self.stats);
        if let Some(waker) = &self.waker {
            waker.awake();
        }
        entered?;
        let submitted = self.queue.all_submitted();
        self.queue.reap(&mut self.stats)?;
        if !self.arrivals.is_empty() {
            if !submitted {
                // The kernel takes nothing for now; events of a connection must not come before
                // its `Accepted`, which waits for the peer's name.
                return Ok(());
            }
            self.announce(on_event);
        }
        self.allow_arrivals(*arrivals);
        self.handle_completions(on_event);
        if submitted {
            self.forget_sends();
        }
        self.accept_backlog();
        *arrivals = self.allowance();
        self.resume_parked();
        self.run_recancels();
        self.update_accepting();
        if !self.arrivals.is_empty() {
            self.queue.enter(None, &mut self.stats)?;
            if self.queue.all_submitted() {
                self.announce(on_event);
            }
        }
        Ok(())
    }

    fn handle_completions(&mut self, on_event: &mut dyn FnMut(Event<'_>)) {
        let completions = self.queue.take_inbox();
        for completion in &completions {
            self.handle(*completion, on_event);
        }
        self.queue.put_back(completions);
        self.queue.buffers.commit();
    }

    fn handle(&mut self, completion: Completion, on_event: &mut dyn FnMut(Event<'_>)) {
        let token = Token::unpack(completion.user_data);
        match token.operation {
            Operation::Receive => match self.receive_mode {
                ReceiveMode::Multishot => return self.on_receive(token, completion, on_event),
                ReceiveMode::Poll => return self.on_readable(token, completion, on_event),
            },
            Operation::Read => return self.on_read(token, completion, on_event),
            Operation::Accept => return self.on_accept(token.slot, completion),
            Operation::Wake => {
                self.read_eventfd(Operation::Wake);
                on_event(Event::Woken);
                return;
            }
            Operation::Signal => return self.read_eventfd(Operation::Signal),
            _ => {}
        }
        if !self.slots.current(token.slot, token.generation) {
            return;
        }
        let (slot, result) = (token.slot, completion.result);
        match token.operation {
            Operation::Send => self.on_short_send(slot, result, on_event),
            Operation::SendTail => self.on_tail_sent(slot, result, on_event),
            Operation::Writable => self.on_writable(slot, result, on_event),
            Operation::InstallToShut => self.on_installed_to_shut(slot, result, on_event),
            Operation::Shutdown => self.on_shutdown(slot, result, on_event),
            Operation::Close => self.on_closed(slot, on_event),
            Operation::Cancel => self.recancels.push(self.slots.id(slot)),
            Operation::Socket => self.on_socket(slot, result, on_event),
            Operation::Bind => self.begin_close(slot, Some(kind_of(result)), on_event),
            Operation::Connect => self.on_connect(slot, result, on_event),
            Operation::Ignore
            | Operation::Install
            | Operation::Receive
            | Operation::Read
            | Operation::Accept
            | Operation::Wake
            | Operation::Signal => {}
        }
    }

    /// Arms what waits for bytes, unless reading is held: the release arms them all.
    pub(super) fn receive(&mut self, slot: u32) {
        if self.held != Hold::Nothing {
            return;
        }
        let token = Token::new(Operation::Receive, slot, self.slots.get(slot).generation);
        let conn = self.slots.get_mut(slot);
        conn.set(flag::RECEIVING);
        let descriptor = types::Fixed(conn.descriptor);
        let entry = match self.receive_mode {
            ReceiveMode::Multishot => opcode::RecvMulti::new(descriptor, GROUP).build(),
            ReceiveMode::Poll => poll::request(descriptor),
        };
        let entry = entry.user_data(token.pack());
        self.queue.push(entry, &mut self.stats);
    }

    fn on_receive(
        &mut self,
        token: Token,
        completion: Completion,
        on_event: &mut dyn FnMut(Event<'_>),
    ) {
        let (current, wanted) = self.hand_out(token, completion, on_event);
        if !current || cqueue::more(completion.flags) {
            return;
        }
        self.slots.get_mut(token.slot).clear(flag::RECEIVING);
        if wanted {
            self.after_receive(token.slot, completion.result, on_event);
        } else {
            self.try_finish(token.slot, on_event);
        }
    }

    /// Hands out what a receive brought, and takes its buffer back. Says whether the connection is
    /// still there, and whether it is to go on.
    pub(super) fn hand_out(
        &mut self,
        token: Token,
        completion: Completion,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> (bool, bool) {
        let current = self.slots.current(token.slot, token.generation);
        let wanted = current && !self.slots.get(token.slot).has(flag::CLOSING);
        if let Some(buffer) = cqueue::buffer_select(completion.flags) {
            if wanted && completion.result > 0 {
                self.stats.bytes_received += completion.result as u64;
                on_event(Event::Received {
                    conn: self.slots.id(token.slot),
                    data: self
                        .queue
                        .buffers
                        .filled(buffer, completion.result as usize),
                });
            }
            self.queue.buffers.give(buffer);
        }
        (current, wanted)
    }

    /// The multishot receive has ended: go on, or note why not.
    fn after_receive(&mut self, slot: u32, result: i32, on_event: &mut dyn FnMut(Event<'_>)) {
        match result {
            1.. => self.receive(slot),
            0 => self.on_eof(slot, on_event),
            _ => match -result {
                libc::ENOBUFS | libc::ENOMEM => {
                    self.stats.buffers_exhausted += 1;
                    self.parked.push_back(self.slots.id(slot));
                }
                libc::EINTR | libc::EAGAIN | libc::ECANCELED => self.receive(slot),
                _ => self.begin_close(slot, Some(kind_of(result)), on_event),
            },
        }
    }

    /// The peer has shut its side.
    pub(super) fn on_eof(&mut self, slot: u32, on_event: &mut dyn FnMut(Event<'_>)) {
        self.slots.get_mut(slot).set(flag::EOF);
        on_event(Event::Eof {
            conn: self.slots.id(slot),
        });
        self.close_if_both_shut(slot, on_event);
    }

    /// Receives again for as many parked connections as there are buffers. All are back by now:
    /// events are handled before a turn ends. More would only find none again.
    fn resume_parked(&mut self) {
        for _ in 0..self.parked.len().min(self.queue.buffers.count().into()) {
            let Some(id) = self.parked.pop_front() else {
                return;
            };
            let Some(slot) = self.slots.find(id) else {
                continue;
            };
            let conn = self.slots.get(slot);
            if conn.has(flag::CLOSING | flag::EOF) {
                continue;
            }
            match self.receive_mode {
                ReceiveMode::Multishot if !conn.has(flag::RECEIVING) => self.receive(slot),
                ReceiveMode::Multishot => {}
                ReceiveMode::Poll => self.resume_polled(slot),
            }
        }
    }
}
