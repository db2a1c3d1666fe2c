//! A small server for tests: it stores, acks, pushes, syncs and pages as the protocol says, over
//! raw TCP and WebSockets, and misbehaves as it is told to.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt as _, StreamExt as _};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use trunkline_client::frames::*;
use trunkline_proto::codes::{Close, Code};
use trunkline_proto::ids::ConversationId;
use trunkline_proto::json;

/// How the server misbehaves, counted over its life.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Every n-th message is stored, then the sender's connection breaks before the ack.
    pub break_before_ack: u64,
    /// Every n-th push is lost, and the receiver gets a hint instead.
    pub lose_push: u64,
    /// Every n-th send is refused as `overloaded`.
    pub refuse: u64,
}

#[derive(Default)]
struct State {
    faults: Faults,
    sends: u64,
    pushes: u64,
    logs: BTreeMap<String, Vec<Message>>,
    members: BTreeMap<String, HashSet<String>>,
    sessions: Vec<(String, mpsc::UnboundedSender<Answer>)>,
    receipts: Vec<(String, Receipt)>,
    connects: u64,
    heartbeat_ms: u32,
}

enum Answer {
    Frame(Box<ServerFrame>),
    Close(Close),
    Break,
}

/// The server; tokens are user ids.
#[derive(Clone)]
pub struct Server {
    state: Arc<Mutex<State>>,
    pub tcp: String,
    pub ws: String,
}

impl Server {
    pub async fn start(faults: Faults) -> Self {
        let state = State {
            faults,
            heartbeat_ms: 30_000,
            ..State::default()
        };
        let listen = || async { TcpListener::bind("127.0.0.1:0").await.unwrap() };
        let (tcp, ws) = (listen().await, listen().await);
        let server = Self {
            state: Arc::new(Mutex::new(state)),
            tcp: tcp.local_addr().unwrap().to_string(),
            ws: format!("ws://{}", ws.local_addr().unwrap()),
        };
        let this = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = tcp.accept().await.unwrap();
                tokio::spawn(this.clone().serve_tcp(stream));
            }
        });
        let this = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = ws.accept().await.unwrap();
                tokio::spawn(this.clone().serve_ws(stream));
            }
        });
        server
    }

    pub fn heartbeat(&self, ms: u32) {
        self.state.lock().unwrap().heartbeat_ms = ms;
    }

    pub fn connects(&self) -> u64 {
        self.state.lock().unwrap().connects
    }

    /// What is stored of a conversation: client_msg_ids in order.
    pub fn stored(&self, conversation: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let log = state.logs.get(conversation);
        log.map(|log| log.iter().map(|m| m.client_msg_id.clone()).collect())
            .unwrap_or_default()
    }

    /// The highest mark that `user` has told.
    pub fn marked(&self, user: &str, conversation: &str, status: &str) -> u64 {
        let state = self.state.lock().unwrap();
        let of = |(u, r): &&(String, Receipt)| {
            u == user && r.conversation_id == conversation && r.status == status
        };
        let seqs = state.receipts.iter().filter(of).map(|(_, r)| r.seq);
        seqs.max().unwrap_or(0)
    }

    /// Stores a message as if another user had sent it over another server.
    pub fn post(&self, from: &str, to: &str, id: &str) {
        let send = SendMessage {
            to: to.into(),
            client_msg_id: id.into(),
            content: id.into(),
            ..SendMessage::default()
        };
        self.state.lock().unwrap().store(from, &send, false);
    }

    pub fn close_all(&self, close: Close) {
        let sessions = std::mem::take(&mut self.state.lock().unwrap().sessions);
        for (_, session) in sessions {
            let _ = session.send(Answer::Close(close));
        }
    }

    pub fn break_all(&self) {
        for (_, session) in std::mem::take(&mut self.state.lock().unwrap().sessions) {
            let _ = session.send(Answer::Break);
        }
    }

    pub fn send_all(&self, frame: &ServerFrame) {
        for (_, session) in &self.state.lock().unwrap().sessions {
            let _ = session.send(Answer::Frame(Box::new(frame.clone())));
        }
    }

    async fn serve_tcp(self, mut stream: TcpStream) {
        let (answers, mut outgoing) = mpsc::unbounded_channel();
        let mut user = None;
        let mut bytes = bytes::BytesMut::new();
        loop {
            tokio::select! {
                read = stream.read_buf(&mut bytes) => {
                    if !read.is_ok_and(|n| n > 0) { return }
                    while let Some(frame) = take_delimited(&mut bytes) {
                        self.frame(&mut user, frame, &answers);
                    }
                }
                answer = outgoing.recv() => match answer.unwrap() {
                    Answer::Frame(frame) => {
                        let _ = stream.write_all(&frame.encode_length_delimited_to_vec()).await;
                    }
                    Answer::Close(close) => {
                        let error = Code::Internal.closing(close, close.reason());
                        let frame = ServerFrame::push(ServerBody::Error(error));
                        let _ = stream.write_all(&frame.encode_length_delimited_to_vec()).await;
                        let _ = stream.shutdown().await;
                        return;
                    }
                    Answer::Break => return,
                }
            }
        }
    }

    async fn serve_ws(self, stream: TcpStream) {
        let mut is_json = false;
        #[allow(clippy::result_large_err)]
        let choose = |request: &Request, mut response: Response| {
            assert_eq!(request.uri().path(), "/v1/connect");
            let name = "sec-websocket-protocol";
            let offered = request.headers()[name].clone();
            is_json = offered == "trunkline.json.v1";
            response.headers_mut().insert(name, offered);
            Ok(response)
        };
        let ws = tokio_tungstenite::accept_hdr_async(stream, choose).await;
        let Ok(mut ws) = ws else { return };
        let (answers, mut outgoing) = mpsc::unbounded_channel();
        let mut user = None;
        loop {
            tokio::select! {
                message = ws.next() => match message {
                    Some(Ok(WsMessage::Binary(b))) => {
                        self.frame(&mut user, ClientFrame::decode(b).unwrap(), &answers);
                    }
                    Some(Ok(WsMessage::Text(t))) => {
                        self.frame(&mut user, json::decode_client(t.as_bytes()).unwrap(), &answers);
                    }
                    Some(Ok(_)) => {}
                    _ => return,
                },
                answer = outgoing.recv() => match answer.unwrap() {
                    Answer::Frame(frame) => {
                        let message = if is_json {
                            let mut text = Vec::new();
                            json::encode_server(&frame, &mut text);
                            WsMessage::text(String::from_utf8(text).unwrap())
                        } else {
                            WsMessage::binary(frame.encode_to_vec())
                        };
                        let _ = ws.send(message).await;
                    }
                    Answer::Close(close) => {
                        let frame = CloseFrame { code: close.code().into(), reason: "".into() };
                        let _ = ws.close(Some(frame)).await;
                    }
                    Answer::Break => return,
                }
            }
        }
    }

    fn frame(
        &self,
        user: &mut Option<String>,
        frame: ClientFrame,
        answers: &mpsc::UnboundedSender<Answer>,
    ) {
        let mut state = self.state.lock().unwrap();
        let id = frame.id;
        let answer = |body| {
            let _ = answers.send(Answer::Frame(Box::new(ServerFrame::answer(
                id.clone(),
                body,
            ))));
        };
        if let Some(ClientBody::Connect(connect)) = frame.frame {
            state.connects += 1;
            if connect.token == "bad" {
                let _ = answers.send(Answer::Close(Close::Unauthorized));
                return;
            }
            answer(ServerBody::Connected(Connected {
                user_id: connect.token.clone(),
                device_id: connect.device_id,
                heartbeat_ms: state.heartbeat_ms,
                ..Connected::default()
            }));
            state
                .sessions
                .push((connect.token.clone(), answers.clone()));
            *user = Some(connect.token);
            return;
        }
        let me = user.as_deref().expect("connect comes first");
        match frame.frame {
            Some(ClientBody::SendMessage(send)) => state.send(me, &send, answers, &answer),
            Some(ClientBody::Sync(sync)) => state.sync(me, &sync, &answer),
            Some(ClientBody::Fetch(fetch)) => {
                let after = fetch.after.unwrap_or(0);
                let before = fetch.before.unwrap_or(u64::MAX);
                let limit = fetch.limit.unwrap_or(50);
                answer(
                    match state.page(&fetch.conversation_id, after, before, limit) {
                        Some(page) => ServerBody::Page(page),
                        None => ServerBody::Error(Code::NotFound.error("no such conversation")),
                    },
                );
            }
            Some(ClientBody::Receipt(receipt)) => state.receipts.push((me.into(), receipt)),
            Some(ClientBody::Ping(_)) => answer(ServerBody::Pong(Pong::default())),
            _ => {}
        }
    }
}

impl State {
    fn send(
        &mut self,
        me: &str,
        send: &SendMessage,
        answers: &mpsc::UnboundedSender<Answer>,
        answer: &dyn Fn(ServerBody),
    ) {
        self.sends += 1;
        let nth = |n: u64| n > 0 && self.sends.is_multiple_of(n);
        if nth(self.faults.refuse) {
            let mut error = Code::Overloaded.error("busy");
            error.client_msg_id = send.client_msg_id.clone();
            error.retry_after_ms = 5;
            return answer(ServerBody::Error(error));
        }
        if send.content == "refuse" {
            let mut error = Code::TooLarge.error("no");
            error.client_msg_id = send.client_msg_id.clone();
            return answer(ServerBody::Error(error));
        }
        let breaks = nth(self.faults.break_before_ack);
        let (message, duplicate) = self.store(me, send, true);
        if breaks {
            let _ = answers.send(Answer::Break);
            self.sessions.retain(|(_, s)| !s.same_channel(answers));
            return;
        }
        answer(ServerBody::Ack(Ack {
            client_msg_id: message.client_msg_id,
            conversation_id: message.conversation_id,
            message_id: message.message_id,
            seq: message.seq,
            ts: message.ts,
            status: "sent".into(),
            duplicate,
        }));
    }

    fn store(&mut self, me: &str, send: &SendMessage, push: bool) -> (Message, bool) {
        let id = match &*send.to {
            "" => send.conversation_id.clone(),
            to => {
                let id = ConversationId::direct(me, to).to_string();
                let members = self.members.entry(id.clone()).or_default();
                members.extend([me.to_owned(), to.to_owned()]);
                id
            }
        };
        let log = self.logs.entry(id.clone()).or_default();
        let same = |m: &&Message| m.client_msg_id == send.client_msg_id && m.sender_id == me;
        if let Some(known) = log.iter().find(same) {
            return (known.clone(), true);
        }
        let seq = log.len() as u64 + 1;
        let message = Message {
            conversation_id: id.clone(),
            message_id: seq,
            seq,
            sender_id: me.into(),
            client_msg_id: send.client_msg_id.clone(),
            content: send.content.clone(),
            ..Message::default()
        };
        log.push(message.clone());
        if push {
            self.push(me, &message);
        }
        (message, false)
    }

    fn push(&mut self, me: &str, message: &Message) {
        let members = &self.members[&message.conversation_id];
        for (user, session) in &self.sessions {
            if user == me || !members.contains(user) {
                continue;
            }
            self.pushes += 1;
            let lost =
                self.faults.lose_push > 0 && self.pushes.is_multiple_of(self.faults.lose_push);
            let body = if lost {
                ServerBody::Conversation(Conversation {
                    conversation_id: message.conversation_id.clone(),
                    head_seq: message.seq,
                    ..Conversation::default()
                })
            } else {
                ServerBody::Message(message.clone())
            };
            let _ = session.send(Answer::Frame(Box::new(ServerFrame::push(body))));
        }
    }

    fn sync(&self, me: &str, sync: &Sync, answer: &dyn Fn(ServerBody)) {
        let limit = sync.limit.unwrap_or(50);
        let mut positions: Vec<(String, u64)> = sync
            .conversations
            .iter()
            .map(|p| (p.conversation_id.clone(), p.after_seq))
            .collect();
        if positions.is_empty() {
            let delivered = |id: &String| {
                let of_me = |(u, r): &&(String, Receipt)| u == me && r.conversation_id == *id;
                let seqs = self.receipts.iter().filter(of_me).map(|(_, r)| r.seq);
                seqs.max().unwrap_or(0)
            };
            let mine = self.members.iter().filter(|(_, m)| m.contains(me));
            positions = mine.map(|(id, _)| (id.clone(), delivered(id))).collect();
        }
        let mut pages = 0;
        for (id, after) in positions {
            if let Some(page) = self.page(&id, after, u64::MAX, limit)
                && !page.messages.is_empty()
            {
                pages += 1;
                answer(ServerBody::Page(page));
            }
        }
        let conversations = pages;
        answer(ServerBody::Synced(Synced { conversations }));
    }

    fn page(&self, id: &str, after: u64, before: u64, limit: u32) -> Option<Page> {
        let log = self.logs.get(id)?;
        let inside = |m: &&Message| m.seq > after && m.seq < before;
        let messages: Vec<Message> = log.iter().filter(inside).cloned().collect();
        let more = messages.len() > limit as usize;
        Some(Page {
            conversation_id: id.to_owned(),
            messages: messages.into_iter().take(limit as usize).collect(),
            head_seq: log.len() as u64,
            more,
            version: 1,
        })
    }
}

fn take_delimited(bytes: &mut bytes::BytesMut) -> Option<ClientFrame> {
    let mut reading = &bytes[..];
    let length = prost::decode_length_delimiter(&mut reading).ok()?;
    let prefix = bytes.len() - reading.len();
    if reading.len() < length {
        return None;
    }
    let frame = bytes.split_to(prefix + length).freeze().slice(prefix..);
    Some(ClientFrame::decode(frame).unwrap())
}
