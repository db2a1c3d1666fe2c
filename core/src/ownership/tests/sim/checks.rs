//! What must hold, looked at while it happens.

use std::collections::BTreeMap;

use uuid::Uuid;

/// What was seen so far, and what of it must not be.
#[derive(Default)]
pub struct Checks {
    pub violations: Vec<String>,
    /// A machine that thaws may believe for a while that it has what others took. Commits show
    /// whether it acts on that.
    clocks_freeze: bool,
    /// When each epoch of a partition was gained, by whom.
    gains: BTreeMap<u16, BTreeMap<u64, (u64, Uuid)>>,
    /// The first and the last time of ids, by worker and holder.
    ids: BTreeMap<u16, BTreeMap<Uuid, (u64, u64)>>,
    /// Since when a partition is served by nobody, and whether its owner died.
    unserved_since: BTreeMap<u16, (u64, bool)>,
    /// How long partitions were served by nobody after a death, ns.
    pub death_gaps: Vec<u64>,
    /// The same of hand-overs.
    pub move_gaps: Vec<u64>,
    pub commits: u64,
    pub refused: u64,
    pub take_overs: u64,
    pub hand_overs: u64,
    pub lapses: u64,
}

impl Checks {
    pub fn new(clocks_freeze: bool) -> Self {
        Self {
            clocks_freeze,
            ..Self::default()
        }
    }

    fn violated(&mut self, what: String) {
        if self.violations.len() < 20 {
            self.violations.push(what);
        }
    }

    /// A core serves a partition from now on.
    pub fn gained(&mut self, partition: u16, epoch: u64, by: Uuid, now_ns: u64) {
        let gains = self.gains.entry(partition).or_default();
        let highest = gains.last_key_value().map_or(0, |(e, _)| *e);
        let before = gains.insert(epoch, (now_ns, by));
        if let Some((_, other)) = before {
            let what = format!("epoch {epoch} of {partition} is served twice: by {other} and {by}");
            self.violated(what);
        } else if epoch < highest && !self.clocks_freeze {
            let what = format!("{partition} is served under {epoch} after {highest}");
            self.violated(what);
        }
        match self.unserved_since.remove(&partition) {
            Some((since, true)) => self.death_gaps.push(now_ns - since),
            Some((since, false)) => self.move_gaps.push(now_ns - since),
            None => {}
        }
    }

    /// A core no longer serves a partition.
    pub fn left(&mut self, partition: u16, epoch: u64, died: bool, now_ns: u64) {
        let highest = self.gains.get(&partition).and_then(|g| g.last_key_value());
        if highest.is_some_and(|(e, _)| *e == epoch) {
            let since = self.unserved_since.entry(partition);
            since.or_insert((now_ns, died));
        }
    }

    /// A write under an epoch is called committed. `as_of_ns`: the latest time at which that was
    /// known to be right.
    pub fn committed(&mut self, partition: u16, epoch: u64, as_of_ns: u64) {
        self.commits += 1;
        let gains = self.gains.get(&partition);
        let later = gains
            .into_iter()
            .flat_map(|g| g.range(epoch + 1..))
            .find(|(_, (at, _))| *at <= as_of_ns);
        if let Some((other, (at, _))) = later {
            let what = format!(
                "{partition} committed under {epoch} at {as_of_ns}, but {other} is served since {at}"
            );
            self.violated(what);
        }
    }

    /// A message id was made. Two holders of a worker make ids of different times.
    pub fn id_made(&mut self, worker: u16, ms: u64, by: Uuid) {
        let all = self.ids.entry(worker).or_default();
        let own = all.entry(by).or_insert((ms, ms));
        *own = (own.0.min(ms), own.1.max(ms));
        let (from, to) = *own;
        let other = all
            .iter()
            .find(|(holder, range)| **holder != by && range.0 <= to && from <= range.1);
        if let Some((holder, range)) = other {
            let what =
                format!("worker {worker}: {by} makes ids of {from}..={to}, {holder} of {range:?}");
            self.violated(what);
        }
    }

    /// Partitions that nobody serves, or that were never served, at the end.
    pub fn end(&mut self, partitions: u16) {
        for p in 0..partitions {
            if self.unserved_since.contains_key(&p) || !self.gains.contains_key(&p) {
                self.violated(format!("{p} is stranded"));
            }
        }
    }

    pub fn fail(&mut self, what: String) {
        self.violated(what);
    }
}
