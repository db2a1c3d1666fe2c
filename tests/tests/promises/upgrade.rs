//! Promise: `trunkline edge --upgrade` puts a new process in the place of the old one, and no client
//! is disconnected, loses anything or gets anything twice. A new process that dies before it has
//! everything changes nothing.

use std::collections::HashMap;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use trunkline_proto::client::{ClientFrame, ServerBody};
use trunkline_proto::ids::ConversationId;
use trunkline_tests::checker::Checker;
use trunkline_tests::eventually;
use trunkline_tests::person::Person;
use trunkline_tests::process::{Server, binary};
use trunkline_tests::rest::{history, token};
use trunkline_tests::session::{Session, To, connect_frame, send_message};
use trunkline_tests::wire::{self, Heard, Kind};

/// People who talk in pairs, a third of them on each kind of connection.
const PEOPLE: usize = 300;
/// Between two messages of a person.
const PAUSE: Duration = Duration::from_millis(150);

struct Crowd {
    people: Vec<Arc<Person>>,
    stop: Arc<AtomicBool>,
    talking: Vec<tokio::task::JoinHandle<()>>,
}

impl Crowd {
    async fn gather(edge: &Server) -> Self {
        let people: Vec<Arc<Person>> = (0..PEOPLE)
            .map(|n| {
                let kind = Kind::ALL[n % 3];
                let address = edge.address(kind.listener());
                Arc::new(Person::start(kind, address, &format!("user{n}"), "d"))
            })
            .collect();
        for person in &people {
            eventually("everybody is there", async || {
                person.look(|log| (log.synced > 0).then_some(())).await
            })
            .await;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let talking = people.iter().enumerate().map(|(n, person)| {
            let (person, stop) = (Arc::clone(person), Arc::clone(&stop));
            tokio::spawn(async move {
                let partner = format!("user{}", n ^ 1);
                while !stop.load(Ordering::Relaxed) {
                    person.say(To::User(&partner)).await;
                    tokio::time::sleep(PAUSE).await;
                }
            })
        });
        let talking = talking.collect();
        Self {
            people,
            stop,
            talking,
        }
    }

    /// Returns when everybody has had one more ack.
    async fn everybody_is_heard(&self) {
        let mut before = Vec::new();
        for person in &self.people {
            before.push(person.look(|log| log.last_ack).await);
        }
        for (person, before) in self.people.iter().zip(before) {
            eventually("everybody is heard", async || {
                let last = person.look(|log| log.last_ack).await;
                (last > before).then_some(())
            })
            .await;
        }
    }

    /// Everybody stops talking; then all that was said is compared with what is stored.
    async fn verdict(self, core: &Server) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.talking {
            task.await.expect("they talk without failing");
        }
        // Of both sides of every conversation, before any is read.
        for person in &self.people {
            eventually("all is acked", async || {
                (person.look(|log| log.outstanding).await == 0).then_some(())
            })
            .await;
        }
        let mut checker = Checker::default();
        let mut stored = HashMap::new();
        for (n, person) in self.people.iter().enumerate() {
            let theirs = ConversationId::direct(&person.user, &format!("user{}", n ^ 1));
            let theirs = theirs.to_string();
            if !stored.contains_key(&theirs) {
                stored.insert(theirs.clone(), history(core, &person.user, &theirs));
            }
            let rows = stored[&theirs].len();
            eventually("all is seen", async || {
                (person.look(|log| log.count(&theirs)).await >= rows).then_some(())
            })
            .await;
            person.testify(&[&theirs], &mut checker).await;
            let (connects, disconnects, failed) = person
                .look(|log| (log.connects, log.disconnects.clone(), log.failed.len()))
                .await;
            assert_eq!(
                (connects, &disconnects[..], failed),
                (1, &[][..], 0),
                "{} was disconnected",
                person.user
            );
        }
        let said: usize = stored.values().map(Vec::len).sum();
        println!("{said} messages in {} conversations", stored.len());
        let wrong = checker.verdict(&stored);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

fn tiers(args: &[&str]) -> (Server, Server) {
    let core = Server::core(&["--send-rate", "0"]);
    let args: Vec<_> = ["--send-rate", "0"].iter().chain(args).copied().collect();
    let edge = Server::edge(core.address("grpc"), &args);
    (core, edge)
}

/// The edge is succeeded by a new process; the old one ends with 0.
fn upgrade(edge: &mut Server) {
    let old = edge.pid();
    let successor = edge.spawn_successor();
    let status = edge.succeeded_by(successor);
    assert_eq!(status.code(), Some(0), "{}", edge.log());
    assert_ne!(edge.pid(), old);
    let pause_s = edge.metric("trunkline_edge_upgrade_pause_seconds");
    println!("a pause of {:.1} ms", pause_s * 1e3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_talks_on_through_two_upgrades() {
    let (core, mut edge) = tiers(&[]);
    let places: Vec<String> = ["ws", "tcp", "admin"]
        .map(|name| edge.address(name).to_owned())
        .into();
    let crowd = Crowd::gather(&edge).await;
    for _ in 0..2 {
        crowd.everybody_is_heard().await;
        upgrade(&mut edge);
        eventually("all are counted", async || {
            let taken = edge.metric("trunkline_edge_taken_over_total");
            (taken == PEOPLE as f64).then_some(())
        })
        .await;
    }
    crowd.everybody_is_heard().await;
    // Nobody was read before the core knew of all: no send met an edge without a core.
    let refused = edge.metric("trunkline_edge_sends_refused_total");
    assert_eq!(refused, 0.0, "sends were refused");
    let now: Vec<&str> = ["ws", "tcp", "admin"].map(|n| edge.address(n)).into();
    assert_eq!(now, places);
    // Newcomers find it too.
    for kind in Kind::ALL {
        let mut new = Session::open(&edge, kind, "new", &format!("{kind:?}")).await;
        new.said(To::User("user0"), &format!("{kind:?}"), "hi")
            .await
            .expect("an ack");
    }
    crowd.verdict(&core).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_frame_and_an_unread_tail_cross_over() {
    const MESSAGES: usize = 3_000;
    let (_core, mut edge) = tiers(&["--outbox-hard-bytes", "64 MiB"]);
    let mut halves = Vec::new();
    for (n, kind) in Kind::ALL.into_iter().enumerate() {
        let user = format!("cut{n}");
        let session = Session::open(&edge, kind, &user, "d").await;
        let (reader, mut writer) = session.split();
        let frame = ClientFrame {
            id: String::new(),
            frame: Some(send_message(To::User("bob"), "half", &"ü".repeat(200))),
        };
        let mut bytes = Vec::new();
        writer.encode(&frame, &mut bytes);
        // In the midst of a character, or of the length of a frame.
        let at = [101, 3, 1][n];
        writer.send_encoded(&bytes[..at]).await.expect("it leaves");
        halves.push((reader, writer, bytes.split_off(at)));
    }
    let mut alice = Session::open(&edge, Kind::Tcp, "alice", "d").await;
    let mut slow = Vec::new();
    for (n, kind) in Kind::ALL.into_iter().enumerate() {
        let user = format!("slow{n}");
        let address = edge.address(kind.listener());
        let (mut reader, mut writer) = wire::open_narrow(kind, address).await.expect("a socket");
        let connect = connect_frame(&token(&user), "d");
        writer.send(&connect).await.expect("it leaves");
        let heard = reader.next().await.expect("an answer");
        assert!(matches!(heard, Heard::Frame(_)), "{heard:?}");
        // From here on it does not read.
        let content = "語".repeat(1_000);
        alice.pour(To::User(&user), &user, MESSAGES, &content).await;
        slow.push((reader, writer));
    }
    let owed = |edge: &Server| edge.metric("trunkline_edge_outbox_bytes");
    eventually("they are owed something", async || {
        (owed(&edge) > 3e6).then_some(())
    })
    .await;
    upgrade(&mut edge);
    eventually("what they are owed went along", async || {
        (owed(&edge) > 3e6).then_some(())
    })
    .await;
    for (reader, writer, rest) in &mut halves {
        writer.send_encoded(rest).await.expect("it leaves");
        loop {
            let heard = reader.next().await.expect("it goes on");
            let Heard::Frame(frame) = heard else {
                panic!("in place of an ack: {heard:?}");
            };
            match frame.frame {
                Some(ServerBody::Ack(ack)) => break assert_eq!(ack.client_msg_id, "half"),
                Some(ServerBody::Conversation(_)) => {}
                other => panic!("in place of an ack: {other:?}"),
            }
        }
    }
    for (reader, _writer) in &mut slow {
        let mut next = 1;
        while next <= MESSAGES as u64 {
            match reader.next().await.expect("it goes on") {
                Heard::Frame(frame) => {
                    if let Some(ServerBody::Message(message)) = frame.frame {
                        assert_eq!(message.seq, next, "each once and in order");
                        next += 1;
                    }
                }
                Heard::Ping => {}
                other => panic!("in place of message {next}: {other:?}"),
            }
        }
    }
    eventually("nothing is owed any more", async || {
        (owed(&edge) == 0.0).then_some(())
    })
    .await;
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status()
        .expect("kill(1)");
    assert!(status.success());
}

/// The midst is held open by a core that does not answer: until then the old process waits. What
/// happens to the successor at that moment, and what the old process then does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_is_killed_midway_changes_nothing() {
    let (core, mut edge) = tiers(&[]);
    let crowd = Crowd::gather(&edge).await;
    for case in ["killed", "killed within a batch", "stopped"] {
        crowd.everybody_is_heard().await;
        let failures = edge.log().matches("in the midst").count();
        let begun = edge.log().matches("nothing is read").count();
        core.signal("STOP");
        // Something is under way now: the next ones to talk see to that.
        tokio::time::sleep(2 * PAUSE).await;
        let mut successor = edge.spawn_successor();
        eventually("the old process reads no more", async || {
            (edge.log().matches("nothing is read").count() > begun).then_some(())
        })
        .await;
        if case != "killed" {
            signal(&successor, "STOP");
            core.signal("CONT");
            // The old process goes on to the first batch, for which the stopped one has no answer.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if case == "stopped" {
            // Too slow: the old process gives it up, and it must not touch a thing afterwards.
            eventually("the old process goes on", async || {
                (edge.log().matches("in the midst").count() > failures).then_some(())
            })
            .await;
            signal(&successor, "CONT");
            let status = successor.wait().expect("our child can be waited for");
            assert_eq!(status.code(), Some(1), "{}", edge.log());
        } else {
            successor.kill().expect("our child can be killed");
            successor.wait().expect("our child can be waited for");
        }
        if case == "killed" {
            core.signal("CONT");
        }
        crowd.everybody_is_heard().await;
        assert!(edge.is_running());
        let failures_now = edge.log().matches("in the midst").count();
        assert_eq!(failures_now, failures + 1, "{case}");
    }
    upgrade(&mut edge);
    crowd.everybody_is_heard().await;
    crowd.verdict(&core).await;
}

#[test]
fn an_upgrade_of_nothing_says_what_to_do() {
    let run = |args: &[&str]| {
        let output = Command::new(binary())
            .args(args)
            .args(["--jwt-secret", "a secret of some length, for the test"])
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    let (code, text) = run(&["edge", "--upgrade", "--ws", "127.0.0.1:9"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("start without --upgrade"), "{text}");
    for role in ["serve", "core"] {
        let (code, text) = run(&[role, "--upgrade"]);
        assert_eq!(code, Some(64), "{text}");
        assert!(text.contains("one process only"), "{text}");
    }
    let (code, text) = run(&["edge", "--upgrade", "--ws", "127.0.0.1:0"]);
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("--upgrade-socket"), "{text}");
}
