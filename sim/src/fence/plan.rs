//! What a seed stands for: how many machines and conversations, how hostile the ways between them.

use super::defects::Defect;
use super::net::Weather;
use crate::rng::Rng;

/// ns.
pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;

pub const PARTITIONS: u16 = 2;
pub const CONVERSATIONS: u128 = 3;
pub const CLIENTS: usize = 12;
/// Of these, some only look: they never wait for an owner.
pub const READERS: usize = 3;

/// Of a lease.
pub const TTL_NS: u64 = SECOND;
/// Of a journal's window.
pub const WINDOW_NS: u64 = SECOND;

/// Talk and faults end then.
pub const HEAL_NS: u64 = 12 * SECOND;
/// By then everything has come to its end.
pub const END_NS: u64 = 60 * SECOND;

/// How often what goes wrong, as weights; 0: never in this seed.
#[derive(Clone, Debug)]
pub struct Faults {
    pub every_ns: u64,
    pub kill: u64,
    pub pause: u64,
    pub freeze: u64,
    pub cut_control: u64,
    pub cut_off: u64,
    pub replica_down: u64,
    pub hand_over: u64,
    pub retention: u64,
    pub storm: u64,
}

impl Faults {
    pub fn total(&self) -> u64 {
        self.weights().iter().sum()
    }

    /// In the order of the fields.
    pub const fn weights(&self) -> [u64; 9] {
        [
            self.kill,
            self.pause,
            self.freeze,
            self.cut_control,
            self.cut_off,
            self.replica_down,
            self.hand_over,
            self.retention,
            self.storm,
        ]
    }
}

/// One seed's world.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub defect: Option<Defect>,
    pub machines: usize,
    /// `--fence verify`.
    pub has_witness: bool,
    pub tail_max: u32,
    pub bucket_size: u64,
    /// When whoever asks the tables gives up.
    pub timeout_ns: u64,
    pub batch_rows_max: usize,
    pub act_every_ns: u64,
    /// Of a thousand turns: conversations are let go after it.
    pub evict: u64,
    pub weather: Weather,
    pub faults: Faults,
}

impl Plan {
    pub fn new(seed: u64, defect: Option<Defect>) -> Self {
        let rng = &mut Rng::new(seed, "fence plan");
        let has_witness = rng.chance(400) && defect != Some(Defect::FrozenClock);
        let may_freeze = has_witness || defect == Some(Defect::FrozenClock);
        let mut weight = |permille: u64, most: u64| {
            if rng.chance(permille) {
                rng.within(1, most)
            } else {
                0
            }
        };
        let faults = Faults {
            kill: weight(600, 10),
            pause: weight(600, 10),
            freeze: if may_freeze { weight(900, 20) } else { 0 },
            cut_control: weight(600, 10),
            cut_off: weight(300, 5),
            replica_down: weight(500, 10),
            hand_over: weight(600, 15),
            retention: weight(500, 10),
            storm: weight(400, 5),
            every_ns: rng.within(100, 2_500) * MS,
        };
        let weather = Weather {
            lost: *rng.pick(&[0, 20, 120]),
            late: *rng.pick(&[0, 30, 200]),
            late_ns: *rng.pick(&[50, 1_000, 5_000]) * MS,
            slow_ns: *rng.pick(&[1, 5, 30, 120]) * MS,
            lwt_late: *rng.pick(&[0, 30, 200]),
            lwt_lost: *rng.pick(&[0, 50, 200]),
        };
        let mut plan = Self {
            seed,
            defect,
            machines: rng.within(2, 3) as usize,
            has_witness,
            tail_max: rng.within(1, 6) as u32,
            bucket_size: rng.within(6, 20),
            timeout_ns: *rng.pick(&[400, 3_000]) * MS,
            batch_rows_max: rng.within(1, 4) as usize,
            act_every_ns: rng.within(10, 120) * MS,
            evict: *rng.pick(&[0, 50, 300]),
            weather,
            faults,
        };
        plan.lean(rng.below(8));
        plan
    }

    /// Half of the seeds lean towards one kind of trouble, so that what takes several things to go
    /// wrong in a row comes about.
    fn lean(&mut self, towards: u64) {
        let (weather, faults) = (&mut self.weather, &mut self.faults);
        match towards {
            // Partitions go to and fro while writes are repeated.
            0 => {
                faults.hand_over = 40;
                faults.replica_down = 20;
                faults.every_ns = 200 * MS;
                weather.lost = 250;
                weather.slow_ns = 5 * MS;
                self.timeout_ns = 400 * MS;
                self.evict = 0;
            }
            // Cores go on after they have been followed.
            1 => {
                faults.pause = 40;
                faults.cut_control = 10;
                faults.every_ns = 400 * MS;
                weather.slow_ns = 5 * MS;
                weather.late = 200;
                weather.late_ns = 5 * SECOND;
                self.timeout_ns = 3 * SECOND;
            }
            // First uses take long, conditional writes come late, and a worker deletes.
            2 => {
                faults.retention = 20;
                faults.kill = 5;
                faults.every_ns = 800 * MS;
                weather.slow_ns = 120 * MS;
                weather.lwt_late = 300;
                weather.lwt_lost = 50;
                self.timeout_ns = 400 * MS;
                self.evict = 300;
            }
            // Rows get to one replica, and their owner dies.
            3 => {
                faults.kill = 40;
                faults.retention = 0;
                faults.every_ns = 400 * MS;
                weather.lost = 350;
                weather.late_ns = 5 * SECOND;
                weather.slow_ns = 5 * MS;
                self.timeout_ns = 3 * SECOND;
                self.batch_rows_max = 1;
                self.tail_max = 6;
                self.act_every_ns = 20 * MS;
            }
            // Machines are frozen with their clocks.
            4 if self.has_witness => {
                faults.freeze = 40;
                faults.every_ns = 400 * MS;
                weather.slow_ns = 5 * MS;
                self.evict = 300;
            }
            _ => {}
        }
    }
}
