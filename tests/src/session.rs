//! A session by hand: a plain client that asks and looks at what comes, for tests that follow the
//! wire frame by frame.

use std::collections::VecDeque;
use std::io;

use tokio::time::timeout;
use trunkline_proto::client::{
    Ack, ClientBody, ClientFrame, Connect, Connected, Error, Fetch, Message, Page, Receipt,
    SendMessage, ServerBody, ServerFrame, Sync, SyncPosition,
};

use crate::PATIENCE;
use crate::process::Server;
use crate::rest::token;
use crate::wire::{self, Heard, Kind, Reader, Refused, Writer};

/// Where a message goes.
#[derive(Clone, Copy, Debug)]
pub enum To<'a> {
    User(&'a str),
    Conversation(&'a str),
}

/// A conversation that nobody has.
const NOWHERE: &str = "00000000-0000-4000-8000-000000000000";
/// Messages that [`Session::pour`] has under way.
const POUR_WINDOW: usize = 100;

/// A live session. Frames that no one asked for yet wait in the order in which they came.
pub struct Session {
    reader: Reader,
    writer: Writer,
    kept: VecDeque<ServerFrame>,
    pub user: String,
    pub connected: Connected,
}

impl Session {
    /// Connects to a listener of `server`, with a good token.
    pub async fn open(server: &Server, kind: Kind, user: &str, device: &str) -> Self {
        Self::try_open(kind, server.address(kind.listener()), user, device)
            .await
            .unwrap_or_else(|e| panic!("{user} on {kind:?}: {e:?}"))
    }

    /// As [`Session::open`], where being refused is a possible answer.
    pub async fn try_open(
        kind: Kind,
        address: &str,
        user: &str,
        device: &str,
    ) -> Result<Self, Refused> {
        Self::with_token(kind, address, &token(user), user, device).await
    }

    /// With a token of the test's own.
    pub async fn with_token(
        kind: Kind,
        address: &str,
        token: &str,
        user: &str,
        device: &str,
    ) -> Result<Self, Refused> {
        let (reader, writer) = wire::open(kind, address).await?;
        let mut session = Self {
            reader,
            writer,
            kept: VecDeque::new(),
            user: user.to_owned(),
            connected: Connected::default(),
        };
        session.writer.send(&connect_frame(token, device)).await?;
        // A frame may come before `connected` only if it is the refusal.
        match session.heard().await? {
            Heard::Frame(frame) => match frame.frame {
                Some(ServerBody::Connected(connected)) => session.connected = connected,
                other => {
                    let text = format!("in place of connected: {other:?}");
                    return Err(io::Error::other(text).into());
                }
            },
            other => {
                let text = format!("in place of connected: {other:?}");
                return Err(io::Error::other(text).into());
            }
        }
        Ok(session)
    }

    /// Both halves, for tests that read and write at once.
    pub fn split(self) -> (Reader, Writer) {
        assert!(self.kept.is_empty(), "frames would be lost");
        (self.reader, self.writer)
    }

    // ---- sending ----

    pub async fn send(&mut self, body: ClientBody) {
        self.try_send(body).await.expect("the connection takes it");
    }

    pub async fn try_send(&mut self, body: ClientBody) -> io::Result<()> {
        let frame = ClientFrame {
            id: String::new(),
            frame: Some(body),
        };
        self.writer.send(&frame).await
    }

    /// An unsolicited WebSocket pong.
    pub async fn pong(&mut self) {
        self.writer
            .pong()
            .await
            .expect("the connection takes a pong");
    }

    /// Sends a message and waits for nothing.
    pub async fn say(&mut self, to: To<'_>, client_msg_id: &str, content: &str) {
        self.send(send_message(to, client_msg_id, content)).await;
    }

    /// Sends a message and waits for its ack, or its refusal.
    pub async fn said(
        &mut self,
        to: To<'_>,
        client_msg_id: &str,
        content: &str,
    ) -> Result<Ack, Error> {
        self.say(to, client_msg_id, content).await;
        self.settled(client_msg_id).await
    }

    /// Sends `count` messages `{prefix}0…` and waits for all acks, which must come with rising seqs;
    /// their seqs.
    pub async fn pour(
        &mut self,
        to: To<'_>,
        prefix: &str,
        count: usize,
        content: &str,
    ) -> Vec<u64> {
        let mut seqs = Vec::with_capacity(count);
        for first in (0..count).step_by(POUR_WINDOW) {
            let last = count.min(first + POUR_WINDOW);
            let mut bytes = Vec::new();
            for n in first..last {
                let frame = ClientFrame {
                    id: String::new(),
                    frame: Some(send_message(to, &format!("{prefix}{n}"), content)),
                };
                self.writer.encode(&frame, &mut bytes);
            }
            self.writer
                .send_encoded(&bytes)
                .await
                .expect("the connection takes it");
            for n in first..last {
                let ack = self.settled(&format!("{prefix}{n}")).await;
                seqs.push(ack.expect("an ack").seq);
            }
        }
        assert!(seqs.is_sorted_by(|a, b| a < b), "acks in order");
        seqs
    }

    /// The ack or the error of a message.
    pub async fn settled(&mut self, client_msg_id: &str) -> Result<Ack, Error> {
        self.expect("an ack or an error", |body| match body {
            ServerBody::Ack(ack) if ack.client_msg_id == client_msg_id => Some(Ok(ack.clone())),
            ServerBody::Error(e) if e.client_msg_id == client_msg_id => Some(Err(e.clone())),
            _ => None,
        })
        .await
    }

    /// A receipt for everything up to `seq`.
    pub async fn receipt(&mut self, conversation: &str, seq: u64, status: &str) {
        let receipt = Receipt {
            conversation_id: conversation.to_owned(),
            seq,
            status: status.to_owned(),
            ..Receipt::default()
        };
        self.send(ClientBody::Receipt(receipt)).await;
    }

    /// `fetch`, and its page.
    pub async fn fetch(
        &mut self,
        conversation: &str,
        after: Option<u64>,
        before: Option<u64>,
        limit: u32,
    ) -> Page {
        let fetch = Fetch {
            conversation_id: conversation.to_owned(),
            after,
            before,
            limit: Some(limit),
        };
        self.send(ClientBody::Fetch(fetch)).await;
        self.expect("a page", |body| match body {
            ServerBody::Page(page) if page.conversation_id == conversation => Some(page.clone()),
            _ => None,
        })
        .await
    }

    /// `sync`, and all its pages.
    pub async fn sync(&mut self, positions: &[(&str, u64)], limit: u32) -> Vec<Page> {
        let sync = Sync {
            conversations: positions
                .iter()
                .map(|(id, after_seq)| SyncPosition {
                    conversation_id: (*id).to_owned(),
                    after_seq: *after_seq,
                })
                .collect(),
            limit: Some(limit),
        };
        self.send(ClientBody::Sync(sync)).await;
        let told = self
            .expect("synced", |body| match body {
                ServerBody::Synced(synced) => Some(synced.conversations as usize),
                _ => None,
            })
            .await;
        let pages: Vec<_> = self.take(|body| match body {
            ServerBody::Page(page) => Some(page.clone()),
            _ => None,
        });
        assert_eq!(pages.len(), told, "synced tells how many pages went before");
        pages
    }

    // ---- receiving ----

    /// The next thing that comes, within [`PATIENCE`].
    pub async fn heard(&mut self) -> io::Result<Heard> {
        timeout(PATIENCE, self.reader.next())
            .await
            .unwrap_or_else(|_| panic!("{}: nothing within {PATIENCE:?}", self.user))
    }

    /// The first frame that `wanted` takes; others are kept.
    pub async fn expect<T>(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&ServerBody) -> Option<T>,
    ) -> T {
        let found = self.kept.iter().enumerate().find_map(|(i, frame)| {
            let value = frame.frame.as_ref().and_then(&mut wanted)?;
            Some((i, value))
        });
        if let Some((i, value)) = found {
            self.kept.remove(i);
            return value;
        }
        loop {
            match self.heard().await {
                Ok(Heard::Frame(frame)) => {
                    if let Some(value) = frame.frame.as_ref().and_then(&mut wanted) {
                        return value;
                    }
                    self.kept.push_back(*frame);
                }
                Ok(Heard::Ping) => self.pong().await,
                other => panic!("{}: {other:?} in place of {what}", self.user),
            }
        }
    }

    /// Waits for a frame that `wanted` takes, and keeps it with the others.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&ServerBody) -> bool) {
        let is_wanted = |frame: &ServerFrame| frame.frame.as_ref().is_some_and(&wanted);
        while !self.kept.iter().any(is_wanted) {
            match self.heard().await {
                Ok(Heard::Frame(frame)) => self.kept.push_back(*frame),
                Ok(Heard::Ping) => self.pong().await,
                other => panic!("{}: {other:?} in place of {what}", self.user),
            }
        }
    }

    /// The next message.
    pub async fn message(&mut self) -> Message {
        self.expect("a message", |body| match body {
            ServerBody::Message(message) => Some(message.clone()),
            _ => None,
        })
        .await
    }

    /// Everything that was on its way to this session when this was called is received and kept.
    /// The question goes through to the core: what that had sent before comes before its answer.
    pub async fn fence(&mut self) {
        let id = format!("fence-{:x}", rand::random::<u64>());
        let fetch = Fetch {
            conversation_id: NOWHERE.to_owned(),
            ..Fetch::default()
        };
        let frame = ClientFrame {
            id: id.clone(),
            frame: Some(ClientBody::Fetch(fetch)),
        };
        self.writer.send(&frame).await.expect("the question leaves");
        loop {
            match self.heard().await {
                Ok(Heard::Frame(frame)) if frame.id == id => return,
                Ok(Heard::Frame(frame)) => self.kept.push_back(*frame),
                Ok(Heard::Ping) => self.pong().await,
                other => panic!("{}: {other:?} in place of the fence's answer", self.user),
            }
        }
    }

    /// Takes what `wanted` takes out of what is kept.
    pub fn take<T>(&mut self, mut wanted: impl FnMut(&ServerBody) -> Option<T>) -> Vec<T> {
        let mut taken = Vec::new();
        self.kept
            .retain(|frame| match frame.frame.as_ref().and_then(&mut wanted) {
                Some(value) => {
                    taken.push(value);
                    false
                }
                None => true,
            });
        taken
    }

    /// All frames that came until now, after a [`Session::fence`].
    pub async fn frames_until_now(&mut self) -> Vec<ServerFrame> {
        self.fence().await;
        self.kept.drain(..).collect()
    }

    /// The messages that came until now, after a [`Session::fence`].
    pub async fn messages_until_now(&mut self) -> Vec<Message> {
        self.fence().await;
        self.take(|body| match body {
            ServerBody::Message(message) => Some(message.clone()),
            _ => None,
        })
    }

    /// Reads on to the end; the code with which the server closed, 0 if with none.
    pub async fn close_code(&mut self) -> u16 {
        loop {
            match self.heard().await {
                Ok(Heard::Frame(frame)) => self.kept.push_back(*frame),
                Ok(Heard::Ping) => {}
                Ok(Heard::Closed(code)) => return code,
                Err(_) => return 0,
            }
        }
    }
}

/// The frame that begins a session.
pub fn connect_frame(token: &str, device: &str) -> ClientFrame {
    ClientFrame {
        id: String::new(),
        frame: Some(ClientBody::Connect(Connect {
            token: token.to_owned(),
            device_id: device.to_owned(),
            client: String::new(),
        })),
    }
}

/// A message's frame.
pub fn send_message(to: To<'_>, client_msg_id: &str, content: &str) -> ClientBody {
    let mut message = SendMessage {
        client_msg_id: client_msg_id.to_owned(),
        content: content.to_owned(),
        ..SendMessage::default()
    };
    match to {
        To::User(user) => message.to = user.to_owned(),
        To::Conversation(id) => message.conversation_id = id.to_owned(),
    }
    ClientBody::SendMessage(message)
}
