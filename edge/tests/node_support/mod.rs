//! The two neighbours of an edge, for tests with real sockets: a core that answers at once, and
//! blocking clients that share no code with the edge but the schema.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost::Message as _;
use trunkline_edge::link::manager::AttachLocal;
use trunkline_edge::node::{CoreLink, EdgeConfig, EdgeNode};
use trunkline_edge::ring::DriverChoice;
use trunkline_edge::session::Settings;
use trunkline_identity::{KeySource, Verifier, mint};
use trunkline_proto::client::{
    Ack, ClientBody, ClientFrame, Connect, Message, SendMessage, ServerBody, ServerFrame,
};
use trunkline_proto::json;
use trunkline_proto::link::{
    CoreBatch, CoreOp, Deliver, EdgeBatch, EdgeHello, EdgeOp, Registered, core_op, edge_op::Op,
};
use trunkline_proto::ports::{CREDIT_INITIAL, CorePort, EdgePort, OpLists};

pub const SECRET: &str = "a secret of the tests";
/// Nothing here takes longer, unless it never comes.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Looks at `what` until it is true.
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}

/// What a core has seen and does.
#[derive(Default)]
pub struct FakeCore {
    state: Mutex<CoreState>,
    /// Of batches that it has answered.
    pub lists: OpLists,
}

#[derive(Default)]
struct CoreState {
    edge: Option<Arc<dyn EdgePort>>,
    hellos: Vec<EdgeHello>,
    /// Handles of open sessions, by order of opening.
    open: Vec<u64>,
    announced_again: usize,
    closed: usize,
    /// Messages that were taken and not answered.
    taken: usize,
    seq: u64,
    granted: u64,
    silent: bool,
    time_ms: u64,
}

impl FakeCore {
    pub fn attach(self: &Arc<Self>, hello: EdgeHello, edge: Arc<dyn EdgePort>) {
        let mut state = self.state.lock();
        state.hellos.push(hello);
        state.open.clear();
        state.edge = Some(edge.clone());
        drop(state);
        edge.deliver(CoreBatch {
            credit: CREDIT_INITIAL,
            ..CoreBatch::default()
        });
    }

    /// Answers to the edge's operations, all in one batch.
    pub fn answer(&self, mut batch: EdgeBatch) -> Option<CoreBatch> {
        let mut state = self.state.lock();
        state.granted += u64::from(batch.credit);
        let unanswered = batch
            .ops
            .iter()
            .filter(|op| state.silent && matches!(&op.op, Some(Op::Frame(_))));
        // Credit returns with the answers.
        let credit = (batch.ops.len() - unanswered.count()) as u32;
        let ops: Vec<CoreOp> = batch
            .ops
            .drain(..)
            .filter_map(|op| state.answer(op))
            .collect();
        self.lists.give(batch.ops);
        state.time_ms += 1;
        let core_time_ms = state.time_ms;
        (credit > 0).then_some(CoreBatch {
            welcome: None,
            ops,
            credit,
            core_time_ms,
        })
    }

    pub fn edge(&self) -> Arc<dyn EdgePort> {
        self.state.lock().edge.clone().unwrap()
    }

    pub fn hellos(&self) -> Vec<EdgeHello> {
        self.state.lock().hellos.clone()
    }

    pub fn open(&self) -> Vec<u64> {
        self.state.lock().open.clone()
    }

    pub fn announced_again(&self) -> usize {
        self.state.lock().announced_again
    }

    /// Messages that were taken while it was silent.
    pub fn taken(&self) -> usize {
        self.state.lock().taken
    }

    pub fn closed(&self) -> usize {
        self.state.lock().closed
    }

    /// Credit that the edge has granted.
    pub fn granted(&self) -> u64 {
        self.state.lock().granted
    }

    /// Messages are taken and not answered from now on, or are again.
    pub fn set_silent(&self, silent: bool) {
        self.state.lock().silent = silent;
    }

    /// Pushes a message of `content_len` bytes to `handles`.
    pub fn push(&self, handles: Vec<u64>, content_len: usize, seq: u64) {
        let message = Message {
            conversation_id: "c".into(),
            seq,
            content: "x".repeat(content_len),
            ..Message::default()
        };
        self.edge().deliver(CoreBatch {
            ops: vec![CoreOp {
                op: Some(core_op::Op::Deliver(Deliver {
                    handles,
                    frame: Some(ServerFrame::push(ServerBody::Message(message))),
                })),
            }],
            ..CoreBatch::default()
        });
    }
}

impl CoreState {
    fn answer(&mut self, op: EdgeOp) -> Option<CoreOp> {
        let handle = op.handle;
        let op = match op.op.unwrap() {
            Op::Opened(opened) => {
                self.open.push(handle);
                if opened.announced_again {
                    self.announced_again += 1;
                    return None;
                }
                core_op::Op::Registered(Registered { handle })
            }
            Op::Closed(_) => {
                self.closed += 1;
                self.open.retain(|&h| h != handle);
                return None;
            }
            Op::Frame(bytes) => {
                let frame = ClientFrame::decode(&bytes[..]).unwrap();
                let send = match frame.frame {
                    Some(ClientBody::SendMessage(send)) if !self.silent => send,
                    _ => {
                        self.taken += 1;
                        return None;
                    }
                };
                self.seq += 1;
                let ack = Ack {
                    client_msg_id: send.client_msg_id,
                    seq: self.seq,
                    message_id: 1 << 60,
                    ..Ack::default()
                };
                core_op::Op::Deliver(Deliver {
                    handles: vec![handle],
                    frame: Some(ServerFrame::answer(frame.id, ServerBody::Ack(ack))),
                })
            }
        };
        Some(CoreOp { op: Some(op) })
    }
}

struct Port {
    core: Arc<FakeCore>,
    edge: Arc<dyn EdgePort>,
}

impl CorePort for Port {
    fn submit(&self, batch: EdgeBatch) {
        if let Some(answer) = self.core.answer(batch) {
            self.edge.deliver(answer);
        }
    }

    fn list(&self) -> Vec<EdgeOp> {
        self.core.lists.take()
    }
}

/// The core in the edge's process.
pub fn local(core: &Arc<FakeCore>) -> CoreLink {
    let core = core.clone();
    let attach: AttachLocal = Box::new(move |hello, edge| {
        core.attach(hello, edge.clone());
        Arc::new(Port {
            core: core.clone(),
            edge,
        })
    });
    CoreLink::Local(attach)
}

pub fn config(driver: DriverChoice, shards: usize) -> EdgeConfig {
    EdgeConfig {
        ws: "127.0.0.1:0".parse().unwrap(),
        tcp: "127.0.0.1:0".parse().unwrap(),
        driver,
        shards,
        settings: Settings {
            send_rate: 0,
            address_rate: 0,
            ..Settings::default()
        },
        ..EdgeConfig::default()
    }
}

/// A running edge with a core attached.
pub fn start(config: EdgeConfig, link: CoreLink) -> EdgeNode {
    let verifier = Verifier::new(&KeySource::Secret(SECRET.into()));
    let node = EdgeNode::start(config, verifier, link).unwrap();
    let handle = node.handle();
    eventually("ready", || handle.is_ready());
    node
}

pub fn token(user: &str) -> String {
    mint(SECRET, user, Duration::from_secs(600))
}

fn dial(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

/// A JSON client over WebSocket.
pub struct WsClient {
    pub socket: TcpStream,
}

impl WsClient {
    /// Upgraded; `connect` is still to come.
    pub fn open(address: SocketAddr) -> Self {
        let mut socket = dial(address);
        let request = "GET /v1/connect HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
                       Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       Sec-WebSocket-Version: 13\r\n\r\n";
        socket.write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut socket);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self { socket }
    }

    /// A live session.
    pub fn connect(address: SocketAddr, user: &str, device: &str) -> Self {
        let mut client = Self::open(address);
        let connect = ClientBody::Connect(Connect {
            token: token(user),
            device_id: device.into(),
            client: String::new(),
        });
        client.send("c", connect);
        let frame = client.frame();
        assert!(
            matches!(frame.frame, Some(ServerBody::Connected(_))),
            "{frame:?}"
        );
        client
    }

    pub fn send(&mut self, id: &str, body: ClientBody) {
        let frame = ClientFrame {
            id: id.into(),
            frame: Some(body),
        };
        let mut text = Vec::new();
        json::encode_client(&frame, &mut text);
        self.socket.write_all(&masked(0x81, &text)).unwrap();
    }

    pub fn frame(&mut self) -> ServerFrame {
        let (first, payload) = self.read();
        assert_eq!(first, 0x81, "{payload:x?}");
        json::decode_server(&payload).unwrap()
    }

    /// The code of the close frame, behind whatever else comes.
    pub fn close_code(&mut self) -> u16 {
        loop {
            let (first, payload) = self.read();
            if first == 0x88 {
                return u16::from_be_bytes([payload[0], payload[1]]);
            }
        }
    }

    /// The first byte and the payload of the next frame.
    pub fn read(&mut self) -> (u8, Vec<u8>) {
        let [first, len] = self.read_array();
        let len = match len {
            126 => u16::from_be_bytes(self.read_array()).into(),
            127 => u64::from_be_bytes(self.read_array()),
            len => len.into(),
        };
        let mut payload = vec![0; len as usize];
        self.socket.read_exact(&mut payload).unwrap();
        (first, payload)
    }

    fn read_array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes).unwrap();
        bytes
    }
}

/// A client over raw TCP.
pub struct TcpClient {
    socket: TcpStream,
}

impl TcpClient {
    pub fn connect(address: SocketAddr, user: &str, device: &str) -> Self {
        let mut client = Self {
            socket: dial(address),
        };
        let connect = ClientBody::Connect(Connect {
            token: token(user),
            device_id: device.into(),
            client: String::new(),
        });
        client.send("c", connect);
        let frame = client.frame();
        assert!(
            matches!(frame.frame, Some(ServerBody::Connected(_))),
            "{frame:?}"
        );
        client
    }

    pub fn send(&mut self, id: &str, body: ClientBody) {
        let frame = ClientFrame {
            id: id.into(),
            frame: Some(body),
        };
        let bytes = frame.encode_length_delimited_to_vec();
        self.socket.write_all(&bytes).unwrap();
    }

    pub fn frame(&mut self) -> ServerFrame {
        let mut len = 0usize;
        for shift in (0..).step_by(7) {
            let mut byte = [0];
            self.socket.read_exact(&mut byte).unwrap();
            len |= usize::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                break;
            }
        }
        let mut bytes = vec![0; len];
        self.socket.read_exact(&mut bytes).unwrap();
        ServerFrame::decode(&bytes[..]).unwrap()
    }
}

pub fn message(client_msg_id: &str) -> ClientBody {
    ClientBody::SendMessage(SendMessage {
        to: "bob".into(),
        client_msg_id: client_msg_id.into(),
        content: "hello".into(),
        ..SendMessage::default()
    })
}

/// The whole answer of a `GET` over HTTP.
pub fn http_get(address: SocketAddr, path: &str) -> String {
    let mut socket = dial(address);
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let key = [9, 200, 31, 77];
    let mut out = vec![first];
    if payload.len() < 126 {
        out.push(0x80 | payload.len() as u8);
    } else {
        out.push(0x80 | 126);
        out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    }
    out.extend_from_slice(&key);
    out.extend(payload.iter().enumerate().map(|(i, b)| b ^ key[i % 4]));
    out
}
