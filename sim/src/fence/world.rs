//! The machines, who owns what, and everything that goes wrong with them.
//!
//! Ownership is a script: it keeps the times that a lease gives (a core lapses by its own clock
//! before anybody follows it) and the order of a hand-over, over one table of partitions that is
//! decided in steps. What is tried here is the store under it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use trunkline_core::ownership::held::BootClock;
use trunkline_core::store::StoreError;
use trunkline_core::store::fenced::proof::Witness;
use uuid::Uuid;

use super::check::Check;
use super::clockwork::{Clockwork, Process};
use super::defects::Defect;
use super::life::Life;
use super::net::{HOME, Net, Weather};
use super::plan::{HEAL_NS, MS, PARTITIONS, Plan, SECOND, TTL_NS};
use super::replicas::Mutation;
use crate::rng::Rng;

/// The process of everything that never fails.
pub const ABOVE: Process = 0;

/// When a lease that was not renewed is over for everybody, whatever their clocks.
const FOLLOW_NS: u64 = TTL_NS + TTL_NS * 15 / 100;

/// A machine's clock: its own rate, and it may be frozen with the machine.
pub struct Clock {
    clockwork: Arc<Clockwork>,
    rate_permille: u64,
    frozen_ns: AtomicU64,
}

impl BootClock for Clock {
    fn now_ns(&self) -> u64 {
        let ran = self.clockwork.now_ns() - self.frozen_ns.load(Ordering::Relaxed);
        ran / 1_000 * self.rate_permille
    }
}

/// A clock that stands still: of a defect.
pub struct Still;

impl BootClock for Still {
    fn now_ns(&self) -> u64 {
        0
    }
}

pub struct Partition {
    pub owner: Option<Uuid>,
    pub epoch: u64,
    pub pending: Vec<Uuid>,
}

pub struct Lease {
    pub life: Arc<Life>,
    pub is_alive: bool,
    renewed_ns: u64,
}

pub struct Control {
    pub partitions: Vec<Partition>,
    pub leases: BTreeMap<Uuid, Lease>,
    /// Machines whose renewals get nowhere.
    cut: BTreeSet<usize>,
    /// Who is handing which partition over.
    handing: BTreeSet<(Process, u16)>,
    /// Lives begun.
    pub lives: u64,
}

/// See the module.
pub struct World {
    pub plan: Plan,
    pub clockwork: Arc<Clockwork>,
    pub net: Arc<Net>,
    pub check: Arc<Mutex<Check>>,
    pub clocks: Vec<Arc<Clock>>,
    pub control: Mutex<Control>,
    pub rng: Mutex<Rng>,
    /// The life on each machine.
    pub running: Mutex<Vec<Option<Arc<Life>>>>,
    /// No life begins any more but the last one.
    is_closed: Mutex<bool>,
    pub is_over: Mutex<bool>,
}

impl World {
    pub fn new(plan: Plan, keep_trace: bool) -> Arc<Self> {
        let clockwork: Arc<Clockwork> = Arc::default();
        let check = Arc::new(Mutex::new(Check::new(keep_trace)));
        let rng = &mut Rng::new(plan.seed, "fence clocks");
        // One more machine, for the last owner.
        let clock = |_| {
            Arc::new(Clock {
                clockwork: clockwork.clone(),
                rate_permille: rng.within(976, 1_024),
                frozen_ns: AtomicU64::new(0),
            })
        };
        let clocks: Vec<Arc<Clock>> = (0..=plan.machines).map(clock).collect();
        let partition = |_| Partition {
            owner: None,
            epoch: 0,
            pending: Vec::new(),
        };
        Arc::new(Self {
            net: Arc::new(Net::new(&plan, clockwork.clone(), check.clone())),
            rng: Mutex::new(Rng::new(plan.seed, "fence world")),
            running: Mutex::new(vec![None; plan.machines + 1]),
            control: Mutex::new(Control {
                partitions: (0..PARTITIONS).map(partition).collect(),
                leases: BTreeMap::new(),
                cut: BTreeSet::new(),
                handing: BTreeSet::new(),
                lives: 0,
            }),
            is_closed: Mutex::new(false),
            is_over: Mutex::new(false),
            clocks,
            check,
            clockwork,
            plan,
        })
    }

    pub fn now_ns(&self) -> u64 {
        self.clockwork.now_ns()
    }

    pub fn has(&self, defect: Defect) -> bool {
        self.plan.defect == Some(defect)
    }

    pub fn within(&self, from: u64, to: u64) -> u64 {
        self.rng.lock().within(from, to)
    }

    pub fn note(&self, what: std::fmt::Arguments<'_>) {
        self.check.lock().note(self.now_ns(), what);
    }

    /// Who should have the partition now, as an edge's map says.
    pub fn owner(&self, partition: u16) -> Option<Arc<Life>> {
        let control = self.control.lock();
        let owner = control.partitions[usize::from(partition)].owner?;
        Some(control.leases.get(&owner)?.life.clone())
    }

    /// A life begins on a machine.
    pub fn start(self: &Arc<Self>, machine: usize) {
        let number = {
            let mut control = self.control.lock();
            control.lives += 1;
            control.lives
        };
        let again = self.running.lock()[machine].clone();
        let again = again.filter(|life| self.has(Defect::SameIncarnation) && life.held.is_valid());
        let life = Life::begin(self, machine, number, again);
        self.note(format_args!("machine {machine} begins life {number}"));
        let lease = Lease {
            life: life.clone(),
            is_alive: true,
            renewed_ns: self.now_ns(),
        };
        let mut control = self.control.lock();
        control.leases.insert(life.held.incarnation(), lease);
        drop(control);
        self.running.lock()[machine] = Some(life.clone());
        life.run();
        let world = self.clone();
        self.clockwork
            .spawn(life.process, async move { world.renew(&life).await });
    }

    /// The life on a machine ends, and another begins.
    pub fn end_life(self: &Arc<Self>, life: &Life, after_ns: u64) {
        if self.clockwork.is_dead(life.process) {
            return;
        }
        self.clockwork.kill(life.process);
        self.note(format_args!("life {} ends", life.process));
        let (world, machine) = (self.clone(), life.machine);
        self.clockwork.after(after_ns, move || {
            if !*world.is_closed.lock() {
                world.start(machine);
            }
        });
    }

    /// All lives end, and no other begins by itself.
    pub fn close(self: &Arc<Self>) {
        *self.is_closed.lock() = true;
        let running: Vec<Arc<Life>> = self.running.lock().iter().flatten().cloned().collect();
        for life in running {
            self.end_life(&life, 1);
        }
    }

    async fn renew(self: &Arc<Self>, life: &Arc<Life>) {
        let clock = &self.clocks[life.machine];
        loop {
            self.clockwork.sleep(TTL_NS / 4).await;
            let sent_ns = clock.now_ns();
            let is_cut = self.control.lock().cut.contains(&life.machine);
            if !is_cut {
                let (world, incarnation) = (self.clone(), life.held.incarnation());
                let renewed = move || {
                    let now = world.now_ns();
                    let mut control = world.control.lock();
                    let lease = control.leases.get_mut(&incarnation);
                    lease.is_some_and(|lease| {
                        if lease.is_alive {
                            lease.renewed_ns = now;
                        }
                        lease.is_alive
                    })
                };
                match self.net.decide(life.machine, renewed).await {
                    Ok(true) => life.held.renewed(sent_ns + TTL_NS * 9 / 10),
                    Ok(false) if !self.has(Defect::LapseForgiven) => life.held.lapse(),
                    Ok(false) | Err(_) => {}
                }
            }
            if !life.held.is_valid() {
                self.check.lock().count("lapses");
                // A while in which it goes on.
                let notices = self.within(MS, 300 * MS);
                self.clockwork.sleep(notices).await;
                let wait = self.within(MS, 50 * MS);
                return self.end_life(life, wait);
            }
        }
    }

    /// Declares dead whoever did not renew, and gives away what has no owner.
    pub async fn govern(self: Arc<Self>) {
        loop {
            self.clockwork.sleep(40 * MS).await;
            let now = self.now_ns();
            let mut taken = Vec::new();
            {
                let control = &mut *self.control.lock();
                for lease in control.leases.values_mut() {
                    lease.is_alive &= lease.renewed_ns + FOLLOW_NS > now;
                }
                let fresh: Vec<Arc<Life>> = control
                    .leases
                    .values()
                    .filter(|l| l.is_alive && l.renewed_ns + TTL_NS / 2 > now)
                    .map(|l| l.life.clone())
                    .collect();
                for (number, partition) in control.partitions.iter_mut().enumerate() {
                    let owner = partition.owner.and_then(|o| control.leases.get(&o));
                    if fresh.is_empty() || owner.is_some_and(|lease| lease.is_alive) {
                        continue;
                    }
                    let life = &fresh[self.rng.lock().index(fresh.len())];
                    partition.epoch += 1;
                    let owner = partition.owner.replace(life.held.incarnation());
                    partition.pending.extend(owner);
                    taken.push((life.clone(), number as u16, partition.epoch));
                }
            }
            for (life, partition, epoch) in taken {
                self.check.lock().count("take_overs");
                life.takes(partition, epoch);
            }
        }
    }

    /// A living core gives a partition to another.
    fn hand_over(self: &Arc<Self>, partition: u16, to: Arc<Life>) {
        let Some(from) = self.owner(partition) else {
            return;
        };
        let Some(epoch) = from.held.epoch(partition) else {
            return;
        };
        if Arc::ptr_eq(&from, &to) || self.clockwork.is_dead(from.process) {
            return;
        }
        let handing = (from.process, partition);
        if !self.control.lock().handing.insert(handing) {
            return;
        }
        let world = self.clone();
        self.clockwork.spawn(from.process, async move {
            let step = {
                let (world, from, to) = (world.clone(), from.clone(), to.clone());
                move || world.handed_over(partition, epoch, &from, &to)
            };
            if world.has(Defect::LetGoLate) {
                world.surely(from.machine, step).await;
                world.clockwork.sleep(world.within(1, 300) * MS).await;
                from.let_go(partition).await;
            } else {
                from.let_go(partition).await;
                // Whatever its outcome is, nothing of the partition is committed any more.
                world.surely(from.machine, step).await;
            }
            world.control.lock().handing.remove(&handing);
        });
    }

    /// A step that is tried until it has surely been taken, and does nothing the second time.
    async fn surely(&self, machine: usize, step: impl Fn() + Clone + Send + 'static) {
        while self.net.decide(machine, step.clone()).await.is_err() {
            self.clockwork.sleep(20 * MS).await;
        }
    }

    fn handed_over(&self, partition: u16, epoch: u64, from: &Life, to: &Arc<Life>) {
        let new_epoch = {
            let control = &mut *self.control.lock();
            let row = &mut control.partitions[usize::from(partition)];
            let is_alive = |life: &Life| {
                let lease = control.leases.get(&life.held.incarnation());
                lease.is_some_and(|lease| lease.is_alive)
            };
            let is_owner = row.owner == Some(from.held.incarnation()) && row.epoch == epoch;
            if !is_owner {
                return;
            }
            row.pending.push(from.held.incarnation());
            if !is_alive(to) {
                row.owner = None;
                return;
            }
            row.epoch += 1;
            row.owner = Some(to.held.incarnation());
            row.epoch
        };
        self.check.lock().count("hand_overs");
        self.note(format_args!(
            "life {} hands {partition} over to life {}",
            from.process, to.process
        ));
        to.takes(partition, new_epoch);
    }

    /// What goes wrong, until it is time to heal.
    pub async fn misfortunes(self: Arc<Self>) {
        loop {
            let wait = self.within(1, self.plan.faults.every_ns * 2);
            self.clockwork
                .sleep(wait.min(HEAL_NS - self.now_ns()))
                .await;
            if self.now_ns() >= HEAL_NS {
                break;
            }
            self.misfortune();
        }
        self.net.heal();
        self.control.lock().cut.clear();
        self.note(format_args!("healed"));
    }

    fn misfortune(self: &Arc<Self>) {
        let weights = self.plan.faults.weights();
        let mut at = self.rng.lock().below(self.plan.faults.total());
        let kind = weights.iter().position(|weight| {
            let is_it = at < *weight;
            at = at.saturating_sub(*weight);
            is_it
        });
        let machine = self.rng.lock().index(self.plan.machines);
        let life = self.running.lock()[machine].clone();
        let Some(life) = life.filter(|life| !self.clockwork.is_dead(life.process)) else {
            return;
        };
        match kind {
            Some(0) => {
                self.check.lock().count("kills");
                let wait = self.within(MS, 500 * MS);
                self.end_life(&life, wait);
            }
            Some(1) => self.pause(&life, false),
            Some(2) => self.pause(&life, true),
            Some(3) => self.cut(machine, false),
            Some(4) => self.cut(machine, true),
            Some(5) => {
                let replica = self.rng.lock().index(HOME);
                let ns = self.within(10, 2_000) * MS;
                self.note(format_args!("replica {replica} down for {ns}"));
                self.net.take_down(replica, ns);
            }
            Some(6) => {
                let partition = self.rng.lock().below(u64::from(PARTITIONS)) as u16;
                let from = self.owner(partition);
                self.hand_over(partition, life);
                if let Some(from) = from.filter(|_| self.rng.lock().chance(500)) {
                    // And back.
                    let (world, wait) = (self.clone(), self.within(50, 600) * MS);
                    self.clockwork
                        .after(wait, move || world.hand_over(partition, from));
                }
            }
            Some(7) => self.retention(),
            Some(8) => self.storm(),
            _ => {}
        }
    }

    fn pause(self: &Arc<Self>, life: &Arc<Life>, is_frozen: bool) {
        if self.clockwork.is_stopped(life.process) {
            return;
        }
        let (least, most) = match self.rng.lock().below(10) {
            // Just until another has taken over.
            0..3 => (FOLLOW_NS / MS, FOLLOW_NS / MS + 500),
            3..6 => (10, 3_000),
            _ => (10, 600),
        };
        let ns = self.within(least, most) * MS;
        self.check
            .lock()
            .count(if is_frozen { "freezes" } else { "pauses" });
        self.note(format_args!(
            "life {} stops for {ns}, frozen {is_frozen}",
            life.process
        ));
        self.clockwork.stop(life.process);
        let (world, life) = (self.clone(), life.clone());
        self.clockwork.after(ns, move || {
            if is_frozen && !world.clockwork.is_dead(life.process) {
                let clock = &world.clocks[life.machine];
                clock.frozen_ns.fetch_add(ns, Ordering::Relaxed);
            }
            world.clockwork.go_on(life.process);
        });
    }

    fn cut(self: &Arc<Self>, machine: usize, whole: bool) {
        let ns = self.within(100, 3_000) * MS;
        self.note(format_args!(
            "machine {machine} cut off for {ns}, whole {whole}"
        ));
        if whole {
            self.net.cut_off(machine, true);
        } else {
            self.control.lock().cut.insert(machine);
        }
        let world = self.clone();
        self.clockwork.after(ns, move || {
            if whole {
                world.net.cut_off(machine, false);
            } else {
                world.control.lock().cut.remove(&machine);
            }
        });
    }

    fn storm(self: &Arc<Self>) {
        self.note(format_args!("a storm"));
        self.net.set_weather(Weather {
            lost: 250,
            late: 300,
            late_ns: 3 * SECOND,
            slow_ns: 150 * MS,
            lwt_late: 300,
            lwt_lost: 300,
        });
        let world = self.clone();
        let ns = self.within(100, 1_500) * MS;
        self.clockwork.after(ns, move || {
            if world.now_ns() < HEAL_NS {
                world.net.set_weather(world.plan.weather);
            }
        });
    }

    /// A worker that comes by all the time.
    pub async fn retain(self: Arc<Self>) {
        while self.plan.faults.retention > 0 && self.now_ns() < HEAL_NS {
            let wait = self.within(5, 400) * MS;
            self.clockwork.sleep(wait).await;
            self.retention();
        }
    }

    /// A worker deletes what is settled, all of it, or all but the newest.
    fn retention(self: &Arc<Self>) {
        let number = self.within(1, super::plan::CONVERSATIONS as u64);
        let (id, world) = (super::conversation(u128::from(number)), self.clone());
        self.clockwork.spawn(ABOVE, async move {
            let net = world.net.clone();
            let look = move || net.decided(id);
            let Ok(Some(found)) = world.net.decide(usize::MAX, look).await else {
                return;
            };
            let settled = if world.has(Defect::DeletedUnsettled) {
                world.check.lock().head(id)
            } else {
                found.settled
            };
            let up_to = settled.saturating_sub(world.within(0, 3));
            if up_to == 0 {
                return;
            }
            world.check.lock().expired(id, up_to, false);
            let now = world.now_ns();
            world.note(format_args!("deletes up to {up_to} of {id}"));
            let mutation = Mutation::Delete(id, up_to, now);
            let deleted = world.net.write(usize::MAX, mutation).await.is_ok();
            world.check.lock().expired(id, up_to, deleted);
        });
    }
}

/// Looks whether a core has been declared dead.
pub struct Registry {
    pub world: std::sync::Weak<World>,
    pub incarnation: Uuid,
    pub machine: usize,
}

#[async_trait]
impl Witness for Registry {
    async fn is_alive(&self) -> Result<bool, StoreError> {
        let Some(world) = self.world.upgrade() else {
            return Ok(false);
        };
        let (seen, incarnation) = (world.clone(), self.incarnation);
        let look = move || {
            let control = seen.control.lock();
            let lease = control.leases.get(&incarnation);
            lease.is_some_and(|lease| lease.is_alive)
        };
        world.net.decide(self.machine, look).await
    }
}
