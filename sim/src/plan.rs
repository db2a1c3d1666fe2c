//! What a seed stands for: how large the world is, how hostile, and which bounds are small enough
//! to be reached.

use trunkline_core::engine::RosterBounds;

use crate::bugs::Bug;
use crate::rng::Rng;

/// ns.
pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;

/// When the first groups are made, and everybody begins to talk.
pub const GROUPS_AT: u64 = SECOND;
pub const TALK_AT: u64 = 3 * SECOND;
/// 2026-01-01, in ms: every process's clock at the beginning.
pub const START_UNIX_MS: u64 = 1_767_225_600_000;

/// How often what goes wrong, as weights. 0: never in this seed.
#[derive(Clone, Debug)]
pub struct Hostility {
    /// Mean time between faults; 0: none at all.
    pub fault_every_ns: u64,
    pub core_crash: u64,
    pub edge_crash: u64,
    pub edge_drain: u64,
    pub link_cut: u64,
    pub client_cut: u64,
    pub client_restart: u64,
    pub slow_reader: u64,
    pub clock_jump: u64,
    pub burst: u64,
    /// Of a thousand commits, and of a thousand reads.
    pub commit_fails: u64,
    pub commit_slow: u64,
    pub read_fails: u64,
}

/// One seed's world.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub bug: Option<Bug>,
    pub shards: usize,
    pub users: usize,
    /// One in so many of a thousand users has a second device.
    pub second_device: u64,
    pub groups: usize,
    /// Faults and talk end then.
    pub heal_at: u64,
    /// Mean time between two things that a client does.
    pub act_every_ns: u64,
    /// First credit on the link, both ways.
    pub credit: u32,
    pub conversations_cached_max: usize,
    pub recent_bytes_max: usize,
    pub send_rate: u32,
    pub send_burst: u32,
    pub heartbeat_ms: u32,
    pub outbox_soft: usize,
    pub outbox_hard: usize,
    /// What the kernel takes of a socket that does not read.
    pub socket_bytes: usize,
    pub lane_window: usize,
    pub operations_open_max: usize,
    pub rosters: RosterBounds,
    pub hostility: Hostility,
}

impl Plan {
    pub fn new(seed: u64, bug: Option<Bug>) -> Self {
        let rng = &mut Rng::new(seed, "plan");
        // Small sockets that often block, or small outboxes that are often full: both together, and
        // nobody gets through a sync.
        let (socket_bytes, outbox_hard) = *rng.pick(&[
            (600, 1 << 20),
            (2_000, 1 << 20),
            (1_500, 3_000),
            (4_000, 4_000),
        ]);
        // Long enough, now and then, that not everything has just happened.
        let is_long = rng.chance(120);
        let (heal_at, act_every_ns) = if is_long {
            (rng.within(120, 240) * SECOND, rng.within(2_000, 5_000) * MS)
        } else {
            (rng.within(12, 30) * SECOND, rng.within(150, 700) * MS)
        };
        Self {
            seed,
            bug,
            shards: rng.within(1, 2) as usize,
            users: rng.within(4, 7) as usize,
            second_device: 500,
            groups: rng.within(1, 3) as usize,
            heal_at,
            act_every_ns,
            credit: *rng.pick(&[6, 40, 16_384]),
            conversations_cached_max: *rng.pick(&[1, 3, 1_000]),
            recent_bytes_max: *rng.pick(&[2_000, 1 << 30]),
            send_rate: *rng.pick(&[5, 20, 0]),
            send_burst: *rng.pick(&[5, 40]),
            heartbeat_ms: *rng.pick(&[2_000, 5_000, 30_000]),
            outbox_soft: outbox_hard / 2,
            outbox_hard,
            socket_bytes,
            lane_window: rng.within(1, 3) as usize,
            operations_open_max: *rng.pick(&[5, 65_536]),
            rosters: rosters(seed),
            hostility: Hostility::new(rng, is_long),
        }
    }
}

/// Few recipients and few messages make a roster, and few rosters fit.
fn rosters(seed: u64) -> RosterBounds {
    let rng = &mut Rng::new(seed, "rosters");
    RosterBounds {
        recipients_min: rng.within(1, 3) as usize,
        messages_min: rng.within(0, 3) as u32,
        rosters_max: *rng.pick(&[1, 3, 1_000]),
        handles_max: *rng.pick(&[6, 40, 1_000]),
    }
}

impl Hostility {
    fn new(rng: &mut Rng, is_long: bool) -> Self {
        let calm = rng.chance(50);
        let mut weight = |permille: u64, most: u64| {
            if rng.chance(permille) {
                rng.within(1, most)
            } else {
                0
            }
        };
        let core_crash = weight(500, 10);
        let edge_crash = weight(350, 6);
        let edge_drain = weight(200, 4);
        let link_cut = weight(700, 20);
        let client_cut = weight(800, 30);
        let client_restart = weight(400, 10);
        let slow_reader = weight(600, 15);
        let clock_jump = weight(400, 10);
        let burst = weight(500, 10);
        let commit_fails = weight(400, 120);
        let commit_slow = weight(400, 60);
        let read_fails = weight(300, 100);
        let fault_every_ns = match (calm, is_long) {
            (true, _) => 0,
            (false, true) => rng.within(1_000, 12_000) * MS,
            (false, false) => rng.within(150, 2_000) * MS,
        };
        Self {
            fault_every_ns,
            core_crash,
            edge_crash,
            edge_drain,
            link_cut,
            client_cut,
            client_restart,
            slow_reader,
            clock_jump,
            burst,
            commit_fails,
            commit_slow,
            read_fails,
        }
    }
}
