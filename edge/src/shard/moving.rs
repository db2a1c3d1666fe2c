//! The loop at both ends of a hand-over: it comes to rest and follows orders; or it takes in what
//! another process had, and begins to read when the core knows of it.

use std::io;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::{LISTENER_TCP, LISTENER_WS, ShardLoop, now};
use crate::handover::state::{self, BadState};
use crate::handover::{
    ANNOUNCE_MAX, ATTACH_MAX, BATCH_BYTES, BATCH_CONNECTIONS, Batch, HandoverError, Order, STEP_MAX,
};
use crate::ring::{Carried, Fin, Hold};

use prost::Message as _;

impl ShardLoop {
    /// Accepts from these, all of one address each.
    pub fn listen(&mut self, ws: Vec<TcpListener>, tcp: Vec<TcpListener>) -> io::Result<()> {
        self.driver.adopt_listeners(LISTENER_WS, ws)?;
        self.driver.adopt_listeners(LISTENER_TCP, tcp)
    }

    /// Takes connections of another process in, and touches none of them before
    /// [`ShardLoop::begin_taken`].
    pub fn adopt(&mut self, batch: Batch) -> Result<(), HandoverError> {
        self.driver.hold(Hold::Everything);
        self.shard.begin(now(self.origin, Instant::now()));
        for (mut connection, socket) in batch.connections.into_iter().zip(batch.sockets) {
            let tail = std::mem::take(&mut connection.tail);
            let unsent = tail.len();
            let fin = match connection.fin {
                0 => Fin::None,
                1 => Fin::Due,
                2 => Fin::Sent,
                _ => return Err(BadState("an unknown end of sending").into()),
            };
            let conn = self.driver.adopt(Carried {
                socket,
                tail,
                eof: connection.eof,
                fin,
            })?;
            self.shard.arrive(conn, connection, unsent)?;
        }
        Ok(())
    }

    /// The connections taken in are this process's: what they are owed leaves now. They are read as
    /// soon as the core knows of all sessions, of which `released` is told.
    pub fn begin_taken(&mut self, released: Sender<()>) {
        self.driver.hold(Hold::Reading);
        self.reads_at = Some(Instant::now() + ATTACH_MAX);
        self.announced_by = Some(Instant::now() + ANNOUNCE_MAX);
        self.released = Some(released);
    }

    pub(super) const fn is_moving(&self) -> bool {
        self.held.is_some() || self.orders.is_some() || self.reads_at.is_some()
    }

    /// What is to be done for a hand-over after a turn. True: everything is a successor's.
    pub(super) fn move_on(&mut self) -> io::Result<bool> {
        if self.held.is_some() && self.driver.is_held() {
            let listeners = self.driver.listeners();
            if let Some(held) = self.held.take() {
                // Whoever asked may have given up.
                let _ = held.send(listeners);
            }
        }
        if self.shard.is_link_up()
            && let Some(announced_by) = self.announced_by.take()
        {
            self.reads_at = Some(announced_by);
        }
        if let Some(at) = self.reads_at
            && (self.shard.all_announced() || Instant::now() >= at)
        {
            self.let_go();
        }
        match self.orders.take() {
            Some(orders) => self.follow(&orders),
            None => Ok(false),
        }
    }

    pub(super) fn let_go(&mut self) {
        self.held = None;
        self.reads_at = None;
        self.announced_by = None;
        self.driver.hold(Hold::Nothing);
        if let Some(released) = self.released.take() {
            // Nobody waits any more if it took too long.
            let _ = released.send(());
        }
    }

    /// Comes to rest, and does what is ordered until nobody orders anything.
    fn follow(&mut self, orders: &Receiver<Order>) -> io::Result<bool> {
        let rests = self.rest()?;
        let mut from = 0;
        while rests && let Ok(order) = orders.recv() {
            match order {
                Order::Next(answer) => {
                    // Whoever asked may have given up.
                    let _ = answer.send(self.next_batch(&mut from));
                }
                Order::Gone => {
                    self.driver.abandon();
                    return Ok(true);
                }
            }
        }
        self.let_go();
        Ok(false)
    }

    /// Turns until nothing is under way and nothing waits to be sent.
    fn rest(&mut self) -> io::Result<bool> {
        self.driver.hold(Hold::Everything);
        let deadline = Instant::now() + STEP_MAX;
        loop {
            self.turn_driver(Duration::ZERO)?;
            self.shard.begin(now(self.origin, Instant::now()));
            self.shard.end_turn(&mut self.actions);
            self.apply();
            if self.driver.is_held() {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                tracing::warn!("a shard did not come to rest within {STEP_MAX:?}");
                return Ok(false);
            }
        }
    }

    fn next_batch(&mut self, from: &mut u32) -> io::Result<Batch> {
        let mut batch = Batch::default();
        let mut bytes = 0;
        while batch.sockets.len() < BATCH_CONNECTIONS && bytes < BATCH_BYTES {
            let Some(conn) = self.shard.next_connection(*from) else {
                break;
            };
            *from = conn.slot + 1;
            // None: it is closing, and nothing is owed to anybody.
            let Some(carried) = self.driver.export(conn)? else {
                continue;
            };
            let connection = self.shard.depart(conn).ok_or_else(|| {
                io::Error::other("a connection with permessage-deflate cannot be handed over")
            })?;
            let connection = state::Connection {
                tail: carried.tail,
                eof: carried.eof,
                fin: match carried.fin {
                    Fin::None => 0,
                    Fin::Due => 1,
                    Fin::Sent => 2,
                },
                ..connection
            };
            bytes += connection.encoded_len();
            batch.connections.push(connection);
            batch.sockets.push(carried.socket);
        }
        Ok(batch)
    }
}
