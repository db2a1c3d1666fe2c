//! The task behind a [`crate::Client`]: connects, drives the machine over the connection, waits,
//! connects again. All decisions are the machine's; this file only moves bytes, time and tokens.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use trunkline_proto::client::{Ack, ClientBody, ClientFrame, Connect, Connected, Page, ServerBody};
use trunkline_proto::codes::Close;

use crate::backoff::Backoff;
use crate::client::Command;
use crate::config::ClientConfig;
use crate::event::{DisconnectReason, Event, SendError};
use crate::machine::{Machine, Output};
use crate::outbox::LocalId;
use crate::transport::Connection;

/// How a session, or the attempt at one, ended.
enum End {
    /// The application closed, or dropped all handles.
    Closed,
    Lost(DisconnectReason),
}

pub(crate) struct Task {
    config: ClientConfig,
    machine: Machine,
    commands: mpsc::Receiver<Command>,
    /// `None`: the application takes no events.
    events: Option<mpsc::Sender<Event>>,
    /// An event that found the channel full; nothing is read until it is in.
    held: Option<Event>,
    sends: HashMap<LocalId, oneshot::Sender<Result<Ack, SendError>>>,
    fetches: HashMap<u64, oneshot::Sender<Result<Page, SendError>>>,
    closing: Option<oneshot::Sender<()>>,
    renew: bool,
    backoff: Backoff,
    /// The token that the server refused.
    refused_token: Option<String>,
    token: String,
    started: Instant,
}

impl Task {
    pub(crate) fn new(
        config: ClientConfig,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let mut machine = Machine::new(config.machine.clone());
        machine.restore(&config.positions);
        Self {
            backoff: Backoff::new(millis(config.backoff_base), millis(config.backoff_max)),
            config,
            machine,
            commands,
            events: Some(events),
            held: None,
            sends: HashMap::new(),
            fetches: HashMap::new(),
            closing: None,
            renew: false,
            refused_token: None,
            token: String::new(),
            started: Instant::now(),
        }
    }

    pub(crate) async fn run(mut self) {
        let mut reason = DisconnectReason::ByApplication;
        loop {
            let now_ms = self.now_ms();
            let end = match self.open().await {
                Ok((mut connection, connected)) => {
                    self.machine.connected(&connected, self.now_ms());
                    let end = self.session(&mut connection).await;
                    // Whoever has gone already does not hear it.
                    let _ = timeout(self.config.write_timeout, connection.close()).await;
                    end
                }
                Err(end) => end,
            };
            let End::Lost(lost) = end else { break };
            if self.now_ms() >= now_ms + self.session_counts_after_ms() {
                self.backoff.reset();
            }
            let told_ms = self.machine.reconnect_in_ms(self.now_ms());
            self.machine.disconnected();
            let wait = match self.wait_after(&lost, told_ms).await {
                Ok(Some(wait_ms)) => wait_ms,
                Ok(None) => {
                    reason = lost;
                    break;
                }
                Err(_) => break,
            };
            tracing::debug!(reason = %lost, wait_ms = wait, "disconnected");
            let event = Event::Disconnected {
                reason: lost,
                retry_in_ms: Some(wait),
            };
            if self.tell(event).await.is_err() || self.pause(wait).await.is_err() {
                break;
            }
        }
        self.finish(reason).await;
    }

    /// A session that lasted so long was a success: the next wait begins at the base.
    fn session_counts_after_ms(&self) -> u64 {
        u64::try_from(self.config.backoff_base.as_millis()).unwrap_or(u64::MAX)
    }

    /// How long to wait after this; `None`: there is no coming back.
    async fn wait_after(
        &mut self,
        lost: &DisconnectReason,
        told_ms: Option<u64>,
    ) -> Result<Option<u64>, End> {
        if lost.is_unauthorized() {
            self.refused_token = Some(std::mem::take(&mut self.token));
            let provided = self.config.token.provide();
            return Ok(match self.while_idle(provided).await? {
                // Good for one try at once; refused again, it will equal the refused one.
                Ok(token) if Some(&token) != self.refused_token.as_ref() => Some(0),
                Ok(_) => None,
                Err(_) => Some(self.backoff.next_ms(rand::random())),
            });
        }
        if lost.close().is_some_and(Close::is_terminal) {
            return Ok(None);
        }
        Ok(Some(match told_ms {
            Some(ms) => ms,
            None => self.backoff.next_ms(rand::random()),
        }))
    }

    /// Connects and waits for `connected`.
    async fn open(&mut self) -> Result<(Connection, Connected), End> {
        let provided = self.config.token.provide();
        self.token = self
            .while_idle(provided)
            .await?
            .map_err(|e| End::Lost(DisconnectReason::NoToken(e)))?;
        let config = self.config.clone();
        let connect = self.connect_frame();
        let opening = async move {
            let mut connection = Connection::open(&config).await?;
            connection.feed(&connect).await?;
            connection.flush().await?;
            loop {
                match connection.recv().await?.and_then(|f| f.frame) {
                    Some(ServerBody::Connected(connected)) => return Ok((connection, connected)),
                    Some(ServerBody::Error(error)) => {
                        tracing::debug!(code = error.code, "connect refused: {}", error.message);
                    }
                    _ => {}
                }
            }
        };
        let opening = timeout(self.config.connect_timeout, opening);
        self.while_idle(opening)
            .await?
            .unwrap_or(Err(DisconnectReason::Silent))
            .map_err(End::Lost)
    }

    fn connect_frame(&self) -> ClientFrame {
        ClientFrame {
            id: String::new(),
            frame: Some(ClientBody::Connect(Connect {
                token: self.token.clone(),
                device_id: self.config.device_id.clone(),
                client: self.config.client_name.clone(),
            })),
        }
    }

    /// Drives the machine over a connection until one of them ends.
    async fn session(&mut self, connection: &mut Connection) -> End {
        loop {
            self.deliver();
            if let Err(reason) = self.write(connection).await {
                return End::Lost(reason);
            }
            if self.renew {
                self.renew = false;
                let provided = self.config.token.provide();
                match timeout(self.config.connect_timeout, provided).await {
                    Ok(Ok(token)) => self.token = token,
                    Ok(Err(e)) => tracing::warn!(error = e, "no new token"),
                    Err(_) => tracing::warn!("the token provider is silent"),
                }
                let connect = self.connect_frame().frame;
                // Full or offline: the session ends at the old token's end, and a new one begins.
                let _ = connect.map(|c| self.machine.direct(c));
                continue;
            }
            let now_ms = self.now_ms();
            if let Some(reason) = self.machine.should_reconnect(now_ms) {
                return End::Lost(DisconnectReason::AskedToReconnect(reason.to_owned()));
            }
            if self.held.is_some() {
                // We do not listen, so silence means nothing.
                self.machine.heard(now_ms);
            }
            if self.machine.is_silent(now_ms) {
                return End::Lost(DisconnectReason::Silent);
            }
            let wake_at = self.at_ms(self.machine.deadline_ms());
            tokio::select! {
                frame = connection.recv(), if self.held.is_none() => match frame {
                    Ok(Some(frame)) => self.machine.frame(frame, self.now_ms()),
                    Ok(None) => self.machine.heard(self.now_ms()),
                    Err(reason) => return End::Lost(reason),
                },
                () = room(self.events.clone()), if self.held.is_some() => {}
                command = self.commands.recv() => if self.command(command) {
                    return End::Closed;
                },
                () = sleep_until(wake_at) => self.machine.tick(self.now_ms()),
            }
        }
    }

    async fn write(&mut self, connection: &mut Connection) -> Result<(), DisconnectReason> {
        let now_ms = self.now_ms();
        let machine = &mut self.machine;
        let writing = async {
            let mut any = false;
            while let Some(frame) = machine.next_frame(now_ms) {
                connection.feed(&frame).await?;
                any = true;
            }
            if any {
                connection.flush().await?;
            }
            Ok(())
        };
        timeout(self.config.write_timeout, writing)
            .await
            .unwrap_or(Err(DisconnectReason::Silent))
    }

    /// Waits for something else than the server, and serves the handle meanwhile.
    async fn while_idle<F: Future>(&mut self, other: F) -> Result<F::Output, End> {
        tokio::pin!(other);
        loop {
            self.deliver();
            let wake_at = self.at_ms(self.machine.deadline_ms());
            tokio::select! {
                output = &mut other => return Ok(output),
                () = room(self.events.clone()), if self.held.is_some() => {}
                command = self.commands.recv() => if self.command(command) {
                    return Err(End::Closed);
                },
                () = sleep_until(wake_at) => self.machine.tick(self.now_ms()),
            }
        }
    }

    async fn pause(&mut self, ms: u64) -> Result<(), End> {
        let until = self.at_ms(self.now_ms().saturating_add(ms));
        self.while_idle(sleep_until(until)).await
    }

    /// Tells an event of the shell's own, after all of the machine's.
    async fn tell(&mut self, event: Event) -> Result<(), End> {
        loop {
            self.deliver();
            if self.held.is_none() {
                self.held = Some(event);
                self.deliver();
                return Ok(());
            }
            self.while_idle(room(self.events.clone())).await?;
        }
    }

    /// Carries out a command; `true`: close.
    fn command(&mut self, command: Option<Command>) -> bool {
        let now_ms = self.now_ms();
        match command {
            None => return true,
            Some(Command::Close(answer)) => {
                self.closing = Some(answer);
                return true;
            }
            Some(Command::Send(message, taken)) => {
                let (settle, settled) = oneshot::channel();
                match self.machine.send(*message) {
                    Ok(local) => {
                        self.sends.insert(local, settle);
                    }
                    // A caller that has gone needs no answer, here and below.
                    Err(e) => drop(settle.send(Err(e))),
                }
                let _ = taken.send(settled);
            }
            Some(Command::Fetch(fetch, answer)) => match self.machine.fetch(fetch, now_ms) {
                Ok(id) => {
                    self.fetches.insert(id, answer);
                }
                Err(e) => drop(answer.send(Err(e))),
            },
            Some(Command::MarkDelivered(conversation, seq)) => {
                self.machine.mark_delivered(&conversation, seq, now_ms);
            }
            Some(Command::MarkRead(conversation, seq)) => {
                self.machine.mark_read(&conversation, seq, now_ms);
            }
            Some(Command::Direct(body)) => {
                if let Err(e) = self.machine.direct(body) {
                    tracing::debug!(error = %e, "frame dropped");
                }
            }
            Some(Command::RenewToken) => self.renew = true,
            Some(Command::Positions(answer)) => {
                let _ = answer.send(self.machine.positions());
            }
        }
        false
    }

    /// Hands the machine's outputs to whom they are for, until the application has no room.
    fn deliver(&mut self) {
        loop {
            if let (Some(event), Some(events)) = (self.held.take(), &self.events) {
                match events.try_send(event) {
                    Ok(()) => {}
                    Err(mpsc::error::TrySendError::Full(event)) => {
                        self.held = Some(event);
                        return;
                    }
                    Err(mpsc::error::TrySendError::Closed(_)) => self.events = None,
                }
            }
            let now_ms = self.now_ms();
            match self.machine.next_output(now_ms) {
                Some(Output::Event(event)) => self.held = Some(event),
                Some(Output::Sent(local, result)) => {
                    if let Some(settle) = self.sends.remove(&local) {
                        let _ = settle.send(result);
                    }
                }
                Some(Output::Fetched(id, result)) => {
                    if let Some(answer) = self.fetches.remove(&id) {
                        let _ = answer.send(result);
                    }
                }
                None => return,
            }
        }
    }

    /// Refuses what is left, and says the last word.
    async fn finish(mut self, reason: DisconnectReason) {
        self.machine.close();
        let last = Event::Disconnected {
            reason,
            retry_in_ms: None,
        };
        self.commands.close();
        let by_application = self.closing.is_some();
        loop {
            self.deliver();
            // Whoever closes is not made to take events first; whoever has lost the server is.
            if self.held.is_none() || by_application {
                break;
            }
            room(self.events.clone()).await;
        }
        if let Some(events) = &self.events {
            if by_application {
                let _ = events.try_send(last);
            } else {
                let _ = events.send(last).await;
            }
        }
        if let Some(closing) = self.closing {
            let _ = closing.send(());
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn at_ms(&self, ms: u64) -> Instant {
        // Far enough for "never", near enough for the timer.
        const NEVER_MS: u64 = 365 * 24 * 3_600_000;
        let ms = ms.min(self.now_ms().saturating_add(NEVER_MS));
        self.started + Duration::from_millis(ms)
    }
}

/// Waits until the application can take an event, or never will.
async fn room(events: Option<mpsc::Sender<Event>>) {
    if let Some(events) = events {
        let _ = events.reserve().await;
    }
}
