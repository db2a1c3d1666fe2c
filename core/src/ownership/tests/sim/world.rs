//! Cores, control tables and faults in virtual time, all from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use super::checks::Checks;
use super::dice::Dice;
use super::faults::{Fault, Without};
use super::node::{Happens, Node, Write};
use super::store::{Network, Replicas};
use crate::ownership::control::Life;
use crate::ownership::events::MessageIds;
use crate::ownership::held::Held;
use crate::ownership::machine::{Ask, Effect, End, Input, Machine};
use crate::ownership::settings::Settings;
use crate::ownership::statement::{Answer, Statement};

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;

/// What kind of world it is.
#[derive(Clone)]
pub struct Plan {
    pub seed: u64,
    pub nodes: usize,
    pub partitions: u16,
    pub network: Network,
    /// Commits are checked by reading the own row, so that machines may be frozen with their clocks.
    pub verify: bool,
    pub without: Option<Without>,
    /// Print everything.
    pub trace: bool,
}

enum Event {
    To {
        node: usize,
        /// `None`: whichever machine there is.
        life: Option<u64>,
        what: Happens,
    },
    Arrive(Request),
    Back {
        request: Request,
        answer: Answer,
    },
    GivenUp {
        number: u64,
        node: usize,
        life: u64,
        ask: Ask,
    },
    Decide(Statement),
    Fault(Fault),
}

struct Request {
    number: u64,
    node: usize,
    life: u64,
    ask: Ask,
    statement: Statement,
    answered_in: Option<u64>,
}

pub struct World {
    pub plan: Plan,
    pub now_ns: u64,
    pub nodes: Vec<Node>,
    pub store: Replicas,
    pub checks: Checks,
    pub(super) dice: Dice,
    pub(super) network: Network,
    queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
    lives: u64,
    requests: u64,
    unanswered: BTreeSet<u64>,
    settings: Settings,
}

impl World {
    pub fn new(plan: Plan) -> Self {
        let mut dice = Dice::new(plan.seed);
        let nodes = (0..plan.nodes)
            .map(|n| Node::new(n, dice.within(950, 1_050), dice.below(1_000) * SECOND))
            .collect();
        let settings = Settings {
            // So few that they are used again and again.
            workers: plan.nodes as u16 + 3,
            without: plan.without.and_then(Without::rule),
            ..Settings::new(plan.partitions)
        };
        Self {
            network: plan.network,
            checks: Checks::new(plan.verify),
            plan,
            now_ns: 0,
            nodes,
            store: Replicas::default(),
            dice,
            queue: BTreeMap::new(),
            queued: 0,
            lives: 0,
            requests: 0,
            unanswered: BTreeSet::new(),
            settings,
        }
    }

    fn after(&mut self, wait_ns: u64, event: Event) {
        self.queued += 1;
        self.queue
            .insert((self.now_ns + wait_ns, self.queued), event);
    }

    pub fn fault_after(&mut self, wait_ns: u64, fault: Fault) {
        self.after(wait_ns, Event::Fault(fault));
    }

    pub fn trace(&self, what: impl FnOnce() -> String) {
        if self.plan.trace {
            println!("{:>12.6} {}", self.now_ns as f64 / 1e9, what());
        }
    }

    /// Lets time pass until then, or until something is wrong.
    pub fn run_until(&mut self, end_ns: u64) {
        while self.checks.violations.is_empty() {
            match self.queue.first_key_value() {
                Some(((at, _), _)) if *at <= end_ns => {}
                _ => break,
            }
            if let Some(((at, _), event)) = self.queue.pop_first() {
                self.now_ns = at;
                self.happens(event);
            }
        }
        self.now_ns = end_ns;
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::To { node, life, what } => self.tell(node, life, what),
            Event::Arrive(request) => {
                let answer = self.store.apply(&request.statement, &mut self.dice);
                self.trace(|| {
                    let (node, statement) = (request.node, &request.statement);
                    format!("store: {node} {statement:?} -> {}", brief(&answer))
                });
                if let Some(wait) = request.answered_in {
                    self.after(wait, Event::Back { request, answer });
                } else {
                    let wait = self.dice.below(3 * SECOND);
                    self.after(wait, Event::Decide(request.statement));
                }
            }
            Event::Back { request, answer } => {
                self.store.decide(&request.statement);
                if self.nodes[request.node].reachable && self.unanswered.remove(&request.number) {
                    let ask = request.ask;
                    let what = Happens::Input(Input::Answer { ask, answer });
                    self.tell(request.node, Some(request.life), what);
                }
            }
            Event::GivenUp {
                number,
                node,
                life,
                ask,
            } => {
                if self.unanswered.remove(&number) {
                    let answer = Answer::Unknown;
                    let what = Happens::Input(Input::Answer { ask, answer });
                    self.tell(node, Some(life), what);
                }
            }
            Event::Decide(statement) => self.store.decide(&statement),
            Event::Fault(fault) => self.strike(fault),
        }
    }

    /// A process is told something, unless it is another one by now.
    pub(super) fn tell(&mut self, n: usize, life: Option<u64>, what: Happens) {
        let node = &mut self.nodes[n];
        if node.machine.is_none() || life.is_some_and(|life| life != node.life) {
            return;
        }
        if node.paused {
            node.waiting.push(what);
            return;
        }
        node.clock.advance(self.now_ns);
        match what {
            Happens::Input(input) => self.input(n, input),
            Happens::Wake => {
                node.wake_at_ns = u64::MAX;
                self.input(n, Input::Tick);
            }
            Happens::Writes => self.begin_write(n),
            Happens::Written(write) => self.written(n, write),
            Happens::Verified {
                write,
                begun_ns,
                alive,
            } => {
                let flag = self.nodes[n].flags.get(&write.partition) == Some(&write.epoch);
                if alive && flag && self.nodes[n].held.is_some() {
                    self.checks
                        .committed(write.partition, write.epoch, begun_ns);
                } else {
                    self.checks.refused += 1;
                }
            }
        }
    }

    /// Starts a process, or another incarnation within it.
    pub fn start(&mut self, n: usize, reuse: bool) {
        self.lives += 1;
        let random = u128::from(self.dice.any()) << 64 | u128::from(self.dice.any());
        let node = &mut self.nodes[n];
        if !reuse || node.incarnation.is_nil() {
            node.incarnation = uuid::Builder::from_random_bytes(random.to_be_bytes()).into_uuid();
        }
        node.life = self.lives;
        node.wake_at_ns = u64::MAX;
        node.held = None;
        node.flags.clear();
        let machine = Machine::new(self.settings.clone(), node.incarnation, &node.address);
        node.machine = Some(machine);
        let (life, incarnation) = (node.life, node.incarnation);
        self.trace(|| format!("{n} starts as {incarnation}"));
        let writes = Event::To {
            node: n,
            life: Some(life),
            what: Happens::Writes,
        };
        self.after(MS, writes);
        self.tell(n, Some(life), Happens::Input(Input::Tick));
    }

    pub fn input(&mut self, n: usize, input: Input) {
        let node = &mut self.nodes[n];
        node.clock.advance(self.now_ns);
        let now = node.clock.now();
        let Some(machine) = &mut node.machine else {
            return;
        };
        let mut effects = Vec::new();
        machine.on(input, now, &mut effects);
        for effect in effects {
            self.carry_out(n, effect);
        }
        self.arm(n);
    }

    fn arm(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some(machine) = &node.machine else {
            return;
        };
        let at = machine.wake_at();
        if at == u64::MAX {
            return;
        }
        let wait = node.clock.until(at);
        if self.now_ns + wait < node.wake_at_ns {
            node.wake_at_ns = self.now_ns + wait;
            let life = Some(node.life);
            let what = Happens::Wake;
            self.after(
                wait,
                Event::To {
                    node: n,
                    life,
                    what,
                },
            );
        }
    }

    fn carry_out(&mut self, n: usize, effect: Effect) {
        if !matches!(effect, Effect::Ask { .. }) {
            self.trace(|| format!("{n}: {effect:?}"));
        }
        let now_ns = self.now_ns;
        let node = &mut self.nodes[n];
        match effect {
            Effect::Ask { ask, statement } => self.ask(n, ask, statement),
            Effect::Entered {
                valid_until_ns,
                worker,
            } => {
                node.held = Some(Arc::new(Held::new(
                    node.incarnation,
                    self.plan.partitions,
                    node.clock.source(),
                    valid_until_ns,
                )));
                node.ids = Some(Arc::new(MessageIds::new(worker)));
                node.last_id_ms = 0;
            }
            Effect::Renewed {
                valid_until_ns,
                ids_below_ms,
            } => {
                if let (Some(held), Some(ids)) = (&node.held, &node.ids) {
                    held.renewed(valid_until_ns);
                    ids.renewed(ids_below_ms);
                }
            }
            Effect::Gained {
                partition,
                epoch,
                taken_from,
            } => {
                if let Some(held) = &node.held {
                    held.took(partition, epoch);
                }
                node.flags.insert(partition, epoch);
                self.checks.take_overs += u64::from(taken_from.is_some());
                self.checks
                    .gained(partition, epoch, node.incarnation, now_ns);
            }
            Effect::LetGo {
                partition,
                epoch,
                asked,
            } => {
                if !asked || self.plan.without != Some(Without::ClearFirst) {
                    self.clear_flag(n, partition);
                }
                self.checks.left(partition, epoch, !asked, now_ns);
            }
            Effect::HandedOver { partition, to } => {
                self.checks.hand_overs += 1;
                self.clear_flag(n, partition);
                self.send_hint(partition, to);
            }
            Effect::Release { partition, epoch } => {
                // An engine that hangs is not waited for.
                let hangs = self.network.lost > 0 && self.dice.chance(20);
                if !hangs {
                    let wait = self.dice.below(200 * MS);
                    let effects_done = self.dice.chance(500);
                    self.input_after(
                        n,
                        wait,
                        Input::Released {
                            partition,
                            epoch,
                            effects_done,
                        },
                    );
                }
            }
            Effect::CatchUp {
                partition,
                epoch,
                incarnation,
            } => {
                let wait = self.dice.within(10 * MS, 500 * MS);
                let done = self.dice.chance(950);
                self.input_after(
                    n,
                    wait,
                    Input::CaughtUp {
                        partition,
                        epoch,
                        incarnation,
                        done,
                    },
                );
            }
            Effect::Lapsed => {
                self.checks.lapses += 1;
                self.leave_all(n);
                if self.plan.without == Some(Without::LapsedIsDead) {
                    self.start(n, true);
                }
            }
            Effect::NoWorker => {}
            Effect::Ended(end) => {
                self.leave_all(n);
                if end == End::Drained && self.nodes[n].stopping {
                    self.nodes[n].die();
                } else {
                    self.start(n, false);
                }
            }
        }
    }

    /// An edge that heard of the new owner sends it something.
    fn send_hint(&mut self, partition: u16, to: Uuid) {
        let row = self.store.tables.partitions.get(&partition);
        let epoch = row.map_or(0, |row| row.epoch);
        if let Some(n) = self.nodes.iter().position(|node| node.incarnation == to)
            && self.dice.chance(700)
        {
            let wait = self.dice.within(MS, 20 * MS);
            self.input_after(n, wait, Input::Hint { partition, epoch });
        }
    }

    fn clear_flag(&mut self, n: usize, partition: u16) {
        let node = &mut self.nodes[n];
        node.flags.remove(&partition);
        if let Some(held) = &node.held {
            held.let_go(partition);
        }
    }

    /// A process serves nothing any more.
    pub(super) fn leave_all(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if let Some(held) = node.held.take() {
            held.lapse();
        }
        for (partition, epoch) in std::mem::take(&mut node.flags) {
            self.checks.left(partition, epoch, true, self.now_ns);
        }
    }

    fn input_after(&mut self, n: usize, wait_ns: u64, input: Input) {
        let life = Some(self.nodes[n].life);
        let what = Happens::Input(input);
        self.after(
            wait_ns,
            Event::To {
                node: n,
                life,
                what,
            },
        );
    }

    fn ask(&mut self, n: usize, ask: Ask, statement: Statement) {
        self.requests += 1;
        let number = self.requests;
        let node = &self.nodes[n];
        let life = node.life;
        let fate = self.network.fate(node.reachable, &mut self.dice);
        if let (Statement::Renew { .. }, Some(lasts_ns)) = (&statement, self.nodes[n].stall.take())
        {
            self.stall(n, lasts_ns);
        }
        self.unanswered.insert(number);
        let give_up = self.settings.statement_timeout_ns();
        self.after(
            give_up,
            Event::GivenUp {
                number,
                node: n,
                life,
                ask,
            },
        );
        if let Some(wait) = fate.arrives_in {
            let request = Request {
                number,
                node: n,
                life,
                ask,
                statement,
                answered_in: fate.answered_in,
            };
            self.after(wait, Event::Arrive(request));
        }
    }

    /// The message path writes something in a partition that is held.
    fn begin_write(&mut self, n: usize) {
        let wait = self.dice.within(5 * MS, 25 * MS);
        let life = Some(self.nodes[n].life);
        let what = Happens::Writes;
        self.after(
            wait,
            Event::To {
                node: n,
                life,
                what,
            },
        );
        let node = &mut self.nodes[n];
        let Some(held) = node.held.clone().filter(|held| held.is_valid()) else {
            return;
        };
        let all = held.all();
        if all.is_empty() {
            return;
        }
        if let Some(ids) = &node.ids {
            let ms = ids.clamp(node.clock.wall_ms()).max(node.last_id_ms);
            node.last_id_ms = ms;
            self.checks.id_made(ids.worker_id(), ms, node.incarnation);
        }
        let (partition, epoch) = all[self.dice.below(all.len() as u64) as usize];
        let write = Write {
            partition,
            epoch,
            held_when_sent: true,
        };
        let wait = if self.dice.chance(30) {
            self.dice.within(MS, 6 * SECOND)
        } else {
            self.dice.within(MS, 40 * MS)
        };
        let what = Happens::Written(write);
        self.after(
            wait,
            Event::To {
                node: n,
                life,
                what,
            },
        );
    }

    /// A write returned from a quorum: may it be called committed?
    fn written(&mut self, n: usize, write: Write) {
        let now_ns = self.now_ns;
        let node = &self.nodes[n];
        let Some(held) = &node.held else {
            return;
        };
        let (partition, epoch) = (write.partition, write.epoch);
        if self.plan.verify && self.plan.without != Some(Without::Verify) {
            // Nothing tells when the row is read but that it is later.
            let wait = self.dice.within(MS, 30 * MS);
            let alive = self
                .store
                .core_at_quorum(node.incarnation, &mut self.dice)
                .is_some_and(|row| row.life == Life::Alive);
            let life = Some(node.life);
            let what = Happens::Verified {
                write,
                begun_ns: now_ns,
                alive: alive && node.reachable,
            };
            self.after(
                wait,
                Event::To {
                    node: n,
                    life,
                    what,
                },
            );
            return;
        }
        let held_now = held.holds(partition, epoch);
        let before = self.plan.without == Some(Without::CheckAfter) && write.held_when_sent;
        if held_now || before {
            self.checks.committed(partition, epoch, now_ns);
        } else {
            self.checks.refused += 1;
        }
    }

    /// What cannot be right when all has been well for long enough.
    pub fn check_end(&mut self) {
        self.checks.end(self.plan.partitions);
        for p in 0..self.plan.partitions {
            let row = self.store.tables.partitions.get(&p).cloned();
            let Some(row) = row else {
                self.checks.fail(format!("{p} has no row"));
                continue;
            };
            let named: Vec<Uuid> = self
                .nodes
                .iter()
                .filter(|node| node.machine.is_some())
                .filter(|node| node.flags.get(&p) == Some(&row.epoch))
                .map(|node| node.incarnation)
                .collect();
            if row.owner.map(|o| vec![o]) != Some(named.clone()) {
                self.checks
                    .fail(format!("{p} is served by {named:?}, its row is {row:?}"));
            }
            if !row.pending.is_empty() {
                self.checks.fail(format!("nobody caught up: {row:?}"));
            }
            for node in self.nodes.iter().filter(|node| node.machine.is_some()) {
                let map = node.machine.as_ref().map(Machine::map);
                let said = map.and_then(|m| m.owner(p).map(|(c, e)| (Some(c.incarnation), e)));
                if said != Some((row.owner, row.epoch)) {
                    let what = format!("{} says {said:?} of {row:?}", node.address);
                    self.checks.fail(what);
                    break;
                }
            }
        }
        let living = self.store.tables.cores.values();
        let living = living.filter(|row| row.life == Life::Alive).count();
        let up = self.nodes.iter().filter(|n| n.machine.is_some()).count();
        if living != up {
            self.checks
                .fail(format!("{living} rows of living cores, {up} processes"));
        }
    }

    /// What would go wrong later does not.
    pub fn stop_faults(&mut self) {
        self.queue
            .retain(|_, event| !matches!(event, Event::Fault(_)));
    }
}

fn brief(answer: &Answer) -> String {
    match answer {
        Answer::Cores(rows) => format!("{} cores", rows.len()),
        Answer::Partitions(rows) => format!("{} partitions", rows.len()),
        other => format!("{other:?}"),
    }
}
