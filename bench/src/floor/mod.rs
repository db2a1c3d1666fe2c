//! The floor: a server that does what the kernel must do for a chat message and nothing else. One
//! receive per read, one send per connection and turn, no frames, no state but what is owed. No
//! server on these sockets can be cheaper; how near ours comes is the measure of its own work.
//!
//! What it sends is made beforehand, and no byte that arrives is looked at: it answers as many bytes
//! as came, which are the right ones as long as the client sends what `crate::echo::payload` says.
//!
//! It runs on the product's ring driver. Called by the command line's hidden `bench floor-server`,
//! which `crate::echo::contestant` starts.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use trunkline_edge::ring::{
    self, BACKLOG, ConnId, Driver, DriverChoice, DriverConfig, Event, bind_reuseport,
};

use crate::BenchError;
use crate::echo::args::{FloorServerArgs, Shape};
use crate::echo::payload::{delivery, pattern};

/// Messages of each kind that one send can carry; more wait for the next turn.
const MESSAGES_PER_SEND: usize = 64;
/// The longest wait: how late a stop without a wake is noticed.
const TURN_MAX: Duration = Duration::from_millis(250);

/// `trunkline bench floor-server`: serves until its standard input ends; says where on the first
/// line of its output.
pub fn run_server(args: &FloorServerArgs) -> Result<(), BenchError> {
    let stop = Arc::new(AtomicBool::new(false));
    let listener = bind_reuseport(([127, 0, 0, 1], 0).into(), BACKLOG)?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", listener.local_addr()?)?;
    stdout.flush()?;
    let ending = Arc::clone(&stop);
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            // Whoever started this process holds the other end; an error ends it as well.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            ending.store(true, Ordering::Release);
        })?;
    serve(listener, args.shape, args.payload as usize, &stop)
}

/// Serves on the calling thread until `stop`, which is noticed within a quarter of a second.
pub fn serve(
    listener: TcpListener,
    shape: Shape,
    payload: usize,
    stop: &AtomicBool,
) -> Result<(), BenchError> {
    let limit = ring::raise_nofile()?.clamp(64, 1 << 20) as u32;
    let config = DriverConfig {
        slots_max: limit,
        ..DriverConfig::default()
    };
    let mut driver = ring::open(DriverChoice::Auto, &config)?;
    driver.listen(0, listener)?;
    let mut floor = Floor::new(shape, payload, driver.slots_max());
    while !stop.load(Ordering::Acquire) {
        let wait = if floor.dirty.is_empty() {
            TURN_MAX
        } else {
            Duration::ZERO
        };
        driver.turn(wait, &mut |event| floor.on_event(event))?;
        floor.end_turn(&mut *driver);
    }
    Ok(())
}

/// What a connection is owed.
#[derive(Clone, Copy, Default)]
struct Conn {
    id: Option<ConnId>,
    /// Its place among those that get every fan-out.
    place: u32,
    /// Bytes of the message that has begun: of an echo what was sent of it, else what was received.
    begun: u32,
    /// Of an echo bytes, else answers.
    owed: u32,
    /// Deliveries.
    deliveries: u32,
    blocked: bool,
    dirty: bool,
}

/// All connections. Pure but for the sends at the end of each turn.
struct Floor {
    shape: Shape,
    payload: usize,
    /// [`MESSAGES_PER_SEND`] answers, and as many deliveries behind them: any number of both is a
    /// slice of it. An echo may begin within the first message.
    block: Bytes,
    conns: Vec<Conn>,
    /// Slots of those that are there, for the fan-out.
    present: Vec<u32>,
    /// Slots that are owed something.
    dirty: Vec<u32>,
    /// Connections whose peer has sent its FIN.
    ended: Vec<ConnId>,
    /// Messages of this turn that go to everybody.
    publications: u32,
}

impl Floor {
    fn new(shape: Shape, payload: usize, slots_max: u32) -> Self {
        let mut block = pattern(payload).repeat(MESSAGES_PER_SEND);
        if shape == Shape::Chat {
            block.extend(delivery(payload).repeat(MESSAGES_PER_SEND));
        }
        Self {
            shape,
            payload,
            block: block.into(),
            conns: vec![Conn::default(); slots_max as usize],
            present: Vec::new(),
            dirty: Vec::new(),
            ended: Vec::new(),
            publications: 0,
        }
    }

    fn on_event(&mut self, event: Event<'_>) {
        match event {
            Event::Accepted { conn, .. } => {
                self.conns[conn.slot as usize] = Conn {
                    id: Some(conn),
                    place: self.present.len() as u32,
                    // The slot's last owner may have left it on the list.
                    dirty: self.conns[conn.slot as usize].dirty,
                    ..Conn::default()
                };
                self.present.push(conn.slot);
            }
            Event::Received { conn, data } => self.on_received(conn.slot, data.len()),
            Event::Blocked { conn, .. } => self.conns[conn.slot as usize].blocked = true,
            Event::Drained { conn } => {
                self.conns[conn.slot as usize].blocked = false;
                self.mark_dirty(conn.slot);
            }
            Event::Eof { conn } => self.ended.push(conn),
            Event::Closed { conn, .. } => self.on_closed(conn.slot),
            Event::Connected { .. } | Event::Woken => {}
        }
    }

    fn on_closed(&mut self, slot: u32) {
        let conn = std::mem::take(&mut self.conns[slot as usize]);
        self.present.swap_remove(conn.place as usize);
        if let Some(&moved) = self.present.get(conn.place as usize) {
            self.conns[moved as usize].place = conn.place;
        }
        self.conns[slot as usize].dirty = conn.dirty;
    }

    fn on_received(&mut self, slot: u32, length: usize) {
        let conn = &mut self.conns[slot as usize];
        if self.shape == Shape::Echo {
            conn.owed += length as u32;
            return self.mark_dirty(slot);
        }
        let bytes = conn.begun as usize + length;
        conn.begun = (bytes % self.payload) as u32;
        let messages = (bytes / self.payload) as u32;
        if messages == 0 {
            return;
        }
        if self.shape == Shape::Fanout {
            self.publications += messages;
            return;
        }
        conn.owed += messages;
        self.mark_dirty(slot);
        // Its partner is its neighbour in the order of arrival.
        let partner = conn_partner(&self.present, self.conns[slot as usize].place);
        self.conns[partner as usize].deliveries += messages;
        self.mark_dirty(partner);
    }

    fn mark_dirty(&mut self, slot: u32) {
        if !std::mem::replace(&mut self.conns[slot as usize].dirty, true) {
            self.dirty.push(slot);
        }
    }

    fn end_turn(&mut self, driver: &mut dyn Driver) {
        let publications = std::mem::take(&mut self.publications);
        if publications > 0 {
            for at in 0..self.present.len() {
                let slot = self.present[at];
                self.conns[slot as usize].owed += publications;
                self.mark_dirty(slot);
            }
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|&slot| {
            self.send(slot, driver);
            let conn = &mut self.conns[slot as usize];
            let more = conn.owed + conn.deliveries > 0;
            conn.dirty = more && !conn.blocked && conn.id.is_some();
            conn.dirty
        });
        self.dirty = dirty;
        for conn in self.ended.drain(..) {
            driver.close(conn);
        }
    }

    /// What the connection is owed, as one slice.
    fn send(&mut self, slot: u32, driver: &mut dyn Driver) {
        let conn = &mut self.conns[slot as usize];
        let Some(id) = conn.id.filter(|_| !conn.blocked) else {
            return;
        };
        let middle = MESSAGES_PER_SEND * self.payload;
        let (from, to) = if self.shape == Shape::Echo {
            let from = conn.begun as usize;
            let length = (conn.owed as usize).min(middle - from);
            conn.owed -= length as u32;
            conn.begun = ((from + length) % self.payload) as u32;
            (from, from + length)
        } else {
            let answers = conn.owed.min(MESSAGES_PER_SEND as u32);
            let deliveries = conn.deliveries.min(MESSAGES_PER_SEND as u32);
            conn.owed -= answers;
            conn.deliveries -= deliveries;
            let before = answers as usize * self.payload;
            (middle - before, middle + deliveries as usize * self.payload)
        };
        if from < to {
            driver.send(id, self.block.slice(from..to));
        }
    }
}

/// The slot of the other one of two that arrived one after the other; its own if there is none.
fn conn_partner(present: &[u32], place: u32) -> u32 {
    let other = present.get((place ^ 1) as usize);
    *other.unwrap_or(&present[place as usize])
}
