//! The state machine itself: where inputs are told apart and turns end.

use super::stats::EngineStats;
use super::{Effect, EngineConfig, Input, Now};

/// All that the core knows and decides. Driven by one thread.
pub struct Engine {
    #[expect(dead_code, reason = "read by the rules that follow")]
    config: EngineConfig,
    stats: EngineStats,
}

impl Engine {
    /// `message_id_floor`: the store's, see [`crate::store::MessageStore::message_id_floor`].
    /// `uuid_seed`: random, fixes the ids of groups that are created.
    pub fn new(config: EngineConfig, message_id_floor: u64, uuid_seed: u64) -> Self {
        let _ = (message_id_floor, uuid_seed);
        Self {
            config,
            stats: EngineStats::default(),
        }
    }

    /// Takes in what happened; appends what is to be done.
    pub fn on(&mut self, input: Input, now: Now, out: &mut Vec<Effect>) {
        let _ = (input, now, out);
    }

    /// Ends a run of inputs: begins at most one commit, if none is under way, and settles credit.
    pub fn end_turn(&mut self, now: Now, out: &mut Vec<Effect>) {
        let _ = (now, out);
    }

    /// When [`Input::Tick`] is due at the latest, on the monotonic clock. `None`: nothing to wait for.
    pub fn next_deadline(&self) -> Option<u64> {
        None
    }

    /// The counters and gauges.
    pub fn stats(&self) -> EngineStats {
        self.stats
    }
}
