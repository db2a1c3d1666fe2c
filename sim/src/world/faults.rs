//! What goes wrong, and when.

use super::edge::Link;
use super::end::Stage;
use super::link::Break;
use super::net::Cut;
use super::{Event, World, trace};
use crate::plan::{MS, SECOND};

/// What the kernel takes of a socket when all is well.
const SOCKET_BYTES_HEALED: usize = 1 << 20;

/// Kinds of faults.
#[derive(Clone, Copy)]
enum Fault {
    CoreCrash,
    EdgeCrash,
    EdgeDrain,
    LinkCut,
    ClientCut,
    ClientRestart,
    SlowReader,
    ClockJump,
    Burst,
}

impl World {
    /// Something goes wrong, and something else will.
    pub(super) fn fault(&mut self) {
        let every = self.plan.hostility.fault_every_ns;
        if self.stage != Stage::Talking || every == 0 {
            return;
        }
        self.hostile = true;
        let wait = self.rng.faults.below(2 * every);
        self.after(wait, Event::Fault);
        match self.choose() {
            Some(Fault::CoreCrash) => self.crash_core(),
            Some(Fault::EdgeCrash) => self.crash_edge(),
            Some(Fault::EdgeDrain) => self.drain_edge(),
            Some(Fault::LinkCut) => self.cut_link(),
            Some(Fault::ClientCut) => self.cut_client(),
            Some(Fault::ClientRestart) => self.restart_client(),
            Some(Fault::SlowReader) => self.slow_reader(),
            Some(Fault::ClockJump) => self.jump_clock(),
            Some(Fault::Burst) => self.cause_burst(),
            None => {}
        }
    }

    fn choose(&mut self) -> Option<Fault> {
        let h = &self.plan.hostility;
        let weights = [
            (h.core_crash, Fault::CoreCrash),
            (h.edge_crash, Fault::EdgeCrash),
            (h.edge_drain, Fault::EdgeDrain),
            (h.link_cut, Fault::LinkCut),
            (h.client_cut, Fault::ClientCut),
            (h.client_restart, Fault::ClientRestart),
            (h.slow_reader, Fault::SlowReader),
            (h.clock_jump, Fault::ClockJump),
            (h.burst, Fault::Burst),
        ];
        let mut at = self.rng.faults.below(weights.iter().map(|(w, _)| w).sum());
        for (weight, fault) in weights {
            if at < weight {
                return Some(fault);
            }
            at -= weight;
        }
        None
    }

    fn crash_core(&mut self) {
        if !self.core.is_up() {
            return;
        }
        self.cover.core_crashes += 1;
        self.core_crash();
        if self.rng.faults.chance(400) {
            self.set_core_clock();
        }
        let down = self.rng.faults.within(10, 1_500) * MS;
        self.after(down, Event::CoreStart);
    }

    fn crash_edge(&mut self) {
        let edge = self.rng.faults.index(self.edges.len());
        let mut wait = 0;
        if let Link::Up(stream) = self.edges[edge].link
            && self.rng.faults.chance(500)
        {
            // Something of it is still under way when it is back.
            wait = self.rng.faults.within(20, 400) * MS;
            self.stall_stream(stream, wait);
        }
        self.after(wait, Event::EdgeCrash { edge });
    }

    pub(super) fn crash_edge_now(&mut self, edge: usize) {
        if !self.edges[edge].is_up || self.edges[edge].drains || self.stage != Stage::Talking {
            return;
        }
        self.cover.edge_crashes += 1;
        self.edge_crash(edge);
        let down = self.rng.faults.within(10, 2_000) * MS;
        self.after(down, Event::EdgeStart { edge });
    }

    /// A drain as an upgrade does it: the process ends when the time is up, and starts anew.
    fn drain_edge(&mut self) {
        let edge = self.rng.faults.index(self.edges.len());
        if !self.edges[edge].is_up || self.edges[edge].drains {
            return;
        }
        self.cover.edge_drains += 1;
        let budget_ms = self.rng.faults.within(200, 3_000);
        self.edge_drain(edge, budget_ms);
        self.after((budget_ms + 500) * MS, Event::EdgeStart { edge });
    }

    fn cut_link(&mut self) {
        let edge = self.rng.faults.index(self.edges.len());
        let (Link::Up(stream) | Link::Attaching(stream)) = self.edges[edge].link else {
            return;
        };
        self.cover.link_cuts += 1;
        let how = match self.rng.faults.below(10) {
            0..5 => Break::Cut,
            5..9 => Break::LateUp,
            _ => Break::ByCore,
        };
        let wait = match how {
            Break::LateUp => self.rng.faults.below(400) * MS,
            _ => 0,
        };
        if wait > 0 {
            self.stall_stream(stream, wait);
        }
        self.after(wait, Event::StreamBreaks { stream, how });
    }

    fn cut_client(&mut self) {
        let client = self.rng.faults.index(self.clients.len());
        let Some(socket) = self.online_socket(client) else {
            return;
        };
        if self.rng.faults.chance(250) {
            self.cover.client_cuts_silent += 1;
            if self.rng.faults.chance(300) {
                let away = self.rng.faults.within(8, 16) * SECOND;
                self.clients[client].away_until = self.now + away;
            }
            self.cut(socket, Cut::Silent);
        } else {
            self.cover.client_cuts += 1;
            self.cut(socket, Cut::Both);
        }
    }

    fn restart_client(&mut self) {
        let client = self.rng.faults.index(self.clients.len());
        self.cover.client_restarts += 1;
        self.client_restart(client);
    }

    fn slow_reader(&mut self) {
        let client = self.rng.faults.index(self.clients.len());
        let Some(socket) = self.online_socket(client) else {
            return;
        };
        let until = self.now + self.rng.faults.within(100, 6_000) * MS;
        trace!(self, "c{client} reads nothing until {}", until / MS);
        self.cover.slow_readers += 1;
        self.sockets[socket].down.paused_until = until;
        self.clients[client].paused_until = until;
    }

    fn jump(&mut self) -> i64 {
        self.rng.faults.within(0, 10_000) as i64 - 5_000
    }

    fn jump_clock(&mut self) {
        if self.rng.faults.chance(600) {
            return self.set_core_clock();
        }
        let edge = self.rng.faults.index(self.edges.len());
        self.cover.clock_jumps += 1;
        self.edges[edge].clock_offset_ms = self.jump();
        trace!(
            self,
            "e{edge}'s clock is off by {} ms", self.edges[edge].clock_offset_ms
        );
    }

    fn set_core_clock(&mut self) {
        self.cover.clock_jumps += 1;
        self.core.clock_offset_ms = self.jump();
        trace!(
            self,
            "the core's clock is off by {} ms", self.core.clock_offset_ms
        );
    }

    fn cause_burst(&mut self) {
        let client = self.rng.faults.index(self.clients.len());
        self.cover.bursts += 1;
        self.burst(client);
    }

    /// Faults and talk end; what is broken is mended.
    pub(super) fn heal(&mut self) {
        trace!(self, "all heals");
        // The last words, of which some are under way when a link breaks.
        for client in 0..self.clients.len() {
            self.act(client);
        }
        self.stage = Stage::Settling;
        self.hostile = false;
        // Everybody has a good connection now.
        self.plan.socket_bytes = SOCKET_BYTES_HEALED;
        self.after(0, Event::CoreStart);
        for edge in 0..self.edges.len() {
            if !self.edges[edge].drains {
                self.after(0, Event::EdgeStart { edge });
            }
        }
        self.after(SECOND, Event::Look);
    }
}
