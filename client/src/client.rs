//! The tokio shell: one task for each client, which holds the connection and the machine, and the
//! handle that talks to it.

use tokio::sync::{mpsc, oneshot};
use trunkline_proto::client::{Ack, ClientBody, Fetch, Page, SendMessage, Typing, Unwatch, Watch};

use crate::config::{ClientConfig, ConfigError};
use crate::event::{Event, SendError};
use crate::task::Task;

/// Calls that wait for the task; further callers wait for these.
const COMMANDS_MAX: usize = 256;

/// What the handle wants of the task.
pub(crate) enum Command {
    Send(
        Box<SendMessage>,
        oneshot::Sender<oneshot::Receiver<Result<Ack, SendError>>>,
    ),
    Fetch(Fetch, oneshot::Sender<Result<Page, SendError>>),
    MarkDelivered(String, u64),
    MarkRead(String, u64),
    Direct(ClientBody),
    RenewToken,
    Positions(oneshot::Sender<Vec<(String, u64)>>),
    Close(oneshot::Sender<()>),
}

/// A message to send.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing(pub(crate) SendMessage);

impl Outgoing {
    /// To a user: the direct conversation with them.
    pub fn to_user(user: impl Into<String>, content: impl Into<String>) -> Self {
        Self(SendMessage {
            to: user.into(),
            content: content.into(),
            ..SendMessage::default()
        })
    }

    /// To a conversation.
    pub fn to_conversation(id: impl Into<String>, content: impl Into<String>) -> Self {
        Self(SendMessage {
            conversation_id: id.into(),
            content: content.into(),
            ..SendMessage::default()
        })
    }

    /// With a key of the application's own; without this a random one is made. A message sent
    /// again under its key, even by another process, is stored once.
    #[must_use]
    pub fn with_client_msg_id(mut self, id: impl Into<String>) -> Self {
        self.0.client_msg_id = id.into();
        self
    }

    /// With a content type other than `text/plain`.
    #[must_use]
    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Self {
        self.0.content_type = content_type.into();
        self
    }
}

impl From<SendMessage> for Outgoing {
    fn from(message: SendMessage) -> Self {
        Self(message)
    }
}

/// The handle. Clones drive the same client; when the last is dropped the connection closes.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
}

/// Where events arrive. A client whose events nobody takes stops reading from the server; one
/// whose receiver is dropped goes on without events.
pub type Events = mpsc::Receiver<Event>;

impl Client {
    /// Starts a client on the current tokio runtime. It connects, and connects again, by itself;
    /// messages can be sent from now on.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn connect(config: ClientConfig) -> Result<(Self, Events), ConfigError> {
        config.validate()?;
        let (commands, commands_rx) = mpsc::channel(COMMANDS_MAX);
        let (events, events_rx) = mpsc::channel(config.events_max);
        tokio::spawn(Task::new(config, commands_rx, events).run());
        Ok((Self { commands }, events_rx))
    }

    /// Sends a message. It is in the outbox, behind all sent before it, when the outer future is
    /// done; the inner one is done when the server has stored it, however many connections that
    /// takes.
    pub async fn enqueue(
        &self,
        message: impl Into<Outgoing>,
    ) -> Result<impl Future<Output = Result<Ack, SendError>> + Send + 'static, SendError> {
        let mut message = message.into().0;
        if message.client_msg_id.is_empty() {
            message.client_msg_id = format!("{:032x}", rand::random::<u128>());
        }
        let (taken, is_taken) = oneshot::channel();
        self.command(Command::Send(Box::new(message), taken))
            .await?;
        let settled = is_taken.await.map_err(|_| SendError::Closed)?;
        Ok(async move { settled.await.unwrap_or(Err(SendError::Closed)) })
    }

    /// Sends a message and waits until the server has stored it.
    pub async fn send(&self, message: impl Into<Outgoing>) -> Result<Ack, SendError> {
        self.enqueue(message).await?.await
    }

    /// A page of a conversation's messages: the newest, or as the bounds (exclusive) say.
    pub async fn history(
        &self,
        conversation: impl Into<String>,
        after: Option<u64>,
        before: Option<u64>,
        limit: Option<u32>,
    ) -> Result<Page, SendError> {
        let (answer, answered) = oneshot::channel();
        let fetch = Fetch {
            conversation_id: conversation.into(),
            after,
            before,
            limit,
        };
        self.command(Command::Fetch(fetch, answer)).await?;
        answered.await.unwrap_or(Err(SendError::Closed))
    }

    /// Everything up to `seq` was delivered to the user; needed only when
    /// `deliver_automatically` is off.
    pub async fn mark_delivered(
        &self,
        conversation: impl Into<String>,
        seq: u64,
    ) -> Result<(), SendError> {
        self.command(Command::MarkDelivered(conversation.into(), seq))
            .await
    }

    /// Everything up to `seq` was read.
    pub async fn mark_read(
        &self,
        conversation: impl Into<String>,
        seq: u64,
    ) -> Result<(), SendError> {
        self.command(Command::MarkRead(conversation.into(), seq))
            .await
    }

    /// Says that the user is typing, or no longer. Lost when not connected.
    pub async fn typing(
        &self,
        conversation: impl Into<String>,
        active: bool,
    ) -> Result<(), SendError> {
        let typing = Typing {
            conversation_id: conversation.into(),
            active,
            ..Typing::default()
        };
        self.command(Command::Direct(ClientBody::Typing(typing)))
            .await
    }

    /// Asks for the presence of users, now and on change, for as long as the session lasts: watch
    /// again after each [`Event::Connected`].
    pub async fn watch(&self, users: Vec<String>) -> Result<(), SendError> {
        self.command(Command::Direct(ClientBody::Watch(Watch { users })))
            .await
    }

    /// No longer.
    pub async fn unwatch(&self, users: Vec<String>) -> Result<(), SendError> {
        self.command(Command::Direct(ClientBody::Unwatch(Unwatch { users })))
            .await
    }

    /// Gets a new token from the provider and extends the live session with it.
    pub async fn renew_token(&self) -> Result<(), SendError> {
        self.command(Command::RenewToken).await
    }

    /// How far each conversation was handed out. An application that keeps its messages keeps
    /// these with them, and gives them to the next [`ClientConfig::positions`].
    pub async fn positions(&self) -> Result<Vec<(String, u64)>, SendError> {
        let (answer, answered) = oneshot::channel();
        self.command(Command::Positions(answer)).await?;
        answered.await.map_err(|_| SendError::Closed)
    }

    /// Closes the connection. Messages that are not settled are refused with
    /// [`SendError::Closed`]; the server may have stored them all the same.
    pub async fn close(&self) {
        let (answer, answered) = oneshot::channel();
        if self.command(Command::Close(answer)).await.is_ok() {
            // Either way it is closed.
            let _ = answered.await;
        }
    }

    async fn command(&self, command: Command) -> Result<(), SendError> {
        self.commands
            .send(command)
            .await
            .map_err(|_| SendError::Closed)
    }
}
