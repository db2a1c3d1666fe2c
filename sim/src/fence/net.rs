//! The replicas and the way to them: what is lost, late, reordered or never answered.
//!
//! Plain writes reach each replica by themselves; two answers of the home data centre make a success.
//! Reads ask two replicas. A conditional write is one step at one moment, as Paxos makes it, but that
//! moment may come long after its sender gave up, and its answer may be lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use trunkline_core::store::StoreError;
use trunkline_core::store::fenced::rows::{Cas, Change, Conversation};
use trunkline_proto::ids::ConversationId;

use super::check::Check;
use super::clockwork::{Clockwork, Promise, promise};
use super::defects::Defect;
use super::plan::{MS, Plan};
use super::replicas::{Log, Mutation, Replica};
use crate::rng::Rng;

/// Replicas in one data centre.
pub const HOME: usize = 3;
const QUORUM: usize = 2;

/// What is lost, late and slow at present, of a thousand.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub lost: u64,
    pub late: u64,
    pub late_ns: u64,
    pub slow_ns: u64,
    /// Conditional writes that are carried out late, and those whose answer is lost.
    pub lwt_late: u64,
    pub lwt_lost: u64,
}

impl Weather {
    pub const CALM: Self = Self {
        lost: 0,
        late: 0,
        late_ns: 1,
        slow_ns: MS,
        lwt_late: 0,
        lwt_lost: 0,
    };
}

/// See the module.
pub struct Net {
    pub clockwork: Arc<Clockwork>,
    pub defect: Option<Defect>,
    pub check: Arc<Mutex<Check>>,
    timeout_ns: u64,
    tables: Mutex<Tables>,
}

struct Tables {
    rng: Rng,
    weather: Weather,
    replicas: Vec<Replica>,
    conversations: BTreeMap<ConversationId, Conversation>,
    /// Which epoch each revision had: of a defect.
    epochs: BTreeMap<(ConversationId, u64), u64>,
    /// Machines that reach no replica.
    cut_off: BTreeSet<usize>,
}

/// How a message fares.
enum Way {
    Arrives(u64),
    Lost,
}

impl Tables {
    fn delay(&mut self) -> u64 {
        self.rng.within(MS / 10, self.weather.slow_ns)
    }

    /// To a replica, of a write: what is lost now may come later, as a hint.
    fn write_way(&mut self, machine: usize) -> Way {
        let is_lost = self.cut_off.contains(&machine) || self.rng.chance(self.weather.lost);
        if is_lost && self.rng.chance(500) {
            Way::Lost
        } else if is_lost || self.rng.chance(self.weather.late) {
            Way::Arrives(self.rng.within(MS, self.weather.late_ns))
        } else {
            Way::Arrives(self.delay())
        }
    }

    fn read_way(&mut self, machine: usize) -> Way {
        if self.cut_off.contains(&machine) || self.rng.chance(self.weather.lost) {
            Way::Lost
        } else {
            Way::Arrives(self.delay())
        }
    }
}

impl Net {
    pub fn new(plan: &Plan, clockwork: Arc<Clockwork>, check: Arc<Mutex<Check>>) -> Self {
        let centres = if plan.defect == Some(Defect::TwoCentres) {
            2
        } else {
            1
        };
        Self {
            clockwork,
            defect: plan.defect,
            timeout_ns: plan.timeout_ns,
            check,
            tables: Mutex::new(Tables {
                rng: Rng::new(plan.seed, "fence net"),
                weather: plan.weather,
                replicas: vec![Replica::default(); HOME * centres],
                conversations: BTreeMap::new(),
                epochs: BTreeMap::new(),
                cut_off: BTreeSet::new(),
            }),
        }
    }

    pub fn set_weather(&self, weather: Weather) {
        self.tables.lock().weather = weather;
    }

    /// All faults end.
    pub fn heal(&self) {
        let mut tables = self.tables.lock();
        tables.weather = Weather::CALM;
        tables.cut_off.clear();
        for replica in &mut tables.replicas {
            replica.down_until_ns = 0;
        }
    }

    pub fn cut_off(&self, machine: usize, is_cut: bool) {
        let cut_off = &mut self.tables.lock().cut_off;
        if is_cut {
            cut_off.insert(machine);
        } else {
            cut_off.remove(&machine);
        }
    }

    /// A replica is killed, and comes back.
    pub fn take_down(&self, replica: usize, ns: u64) {
        let now = self.clockwork.now_ns();
        let mut tables = self.tables.lock();
        let replica = &mut tables.replicas[replica];
        replica.down_until_ns = now + ns;
        if self.defect == Some(Defect::ForgetfulReplica) {
            replica.forget_since(now.saturating_sub(500 * MS));
        }
    }

    /// A conversation as it is decided at this moment.
    pub fn decided(&self, id: ConversationId) -> Option<Conversation> {
        self.tables.lock().conversations.get(&id).cloned()
    }

    /// What each quorum of the home data centre knows.
    pub fn quorums(&self) -> Vec<Replica> {
        let tables = self.tables.lock();
        let pairs = [(0, 1), (0, 2), (1, 2)];
        let merge = |(a, b): (usize, usize)| {
            let mut merged = tables.replicas[a].clone();
            merged.merge(&tables.replicas[b]);
            merged
        };
        pairs.into_iter().map(merge).collect()
    }

    fn reach(self: &Arc<Self>, at: usize, mutation: Arc<Mutation>, done: Box<dyn FnOnce() + Send>) {
        let now = self.clockwork.now_ns();
        let mut tables = self.tables.lock();
        let replica = &mut tables.replicas[at];
        if replica.down_until_ns > now {
            let wait = replica.down_until_ns - now + 50 * MS;
            let net = self.clone();
            drop(tables);
            // A hint, which nobody waits for.
            self.clockwork
                .after(wait, move || net.reach(at, mutation, Box::new(|| ())));
            return;
        }
        replica.write(now, &mutation);
        drop(tables);
        done();
    }

    /// A plain write by a machine.
    pub async fn write(
        self: &Arc<Self>,
        machine: usize,
        mutation: Mutation,
    ) -> Result<(), StoreError> {
        let mutation = Arc::new(mutation);
        let (promise, answer) = promise();
        let answers = Arc::new(AtomicUsize::new(0));
        let count = self.tables.lock().replicas.len();
        for at in 0..count {
            let (way, back) = {
                let mut tables = self.tables.lock();
                (tables.write_way(machine), tables.read_way(machine))
            };
            let Way::Arrives(mut there) = way else {
                continue;
            };
            if at >= HOME {
                there += self.tables.lock().rng.below(2_000) * MS;
            }
            let (net, mutation) = (self.clone(), mutation.clone());
            let (answers, promise) = (answers.clone(), promise.clone());
            self.clockwork.after(there, move || {
                let clockwork = net.clockwork.clone();
                let done = move || {
                    if let (Way::Arrives(back), true) = (back, at < HOME) {
                        clockwork.after(back, move || {
                            if answers.fetch_add(1, Ordering::Relaxed) + 1 == QUORUM {
                                promise.keep(Ok(()));
                            }
                        });
                    }
                };
                net.reach(at, mutation, Box::new(done));
            });
        }
        self.give_up(promise);
        answer.await
    }

    fn give_up<T: Send + 'static>(&self, promise: Promise<Result<T, StoreError>>) {
        self.clockwork.after(self.timeout_ns, move || {
            promise.keep(Err(StoreError::Unavailable("no answer".to_owned())));
        });
    }

    /// What a quorum of replicas knows, of what `look` takes.
    pub async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        machine: usize,
        look: impl Fn(&Replica) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, StoreError> {
        let look = Arc::new(look);
        let (promise, answer) = promise();
        let found: Arc<Mutex<Vec<T>>> = Arc::default();
        let (asked, needed) = {
            let tables = &mut *self.tables.lock();
            let count = tables.replicas.len();
            let needed = count / 2 + 1;
            let mut all: Vec<usize> = (0..count).collect();
            while all.len() > needed {
                let at = tables.rng.index(all.len());
                all.remove(at);
            }
            (all, needed)
        };
        for at in asked {
            let (there, back) = {
                let mut tables = self.tables.lock();
                (tables.read_way(machine), tables.read_way(machine))
            };
            let (Way::Arrives(there), Way::Arrives(back)) = (there, back) else {
                continue;
            };
            let (net, look, found, promise) =
                (self.clone(), look.clone(), found.clone(), promise.clone());
            self.clockwork.after(there, move || {
                let looked = {
                    let replica = &net.tables.lock().replicas[at];
                    (replica.down_until_ns <= net.clockwork.now_ns()).then(|| look(replica))
                };
                let Some(looked) = looked else { return };
                net.clockwork.after(back, move || {
                    let mut all = found.lock();
                    all.push(looked);
                    if all.len() == needed {
                        promise.keep(Ok(std::mem::take(&mut *all)));
                    }
                });
            });
        }
        self.give_up(promise);
        answer.await
    }

    /// One step at one moment, which may come late; `step` is told when.
    pub async fn decide<T: Send + 'static>(
        self: &Arc<Self>,
        machine: usize,
        step: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let (promise, answer) = promise();
        let (there, back) = {
            let tables = &mut *self.tables.lock();
            let is_cut = tables.cut_off.contains(&machine);
            let there = if tables.rng.chance(tables.weather.lwt_late) {
                Way::Arrives(tables.rng.within(
                    self.timeout_ns / 2,
                    self.timeout_ns + tables.weather.late_ns,
                ))
            } else if is_cut {
                Way::Lost
            } else {
                Way::Arrives(tables.delay() * 3)
            };
            let back = if is_cut || tables.rng.chance(tables.weather.lwt_lost) {
                Way::Lost
            } else {
                Way::Arrives(tables.delay())
            };
            (there, back)
        };
        if let Way::Arrives(there) = there {
            let (clockwork, promise) = (self.clockwork.clone(), promise.clone());
            self.clockwork.after(there, move || {
                let result = step();
                if let Way::Arrives(back) = back {
                    clockwork.after(back, move || promise.keep(Ok(result)));
                }
            });
        }
        self.give_up(promise);
        answer.await
    }

    /// A conditional write's moment.
    pub fn change(&self, id: ConversationId, expected: Option<u64>, change: &Change) -> Cas {
        let mut tables = self.tables.lock();
        let known = tables.conversations.get(&id);
        let is_settings = change.row.is_some() && change.fence.is_none();
        let holds = match self.defect {
            Some(Defect::EpochOnly) => {
                let epoch = |revision| tables.epochs.get(&(id, revision)).copied();
                known.map(|c| c.epoch) == expected.and_then(epoch)
            }
            Some(Defect::Unconditional) if is_settings => known.is_some(),
            _ => known.map(|c| c.revision) == expected,
        };
        if !holds {
            return Cas::Refused;
        }
        let changed = known.cloned().unwrap_or_default().changed(change);
        let logs: Vec<Log> = tables.replicas[..HOME]
            .iter()
            .map(|r| r.logs.get(&id).cloned().unwrap_or_default())
            .collect();
        let now = self.clockwork.now_ns();
        self.check
            .lock()
            .changed(now, id, known, &changed, change, &logs);
        tables.epochs.insert((id, changed.revision), changed.epoch);
        tables.conversations.insert(id, changed);
        Cas::Applied
    }

    /// Whether something happens at all, for those who have no generator.
    pub fn chance(&self, permille: u64) -> bool {
        self.tables.lock().rng.chance(permille)
    }
}
