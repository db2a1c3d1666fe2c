//! Streams between an edge and the core: batches as bytes, late but in order, broken at any moment
//! with all that is under way. Streams know nothing of one another.

use std::collections::VecDeque;

use trunkline_core::engine::EdgeKey;

use super::core::CoreInput;
use super::edge::Link;
use super::net::Dir;
use super::{Event, World, trace};
use crate::plan::MS;
use crate::trace::print;

/// One direction.
#[derive(Default)]
struct Way {
    /// With the time of sending.
    batches: VecDeque<(u64, Vec<u8>)>,
    last_at: u64,
    /// What is under way stays so until then.
    held_until: u64,
}

/// One stream, from its greeting to both sides' knowing of its end.
pub(super) struct Stream {
    pub(super) edge: usize,
    /// Of the core process that it was opened to.
    pub(super) core_epoch: u64,
    /// The core's name for it, once it heard the greeting.
    pub(super) key: Option<EdgeKey>,
    up: Way,
    down: Way,
    pub(super) is_broken: bool,
    /// The welcome came.
    pub(super) is_welcomed: bool,
}

/// How a stream breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Break {
    /// Both sides learn of it some time later.
    Cut,
    /// The edge learns of it at once; what it sent before comes to the core late.
    LateUp,
    EdgeDied,
    CoreDied,
    /// The core gave it up.
    ByCore,
}

impl World {
    pub(super) fn open_stream(&mut self, edge: usize) -> usize {
        self.streams.push(Stream {
            edge,
            core_epoch: self.core.epoch,
            key: None,
            up: Way::default(),
            down: Way::default(),
            is_broken: false,
            is_welcomed: false,
        });
        self.streams.len() - 1
    }

    fn way(&mut self, stream: usize, dir: Dir) -> &mut Way {
        match dir {
            Dir::Up => &mut self.streams[stream].up,
            Dir::Down => &mut self.streams[stream].down,
        }
    }

    /// Puts a batch on its way. On a broken stream it is lost.
    pub(super) fn push_batch(&mut self, stream: usize, dir: Dir, bytes: &[u8]) {
        if self.streams[stream].is_broken {
            return;
        }
        let delay = if self.rng.link.chance(10) {
            self.rng.link.within(10, 120) * MS
        } else {
            self.rng.link.within(30_000, 2 * MS)
        };
        let now = self.now;
        let way = self.way(stream, dir);
        way.batches.push_back((now, bytes.to_vec()));
        way.last_at = way.last_at.max(now + delay);
        let at = way.last_at;
        self.queue.push(at, Event::Batch { stream, dir });
    }

    /// The next batch arrives.
    pub(super) fn batch(&mut self, stream: usize, dir: Dir) {
        let now = self.now;
        let way = self.way(stream, dir);
        if way.held_until > now {
            let at = way.held_until;
            return self.queue.push(at, Event::Batch { stream, dir });
        }
        let Some((sent_at, bytes)) = way.batches.pop_front() else {
            return;
        };
        match dir {
            Dir::Down => {
                self.streams[stream].is_welcomed = true;
                self.edge_hears(stream, &bytes);
            }
            Dir::Up => self.batch_at_core(stream, sent_at, &bytes),
        }
    }

    fn batch_at_core(&mut self, stream: usize, sent_at: u64, bytes: &[u8]) {
        let at = &self.streams[stream];
        if !self.core.is_up() || at.core_epoch != self.core.epoch {
            // Nobody listens, or it is not the one that the stream was opened to.
            return self.break_stream(stream, Break::CoreDied);
        }
        let edge = at.edge;
        if at.is_broken && !matches!(self.edges[edge].link, Link::Up(now) if now == stream) {
            self.cover.link_late += 1;
        }
        trace!(
            self,
            "core < stream {stream}: {} bytes {:08x}",
            bytes.len(),
            print(bytes)
        );
        self.core_input(CoreInput::Batch {
            stream,
            sent_at,
            bytes: bytes.to_vec(),
        });
    }

    /// Nothing gets through upwards for a while: what is sent meanwhile is under way.
    pub(super) fn stall_stream(&mut self, stream: usize, ns: u64) {
        trace!(self, "stream {stream} stalls");
        self.way(stream, Dir::Up).held_until = self.now + ns;
    }

    /// The stream breaks.
    pub(super) fn break_stream(&mut self, stream: usize, how: Break) {
        if self.streams[stream].is_broken {
            return;
        }
        trace!(self, "stream {stream} breaks: {how:?}");
        let at = &mut self.streams[stream];
        at.is_broken = true;
        let (lost_up, lost_down) = match how {
            Break::Cut => (true, true),
            Break::LateUp => (false, true),
            Break::EdgeDied => (false, true),
            Break::CoreDied => (true, false),
            Break::ByCore => (true, true),
        };
        for (dir, is_lost) in [(Dir::Up, lost_up), (Dir::Down, lost_down)] {
            let count = self.way(stream, dir).batches.len();
            let kept = if is_lost {
                0
            } else {
                self.rng.link.index(count + 1)
            };
            self.way(stream, dir).batches.truncate(kept);
        }
        let (edge_after, core_after) = match how {
            Break::Cut => (self.rng.link.below(300) * MS, self.rng.link.below(900) * MS),
            Break::LateUp => {
                let held = self.rng.link.within(100, 900) * MS;
                self.way(stream, Dir::Up).held_until = self.now + held;
                (0, held + MS)
            }
            Break::EdgeDied => {
                let held = self.rng.link.below(2_500) * MS;
                self.way(stream, Dir::Up).held_until = self.now + held;
                (0, held + MS)
            }
            Break::CoreDied | Break::ByCore => (self.rng.link.below(200) * MS, 0),
        };
        // Behind what still arrives.
        let edge_at = (self.now + edge_after).max(self.streams[stream].down.last_at);
        let core_at = (self.now + core_after).max(self.streams[stream].up.last_at);
        for (at_core, at) in [(false, edge_at), (true, core_at)] {
            self.queue.push(at, Event::StreamEnds { stream, at_core });
        }
    }

    /// One side learns that the stream is over.
    pub(super) fn stream_ends(&mut self, stream: usize, at_core: bool) {
        if at_core {
            return self.core_loses(stream);
        }
        if !self.streams[stream].is_broken {
            // The wait for a welcome is over.
            if self.streams[stream].is_welcomed {
                return;
            }
            self.break_stream(stream, Break::Cut);
        }
        self.edge_loses(stream);
    }
}
