//! Random scripts against what is promised: contiguous seqs, one message for each
//! `client_msg_id`, acks only of what is stored, deliveries complete and in order, every frame
//! settled once; and the same script gives the same effects, byte for byte.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use trunkline_proto::client::ServerBody;
use trunkline_proto::ids::ConversationId;

use super::world::{Got, Session, World, config, unavailable};
use crate::engine::{EngineConfig, Request, Role, RosterBounds};

const USERS: [&str; 4] = ["ann", "bob", "cy", "di"];

#[derive(Clone, Debug)]
enum Op {
    Open {
        edge: u32,
        user: usize,
    },
    Close {
        session: usize,
    },
    /// To the user `to`; the group when it is beyond them.
    Say {
        session: usize,
        to: usize,
        cid: u8,
        content: u8,
    },
    Mark {
        session: usize,
        other: usize,
        seq: u64,
        read: bool,
    },
    Fetch {
        session: usize,
        other: usize,
        after: Option<u64>,
    },
    SyncAll {
        session: usize,
    },
    Put {
        user: usize,
        role: Option<Role>,
    },
    Remove {
        user: usize,
    },
    Turn,
    Hold {
        commits: bool,
        loads: bool,
    },
    Release,
    FailCommits {
        count: usize,
        lost: bool,
    },
    FailRead,
    Pass {
        ms: u64,
    },
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let session = 0..6_usize;
    let user = 0..USERS.len();
    let other = 0..=USERS.len();
    prop_oneof![
        3 => (1..3_u32, user.clone()).prop_map(|(edge, user)| Op::Open { edge, user }),
        1 => session.clone().prop_map(|session| Op::Close { session }),
        14 => (session.clone(), other.clone(), 0..6_u8, 0..8_u8).prop_map(
            |(session, to, cid, content)| Op::Say { session, to, cid, content: content / 7 }
        ),
        3 => (session.clone(), other.clone(), 0..12_u64, any::<bool>())
            .prop_map(|(session, other, seq, read)| Op::Mark { session, other, seq, read }),
        2 => (session.clone(), other, proptest::option::of(0..12_u64))
            .prop_map(|(session, other, after)| Op::Fetch { session, other, after }),
        1 => session.prop_map(|session| Op::SyncAll { session }),
        2 => (user.clone(), proptest::option::of(Just(Role::Admin)))
            .prop_map(|(user, role)| Op::Put { user, role }),
        1 => user.prop_map(|user| Op::Remove { user }),
        6 => Just(Op::Turn),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(commits, loads)| Op::Hold { commits, loads }),
        4 => Just(Op::Release),
        1 => (1..4_usize, any::<bool>()).prop_map(|(count, lost)| Op::FailCommits { count, lost }),
        1 => Just(Op::FailRead),
        3 => (0..700_u64).prop_map(|ms| Op::Pass { ms }),
        1 => Just(Op::Restart),
    ]
}

/// A world, the sessions that scripts name by number, and the group that they talk in.
struct Play {
    world: World,
    config: EngineConfig,
    sessions: Vec<(Session, usize)>,
    group: ConversationId,
}

impl Play {
    fn new(conversations_cached_max: usize, seed: u64) -> Self {
        let config = EngineConfig {
            conversations_cached_max,
            rosters: RosterBounds {
                recipients_min: 1 + (seed % 3) as usize,
                messages_min: (seed / 3 % 3) as u32,
                rosters_max: 1 + (seed / 9 % 3) as usize,
                handles_max: 1 + (seed / 27 % 9) as usize,
            },
            ..config()
        };
        let mut world = World::seeded(config.clone(), seed);
        let group = world.group(USERS[0], &USERS[1..3]);
        Self {
            world,
            config,
            sessions: Vec::new(),
            group,
        }
    }

    fn session(&self, number: usize) -> Option<(Session, usize)> {
        let count = self.sessions.len();
        (count > 0).then(|| self.sessions[number % count])
    }

    fn conversation(&self, user: usize, other: usize) -> ConversationId {
        match USERS.get(other) {
            Some(other) => ConversationId::direct(USERS[user], other),
            None => self.group,
        }
    }

    fn play(&mut self, op: &Op) {
        let world = &mut self.world;
        match *op {
            Op::Open { edge, user } => {
                let session = (edge, 1_000 + world.log.len() as u64);
                let device = format!("d{}", session.1);
                world.announce(session, USERS[user], &device, false);
                self.sessions.push((session, user));
            }
            Op::Pass { ms } => world.pass(ms),
            Op::Turn => world.turn(),
            Op::Hold { commits, loads } => {
                (world.hold_commits, world.hold_loads) = (commits, loads)
            }
            Op::Release => world.release(),
            Op::FailCommits { count, lost } => {
                world.lost_answers = lost;
                world
                    .commit_ends
                    .extend((0..count).map(|_| Err(unavailable())));
            }
            Op::FailRead => world.read_fails.push_back(unavailable()),
            Op::Restart => {
                self.check();
                self.sessions.clear();
                self.world.restart(self.config.clone());
            }
            Op::Put { user, role } => {
                let request = Request::PutMember {
                    id: self.group,
                    user: USERS[user].to_owned(),
                    role,
                };
                world.ask(USERS[0], request);
            }
            Op::Remove { user } => {
                let request = Request::RemoveMember {
                    id: self.group,
                    user: USERS[user].to_owned(),
                };
                world.ask(USERS[0], request);
            }
            _ => self.play_frame(op),
        }
    }

    fn play_frame(&mut self, op: &Op) {
        let (Op::Close { session: number }
        | Op::Say {
            session: number, ..
        }
        | Op::Mark {
            session: number, ..
        }
        | Op::Fetch {
            session: number, ..
        }
        | Op::SyncAll { session: number }) = *op
        else {
            return;
        };
        let Some((session, user)) = self.session(number) else {
            return;
        };
        match *op {
            Op::Close { .. } => {
                self.sessions.retain(|(s, _)| *s != session);
                self.world.close(session);
            }
            Op::Say {
                to, cid, content, ..
            } => {
                let (cid, content) = (format!("c{cid}"), format!("text {content}"));
                match USERS.get(to) {
                    Some(to) => self.world.say(session, to, &cid, &content),
                    None => self.world.say_in(session, self.group, &cid, &content),
                }
            }
            Op::Mark {
                other, seq, read, ..
            } => {
                let id = self.conversation(user, other);
                let status = if read { "read" } else { "delivered" };
                self.world.mark(session, id, seq, status);
            }
            Op::Fetch { other, after, .. } => {
                let fetch = trunkline_proto::client::Fetch {
                    conversation_id: self.conversation(user, other).to_string(),
                    after,
                    before: None,
                    limit: Some(3),
                };
                let body = trunkline_proto::client::ClientBody::Fetch(fetch);
                self.world.frame(session, "", body);
            }
            _ => self.world.sync(session, &[]),
        }
    }

    /// Lets everything settle, then checks what is promised.
    fn finish(&mut self) {
        self.world.hold_commits = false;
        self.world.hold_loads = false;
        self.world.release();
        for _ in 0..20 {
            self.world.pass(2_000);
        }
        assert_eq!(self.world.engine.next_deadline(), None);
        let stats = self.world.engine.stats();
        assert_eq!((stats.operations_open, stats.operations_waiting), (0, 0));
        assert_eq!(
            self.world.framed, self.world.settled,
            "each frame is settled once"
        );
        assert_eq!(self.world.fatal, Vec::<String>::new());
        self.check();
        self.leave();
    }

    /// When all have gone, nothing is left in memory.
    fn leave(&mut self) {
        for session in self.world.open.clone().into_keys() {
            self.world.close(session);
        }
        self.world.engine.config.conversations_cached_max = 0;
        self.world.pass(1);
        let stats = self.world.engine.stats();
        assert_eq!(
            (stats.sessions, stats.conversations, stats.users),
            (0, 0, 0)
        );
        assert_eq!(
            (stats.dedup_entries, self.world.engine.cache.recent_bytes),
            (0, 0)
        );
        assert_eq!((stats.rosters, stats.roster_handles), (0, 0));
        assert!(self.world.rosters.is_empty(), "edges were told");
    }

    fn check(&self) {
        self.check_store();
        let mut received: BTreeMap<Session, BTreeSet<(String, u64)>> = BTreeMap::new();
        for (session, _) in &self.sessions {
            received.insert(*session, self.check_inbox(*session));
        }
        // Who was there when a message became durable got it; the one session that sent it may have
        // got an error instead of the ack.
        let mut missed: BTreeMap<(String, u64), u32> = BTreeMap::new();
        for (session, message) in &self.world.due {
            let Some(received) = received.get(session) else {
                continue;
            };
            let key = (message.conversation_id.clone(), message.seq);
            if !received.contains(&key) {
                assert_eq!(self.world.open[session], message.sender_id, "{key:?}");
                *missed.entry(key).or_default() += 1;
            }
        }
        assert!(missed.values().all(|count| *count == 1), "{missed:?}");
    }

    /// Seqs without a hole are checked by the store itself.
    fn check_store(&self) {
        let mut ids = BTreeSet::new();
        for stored in self.world.store.conversations.values() {
            let mut keys = BTreeSet::new();
            let mut last_ts = 0;
            for message in stored.messages.values() {
                assert!(ids.insert(message.message_id), "a message id twice");
                let key = (&message.sender_id, &message.client_msg_id);
                assert!(keys.insert(key), "one send stored twice: {key:?}");
                assert!(message.ts >= last_ts);
                last_ts = message.ts;
            }
        }
    }

    /// First acks and messages ascend by seq; says which arrived.
    fn check_inbox(&self, session: Session) -> BTreeSet<(String, u64)> {
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        let mut arrived = BTreeSet::new();
        for got in self.world.got(session) {
            let Got::Frame(frame) = got else {
                continue;
            };
            let (conversation, seq) = match frame.frame.as_ref().unwrap() {
                ServerBody::Ack(a) if !a.duplicate => (&a.conversation_id, a.seq),
                ServerBody::Message(m) => (&m.conversation_id, m.seq),
                _ => continue,
            };
            let last = last.entry(conversation).or_default();
            assert!(seq > *last, "{seq} after {last}");
            *last = seq;
            arrived.insert((conversation.clone(), seq));
        }
        arrived
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_scripts_keep_every_promise_and_repeat_byte_for_byte(
        ops in proptest::collection::vec(op(), 1..120),
        cached in prop_oneof![Just(0_usize), Just(2), Just(1_000)],
    ) {
        let mut logs = Vec::new();
        // The seed, of the tables' hashes and the order of the store's index, shows in nothing but
        // the group's id.
        for seed in [7, 7, 8] {
            let mut play = Play::new(cached, seed);
            for op in &ops {
                play.play(op);
            }
            play.finish();
            let group = play.group.to_string();
            let log: Vec<String> =
                play.world.log.iter().map(|effect| effect.replace(&group, "GROUP")).collect();
            logs.push(log);
        }
        prop_assert_eq!(&logs[0], &logs[1]);
        prop_assert_eq!(&logs[0], &logs[2]);
    }
}
