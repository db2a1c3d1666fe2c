//! The end of a run: everybody gets quiet, and what must then hold is looked at; everybody leaves,
//! and nothing of them may stay behind.

use super::edge::Link;
use super::{Event, World, trace};
use crate::plan::SECOND;

/// From the healing on, all must be quiet within this.
const QUIET_WITHIN: u64 = 100 * SECOND;
/// And stay so: repeats and probes have their time.
const QUIET_FOR: u64 = 15 * SECOND;
/// From the leaving on, all must be forgotten.
const LEAVE_WITHIN: u64 = 15 * SECOND;

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// People talk, things break.
    Talking,
    /// Nothing new happens.
    Settling,
    /// All is quiet since this time.
    Quiet(u64),
    /// Everybody has left at this time.
    Leaving(u64),
    Over,
}

impl World {
    /// Whether it is time for the next stage.
    pub(super) fn look(&mut self) {
        match self.stage {
            Stage::Talking | Stage::Over => {}
            Stage::Settling => match self.unrest() {
                None => {
                    self.quiet_after_ns = self.now - self.plan.heal_at;
                    self.stage = Stage::Quiet(self.now);
                }
                Some(what) if self.now > self.plan.heal_at + QUIET_WITHIN => {
                    self.violation(format!("no quiet: {what}"));
                }
                Some(_) => {}
            },
            Stage::Quiet(since) => {
                if self.unrest().is_some() {
                    self.stage = Stage::Settling;
                } else if self.now >= since + QUIET_FOR {
                    self.check_quiet();
                    self.everybody_leaves();
                }
            }
            Stage::Leaving(since) => {
                let left = self.left_behind();
                if left.is_none() {
                    self.stage = Stage::Over;
                } else if self.now >= since + LEAVE_WITHIN + 2 * self.silence() {
                    self.violation(format!("left behind: {}", left.unwrap_or_default()));
                }
            }
        }
        self.after(SECOND, Event::Look);
    }

    /// An edge gives a silent socket up after this.
    fn silence(&self) -> u64 {
        let ms = trunkline_proto::limits::silence_max_ms(self.plan.heartbeat_ms);
        ms * crate::plan::MS
    }

    /// Why it is not quiet yet.
    fn unrest(&self) -> Option<String> {
        let edges = self
            .edges
            .iter()
            .position(|e| !matches!(e.link, Link::Up(_)));
        if let Some(edge) = edges {
            return Some(format!("e{edge} has no core"));
        }
        if let Some(client) = self.clients.iter().position(|c| !c.is_quiet()) {
            let at = &self.clients[client];
            let unsettled = at.machine.unsettled();
            return Some(format!(
                "c{client} is {:?}, {unsettled} sends unsettled",
                at.phase
            ));
        }
        let call = self.calls.iter().position(|c| !c.is_done);
        call.map(|call| format!("call {call} is not answered"))
    }

    /// All is quiet: logs are equal, sends are settled, nothing is lost of the credit.
    fn check_quiet(&mut self) {
        trace!(self, "all is quiet");
        let one_by_one = self.plan.lane_window == 1;
        let verdict = self.check.clients.at_the_end(&self.check.truth, one_by_one);
        self.check.judge(self.now, verdict);
        let stats = self.core.stats();
        if stats.edges != self.edges.len() as u64 {
            self.violation(format!("{} edges are attached", stats.edges));
        }
        if stats.sessions < self.clients.len() as u64 {
            self.violation(format!(
                "{} sessions of {}",
                stats.sessions,
                self.clients.len()
            ));
        }
    }

    /// What is not back of the credit.
    fn credit_missing(&self) -> Option<String> {
        let whole = u64::from(self.plan.credit);
        for edge in &self.edges {
            let credit = edge.credit.as_ref().map_or(0, |c| c.available());
            if credit != whole {
                return Some(format!("{} has credit {credit} of {whole}", edge.id));
            }
        }
        let mut all = self.core.credits().into_iter();
        let odd = all.find(|(_, credit, waiting)| *credit as u64 != whole || *waiting > 0);
        odd.map(|(stream, credit, waiting)| {
            format!("the core has credit {credit} of {whole} on stream {stream}, {waiting} wait")
        })
    }

    fn everybody_leaves(&mut self) {
        trace!(self, "everybody leaves");
        for client in 0..self.clients.len() {
            self.client_leaves(client);
        }
        self.stage = Stage::Leaving(self.now);
    }

    /// What is still there of those who have left.
    fn left_behind(&mut self) -> Option<String> {
        let stats = self.core.stats();
        let gauges = [
            ("sessions", stats.sessions),
            ("open operations", stats.operations_open),
            ("waiting operations", stats.operations_waiting),
        ];
        if let Some((name, left)) = gauges.iter().find(|(_, left)| *left > 0) {
            return Some(format!("{left} {name} in the core"));
        }
        if let Some(missing) = self.credit_missing() {
            return Some(missing);
        }
        for edge in 0..self.edges.len() {
            if let Some(left) = self.edge_residue(edge) {
                return Some(format!("{left} in e{edge}"));
            }
        }
        None
    }

    /// The counts of what still runs.
    pub(super) fn cover_rest(&mut self) {
        self.cover_engine();
        for edge in 0..self.edges.len() {
            self.edge_leaves(edge);
        }
    }
}
