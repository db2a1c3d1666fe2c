//! The machine step by step, where what matters is the order of a few inputs.

use uuid::Uuid;

use crate::ownership::control::{CoreRow, Life, PartitionRow};
use crate::ownership::machine::{Ask, Effect, End, Input, Machine, Now};
use crate::ownership::memory::Tables;
use crate::ownership::settings::{Rule, Settings};
use crate::ownership::statement::{Answer, Statement};
use crate::store::fenced::rows::Cas;

const MS: u64 = 1_000_000;
const ME: Uuid = Uuid::from_bytes([1; 16]);
const OTHER: Uuid = Uuid::from_bytes([2; 16]);

fn at(ms: u64) -> Now {
    Now {
        boot_ns: ms * MS,
        wall_ms: 1_800_000_000_000 + ms,
    }
}

fn other_core() -> CoreRow {
    CoreRow {
        incarnation: OTHER,
        counter: 7,
        ttl_ms: 3_000,
        life: Life::Alive,
        worker_id: 9,
        id_floor_ms: 0,
        address: "http://other:7420".into(),
    }
}

fn row(owner: Uuid, epoch: u64) -> PartitionRow {
    PartitionRow {
        partition: 0,
        owner: Some(owner),
        epoch,
        pending: Vec::new(),
    }
}

/// A machine over tables that answer at once, unless the test answers.
struct Steps {
    machine: Machine,
    tables: Tables,
    now_ms: u64,
}

impl Steps {
    /// One partition, which another core has.
    fn begin(without: Option<Rule>) -> Self {
        let settings = Settings {
            without,
            ..Settings::new(1)
        };
        let mut tables = Tables::default();
        tables.cores.insert(OTHER, other_core());
        tables.partitions.insert(0, row(OTHER, 4));
        let mut steps = Self {
            machine: Machine::new(settings, ME, "http://me:7420"),
            tables,
            now_ms: 1_000,
        };
        steps.answered(Input::Tick);
        steps
    }

    /// What an input brings about.
    fn on(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.machine.on(input, at(self.now_ms), &mut effects);
        effects
    }

    /// The same, with all asks answered; these are not returned.
    fn answered(&mut self, input: Input) -> Vec<Effect> {
        let mut told = Vec::new();
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            for effect in self.on(input) {
                match effect {
                    Effect::Ask { ask, statement } => {
                        let answer = self.tables.apply(&statement);
                        inputs.push(Input::Answer { ask, answer });
                    }
                    effect => told.push(effect),
                }
            }
        }
        told
    }

    fn pass(&mut self, ms: u64) -> Vec<Effect> {
        self.now_ms += ms;
        self.answered(Input::Tick)
    }

    /// The other core's row says nothing new for long enough.
    fn outlive_the_other(&mut self) -> Vec<Effect> {
        (0..12).flat_map(|_| self.pass(370)).collect()
    }
}

fn asks(effects: &[Effect]) -> Vec<&Statement> {
    let mut all = Vec::new();
    for effect in effects {
        if let Effect::Ask { statement, .. } = effect {
            all.push(statement);
        }
    }
    all
}

fn gains(effects: &[Effect]) -> Vec<u64> {
    let epoch = |effect: &Effect| match effect {
        Effect::Gained { epoch, .. } => Some(*epoch),
        _ => None,
    };
    effects.iter().filter_map(epoch).collect()
}

#[test]
fn what_a_dead_core_had_is_taken_and_its_journal_read() {
    let mut steps = Steps::begin(None);
    let told = steps.outlive_the_other();
    assert_eq!(gains(&told), [5]);
    assert!(told.contains(&Effect::CatchUp {
        partition: 0,
        epoch: 5,
        incarnation: OTHER,
    }));
    assert_eq!(steps.tables.cores[&OTHER].life, Life::Dead);
    assert_eq!(steps.tables.partitions[&0].pending, [OTHER]);
    steps.answered(Input::CaughtUp {
        partition: 0,
        epoch: 5,
        incarnation: OTHER,
        done: true,
    });
    assert!(steps.tables.partitions[&0].pending.is_empty());
}

/// A quorum may show a death that another one does not show yet. Taking over on its word would let
/// the dead core read that it is alive, after its partitions are served elsewhere.
#[test]
fn a_death_that_a_quorum_shows_is_decided_before_anything_is_taken() {
    let poll = |steps: &mut Steps| {
        let row = CoreRow {
            life: Life::Dead,
            ..other_core()
        };
        steps.on(Input::Answer {
            ask: Ask::PollCores,
            answer: Answer::Cores(vec![row]),
        })
    };
    let mut steps = Steps::begin(None);
    let effects = poll(&mut steps);
    assert_eq!(asks(&effects), [&Statement::Core(OTHER)]);
    let mut dead = other_core();
    dead.life = Life::Dead;
    let effects = steps.on(Input::Answer {
        ask: Ask::Owner(OTHER),
        answer: Answer::Core(Some(dead)),
    });
    assert!(matches!(
        asks(&effects)[..],
        [Statement::ChangePartition { .. }]
    ));

    let mut hasty = Steps::begin(Some(Rule::Decided));
    let effects = poll(&mut hasty);
    assert!(matches!(
        asks(&effects)[..],
        [Statement::ChangePartition { .. }]
    ));
}

#[test]
fn a_core_that_renewed_at_the_last_moment_is_not_taken_from() {
    let taken = |without| {
        let mut steps = Steps::begin(without);
        // Silent for almost long enough.
        for _ in 0..8 {
            steps.pass(376);
        }
        steps.now_ms += 376;
        let mut told = Vec::new();
        let mut inputs = vec![Input::Tick];
        while let Some(input) = inputs.pop() {
            for effect in steps.on(input) {
                if let Effect::Ask { ask, statement } = effect {
                    if let Statement::DeclareDead { .. } = statement {
                        let other = steps.tables.cores.get_mut(&OTHER).expect("entered");
                        other.counter += 1;
                    }
                    let answer = steps.tables.apply(&statement);
                    inputs.push(Input::Answer { ask, answer });
                    told.push(statement);
                }
            }
        }
        let change = |s: &Statement| matches!(s, Statement::ChangePartition { .. });
        assert!(
            told.iter()
                .any(|s| matches!(s, Statement::DeclareDead { .. }))
        );
        told.iter().any(change)
    };
    assert!(!taken(None));
    assert!(taken(Some(Rule::OnlyThatCounter)));
}

#[test]
fn a_partition_that_was_let_go_is_never_served_under_that_epoch_again() {
    let mut steps = Steps::begin(None);
    steps.outlive_the_other();
    steps.on(Input::Drain);
    let effects = steps.on(Input::Released {
        partition: 0,
        epoch: 5,
        effects_done: true,
    });
    let let_go = Effect::LetGo {
        partition: 0,
        epoch: 5,
        asked: true,
    };
    assert!(effects.contains(&let_go));
    // A read that was under way still shows it.
    let effects = steps.on(Input::Answer {
        ask: Ask::PollPartitions,
        answer: Answer::Partitions(vec![row(ME, 5)]),
    });
    assert!(gains(&effects).is_empty());
}

#[test]
fn a_hint_makes_the_new_owner_look_at_once_and_only_once() {
    let mut steps = Steps::begin(None);
    steps.tables.partitions.insert(0, row(ME, 5));
    let hint = || Input::Hint {
        partition: 0,
        epoch: 5,
    };
    let effects = steps.on(hint());
    assert_eq!(asks(&effects), [&Statement::Partition(0)]);
    assert!(steps.on(hint()).is_empty());
    let answer = steps.tables.apply(&Statement::Partition(0));
    let ask = Ask::Read(0);
    assert_eq!(gains(&steps.on(Input::Answer { ask, answer })), [5]);
    assert!(steps.on(hint()).is_empty(), "it is known by now");
    let beyond = Input::Hint {
        partition: 9,
        epoch: 5,
    };
    assert!(steps.on(beyond).is_empty());
}

#[test]
fn a_core_that_was_declared_dead_gives_up_everything_and_ends() {
    let mut steps = Steps::begin(None);
    steps.outlive_the_other();
    let own = steps.tables.cores.get_mut(&ME).expect("entered");
    own.life = Life::Dead;
    let told = steps.pass(800);
    assert!(told.contains(&Effect::Lapsed));
    assert!(told.contains(&Effect::Ended(End::Lapsed)));
    assert_eq!(steps.machine.held(), 0);
    assert_eq!(steps.machine.wake_at(), u64::MAX);
}

#[test]
fn a_worker_id_that_another_was_faster_to_take_ends_the_incarnation() {
    let mut machine = Machine::new(Settings::new(1), ME, "http://me:7420");
    let mut tables = Tables::default();
    let mut effects = Vec::new();
    let mut input = Input::Tick;
    let end = loop {
        machine.on(input, at(1), &mut effects);
        let next = effects.pop();
        effects.clear();
        match next {
            Some(Effect::Ask { ask, statement }) => {
                if let Statement::TakeWorker { worker_id, .. } = statement {
                    tables.workers.insert(worker_id, OTHER);
                }
                let answer = tables.apply(&statement);
                input = Input::Answer { ask, answer };
            }
            Some(Effect::Ended(end)) => break end,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(end, End::NotEntered);
    assert_eq!(
        tables.cores[&ME].life,
        Life::Dead,
        "its row is not left alive"
    );
}

#[test]
fn a_renewal_that_nobody_answered_counts_from_its_first_attempt() {
    let valid_after = |without| {
        let mut steps = Steps::begin(without);
        steps.now_ms += 750;
        let effects = steps.on(Input::Tick);
        let sent = asks(&effects)
            .into_iter()
            .find(|s| matches!(s, Statement::Renew { .. }))
            .cloned()
            .expect("it is time to renew");
        assert_eq!(steps.tables.apply(&sent), Answer::Cas(Cas::Applied));
        steps.now_ms += 1_000;
        steps.on(Input::Answer {
            ask: Ask::Lease,
            answer: Answer::Unknown,
        });
        let told = steps.pass(100);
        told.into_iter()
            .find_map(|effect| match effect {
                Effect::Renewed { valid_until_ns, .. } => Some(valid_until_ns / MS),
                _ => None,
            })
            .expect("the row shows that it was renewed")
    };
    assert_eq!(valid_after(None), 1_750 + 2_700);
    assert_eq!(valid_after(Some(Rule::FirstSend)), 1_750 + 1_100 + 2_700);
}
