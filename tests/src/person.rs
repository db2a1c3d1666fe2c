//! A user behind a `trunkline-client`: everything that it is told is written down.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use trunkline_client::frames::Message;
use trunkline_client::{
    Client, ClientConfig, Encoding, Event, Events, Outgoing, SendError, TokenProvider, Transport,
};

use crate::checker::{Acked, Checker, Shown};
use crate::rest::token;
use crate::session::To;
use crate::wire::Kind;

/// What a person was told.
#[derive(Debug, Default)]
pub struct Log {
    /// Messages in the order in which the application got them, by conversation.
    shown: BTreeMap<String, Vec<Shown>>,
    /// Own messages by seq, from their acks.
    own: BTreeMap<String, BTreeMap<u64, Shown>>,
    acks: Vec<Acked>,
    /// Contents of sent messages by `client_msg_id`.
    sent: HashMap<String, String>,
    /// Sent and not yet settled.
    pub outstanding: usize,
    pub failed: Vec<SendError>,
    pub connects: u32,
    pub synced: u32,
    pub disconnects: Vec<String>,
    /// The client gave up.
    pub over: bool,
    pub last_ack: Option<Instant>,
    pub receipts: Vec<trunkline_client::frames::Receipt>,
}

impl Log {
    fn take(&mut self, user: &str, event: Event) {
        match event {
            Event::Connected(_) => self.connects += 1,
            Event::Synced => self.synced += 1,
            Event::Message(message) => self.message(message),
            Event::Ack(ack) => {
                let content = self.sent.get(&ack.client_msg_id).cloned();
                let content = content.expect("an ack is for something that was sent");
                self.own
                    .entry(ack.conversation_id.clone())
                    .or_default()
                    .insert(
                        ack.seq,
                        Shown {
                            seq: ack.seq,
                            message_id: ack.message_id,
                            content: content.clone(),
                        },
                    );
                self.acks.push(Acked {
                    conversation: ack.conversation_id,
                    sender: user.to_owned(),
                    client_msg_id: ack.client_msg_id,
                    content,
                    message_id: ack.message_id,
                    seq: ack.seq,
                });
                self.outstanding -= 1;
                self.last_ack = Some(Instant::now());
            }
            Event::SendFailed { error, .. } => {
                self.outstanding -= 1;
                self.failed.push(error);
            }
            Event::Receipt(receipt) => self.receipts.push(receipt),
            Event::Disconnected {
                reason,
                retry_in_ms,
            } => {
                self.disconnects.push(reason.to_string());
                self.over = retry_in_ms.is_none();
            }
            _ => {}
        }
    }

    fn message(&mut self, message: Message) {
        let shown = Shown {
            seq: message.seq,
            message_id: message.message_id,
            content: message.content,
        };
        let log = self
            .shown
            .entry(message.conversation_id.clone())
            .or_default();
        let own = self.own.get(&message.conversation_id);
        if own.is_some_and(|own| own.contains_key(&message.seq)) {
            // Acked before, so shown for the second time; the checker is to see it.
            log.push(shown.clone());
        }
        log.push(shown);
    }

    /// Conversation by conversation what the person has seen: messages in the order shown, own
    /// ones (which an application shows when they are acked) at their seq.
    pub fn seen(&self, conversation: &str) -> Vec<Shown> {
        let mut seen = self.shown.get(conversation).cloned().unwrap_or_default();
        for own in self.own.get(conversation).into_iter().flatten() {
            // Shown as a message before the ack came: the ack only tells its seq.
            if seen.iter().any(|s| s.seq == *own.0) {
                continue;
            }
            let at = seen.iter().position(|s| s.seq > *own.0);
            seen.insert(at.unwrap_or(seen.len()), own.1.clone());
        }
        seen
    }

    /// How many messages of a conversation the person has seen, however often.
    pub fn count(&self, conversation: &str) -> usize {
        let own = self.own.get(conversation);
        let shown = self.shown.get(conversation).map_or(&[][..], Vec::as_slice);
        let extra = own.map_or(0, |own| {
            let shown: std::collections::HashSet<u64> = shown.iter().map(|s| s.seq).collect();
            own.keys().filter(|seq| !shown.contains(seq)).count()
        });
        shown.len() + extra
    }

    /// The seqs in the order in which they were shown, without own messages.
    pub fn shown_seqs(&self, conversation: &str) -> Vec<u64> {
        self.shown
            .get(conversation)
            .into_iter()
            .flatten()
            .map(|s| s.seq)
            .collect()
    }
}

/// A running client.
pub struct Person {
    pub user: String,
    pub client: Client,
    log: Arc<Mutex<Log>>,
    next: std::sync::atomic::AtomicU64,
    device: String,
    recorder: JoinHandle<()>,
}

impl Person {
    /// Connects to the listener at `address`; reconnects within half a second.
    pub fn start(kind: Kind, address: &str, user: &str, device: &str) -> Self {
        Self::with_config(user, config(kind, address, user, device))
    }

    /// With a configuration of the test's own, as [`config`] makes it.
    pub fn with_config(user: &str, config: ClientConfig) -> Self {
        let device = config.device_id.clone();
        let (client, events) = Client::connect(config).expect("a good configuration");
        let log = Arc::new(Mutex::new(Log::default()));
        Self {
            user: user.to_owned(),
            client,
            recorder: tokio::spawn(record(user.to_owned(), events, Arc::clone(&log))),
            log,
            next: std::sync::atomic::AtomicU64::new(0),
            device,
        }
    }

    /// Puts a message into the outbox, with content of its own kind.
    pub async fn say(&self, to: To<'_>) {
        let n = self.next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let id = format!("{}/{}-{n}", self.user, self.device);
        let content = format!("content {n} of {}", self.user);
        {
            let mut log = self.log.lock().await;
            log.sent.insert(id.clone(), content.clone());
            log.outstanding += 1;
        }
        let message = match to {
            To::User(user) => Outgoing::to_user(user, content),
            To::Conversation(id) => Outgoing::to_conversation(id, content),
        };
        let settled = self
            .client
            .enqueue(message.with_client_msg_id(id))
            .await
            .expect("the client runs");
        // The recorder hears of it; nobody needs to wait for this.
        drop(settled);
    }

    /// Looks at the log.
    pub async fn look<T>(&self, look: impl FnOnce(&Log) -> T) -> T {
        look(&*self.log.lock().await)
    }

    /// Adds what was seen to a checker's evidence.
    pub async fn testify(&self, conversations: &[&str], checker: &mut Checker) {
        let log = self.log.lock().await;
        checker.acks.extend(log.acks.iter().cloned());
        for conversation in conversations {
            let reader = format!("{}/{}", self.user, self.device);
            checker
                .shown
                .insert(((*conversation).to_owned(), reader), log.seen(conversation));
        }
    }

    /// Ends the client.
    pub async fn leave(self) {
        self.client.close().await;
        self.recorder.abort();
    }
}

async fn record(user: String, mut events: Events, log: Arc<Mutex<Log>>) {
    while let Some(event) = events.recv().await {
        log.lock().await.take(&user, event);
    }
}

/// A client's configuration for tests: it comes back soon, and no timeout of its own helps it out,
/// since everything that gets lost is told: by the end of the connection, or by `unavailable`.
pub fn config(kind: Kind, address: &str, user: &str, device: &str) -> ClientConfig {
    let transport = match kind {
        Kind::Tcp => Transport::Tcp {
            address: address.to_owned(),
        },
        Kind::Json | Kind::Proto => Transport::WebSocket {
            url: format!("ws://{address}"),
            encoding: if kind == Kind::Json {
                Encoding::Json
            } else {
                Encoding::Protobuf
            },
        },
    };
    let mut config = ClientConfig::new(transport, device, TokenProvider::fixed(token(user)));
    config.backoff_base = Duration::from_millis(50);
    config.backoff_max = Duration::from_millis(500);
    config.machine.outbox.retry_base_ms = 50;
    config.machine.outbox.retry_max_ms = 500;
    config.machine.outbox.ack_timeout_ms = 3_600_000;
    config.machine.request_timeout_ms = 3_600_000;
    config
}
