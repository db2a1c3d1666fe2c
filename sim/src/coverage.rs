//! How often the interesting things happened: a simulator that never gets there proves nothing.

/// Declares the counters: name, the least that 200 seeds must bring, what it counts.
macro_rules! coverage {
    ($($name:ident $min:literal $what:literal)*) => {
        /// Counts of one run, or of many together.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Coverage {
            $(#[doc = $what] pub $name: u64,)*
        }

        impl Coverage {
            /// Adds another run's counts.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            /// Name, count, least count over [`SEEDS_FOR_MINIMUM`] seeds, meaning.
            pub fn rows(&self) -> Vec<(&'static str, u64, u64, &'static str)> {
                vec![$((stringify!($name), self.$name, $min, $what)),*]
            }
        }
    };
}

/// Seeds over which the minimums are meant.
pub const SEEDS_FOR_MINIMUM: u64 = 200;

coverage! {
    messages_durable 10_000 "messages that reached stable storage"
    sessions 1_000 "sessions that began"
    core_crashes 100 "times the core crashed and started again"
    commits_survived 5 "crashes in the middle of a commit that was kept"
    commits_lost 5 "crashes in the middle of a commit that was lost"
    commits_failed_written 100 "commits that failed and were written all the same"
    commits_failed_unwritten 100 "commits that failed and were not written"
    commits_slow 100 "commits that took over 100 ms"
    commit_retries 200 "commits repeated by the engine"
    reads_failed 400 "loads and pages that the store did not answer"
    reads_from_store 100 "pages read from the store"
    evictions 20_000 "conversations dropped from the engine's memory"
    edge_crashes 50 "times an edge crashed and started again"
    edge_drains 30 "times an edge drained and started again"
    link_cuts 200 "link streams cut"
    link_late 100 "batches of a stream that came after its edge had attached anew"
    announced_again 1_000 "sessions announced again on a new link"
    hints 6_000 "conversation hints sent after that"
    hints_spared 0 "conversations that hints did not have to look at"
    gaps_fetched 700 "gaps that clients fetched"
    client_cuts 300 "client connections cut, noticed on both sides"
    client_cuts_silent 90 "client connections cut without the edge noticing"
    client_restarts 100 "client processes started again"
    slow_readers 200 "times a client stopped reading for a while"
    sockets_blocked 1_000 "sends that stayed short"
    slow_closes 20 "sessions closed since they did not read (4410)"
    silent_closes 9 "sessions closed since nothing came (4411)"
    displaced_late 0 "live sessions replaced by one whose opening came late (a known limit)"
    replaced 100 "sessions replaced by a newer one of their device"
    duplicates 300 "sends recognised by their client_msg_id"
    rate_limited 3_000 "sends refused with rate_limited"
    overloaded 2_000 "frames refused for want of credit or room"
    unavailable 500 "answers that an outcome is unknown"
    clock_jumps 100 "clocks set forward or back"
    clock_set_back_at_start 50 "core starts under a clock that was set back"
    members_added 100 "members added to groups"
    roster_deliveries 1_000 "deliveries that named a roster in place of sessions"
    roster_changes 300 "changes to rosters that edges had"
    roster_evictions 50 "rosters dropped to make room"
    members_removed 300 "members removed from groups"
    refused_sends 1_000 "sends refused for good"
    rest_calls 4_000 "REST calls"
    rest_unanswered 400 "REST calls that were never answered"
    receipts 20_000 "watermarks that rose"
    bursts 100 "bursts of messages"
    unreadable_after_cut 200 "connections cut in the middle of a frame"
}

impl Coverage {
    /// What did not happen often enough in `seeds` runs; nothing to say below the seeds meant.
    pub fn missing(&self, seeds: u64) -> Vec<String> {
        if seeds < SEEDS_FOR_MINIMUM {
            return Vec::new();
        }
        let rows = self.rows().into_iter();
        let scaled =
            rows.map(|(name, count, min, _)| (name, count, min * seeds / SEEDS_FOR_MINIMUM));
        scaled
            .filter(|(_, count, min)| count < min)
            .map(|(name, count, min)| format!("{name}: {count}, at least {min} expected"))
            .collect()
    }
}
