//! What goes wrong, and what can be left out to see it go wrong for good.

use super::node::Happens;
use super::store::Network;
use super::world::{MS, SECOND, World};
use crate::ownership::machine::Input;
use crate::ownership::settings::Rule;

/// Something that happens to the world.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// One of the others, then the next in a while.
    Any,
    Kill(usize),
    Start(usize),
    /// SIGSTOP; `frozen`: its clock stops with it.
    Pause {
        node: usize,
        frozen: bool,
    },
    Resume(usize),
    Cut(usize),
    Reach(usize),
    Outage,
    /// The process stops right after it sent a renewal, and is cut off when it goes on.
    Stall {
        node: usize,
        lasts_ns: u64,
    },
    Drain(usize),
    /// The wall clock is set.
    Jump {
        node: usize,
        by_ms: i64,
    },
    /// Nothing goes wrong any more, and everything that did is mended.
    Heal,
}

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// A rule of the machine.
    Rule(Rule),
    /// A partition is let go in `Held` before its hand-over is written.
    ClearFirst,
    /// Whoever lapsed begins again as another incarnation.
    LapsedIsDead,
    /// A process that is started is another incarnation.
    NewIncarnation,
    /// The clock is read after the write returned.
    CheckAfter,
    /// The own row is read, where clocks may stop.
    Verify,
}

impl Without {
    /// What the machine has to leave out for it.
    pub fn rule(self) -> Option<Rule> {
        match self {
            Self::Rule(rule) => Some(rule),
            // Only a machine that takes a row of its name for its own can go on with it.
            Self::LapsedIsDead | Self::NewIncarnation => Some(Rule::NewIncarnation),
            Self::ClearFirst | Self::CheckAfter | Self::Verify => None,
        }
    }
}

impl World {
    pub fn strike(&mut self, fault: Fault) {
        self.trace(|| format!("fault: {fault:?}"));
        match fault {
            Fault::Any => {
                let wait = self.dice.within(200 * MS, 4 * SECOND);
                self.any_fault();
                self.fault_after(wait, Fault::Any);
            }
            Fault::Kill(n) => {
                self.leave_all(n);
                self.nodes[n].die();
            }
            Fault::Start(n) => {
                if self.nodes[n].machine.is_none() {
                    self.nodes[n].stopping = false;
                    let reuse = self.plan.without == Some(Without::NewIncarnation);
                    self.start(n, reuse);
                }
            }
            Fault::Pause { node, frozen } => {
                let node = &mut self.nodes[node];
                if node.machine.is_some() && !node.paused {
                    node.clock.advance(self.now_ns);
                    node.paused = true;
                    node.clock.frozen = frozen;
                }
            }
            Fault::Resume(n) => self.resume(n),
            Fault::Cut(n) => self.nodes[n].reachable = false,
            Fault::Reach(n) => self.nodes[n].reachable = true,
            Fault::Outage => {
                for n in 0..self.nodes.len() {
                    self.nodes[n].reachable = false;
                }
            }
            Fault::Stall { node, lasts_ns } => self.nodes[node].stall = Some(lasts_ns),
            Fault::Drain(n) => {
                if self.nodes[n].machine.is_some() && !self.nodes[n].paused {
                    self.nodes[n].stopping = true;
                    self.input(n, Input::Drain);
                }
            }
            Fault::Jump { node, by_ms } => self.nodes[node].clock.wall_off_ms = by_ms,
            Fault::Heal => {
                self.network = Network::HEALTHY;
                for n in 0..self.nodes.len() {
                    self.strike(Fault::Reach(n));
                    self.strike(Fault::Resume(n));
                    self.strike(Fault::Start(n));
                    self.nodes[n].stopping = false;
                }
            }
        }
    }

    /// A renewal is under way: the fault that was waiting for it.
    pub fn stall(&mut self, node: usize, lasts_ns: u64) {
        let frozen = false;
        self.fault_after(0, Fault::Pause { node, frozen });
        self.fault_after(50 * MS, Fault::Cut(node));
        self.fault_after(lasts_ns, Fault::Resume(node));
        self.fault_after(lasts_ns + 6 * SECOND, Fault::Reach(node));
    }

    /// What waited for a process that did not run reaches it.
    fn resume(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if !node.paused {
            return;
        }
        node.clock.advance(self.now_ns);
        node.paused = false;
        node.clock.frozen = false;
        let life = node.life;
        let mut waiting = std::mem::take(&mut node.waiting);
        // It wakes by whatever it finds first.
        if !waiting.is_empty() && self.dice.chance(500) {
            let first = self.dice.below(waiting.len() as u64) as usize;
            waiting.rotate_left(first);
        }
        waiting.push(Happens::Wake);
        for what in waiting {
            self.tell(n, Some(life), what);
        }
    }

    fn any_fault(&mut self) {
        let node = self.dice.below(self.nodes.len() as u64) as usize;
        let lasts = match self.dice.below(3) {
            0 => self.dice.within(10 * MS, SECOND),
            1 => self.dice.within(SECOND, 4 * SECOND),
            _ => self.dice.within(4 * SECOND, 9 * SECOND),
        };
        let (fault, mended) = match self.dice.below(100) {
            0..20 => (Fault::Kill(node), Some(Fault::Start(node))),
            20..45 => {
                let frozen = self.plan.verify && self.dice.chance(600);
                (Fault::Pause { node, frozen }, Some(Fault::Resume(node)))
            }
            45..65 => (Fault::Cut(node), Some(Fault::Reach(node))),
            65..72 => {
                for n in 0..self.nodes.len() {
                    let wait = lasts + self.dice.below(SECOND);
                    self.fault_after(wait, Fault::Reach(n));
                }
                (Fault::Outage, None)
            }
            72..84 => (Fault::Drain(node), Some(Fault::Start(node))),
            84..92 => {
                let lasts_ns = self.dice.within(SECOND, 5 * SECOND / 2);
                (Fault::Stall { node, lasts_ns }, None)
            }
            _ => {
                let by_ms = match self.dice.below(4) {
                    0 => 3_600_000,
                    1 => -3_600_000,
                    2 => -5_000,
                    _ => 0,
                };
                (Fault::Jump { node, by_ms }, None)
            }
        };
        self.strike(fault);
        if let Some(mended) = mended {
            self.fault_after(lasts, mended);
        }
    }
}
