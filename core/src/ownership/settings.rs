//! Times and bounds of ownership. All times follow from the ttl of the lease, so that a test or an
//! operator changes one number.

use trunkline_proto::ids::Snowflake;

const MS: u64 = 1_000_000;

/// How long a core is believed alive after its last renewal, unless set otherwise.
pub const TTL_MS: u64 = 3_000;
/// Conditional writes of partitions under way at once; the others wait.
pub const WRITES_MAX: usize = 64;
/// Partitions that are handed over at once while the core goes on; the others wait. A core that
/// stops hands all of them over at once.
pub const HANDOVERS_MAX: usize = 16;
/// How long the engine may take to settle a partition before it is handed over regardless.
pub const RELEASE_MS_MAX: u64 = 1_000;
/// How long a core that stops waits for its partitions to be handed over. What is left then is taken
/// over as from a dead core.
pub const DRAIN_MS_MAX: u64 = 5_000;

/// What a core decides by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of the deployment: see [`super::control::Deployment::partitions`].
    pub partitions: u16,
    /// See [`TTL_MS`]. Is written to the own row, and the others judge this core by it.
    pub ttl_ms: u64,
    /// Worker ids that exist.
    pub workers: u16,
    pub writes_max: usize,
    pub handovers_max: usize,
    pub release_ms_max: u64,
    pub drain_ms_max: u64,
    #[cfg(test)]
    pub(super) without: Option<Rule>,
}

impl Settings {
    /// The defaults, for so many partitions.
    pub const fn new(partitions: u16) -> Self {
        Self {
            partitions,
            ttl_ms: TTL_MS,
            workers: Snowflake::WORKERS,
            writes_max: WRITES_MAX,
            handovers_max: HANDOVERS_MAX,
            release_ms_max: RELEASE_MS_MAX,
            drain_ms_max: DRAIN_MS_MAX,
            #[cfg(test)]
            without: None,
        }
    }

    pub(super) const fn ttl_ns(&self) -> u64 {
        self.ttl_ms * MS
    }

    /// A lease is good for this long after its first renewal attempt was sent. With
    /// [`Settings::dead_after_ns`] it leaves room for clocks that differ by 5 % each way:
    /// 0.9 / 0.95 < 1.1 / 1.05.
    pub(super) const fn valid_ns(&self) -> u64 {
        self.ttl_ns() / 10 * 9
    }

    pub(super) const fn renew_every_ns(&self) -> u64 {
        self.ttl_ns() / 4
    }

    /// Time between two looks at the other cores.
    pub(super) fn poll_every_ns(&self) -> u64 {
        if self.keeps(Rule::PollOften) {
            self.ttl_ns() / 8
        } else {
            self.ttl_ns() * 2
        }
    }

    /// Time between two looks at the partitions while nothing moves.
    pub(super) fn idle_poll_ns(&self) -> u64 {
        self.poll_every_ns() * 4
    }

    /// After a change partitions are looked at as often as cores, for this long.
    pub(super) const fn unsettled_ns(&self) -> u64 {
        self.ttl_ns() * 2
    }

    /// A statement without an answer after this has an unknown outcome.
    pub const fn statement_timeout_ns(&self) -> u64 {
        self.ttl_ns() / 4
    }

    /// Wait before a statement that failed is repeated.
    pub(super) const fn retry_ns(&self) -> u64 {
        self.ttl_ns() / 40
    }

    /// A core that showed no other counter for this long is dead, by *its* ttl.
    pub(super) const fn dead_after_ns(ttl_ms: u64) -> u64 {
        ttl_ms * MS / 10 * 11
    }

    /// A core whose counter rose within this time is counted on.
    pub(super) const fn fresh_ns(ttl_ms: u64) -> u64 {
        ttl_ms * MS / 4 * 3
    }

    /// A partition that changed hands is left where it is for this long, so that two cores that see
    /// different cores alive do not pass it back and forth.
    pub(super) const fn rest_ns(&self) -> u64 {
        self.ttl_ns() * 2
    }

    /// The core that is next in line takes a partition when the one before it did not in this time.
    pub(super) const fn next_in_line_ns(&self) -> u64 {
        self.ttl_ns() / 2
    }

    /// How far above the wall clock the stored floor of message ids lies: the ids of one lease, and
    /// of clocks that run ahead a little.
    pub(super) const fn id_horizon_ms(&self) -> u64 {
        self.ttl_ms * 2
    }

    /// A dead core's row is kept for this long, so that everybody has seen that it is dead.
    pub(super) const fn forget_after_ns(&self) -> u64 {
        self.ttl_ns() * 20
    }

    pub(super) const fn release_ns_max(&self) -> u64 {
        self.release_ms_max * MS
    }

    pub(super) const fn drain_ns_max(&self) -> u64 {
        self.drain_ms_max * MS
    }

    /// Whether a rule of the protocol is kept: always, but for tests that show what it is for.
    pub(super) fn keeps(&self, rule: Rule) -> bool {
        #[cfg(test)]
        return self.without != Some(rule);
        #[cfg(not(test))]
        {
            let _ = rule;
            true
        }
    }
}

/// The rules without which a guarantee breaks. A test leaves each out in turn and sees which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Others are judged by the own monotonic clock since the first read, not by times they stored.
    OwnClock,
    /// A lease is counted from when the first attempt was sent, not from when it was known.
    FirstSend,
    /// A row that names this core is served, whether or not its write was answered.
    Reconcile,
    /// Message ids begin above the floor of the worker's last holder.
    WorkerFloor,
    /// Cores are looked at several times within a ttl.
    PollOften,
    /// A death counts when it is decided, not when some quorum shows it.
    Decided,
    /// A row that was there before belongs to another life, whatever its name.
    NewIncarnation,
    /// A core is declared dead only while its counter is the one that was judged.
    OnlyThatCounter,
}
