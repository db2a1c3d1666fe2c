//! A shard with a scripted peer on each side: what it sends is kept for each connection and read
//! back as frames; what it tells the core is kept in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use trunkline_identity::{KeySource, Verifier, mint_at};
use trunkline_proto::client::{
    ClientBody, ClientFrame, Error, SendMessage, ServerBody, ServerFrame,
};
use trunkline_proto::json;
use trunkline_proto::limits::{SUBPROTOCOL_JSON, SUBPROTOCOL_PROTO};
use trunkline_proto::link::EdgeOp;
use trunkline_proto::link::edge_op::Op;

use super::{Actions, Now, Settings, Shard, Transport};
use crate::hub::ShardOp;
use crate::link::uplink::Credit;
use crate::ring::ConnId;

pub const SECRET: &str = "a secret of the tests";
/// 2026-01-01, in ms.
pub const START_MS: u64 = 1_767_225_600_000;

/// What a peer was sent.
#[derive(Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "mostly frames, and only in tests"
)]
pub enum Got {
    Frame(ServerFrame),
    Ping,
    Pong(Vec<u8>),
    Close(u16, String),
}

pub struct World {
    pub shard: Shard,
    pub credit: Arc<Credit>,
    pub ms: u64,
    pub sent: HashMap<u32, Vec<u8>>,
    pub fins: Vec<ConnId>,
    pub closes: Vec<ConnId>,
    pub ops: Vec<EdgeOp>,
    pub settled: u32,
    next_slot: u32,
}

impl World {
    pub fn new() -> Self {
        Self::with(Settings::default())
    }

    /// With a core attached and plenty of credit.
    pub fn with(settings: Settings) -> Self {
        let mut world = Self::without_core(settings);
        world.shard.link_up(world.credit.clone());
        world.turn();
        world
    }

    pub fn without_core(settings: Settings) -> Self {
        let verifier = Verifier::new(&KeySource::Secret(SECRET.into()));
        let mut world = Self {
            shard: Shard::new(settings, verifier),
            credit: Arc::new(Credit::new(1_000_000)),
            ms: 0,
            sent: HashMap::new(),
            fins: Vec::new(),
            closes: Vec::new(),
            ops: Vec::new(),
            settled: 0,
            next_slot: 0,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.shard.begin(Now {
            mono_ns: self.ms * 1_000_000,
            unix_ms: START_MS + self.ms,
        });
    }

    /// Ends the turn and begins the next.
    pub fn turn(&mut self) {
        let mut actions = Actions::default();
        self.shard.end_turn(&mut actions);
        let mut seen = Vec::new();
        for (id, bytes) in actions.sends {
            assert!(!seen.contains(&id), "one send for each connection and turn");
            seen.push(id);
            self.sent
                .entry(id.slot)
                .or_default()
                .extend_from_slice(&bytes);
        }
        self.fins.extend(actions.shutdowns);
        self.closes.extend(actions.closes);
        self.ops.extend(actions.ops);
        self.settled += actions.settled;
        self.begin();
    }

    /// Lets `ms` pass, waking whenever the shard wants to.
    pub fn pass(&mut self, ms: u64) {
        let until = self.ms + ms;
        loop {
            self.turn();
            let step = self.shard.timeout().map_or(u64::MAX, |t| {
                u64::try_from(t.as_nanos().div_ceil(1_000_000)).unwrap()
            });
            if self.ms.saturating_add(step) > until {
                break;
            }
            self.ms += step.max(1);
            self.begin();
        }
        self.ms = until;
        self.begin();
        self.turn();
    }

    pub fn accept(&mut self, transport: Transport) -> ConnId {
        let id = ConnId {
            slot: self.next_slot,
            generation: 100 + self.next_slot,
        };
        self.next_slot += 1;
        self.shard
            .accepted(id, transport, "192.0.2.1:40000".parse().unwrap());
        id
    }

    pub fn receive(&mut self, id: ConnId, bytes: &[u8]) {
        self.shard.received(id, &mut bytes.to_vec());
        self.turn();
    }

    /// An upgraded WebSocket: `json` or protobuf.
    pub fn upgraded(&mut self, json: bool) -> ConnId {
        let id = self.accept(Transport::WebSocket);
        let protocol = if json {
            SUBPROTOCOL_JSON
        } else {
            SUBPROTOCOL_PROTO
        };
        let header = format!("Sec-WebSocket-Protocol: {protocol}\r\n");
        self.receive(id, request("/v1/connect", &header).as_bytes());
        let head = String::from_utf8(self.sent.remove(&id.slot).unwrap()).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains(protocol), "{head}");
        id
    }

    /// Sends a client frame as JSON text.
    pub fn say(&mut self, id: ConnId, text: &str) {
        self.receive(id, &masked(0x81, text.as_bytes()));
    }

    /// Sends a client frame in delimited protobuf.
    pub fn say_tcp(&mut self, id: ConnId, body: ClientBody) {
        let frame = ClientFrame {
            id: String::new(),
            frame: Some(body),
        };
        self.receive(id, &frame.encode_length_delimited_to_vec());
    }

    pub fn connect(&mut self, id: ConnId, user: &str, device: &str) {
        let token = token(user, self.ms / 1_000 + 3_600);
        self.say(
            id,
            &format!(r#"{{"type":"connect","id":"c1","token":"{token}","device_id":"{device}"}}"#),
        );
    }

    /// A live JSON session; what it was sent so far is forgotten.
    pub fn live(&mut self, user: &str, device: &str) -> ConnId {
        let id = self.upgraded(true);
        self.connect(id, user, device);
        self.register(id);
        let got = self.got(id);
        let [Got::Frame(frame)] = &got[..] else {
            panic!("{got:?}");
        };
        assert!(
            matches!(frame.frame, Some(ServerBody::Connected(_))),
            "{frame:?}"
        );
        self.ops.clear();
        self.settled = 0;
        id
    }

    /// A live session over raw TCP.
    pub fn live_tcp(&mut self, user: &str, device: &str) -> ConnId {
        let id = self.accept(Transport::Tcp);
        let connect = trunkline_proto::client::Connect {
            token: token(user, 3_600),
            device_id: device.into(),
            client: String::new(),
        };
        self.say_tcp(id, ClientBody::Connect(connect));
        self.register(id);
        let got = self.got_tcp(id);
        assert!(matches!(got[..], [ServerBody::Connected(_)]), "{got:?}");
        self.ops.clear();
        self.settled = 0;
        id
    }

    /// The core takes the session into its registry.
    pub fn register(&mut self, id: ConnId) {
        let handle = self.shard.handle(id);
        self.core(ShardOp::Registered { handle });
    }

    pub fn core(&mut self, op: ShardOp) {
        self.shard.core_ops([op], 1);
        self.turn();
    }

    pub fn deliver(&mut self, id: ConnId, body: ServerBody) {
        let handle = self.shard.handle(id);
        let frame = ServerFrame::push(body);
        self.core(ShardOp::One { handle, frame });
    }

    /// What a WebSocket was sent since the last look.
    pub fn got(&mut self, id: ConnId) -> Vec<Got> {
        read_ws(&self.sent.remove(&id.slot).unwrap_or_default())
    }

    /// The one error that a WebSocket was sent since the last look.
    pub fn error(&mut self, id: ConnId) -> Error {
        let got = self.got(id);
        match <[Got; 1]>::try_from(got) {
            Ok(
                [
                    Got::Frame(ServerFrame {
                        frame: Some(ServerBody::Error(error)),
                        ..
                    }),
                ],
            ) => error,
            other => panic!("not one error: {other:?}"),
        }
    }

    /// What a raw TCP connection was sent since the last look.
    pub fn got_tcp(&mut self, id: ConnId) -> Vec<ServerBody> {
        let bytes = self.sent.remove(&id.slot).unwrap_or_default();
        let mut rest = &bytes[..];
        let mut got = Vec::new();
        while !rest.is_empty() {
            let frame = ServerFrame::decode_length_delimited(&mut rest).unwrap();
            got.push(frame.frame.unwrap());
        }
        got
    }

    /// The operations since the last look, as short words.
    pub fn heard(&mut self) -> Vec<String> {
        let ops = std::mem::take(&mut self.ops);
        ops.iter().map(|op| describe(op, &self.shard)).collect()
    }
}

fn describe(op: &EdgeOp, _shard: &Shard) -> String {
    let slot = Shard::conn_id(op.handle).slot;
    match op.op.as_ref().unwrap() {
        Op::Opened(o) if o.announced_again => format!("{slot} again {}/{}", o.user_id, o.device_id),
        Op::Opened(o) => format!("{slot} opened {}/{}", o.user_id, o.device_id),
        Op::Closed(_) => format!("{slot} closed"),
        Op::Frame(f) => match ClientFrame::decode(&f[..]).unwrap().frame.unwrap() {
            ClientBody::SendMessage(SendMessage { client_msg_id, .. }) => {
                format!("{slot} send {client_msg_id}")
            }
            ClientBody::Typing(_) => format!("{slot} typing"),
            ClientBody::Sync(_) => format!("{slot} sync"),
            other => format!("{slot} {other:?}"),
        },
    }
}

pub fn token(user: &str, ttl_s: u64) -> String {
    mint_at(SECRET, user, START_MS / 1_000, Duration::from_secs(ttl_s))
}

pub fn request(target: &str, headers: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
    )
}

/// A client's frame. `first`: FIN and opcode.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let key = [0x5a, 0x11, 0xc3, 0x7e];
    let mut out = vec![first];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&key);
    out.extend(payload.iter().enumerate().map(|(i, b)| b ^ key[i % 4]));
    out
}

pub fn send_message(client_msg_id: &str) -> String {
    format!(
        r#"{{"type":"send_message","id":"s","conversation_id":"c","client_msg_id":"{client_msg_id}","content":"x"}}"#
    )
}

fn read_ws(mut bytes: &[u8]) -> Vec<Got> {
    let mut got = Vec::new();
    while let [first, len, rest @ ..] = bytes {
        let (len, rest) = match len {
            126 => (
                usize::from(u16::from_be_bytes([rest[0], rest[1]])),
                &rest[2..],
            ),
            127 => (
                u64::from_be_bytes(rest[..8].try_into().unwrap()) as usize,
                &rest[8..],
            ),
            len => (usize::from(*len), rest),
        };
        let (payload, rest) = rest.split_at(len);
        bytes = rest;
        got.push(match first {
            0x81 => Got::Frame(json::decode_server(payload).unwrap()),
            0x82 => Got::Frame(ServerFrame::decode(payload).unwrap()),
            0x88 if payload.is_empty() => Got::Close(1005, String::new()),
            0x88 => Got::Close(
                u16::from_be_bytes([payload[0], payload[1]]),
                String::from_utf8(payload[2..].to_vec()).unwrap(),
            ),
            0x89 => Got::Ping,
            0x8a => Got::Pong(payload.to_vec()),
            other => panic!("frame {other:#x}"),
        });
    }
    assert!(bytes.is_empty(), "half a frame: {bytes:?}");
    got
}
