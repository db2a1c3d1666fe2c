//! `--echo`: the listeners as a plain WebSocket and TCP echo server, on the same rings and the same
//! frame code as the chat, for conformance suites and for comparisons with other servers. It needs
//! no core and knows no session.
//!
//! Invariants:
//! 1. All answers of a turn leave in one send per connection.
//! 2. A connection whose peer does not read owns at most [`Options::queue_bytes_max`]; then it is
//!    closed with 4410. A quiet connection owns nothing beyond its slot.
//! 3. A close is a close frame, a FIN, and then up to [`LINGER`] for the peer's own FIN, so that the
//!    close frame is not lost to a reset.
//!
//! One call of [`run_echo_shard`] per shard thread, from the command line's `--echo`.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use trunkline_proto::codes::Close;
use trunkline_proto::limits::{CONNECT_DEADLINE_MS, ECHO_FRAME_BYTES_MAX};

use crate::frame::deflate::{Deflater, Policy, negotiate};
use crate::frame::upgrade::{self, Paths, Rejection, Upgrade};
use crate::frame::ws::{Decoder, Opcode, WsEvent};
use crate::frame::{Input, encode};
use crate::ring::{ConnId, Driver, Event, ListenerId};

/// How long a closing connection may wait for the peer's FIN.
pub const LINGER: Duration = Duration::from_secs(2);
/// Time in which a WebSocket's request must be complete.
const HANDSHAKE_MAX: Duration = Duration::from_millis(CONNECT_DEADLINE_MS);
/// Longest wait, so that a stop without a wake is noticed too.
const TURN_MAX: Duration = Duration::from_millis(250);
/// The buffer that answers are written into; a larger one is given back after the turn.
const CORK_BYTES: usize = 64 * 1024;

const _: () = assert!(size_of::<Conn>() <= 80, "one for each connection");

/// What the echo server takes.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The listener whose connections speak WebSocket.
    pub ws: ListenerId,
    /// The listener whose connections get their bytes back as they are.
    pub tcp: ListenerId,
    /// Bytes of one WebSocket message.
    pub message_bytes_max: usize,
    /// Bytes kept for a peer that does not read.
    pub queue_bytes_max: usize,
    /// permessage-deflate; none: declined.
    pub deflate: Option<Policy>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ws: 0,
            tcp: 1,
            message_bytes_max: ECHO_FRAME_BYTES_MAX,
            queue_bytes_max: 64 * 1024 * 1024,
            deflate: Some(Policy::default()),
        }
    }
}

/// Runs one shard until `stop` is set and all connections are gone, at most [`LINGER`] later; the
/// stop is noticed at once if the driver's waker is called, else within a quarter of a second. The
/// listeners named in `options` are on `driver` already.
pub fn run_echo_shard(
    driver: &mut dyn Driver,
    stop: &AtomicBool,
    options: &Options,
) -> io::Result<()> {
    let mut shard = Shard::new(*options);
    let waker = driver.waker();
    let mut give_up_at = None;
    loop {
        let now = Instant::now();
        if give_up_at.is_none() && stop.load(Ordering::Acquire) {
            give_up_at = Some(now + LINGER + TURN_MAX);
            driver.close_listeners();
            shard.close_all();
            shard.finish_turn(driver, now);
        }
        if give_up_at.is_some_and(|at| shard.open == 0 || now >= at) {
            return Ok(());
        }
        let mut timeout = shard.timeout(now);
        if !timeout.is_zero() {
            waker.going_to_sleep();
            if give_up_at.is_none() && stop.load(Ordering::Acquire) {
                timeout = Duration::ZERO;
            }
        }
        driver.turn(timeout, &mut |event| shard.on_event(event))?;
        shard.finish_turn(driver, Instant::now());
    }
}

enum Phase {
    /// What has come of the request, if it is not whole.
    Handshake(Vec<u8>),
    Ws {
        decoder: Decoder,
        deflater: Option<Box<Deflater>>,
    },
    Tcp,
    /// Nothing more is read; what is owed leaves, then a FIN.
    Closing,
}

struct Conn {
    generation: u32,
    /// Index in the list of what leaves this turn.
    dirty_at: Option<u32>,
    phase: Phase,
    /// Owed to a peer that does not read; only while blocked.
    backlog: Option<Box<BytesMut>>,
    blocked: bool,
    /// The peer has sent its FIN.
    eof: bool,
    /// We have sent ours.
    fin: bool,
    /// Closing because its backlog was full: no patience.
    slow: bool,
    /// The driver was told to drop it.
    ended: bool,
}

/// One shard's connections. Pure but for the calls into the driver at the end of each turn.
struct Shard {
    options: Options,
    conns: Vec<Option<Conn>>,
    open: usize,
    /// Answers of the connection that is being served, cut off after each event.
    cork: BytesMut,
    /// The cork of the turn before, whose bytes the driver lets go of in this one: the two take
    /// turns, and neither is allocated anew.
    other_cork: BytesMut,
    /// What leaves at the end of the turn.
    dirty: Vec<(ConnId, BytesMut)>,
    /// Both FINs are out: to close at the end of a turn, when nothing is unsent.
    done: Vec<ConnId>,
    /// In order of time, as are the handshakes.
    lingering: VecDeque<(Instant, ConnId)>,
    handshakes: VecDeque<(Instant, ConnId)>,
    /// Accepted this turn; their time begins at its end.
    fresh: Vec<ConnId>,
}

impl Shard {
    fn new(options: Options) -> Self {
        Self {
            options,
            conns: Vec::new(),
            open: 0,
            cork: BytesMut::with_capacity(CORK_BYTES),
            other_cork: BytesMut::new(),
            dirty: Vec::new(),
            done: Vec::new(),
            lingering: VecDeque::new(),
            handshakes: VecDeque::new(),
            fresh: Vec::new(),
        }
    }

    /// How long the next turn may wait.
    fn timeout(&self, now: Instant) -> Duration {
        if !self.done.is_empty() {
            return Duration::ZERO;
        }
        let fronts = [self.lingering.front(), self.handshakes.front()];
        let next = fronts.into_iter().flatten().map(|&(at, _)| at).min();
        next.map_or(TURN_MAX, |at| {
            at.saturating_duration_since(now).min(TURN_MAX)
        })
    }

    fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        let conn = self.conns.get_mut(id.slot as usize)?.as_mut()?;
        (conn.generation == id.generation).then_some(conn)
    }

    fn on_event(&mut self, event: Event<'_>) {
        match event {
            Event::Accepted { conn, listener, .. } => self.on_accepted(conn, listener),
            Event::Received { conn, data } => self.on_received(conn, data),
            Event::Eof { conn: id } => {
                if let Some(conn) = self.conn(id) {
                    conn.eof = true;
                    conn.phase = Phase::Closing;
                    self.touch(id);
                }
            }
            Event::Blocked { conn: id, .. } => {
                if let Some(conn) = self.conn(id) {
                    conn.blocked = true;
                }
            }
            Event::Drained { conn: id } => {
                if let Some(conn) = self.conn(id) {
                    conn.blocked = false;
                    self.touch(id);
                }
            }
            Event::Closed { conn: id, .. } => {
                if self.conn(id).is_some() {
                    self.conns[id.slot as usize] = None;
                    self.open -= 1;
                }
            }
            Event::Connected { .. } | Event::Woken => {}
        }
    }

    fn on_accepted(&mut self, id: ConnId, listener: ListenerId) {
        let slot = id.slot as usize;
        if self.conns.len() <= slot {
            self.conns.resize_with(slot + 1, || None);
        }
        let phase = if listener == self.options.tcp {
            Phase::Tcp
        } else {
            self.fresh.push(id);
            Phase::Handshake(Vec::new())
        };
        self.conns[slot] = Some(Conn {
            generation: id.generation,
            dirty_at: None,
            phase,
            backlog: None,
            blocked: false,
            eof: false,
            fin: false,
            slow: false,
            ended: false,
        });
        self.open += 1;
    }

    fn on_received(&mut self, id: ConnId, data: &mut [u8]) {
        let options = self.options;
        let mut cork = std::mem::take(&mut self.cork);
        if let Some(conn) = self.conn(id) {
            conn.receive(data, &options, &mut cork);
        }
        let answers = cork.split();
        self.cork = cork;
        if let Some((_, owed)) = self.touch(id) {
            owed.unsplit(answers);
        }
    }

    /// Puts the connection on the list of those to be looked at when the turn ends.
    fn touch(&mut self, id: ConnId) -> Option<&mut (ConnId, BytesMut)> {
        let next = u32::try_from(self.dirty.len()).ok()?;
        let at = *self.conn(id)?.dirty_at.get_or_insert(next);
        if at == next {
            self.dirty.push((id, BytesMut::new()));
        }
        self.dirty.get_mut(at as usize)
    }

    /// Begins an orderly close of every connection.
    fn close_all(&mut self) {
        for slot in 0..self.conns.len() {
            let Some(conn) = &mut self.conns[slot] else {
                continue;
            };
            let id = ConnId {
                slot: slot as u32,
                generation: conn.generation,
            };
            let phase = std::mem::replace(&mut conn.phase, Phase::Closing);
            if let Some((_, owed)) = self.touch(id)
                && matches!(phase, Phase::Ws { .. })
            {
                let close = Close::Draining;
                encode::close(owed, close.code(), close.reason());
            }
        }
    }

    /// Hands the turn's answers to the driver and ends what is to end.
    fn finish_turn(&mut self, driver: &mut dyn Driver, now: Instant) {
        // First those of earlier turns: their bytes are with the kernel unless they are blocked,
        // and then `Drained` brings them back here.
        for id in std::mem::take(&mut self.done) {
            if self.conn(id).is_some_and(|c| !c.blocked) {
                self.end(driver, id);
            }
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        for (id, owed) in dirty.drain(..) {
            self.flush(driver, now, id, owed);
        }
        self.dirty = dirty;
        for id in self.fresh.drain(..) {
            self.handshakes.push_back((now + HANDSHAKE_MAX, id));
        }
        self.end_overdue(driver, now);
        std::mem::swap(&mut self.cork, &mut self.other_cork);
        if self.cork.capacity() > CORK_BYTES || !self.cork.try_reclaim(CORK_BYTES) {
            self.cork = BytesMut::with_capacity(CORK_BYTES);
        }
    }

    fn flush(&mut self, driver: &mut dyn Driver, now: Instant, id: ConnId, owed: BytesMut) {
        let queue_bytes_max = self.options.queue_bytes_max;
        let Some(conn) = self.conn(id).filter(|c| !c.ended) else {
            return;
        };
        conn.dirty_at = None;
        if let Some(bytes) = conn.send_now(owed) {
            driver.send(id, bytes);
        }
        let kept = conn.backlog.as_ref().map_or(0, |b| b.len());
        if kept > queue_bytes_max {
            if conn.give_up() {
                self.lingering.push_back((now + LINGER, id));
            } else {
                self.end(driver, id);
            }
            return;
        }
        if kept > 0 || !matches!(conn.phase, Phase::Closing) {
            return;
        }
        let (first, over) = (!conn.fin, conn.eof);
        conn.fin = true;
        if first {
            driver.shutdown(id);
            self.lingering.push_back((now + LINGER, id));
        }
        if over {
            self.done.push(id);
        }
    }

    /// Drops the connection with whatever is unsent.
    fn end(&mut self, driver: &mut dyn Driver, id: ConnId) {
        if let Some(conn) = self.conn(id)
            && !std::mem::replace(&mut conn.ended, true)
        {
            conn.phase = Phase::Closing;
            conn.backlog = None;
            driver.close(id);
        }
    }

    fn end_overdue(&mut self, driver: &mut dyn Driver, now: Instant) {
        while let Some((_, id)) = self.handshakes.pop_front_if(|(at, _)| *at <= now) {
            let conn = self.conn(id);
            if conn.is_some_and(|c| matches!(c.phase, Phase::Handshake(_))) {
                self.end(driver, id);
            }
        }
        while let Some((_, id)) = self.lingering.pop_front_if(|(at, _)| *at <= now) {
            let Some(conn) = self.conn(id) else {
                continue;
            };
            if conn.blocked && !conn.slow {
                // It reads, if slowly: what it is owed is bounded.
                self.lingering.push_back((now + LINGER, id));
            } else {
                self.end(driver, id);
            }
        }
    }
}

impl Conn {
    /// Serves one receive; answers go to `out`.
    fn receive(&mut self, data: &mut [u8], options: &Options, out: &mut BytesMut) {
        match &mut self.phase {
            Phase::Tcp => out.extend_from_slice(data),
            Phase::Ws { decoder, deflater } => {
                if echo(decoder, deflater.as_deref_mut(), data, options, out) {
                    self.phase = Phase::Closing;
                }
            }
            Phase::Handshake(kept) if kept.is_empty() => {
                if !self.shake_hands(data, options, out) {
                    self.phase = Phase::Handshake(data.to_vec());
                }
            }
            Phase::Handshake(kept) => {
                let mut head = std::mem::take(kept);
                head.extend_from_slice(data);
                if !self.shake_hands(&mut head, options, out) {
                    self.phase = Phase::Handshake(head);
                }
            }
            Phase::Closing => {}
        }
    }

    /// Answers the request in `data` and serves what follows it; false if it is not whole yet.
    fn shake_hands(&mut self, data: &mut [u8], options: &Options, out: &mut BytesMut) -> bool {
        let (consumed, agreed) = match upgrade::parse(data, Paths::Any) {
            Upgrade::Partial => return false,
            Upgrade::Reject(rejection) => {
                self.reject(&rejection, out);
                return true;
            }
            Upgrade::Request { consumed, request } => {
                let policy = options.deflate.as_ref();
                let agreed = policy.and_then(|p| negotiate(request.extensions, p));
                // Whatever a client would speak here, it hears itself.
                let name = upgrade::choose_subprotocol(&request.protocols);
                let name = name.ok().and_then(|subprotocol| subprotocol.name);
                upgrade::write_accept(out, request.key, name, agreed.as_ref());
                (consumed, agreed)
            }
        };
        self.phase = Phase::Ws {
            decoder: Decoder::new(agreed.map(|a| a.inflater())),
            deflater: agreed.map(|a| a.deflater()),
        };
        if consumed < data.len() {
            self.receive(&mut data[consumed..], options, out);
        }
        true
    }

    fn reject(&mut self, rejection: &Rejection, out: &mut BytesMut) {
        upgrade::write_rejection(out, rejection);
        self.phase = Phase::Closing;
    }

    /// What can be handed to the driver: everything, or nothing while it is blocked.
    fn send_now(&mut self, owed: BytesMut) -> Option<Bytes> {
        let all = match self.backlog.take() {
            Some(mut backlog) => {
                backlog.unsplit(owed);
                *backlog
            }
            None => owed,
        };
        if all.is_empty() {
            None
        } else if self.blocked {
            self.backlog = Some(Box::new(all));
            None
        } else {
            Some(all.freeze())
        }
    }

    /// The backlog is full: keeps nothing of it but the close frame. False if there is none to
    /// send, on raw TCP.
    fn give_up(&mut self) -> bool {
        if !matches!(self.phase, Phase::Ws { .. }) {
            return false;
        }
        let mut close_frame = BytesMut::new();
        let close = Close::SlowConsumer;
        encode::close(&mut close_frame, close.code(), close.reason());
        self.backlog = Some(Box::new(close_frame));
        self.phase = Phase::Closing;
        self.slow = true;
        true
    }
}

/// Reads `data` and answers it; true if the connection is to close.
fn echo(
    decoder: &mut Decoder,
    mut deflater: Option<&mut Deflater>,
    data: &mut [u8],
    options: &Options,
    out: &mut BytesMut,
) -> bool {
    let mut input = Input::new(data);
    loop {
        let (opcode, payload) = match decoder.next_event(&mut input, options.message_bytes_max) {
            Ok(Some(WsEvent::Text(text))) => (Opcode::Text, text),
            Ok(Some(WsEvent::Binary(bytes))) => (Opcode::Binary, bytes),
            Ok(Some(WsEvent::Ping(payload))) => {
                encode::pong(out, payload);
                continue;
            }
            Ok(Some(WsEvent::Pong(_))) => continue,
            Ok(Some(WsEvent::Close { code, .. })) => {
                encode::close_reply(out, code);
                return true;
            }
            Ok(None) => return false,
            Err(error) => {
                encode::close(out, error.close().code(), error.reason());
                return true;
            }
        };
        match (deflater.as_deref_mut(), opcode) {
            (Some(deflater), opcode) => encode::compressed(out, opcode, payload, deflater),
            (None, Opcode::Text) => encode::text(out, payload),
            (None, _) => encode::binary(out, payload),
        }
    }
}

#[cfg(test)]
#[path = "echo_tests.rs"]
mod tests;
