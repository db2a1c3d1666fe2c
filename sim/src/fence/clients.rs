//! People who write, look, and come and go; and the end of a run, when everything heals, everybody
//! gets their answers, and a last owner takes everything up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use trunkline_core::ownership::partition_of_conversation;
use trunkline_proto::ids::ConversationId;

use super::clockwork::promise;
use super::life::{Outcome, Request, Wish};
use super::plan::{CLIENTS, CONVERSATIONS, END_NS, HEAL_NS, MS, PARTITIONS, READERS};
use super::runs::NO_END;
use super::world::{ABOVE, World};
use super::{check::Check, conversation};
use crate::rng::Rng;

/// When a client takes a request for lost.
const PATIENCE_NS: u64 = 700 * MS;

struct Client {
    world: Arc<World>,
    rng: Rng,
    number: usize,
    sends: u64,
}

/// Runs a world to its end; returns how many steps that took.
pub fn run(world: &Arc<World>) -> u64 {
    let clockwork = world.clockwork.clone();
    for machine in 0..world.plan.machines {
        world.start(machine);
    }
    clockwork.spawn(ABOVE, world.clone().govern());
    clockwork.spawn(ABOVE, world.clone().retain());
    if world.plan.faults.total() > 0 {
        clockwork.spawn(ABOVE, world.clone().misfortunes());
    } else {
        let calm = world.clone();
        clockwork.after(HEAL_NS, move || calm.net.heal());
    }
    let done = Arc::new(AtomicUsize::new(0));
    for number in 0..CLIENTS {
        let client = Client {
            world: world.clone(),
            rng: Rng::new(world.plan.seed, &format!("fence client {number}")),
            number,
            sends: 0,
        };
        let done = done.clone();
        clockwork.spawn(ABOVE, async move {
            client.talk().await;
            done.fetch_add(1, Ordering::Relaxed);
        });
    }
    clockwork.spawn(ABOVE, end(world.clone(), done));
    let steps = clockwork.run(END_NS, || *world.is_over.lock());
    if !*world.is_over.lock() {
        let now = world.now_ns();
        let mut check = world.check.lock();
        check.violated(now, NO_END.to_owned());
    }
    steps
}

/// The last owner takes everything up, and all is looked at.
async fn end(world: Arc<World>, done: Arc<AtomicUsize>) {
    while world.now_ns() < HEAL_NS || done.load(Ordering::Relaxed) < CLIENTS {
        world.clockwork.sleep(100 * MS).await;
    }
    world.close();
    world.start(world.plan.machines);
    let last = world.running.lock()[world.plan.machines].clone();
    let Some(last) = last else { return };
    let ids: Vec<ConversationId> = (1..=CONVERSATIONS).map(conversation).collect();
    let heads = last.take_everything(&ids).await;
    let quorums = world.net.quorums();
    let mut check = world.check.lock();
    for (id, head) in heads {
        if let Some(found) = world.net.decided(id) {
            check.end(world.now_ns(), id, &found, head, &quorums);
        }
    }
    *world.is_over.lock() = true;
}

impl Client {
    async fn talk(mut self) {
        loop {
            let wait = self.rng.within(MS, 2 * self.world.plan.act_every_ns);
            self.world.clockwork.sleep(wait).await;
            if self.world.now_ns() >= HEAL_NS {
                return;
            }
            let number = self.rng.within(1, CONVERSATIONS as u64);
            let id = conversation(u128::from(number));
            let is_reader = self.number < READERS;
            match self.rng.below(100) {
                _ if is_reader => self.sync(id).await,
                0..60 => self.send(id).await,
                60..80 => self.sync(id).await,
                80..90 => self.toggle(id).await,
                _ => self.mark(id).await,
            }
        }
    }

    /// One try; `None`: no answer in time, or none that tells anything.
    async fn ask(&mut self, id: ConversationId, wish: Wish) -> Option<Outcome> {
        let partition = partition_of_conversation(id, PARTITIONS);
        let mut life = self.world.owner(partition);
        if life.is_none() || self.rng.chance(150) {
            // An old map.
            let at = self.rng.index(self.world.plan.machines);
            life.clone_from(&self.world.running.lock()[at]);
        }
        let (promise, answer) = promise();
        if let Some(life) = life {
            let request = Request {
                id,
                wish,
                promise: promise.clone(),
            };
            let way = self.rng.within(MS / 10, 5 * MS);
            self.world
                .clockwork
                .after(way, move || life.deliver(request));
        }
        self.world
            .clockwork
            .after(PATIENCE_NS, move || promise.keep(Outcome::Unavailable));
        let outcome = answer.await;
        (!matches!(outcome, Outcome::Unavailable)).then_some(outcome)
    }

    fn check(&self, look: impl FnOnce(&mut Check, u64)) {
        let now = self.world.now_ns();
        look(&mut self.world.check.lock(), now);
    }

    async fn send(&mut self, id: ConversationId) {
        self.sends += 1;
        let client_msg_id = format!("{}-{}", self.number, self.sends);
        self.check(|check, now| check.sent(now, id, &client_msg_id));
        loop {
            let wish = Wish::Send {
                client_msg_id: client_msg_id.clone(),
            };
            if let Some(Outcome::Sent { seq, message_id }) = self.ask(id, wish).await {
                return self.check(|check, now| check.acked(now, id, seq, message_id));
            }
            let wait = self.rng.within(10 * MS, 200 * MS);
            self.world.clockwork.sleep(wait).await;
        }
    }

    async fn sync(&mut self, id: ConversationId) {
        let (mut at_least, mut gone) = (0, 0);
        self.check(|check, _| {
            at_least = check.head(id);
            gone = check.gone(id);
        });
        if let Some(Outcome::Synced { head, messages }) = self.ask(id, Wish::Sync).await {
            self.check(|check, now| {
                check.synced(now, id, at_least, head);
                check.paged(now, id, gone, &messages);
            });
        }
    }

    async fn toggle(&mut self, id: ConversationId) {
        if let Some(Outcome::Changed(change)) = self.ask(id, Wish::Toggle).await {
            self.check(|check, now| check.membership(now, id, change));
        }
    }

    async fn mark(&mut self, id: ConversationId) {
        let mut head = 0;
        self.check(|check, _| head = check.head(id));
        let seq = if self.rng.chance(100) {
            u64::MAX
        } else {
            head.saturating_sub(self.rng.below(3))
        };
        if let Some(Outcome::Marked { seq }) = self.ask(id, Wish::Receipt { seq }).await {
            self.check(|check, _| check.marked(id, "ann", seq.min(head)));
        }
    }
}
