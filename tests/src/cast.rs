//! A dozen people in a few conversations, who talk until they are told to stop: the load under which
//! processes are killed and links are cut, and the verdict on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _};
use rand_xoshiro::Xoshiro256PlusPlus;
use tokio::task::JoinHandle;
use trunkline_proto::client::ServerBody;
use trunkline_proto::ids::ConversationId;

use crate::checker::{Acked, Checker};
use crate::eventually;
use crate::person::Person;
use crate::process::Server;
use crate::rest::{create_group, history};
use crate::session::{Session, To, send_message};
use crate::wire::{Heard, Kind};

/// People with a client each.
const PEOPLE: usize = 12;
/// Messages that a person has under way at most.
const OUTSTANDING_MAX: usize = 30;
/// Between two messages of a person.
const PAUSE: Duration = Duration::from_millis(15);
/// Messages that the plain sender has under way.
const PLAIN_WINDOW: usize = 8;

/// A generator whose seed is told when the test fails: `TEST_SEED` repeats a run's choices.
pub fn seeded(test: &str) -> Xoshiro256PlusPlus {
    let seed = std::env::var("TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(rand::random::<u64>);
    println!("{test}: TEST_SEED={seed}");
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

/// The people, what they talk in, and the tasks that make them.
pub struct Cast {
    people: Vec<Arc<Person>>,
    /// With the index of each member.
    conversations: Vec<(String, Vec<usize>)>,
    stop: Arc<AtomicBool>,
    talking: Vec<JoinHandle<()>>,
    plain: JoinHandle<Vec<Acked>>,
}

impl Cast {
    /// Everybody connects to one of `edges`, and talks. `core` has the REST.
    pub async fn start(core: &Server, edges: &[&Server], rng: &mut Xoshiro256PlusPlus) -> Self {
        let names: Vec<String> = (0..PEOPLE).map(|n| format!("person{n}")).collect();
        let mut conversations: Vec<(String, Vec<usize>)> = (0..PEOPLE)
            .step_by(2)
            .map(|n| {
                let id = ConversationId::direct(&names[n], &names[n + 1]);
                (id.to_string(), vec![n, n + 1])
            })
            .collect();
        for members in [
            vec![0, 3, 6, 9],
            vec![1, 2, 4, 7, 10],
            vec![0, 2, 5, 8, 10, 11],
        ] {
            let mut users: Vec<&str> = members.iter().map(|m| names[*m].as_str()).collect();
            // The plain sender is in every group, and reads nothing.
            users.push("plain");
            conversations.push((create_group(core, &users), members));
        }
        let people: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(n, user)| {
                let kind = Kind::ALL[n % 3];
                let edge = edges[n / 3 % edges.len()];
                let address = edge.address(kind.listener());
                Arc::new(Person::start(kind, address, user, "d"))
            })
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let talking = (0..PEOPLE)
            .map(|n| {
                // The direct conversation has no id that could be sent to before its first message.
                let mine: Vec<String> = conversations[PEOPLE / 2..]
                    .iter()
                    .filter(|(_, members)| members.contains(&n))
                    .map(|(id, _)| id.clone())
                    .collect();
                let partner = names[n ^ 1].clone();
                let rng = Xoshiro256PlusPlus::seed_from_u64(rng.random());
                tokio::spawn(talk(
                    Arc::clone(&people[n]),
                    mine,
                    partner,
                    Arc::clone(&stop),
                    rng,
                ))
            })
            .collect();
        let groups = conversations[PEOPLE / 2..].iter().map(|(id, _)| id.clone());
        let plain = tokio::spawn(talk_plainly(
            edges[0].address("tcp").to_owned(),
            groups.collect(),
            Arc::clone(&stop),
        ));
        let cast = Self {
            people,
            conversations,
            stop,
            talking,
            plain,
        };
        cast.acked_after(Instant::now(), "the first acks").await;
        cast
    }

    /// Waits until somebody has got an ack after `moment`, and returns how long after.
    pub async fn acked_after(&self, moment: Instant, what: &str) -> Duration {
        eventually(what, async || {
            let mut first = None;
            for person in &self.people {
                let last = person.look(|log| log.last_ack).await;
                if let Some(last) = last.filter(|last| *last > moment) {
                    first = Some(first.map_or(last, |f: Instant| f.min(last)));
                }
            }
            first.map(|first| first - moment)
        })
        .await
    }

    /// Waits until everybody has got an ack after `moment`.
    pub async fn everybody_acked_after(&self, moment: Instant, what: &str) {
        for person in &self.people {
            let what = format!("{what}: {}", person.user);
            eventually(&what, async || {
                let last = person.look(|log| log.last_ack).await;
                last.filter(|last| *last > moment)
            })
            .await;
        }
    }

    /// Ends the talk, waits until all is acked and everybody has caught up, and compares acks,
    /// deliveries and rows. Panics with all that is wrong.
    pub async fn verdict(self, core: &Server) {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.talking {
            task.await.expect("a talker");
        }
        let mut checker = Checker {
            acks: self.plain.await.expect("the plain sender"),
            ..Checker::default()
        };
        for person in &self.people {
            let what = format!("all messages of {} are acked", person.user);
            eventually(&what, async || {
                person
                    .look(|log| (log.outstanding == 0).then_some(()))
                    .await
            })
            .await;
            let failed = person.look(|log| log.failed.clone()).await;
            assert!(failed.is_empty(), "refused to {}: {failed:?}", person.user);
        }
        let mut stored = HashMap::new();
        for (id, members) in &self.conversations {
            let rows = history(core, &self.people[members[0]].user, id);
            for member in members {
                let person = &self.people[*member];
                let what = format!("{} has all {} of {id}", person.user, rows.len());
                eventually(&what, async || {
                    let count = person.look(|log| log.count(id)).await;
                    (count >= rows.len()).then_some(())
                })
                .await;
            }
            stored.insert(id.clone(), rows);
        }
        for (n, person) in self.people.iter().enumerate() {
            let mine: Vec<&str> = self
                .conversations
                .iter()
                .filter(|(_, members)| members.contains(&n))
                .map(|(id, _)| id.as_str())
                .collect();
            person.testify(&mine, &mut checker).await;
        }
        let wrong = checker.verdict(&stored);
        assert!(
            wrong.is_empty(),
            "{} wrong:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        let rows: usize = stored.values().map(Vec::len).sum();
        let acks = checker.acks.len();
        assert_eq!(acks, rows, "every row was acked in the end, once");
        println!("{acks} messages acked, all there and seen by all in one order");
        for person in self.people {
            if let Ok(person) = Arc::try_unwrap(person).map_err(|_| ()) {
                person.leave().await;
            }
        }
    }
}

/// Talks to the partner and in all of a person's groups until it is told to stop.
async fn talk(
    person: Arc<Person>,
    groups: Vec<String>,
    partner: String,
    stop: Arc<AtomicBool>,
    mut rng: Xoshiro256PlusPlus,
) {
    while !stop.load(Ordering::SeqCst) {
        if person.look(|log| log.outstanding).await < OUTSTANDING_MAX {
            let to = match rng.random_range(0..=groups.len()) {
                n if n < groups.len() => To::Conversation(&groups[n]),
                _ => To::User(&partner),
            };
            person.say(to).await;
        }
        tokio::time::sleep(PAUSE.mul_f64(rng.random_range(0.2..1.8))).await;
    }
}

/// Sends to all groups over raw TCP with nothing of the product's client: a window of messages, all
/// of them sent again after each break. Returns its acks.
async fn talk_plainly(address: String, groups: Vec<String>, stop: Arc<AtomicBool>) -> Vec<Acked> {
    let mut acks: HashMap<String, Acked> = HashMap::new();
    let mut open: Vec<(String, String, String)> = Vec::new();
    let mut next = 0;
    loop {
        let session = Session::try_open(Kind::Tcp, &address, "plain", "p").await;
        let Ok(mut session) = session else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut to_send = open.clone();
        loop {
            while open.len() < PLAIN_WINDOW && !stop.load(Ordering::SeqCst) {
                let group = groups[next % groups.len()].clone();
                let message = (format!("p{next}"), group, format!("plain {next}"));
                next += 1;
                open.push(message.clone());
                to_send.push(message);
            }
            if open.is_empty() {
                return acks.into_values().collect();
            }
            let mut is_broken = false;
            for (id, group, content) in to_send.drain(..) {
                let body = send_message(To::Conversation(&group), &id, &content);
                is_broken |= session.try_send(body).await.is_err();
            }
            if is_broken || !hear(&mut session, &mut open, &mut to_send, &mut acks).await {
                break;
            }
            tokio::time::sleep(PAUSE / 4).await;
        }
    }
}

/// Takes one frame; `false`: the connection is gone.
async fn hear(
    session: &mut Session,
    open: &mut Vec<(String, String, String)>,
    to_send: &mut Vec<(String, String, String)>,
    acks: &mut HashMap<String, Acked>,
) -> bool {
    let frame = match session.heard().await {
        Ok(Heard::Frame(frame)) => frame,
        Ok(Heard::Ping) => return true,
        Ok(Heard::Closed(_)) | Err(_) => return false,
    };
    match frame.frame {
        Some(ServerBody::Ack(ack)) => {
            let at = open.iter().position(|(id, ..)| *id == ack.client_msg_id);
            if let Some(at) = at {
                let (id, conversation, content) = open.remove(at);
                let acked = Acked {
                    conversation,
                    sender: session.user.clone(),
                    client_msg_id: id.clone(),
                    content,
                    message_id: ack.message_id,
                    seq: ack.seq,
                };
                acks.insert(id, acked);
            } else {
                let before = &acks[&ack.client_msg_id];
                assert_eq!((before.message_id, before.seq), (ack.message_id, ack.seq));
            }
        }
        Some(ServerBody::Error(error)) => {
            let passing = ["unavailable", "overloaded", "rate_limited"];
            assert!(passing.contains(&error.code.as_str()), "{error:?}");
            if error.client_msg_id.is_empty() {
                // Of nothing under way the outcome is known.
                to_send.clone_from(open);
            } else {
                let again = open.iter().find(|(id, ..)| *id == error.client_msg_id);
                to_send.extend(again.cloned());
            }
            tokio::time::sleep(Duration::from_millis(
                u64::from(error.retry_after_ms).min(200),
            ))
            .await;
        }
        _ => {}
    }
    true
}
