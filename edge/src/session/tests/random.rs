//! A shard among peers, a driver and a core that do anything at any time, from a seed: what must hold
//! always is looked at after each turn.

use std::collections::HashMap;
use std::sync::Arc;

use trunkline_proto::client::{Message, ServerBody, ServerFrame};
use trunkline_proto::codes::{Close, Code};
use trunkline_proto::link::edge_op::Op;

use super::super::testing::{START_MS, World, masked, request, send_message, token};
use super::super::{Actions, Bounds, Jitter, Now, Settings, Shard, State, Transport};
use crate::hub::ShardOp;
use crate::link::shared::SharedFrame;
use crate::link::uplink::Credit;
use crate::observe::counters::Number;
use crate::ring::ConnId;

#[derive(Default)]
struct Peer {
    blocked: bool,
    fin_in: bool,
    fin_out: bool,
    closing: bool,
}

/// The driver's side of the contract, checked, and the core's memory of sessions.
struct Model {
    shard: Shard,
    random: Jitter,
    ms: u64,
    next: u32,
    free: Vec<u32>,
    peers: HashMap<u32, (ConnId, Peer)>,
    /// By handle: what the core knows on the present link.
    open: HashMap<u64, ()>,
    credit: Arc<Credit>,
    seed: u64,
}

impl Model {
    fn pick(&mut self) -> Option<ConnId> {
        let count = self.peers.len() as u64;
        let nth = self.random.up_to(count.checked_sub(1)?);
        let mut slots: Vec<_> = self.peers.keys().copied().collect();
        slots.sort_unstable();
        Some(self.peers[&slots[nth as usize]].0)
    }

    fn accept(&mut self) {
        let slot = self.free.pop().unwrap_or(self.next);
        self.next = self.next.max(slot + 1);
        let generation = self.random.up_to(1 << 30) as u32;
        let id = ConnId { slot, generation };
        let transport = match self.random.up_to(2) {
            0 => Transport::Tcp,
            _ => Transport::WebSocket,
        };
        self.peers.insert(slot, (id, Peer::default()));
        self.shard
            .accepted(id, transport, "192.0.2.9:1".parse().unwrap());
    }

    /// Mostly what the connection waits for.
    fn bytes(&mut self, id: ConnId) -> Vec<u8> {
        let connect = |device| {
            let token = token("alice", 5);
            format!(r#"{{"type":"connect","token":"{token}","device_id":"{device}"}}"#)
        };
        let state = self.shard.slots.get(id).map(|conn| conn.state);
        let what = match state {
            Some(State::Handshake) => self.random.up_to(12).saturating_sub(9),
            Some(State::AwaitConnect) => self.random.up_to(12).saturating_sub(9) + 2,
            _ => 3 + self.random.up_to(30),
        };
        match what {
            0 => {
                let target = format!(
                    "/v1/connect?access_token={}&device_id=d{}",
                    token("alice", 600),
                    self.random.up_to(5)
                );
                request(&target, "").into_bytes()
            }
            1 => request("/v1/connect", "").into_bytes(),
            2 => masked(0x81, connect("d").as_bytes()),
            3 => masked(0x88, &[0x03, 0xe8]),
            4 => masked(0x89, b"ping"),
            5 => vec![self.random.up_to(255) as u8; self.random.up_to(40) as usize],
            6 => masked(0x81, br#"{"type":"sync","conversations":[]}"#),
            _ => masked(0x81, send_message("m").as_bytes()),
        }
    }

    /// One thing that happens to the shard.
    fn step(&mut self) {
        let what = self.random.up_to(19);
        let Some(id) = self.pick().filter(|_| what > 1) else {
            return self.accept();
        };
        let handle = self.shard.handle(id);
        let size = self.random.up_to(2_000) as usize;
        match what {
            3..=8 => {
                let mut bytes = self.bytes(id);
                let (_, peer) = &self.peers[&id.slot];
                if !peer.fin_in && !peer.closing {
                    self.shard.received(id, &mut bytes);
                }
            }
            2 | 9 => self.core([ShardOp::Registered { handle }]),
            10 | 11 => {
                let frame = message(size);
                self.core([ShardOp::One { handle, frame }]);
            }
            12 => {
                let handles: Vec<u64> = self
                    .peers
                    .values()
                    .map(|(id, _)| self.shard.handle(*id))
                    .collect();
                let frame = Arc::new(SharedFrame::new(message(size)));
                let many = ShardOp::Many {
                    handles,
                    frame,
                    crosses_shards: size.is_multiple_of(2),
                };
                self.core([many]);
            }
            13 if size < 100 => {
                let error = Code::Unauthorized.closing(Close::Replaced, "newer");
                self.core([ShardOp::Close { handle, error }]);
            }
            14 => self.block(id, size),
            15 => self.unblock(id),
            16 if size < 400 => self.end(id, size.is_multiple_of(2)),
            17 if size < 50 => {
                self.shard.link_down();
                self.open.clear();
            }
            17 if !self.shard.is_link_up() => {
                self.credit = Arc::new(Credit::new(size as u32));
                self.shard.link_up(self.credit.clone());
            }
            18 if size < 3 => self.shard.drain(500),
            19 if size < 60 => self.ms += 4_000,
            _ => self.ms += self.random.up_to(50),
        }
    }

    fn core(&mut self, ops: impl IntoIterator<Item = ShardOp>) {
        self.shard.core_ops(ops, 1);
    }

    fn block(&mut self, id: ConnId, unsent: usize) {
        let peer = &mut self.peers.get_mut(&id.slot).unwrap().1;
        if !peer.blocked && !peer.closing {
            peer.blocked = true;
            self.shard.blocked(id, unsent);
        }
    }

    fn unblock(&mut self, id: ConnId) {
        let peer = &mut self.peers.get_mut(&id.slot).unwrap().1;
        if std::mem::take(&mut peer.blocked) && !peer.closing {
            self.shard.drained(id);
        }
    }

    fn end(&mut self, id: ConnId, orderly: bool) {
        let peer = &mut self.peers.get_mut(&id.slot).unwrap().1;
        if orderly && !peer.fin_in && !peer.closing {
            peer.fin_in = true;
            self.shard.eof(id);
        } else if !orderly {
            self.gone(id);
        }
    }

    fn gone(&mut self, id: ConnId) {
        self.peers.remove(&id.slot);
        self.free.push(id.slot);
        self.shard.closed(id);
    }

    /// Ends the turn and holds its actions against the contracts.
    fn turn(&mut self) {
        let seed = self.seed;
        let mut actions = Actions::default();
        self.shard.end_turn(&mut actions);
        let mut sent = Vec::new();
        for (id, bytes) in actions.sends {
            let Some((owner, peer)) = self.peers.get(&id.slot) else {
                continue;
            };
            assert!(!sent.contains(&id), "seed {seed}: two sends in a turn");
            if *owner == id {
                assert!(!bytes.is_empty(), "seed {seed}");
                assert!(!peer.blocked, "seed {seed}: sent while blocked");
                assert!(!peer.fin_out, "seed {seed}: sent after FIN");
                assert!(!peer.closing, "seed {seed}: sent after close");
            }
            sent.push(id);
        }
        for id in actions.shutdowns {
            let peer = &mut self.peers.get_mut(&id.slot).unwrap().1;
            assert!(!peer.fin_out && !peer.blocked, "seed {seed}: FIN");
            peer.fin_out = true;
        }
        for id in actions.closes {
            let peer = &mut self.peers.get_mut(&id.slot).unwrap().1;
            assert!(!peer.closing, "seed {seed}: closed twice");
            peer.closing = true;
        }
        for op in actions.ops {
            let known = self.open.contains_key(&op.handle);
            match op.op.unwrap() {
                Op::Opened(_) => assert!(self.open.insert(op.handle, ()).is_none(), "seed {seed}"),
                Op::Closed(_) => assert!(self.open.remove(&op.handle).is_some(), "seed {seed}"),
                Op::Frame(_) => assert!(known, "seed {seed}: a frame of no session"),
            }
        }
        self.check();
        let over: Vec<ConnId> = self
            .peers
            .values()
            .filter(|(_, p)| p.closing || (p.fin_in && p.fin_out && !p.blocked))
            .map(|(id, _)| *id)
            .collect();
        over.into_iter().for_each(|id| self.gone(id));
    }

    /// The gauges are the truth.
    fn check(&mut self) {
        let seed = self.seed;
        let list = self.shard.list(None, usize::MAX);
        assert_eq!(list.len(), self.shard.connections(), "seed {seed}");
        let owed: usize = list.iter().map(|conn| conn.owed_bytes).sum();
        let hard = self.shard.settings.outbox.hard + 4_096;
        assert!(
            list.iter().all(|conn| conn.owed_bytes <= hard),
            "seed {seed}"
        );
        let counters = self.shard.counters();
        assert_eq!(
            counters.get(Number::OutboxBytes),
            owed as u64,
            "seed {seed}"
        );
        for state in State::SHOWN {
            for transport in [Transport::WebSocket, Transport::Tcp] {
                let there = list
                    .iter()
                    .filter(|c| c.state == state.name() && c.transport == transport.name());
                let gauge = Number::sockets(state, transport).unwrap();
                let there = there.count() as u64;
                assert_eq!(counters.get(gauge), there, "seed {seed}: {gauge:?}");
            }
        }
    }
}

fn message(len: usize) -> ServerFrame {
    ServerFrame::push(ServerBody::Message(Message {
        content: "x".repeat(len),
        ..Message::default()
    }))
}

#[test]
fn whatever_happens_the_contracts_hold() {
    let mut reached = [0; 4];
    for seed in 1..=150 {
        let settings = Settings {
            seed,
            heartbeat_ms: 1_000,
            address_rate: 0,
            outbox: Bounds {
                soft: 2_000,
                hard: 8_000,
            },
            ..Settings::default()
        };
        let mut world = World::without_core(settings);
        world.shard.link_up(world.credit.clone());
        let mut model = Model {
            shard: world.shard,
            random: Jitter::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            ms: 0,
            next: 0,
            free: Vec::new(),
            peers: HashMap::new(),
            open: HashMap::new(),
            credit: world.credit,
            seed,
        };
        for _ in 0..600 {
            model.shard.begin(Now {
                mono_ns: model.ms * 1_000_000,
                unix_ms: START_MS + model.ms,
            });
            for _ in 0..model.random.up_to(4) {
                model.step();
            }
            model.turn();
        }
        // Everything has a deadline: left alone, all of it ends.
        model.credit.grant(1_000_000);
        model.shard.drain(0);
        for _ in 0..40 {
            model.ms += 1_000;
            model.shard.begin(Now {
                mono_ns: model.ms * 1_000_000,
                unix_ms: START_MS + model.ms,
            });
            model.turn();
        }
        assert_eq!(model.shard.connections(), 0, "seed {seed}");
        assert_eq!(model.open.len(), 0, "seed {seed}: the core was not told");
        assert_eq!(model.shard.slots.texts_kept(), 0);
        let counters = model.shard.counters();
        for (sum, number) in reached.iter_mut().zip([
            Number::SessionsOpened,
            Number::Delivered,
            Number::ClosedSlowConsumer,
            Number::ClosedHeartbeatMissed,
        ]) {
            *sum += counters.get(number);
        }
    }
    // Or nothing of this was tested.
    assert!(reached.iter().all(|&sum| sum > 50), "{reached:?}");
}
