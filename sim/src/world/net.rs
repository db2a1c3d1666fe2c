//! Sockets between clients and edges: bytes in pieces of any size, late but in order, cut at any
//! byte; and the little that an edge's driver does with them.

use std::collections::VecDeque;

use bytes::Bytes;
use trunkline_edge::ring::ConnId;

use super::edge::SocketInput;
use super::{Event, World, trace};
use crate::bugs::Bug;
use crate::plan::MS;
use crate::trace::print;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dir {
    /// Towards the core.
    Up,
    Down,
}

/// What travels.
pub(super) enum Packet {
    /// The connection is new (upwards only).
    Open,
    Bytes(Vec<u8>),
    /// The sender has shut its side.
    Fin,
    /// The connection is gone.
    Reset,
}

/// One direction.
#[derive(Default)]
pub(super) struct Pipe {
    packets: VecDeque<Packet>,
    /// Bytes in it.
    bytes: usize,
    last_at: u64,
    /// The receiver does not read until then.
    pub(super) paused_until: u64,
    /// Nothing arrives any more, and nobody says so.
    dead: bool,
    /// What did not fit: the driver's tail.
    tail: Bytes,
    fin_after_tail: bool,
}

/// One connection.
pub(super) struct Socket {
    pub(super) client: usize,
    pub(super) edge: usize,
    pub(super) shard: usize,
    /// Of the edge.
    pub(super) epoch: u64,
    /// The edge's name for it, once accepted.
    pub(super) conn: Option<ConnId>,
    pub(super) up: Pipe,
    pub(super) down: Pipe,
    pub(super) client_open: bool,
    pub(super) edge_open: bool,
    /// Some of what was under way is lost: nothing behind it may arrive.
    is_cut: bool,
    edge_sent_fin: bool,
    edge_got_fin: bool,
}

/// How a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Both sides are told.
    Both,
    /// The edge hears nothing more, and is not told.
    Silent,
    /// The client's process ends, or it lets go: the edge is told.
    ByClient,
    /// The edge's process ends: the client is told.
    ByEdge,
}

impl World {
    /// A client opens a socket to an edge.
    pub(super) fn open_socket(&mut self, client: usize, edge: usize) -> usize {
        let shard = self.rng.net.index(self.edges[edge].shards.len());
        let socket = self.sockets.len();
        self.sockets.push(Socket {
            client,
            edge,
            shard,
            epoch: self.edges[edge].epoch,
            conn: None,
            up: Pipe::default(),
            down: Pipe::default(),
            client_open: true,
            edge_open: true,
            is_cut: false,
            edge_sent_fin: false,
            edge_got_fin: false,
        });
        trace!(self, "c{client} dials e{edge}.{shard} as socket {socket}");
        self.push_packet(socket, Dir::Up, Packet::Open);
        socket
    }

    fn pipe(&mut self, socket: usize, dir: Dir) -> &mut Pipe {
        match dir {
            Dir::Up => &mut self.sockets[socket].up,
            Dir::Down => &mut self.sockets[socket].down,
        }
    }

    fn push_packet(&mut self, socket: usize, dir: Dir, packet: Packet) {
        let delay = if self.rng.net.chance(20) {
            self.rng.net.within(20, 200) * MS
        } else {
            self.rng.net.within(50_000, 5 * MS)
        };
        let now = self.now;
        let pipe = self.pipe(socket, dir);
        if let Packet::Bytes(bytes) = &packet {
            pipe.bytes += bytes.len();
        }
        pipe.packets.push_back(packet);
        pipe.last_at = pipe.last_at.max(now + delay);
        let at = pipe.last_at;
        self.queue.push(at, Event::Packet { socket, dir });
    }

    /// Sends bytes in pieces.
    fn push_bytes(&mut self, socket: usize, dir: Dir, mut bytes: &[u8]) {
        if self.sockets[socket].is_cut && !self.pipe(socket, dir).dead {
            return;
        }
        while !bytes.is_empty() {
            let len = match self.rng.net.below(10) {
                0 => self.rng.net.within(1, 8) as usize,
                1 | 2 => self.rng.net.within(1, 200) as usize,
                _ => bytes.len(),
            };
            let (piece, rest) = bytes.split_at(len.min(bytes.len()));
            self.push_packet(socket, dir, Packet::Bytes(piece.to_vec()));
            bytes = rest;
        }
    }

    /// A client sends.
    pub(super) fn client_sends(&mut self, socket: usize, bytes: &[u8]) {
        if self.sockets[socket].client_open {
            trace!(
                self,
                "socket {socket} > {} bytes {:08x}",
                bytes.len(),
                print(bytes)
            );
            self.push_bytes(socket, Dir::Up, bytes);
        }
    }

    /// The next packet arrives.
    pub(super) fn packet(&mut self, socket: usize, dir: Dir) {
        let now = self.now;
        let pipe = self.pipe(socket, dir);
        if pipe.dead {
            return;
        }
        if pipe.paused_until > now {
            let at = pipe.paused_until;
            return self.queue.push(at, Event::Packet { socket, dir });
        }
        let Some(packet) = pipe.packets.pop_front() else {
            return;
        };
        if let Packet::Bytes(bytes) = &packet {
            pipe.bytes -= bytes.len();
        }
        match dir {
            Dir::Up => self.packet_at_edge(socket, packet),
            Dir::Down => {
                self.refill(socket);
                self.packet_at_client(socket, packet);
            }
        }
    }

    fn packet_at_edge(&mut self, socket: usize, packet: Packet) {
        let at = &self.sockets[socket];
        let edge = at.edge;
        let is_there = self.edges[edge].is_up && self.edges[edge].epoch == at.epoch;
        if !is_there || !at.edge_open {
            if matches!(packet, Packet::Open) {
                self.cut(socket, Cut::ByEdge);
            }
            return;
        }
        if matches!(packet, Packet::Open) {
            return self.accept(socket);
        }
        let Some(conn) = at.conn else { return };
        match packet {
            Packet::Open => {}
            Packet::Bytes(bytes) => self.socket_input(socket, SocketInput::Received(conn, bytes)),
            Packet::Fin => {
                self.sockets[socket].edge_got_fin = true;
                self.socket_input(socket, SocketInput::Eof(conn));
                self.close_if_both_shut(socket);
            }
            Packet::Reset => self.edge_closed(socket),
        }
    }

    fn packet_at_client(&mut self, socket: usize, packet: Packet) {
        if !self.sockets[socket].client_open {
            return;
        }
        let client = self.sockets[socket].client;
        match packet {
            Packet::Open => {}
            Packet::Bytes(bytes) => {
                trace!(
                    self,
                    "socket {socket} < {} bytes {:08x}",
                    bytes.len(),
                    print(&bytes)
                );
                self.client_received(client, socket, &bytes);
            }
            Packet::Fin | Packet::Reset => {
                trace!(self, "socket {socket} < end");
                self.client_lost(client, socket);
            }
        }
    }

    // ---- the edge's driver ----

    /// The shard hands over a turn's bytes.
    pub(super) fn edge_sends(&mut self, socket: usize, bytes: Bytes) {
        if !self.sockets[socket].edge_open {
            return;
        }
        trace!(
            self,
            "e{} > socket {socket} {} bytes {:08x}",
            self.sockets[socket].edge,
            bytes.len(),
            print(&bytes)
        );
        let drops = self.has(Bug::SlowConsumerDrops);
        let room_in_all = self.plan.socket_bytes;
        let down = &mut self.sockets[socket].down;
        if !down.tail.is_empty() {
            return self.violation("a send while the driver holds a tail");
        }
        let room = room_in_all.saturating_sub(down.bytes);
        if bytes.len() <= room {
            return self.push_bytes(socket, Dir::Down, &bytes);
        }
        self.cover.sockets_blocked += 1;
        if drops {
            return;
        }
        down.tail = bytes.slice(room..);
        let unsent = down.tail.len();
        self.push_bytes(socket, Dir::Down, &bytes[..room]);
        if let Some(conn) = self.sockets[socket].conn {
            self.socket_input(socket, SocketInput::Blocked(conn, unsent));
        }
    }

    /// The client has read: the tail moves up.
    fn refill(&mut self, socket: usize) {
        let room = self.plan.socket_bytes;
        let at = &mut self.sockets[socket];
        let room = room.saturating_sub(at.down.bytes);
        if at.down.tail.is_empty() || room == 0 || !at.edge_open {
            return;
        }
        let len = room.min(at.down.tail.len());
        let moved = at.down.tail.split_to(len);
        let is_drained = at.down.tail.is_empty();
        let fin = is_drained && at.down.fin_after_tail;
        let conn = at.conn;
        self.push_bytes(socket, Dir::Down, &moved);
        if let Some(conn) = conn.filter(|_| is_drained) {
            self.socket_input(socket, SocketInput::Drained(conn));
        }
        if fin {
            self.edge_shuts(socket);
        }
    }

    /// FIN behind all that was handed over.
    pub(super) fn edge_shuts(&mut self, socket: usize) {
        let at = &mut self.sockets[socket];
        if !at.edge_open || at.edge_sent_fin {
            return;
        }
        if !at.down.tail.is_empty() {
            at.down.fin_after_tail = true;
            return;
        }
        at.edge_sent_fin = true;
        self.push_packet(socket, Dir::Down, Packet::Fin);
        self.close_if_both_shut(socket);
    }

    fn close_if_both_shut(&mut self, socket: usize) {
        let at = &self.sockets[socket];
        if at.edge_open && at.edge_sent_fin && at.edge_got_fin {
            self.edge_closed(socket);
        }
    }

    /// The shard drops the connection.
    pub(super) fn edge_drops(&mut self, socket: usize) {
        if self.sockets[socket].edge_open {
            self.push_packet(socket, Dir::Down, Packet::Reset);
            self.edge_closed(socket);
        }
    }

    /// The connection is gone for the edge: the shard hears it, its slot is free.
    fn edge_closed(&mut self, socket: usize) {
        let at = &mut self.sockets[socket];
        if !at.edge_open {
            return;
        }
        at.edge_open = false;
        at.down.tail = Bytes::new();
        if let Some(conn) = at.conn {
            trace!(self, "socket {socket} is closed at the edge");
            self.socket_input(socket, SocketInput::Closed(conn));
            self.free_slot(socket);
        }
    }

    // ---- cuts ----

    /// Cuts a connection, somewhere in the middle of what is under way.
    pub(super) fn cut(&mut self, socket: usize, how: Cut) {
        let was_cut = std::mem::replace(&mut self.sockets[socket].is_cut, true);
        if was_cut && matches!(how, Cut::Both | Cut::Silent) {
            return;
        }
        trace!(self, "socket {socket} is cut: {how:?}");
        for dir in [Dir::Up, Dir::Down] {
            let permille = self.rng.net.below(1_001);
            let pipe = self.pipe(socket, dir);
            let keep = (pipe.bytes as u64 * permille / 1_000) as usize;
            pipe.truncate(keep);
        }
        let at = &mut self.sockets[socket];
        match how {
            Cut::Both => {
                self.push_packet(socket, Dir::Up, Packet::Reset);
                self.push_packet(socket, Dir::Down, Packet::Reset);
            }
            Cut::Silent => {
                at.down.dead = true;
                at.up.packets.clear();
                at.up.bytes = 0;
                at.up.dead = true;
                let client = at.client;
                self.client_lost(client, socket);
            }
            Cut::ByClient => {
                at.client_open = false;
                at.down.dead = true;
                self.push_packet(socket, Dir::Up, Packet::Reset);
            }
            Cut::ByEdge => {
                at.edge_open = false;
                at.down.tail = Bytes::new();
                self.push_packet(socket, Dir::Down, Packet::Reset);
            }
        }
    }

    /// A client takes leave in an orderly way: what it sent still arrives.
    pub(super) fn client_shuts(&mut self, socket: usize) {
        if self.sockets[socket].client_open {
            self.sockets[socket].client_open = false;
            self.push_packet(socket, Dir::Up, Packet::Fin);
        }
    }
}

impl Pipe {
    /// Loses all but so many bytes.
    fn truncate(&mut self, keep: usize) {
        let mut left = keep;
        let mut kept = VecDeque::new();
        while let Some(packet) = self.packets.pop_front() {
            match packet {
                Packet::Open => kept.push_back(packet),
                Packet::Bytes(mut bytes) if left > 0 => {
                    bytes.truncate(left);
                    left -= bytes.len();
                    kept.push_back(Packet::Bytes(bytes));
                }
                Packet::Bytes(_) | Packet::Fin | Packet::Reset => {}
            }
        }
        self.bytes = keep - left;
        self.packets = kept;
    }
}
