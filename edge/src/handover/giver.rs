//! The edge that runs, as the one who gives: waits for a successor and hands everything over, or goes
//! on as before.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::state::{self, Hello, Refusal, Welcome};
use super::wire::{Channel, Kind};
use super::{
    Batch, FORMAT, HandoverError, Listening, Order, PREPARE_MAX, SETTLE_MAX, STEP_MAX, socket,
};
use crate::link::ToShard;
use crate::node::EdgeHandle;
use crate::ring::{PASSED_MAX, peer_user, user};

/// How often the core's credit is looked at while it answers.
const SETTLE_POLL: Duration = Duration::from_micros(300);
/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What a giver knows of its edge.
pub struct Giver {
    pub(crate) handle: EdgeHandle,
    pub(crate) listener: UnixListener,
    /// Further listening sockets of the process, by their number in [`socket`].
    pub(crate) others: Listening,
    pub(crate) edge_id: String,
    pub(crate) ws: SocketAddr,
    pub(crate) tcp: SocketAddr,
    /// Where the shards' clock began.
    pub(crate) origin: Instant,
}

/// How a hand-over went.
#[derive(Clone, Copy, Debug)]
struct Report {
    connections: u64,
    pause: Duration,
}

impl Giver {
    /// Until a successor has taken over, which ends the shards, or the node closes the listener.
    pub(crate) fn run(self) {
        while !self.handle.has_ended() {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if !self.handle.has_ended() {
                        tracing::warn!("no upgrade can be taken for now: {error}");
                        std::thread::sleep(ACCEPT_PAUSE);
                    }
                    continue;
                }
            };
            match self.serve(stream) {
                Ok(Report { connections, pause }) => {
                    tracing::info!(
                        connections,
                        pause_ms = pause.as_millis(),
                        "a successor has taken over, this edge ends"
                    );
                    return;
                }
                Err(error) => {
                    self.handle.count_failed_upgrade();
                    tracing::warn!("an upgrade has failed, and this edge goes on: {error}");
                }
            }
        }
    }

    fn serve(&self, stream: UnixStream) -> Result<Report, HandoverError> {
        let mut channel = Channel::new(stream, PREPARE_MAX)?;
        self.greet(&mut channel)?;
        // It makes its rings meanwhile, and asks when it is ready.
        channel.receive()?.expect(Kind::Begin)?;
        channel.wait_at_most(STEP_MAX)?;
        tracing::info!("a successor is ready: nothing is read until it has taken over");
        let began = Instant::now();
        let mut holding = Holding::new(&self.handle);
        let given = self.give(&mut channel, &mut holding);
        let taken = given.and_then(|connections| verdict(&mut channel).map(|()| connections));
        match taken {
            Ok(connections) => {
                holding.gone();
                let pause = began.elapsed();
                // The process stays until whoever watches it knows of the other one.
                let _ = channel.receive();
                Ok(Report { connections, pause })
            }
            Err(error) => {
                // Before the shards go on: see the module's first invariant.
                let _ = channel.0.shutdown(Shutdown::Both);
                Err(HandoverError::Midway(error))
            }
        }
    }

    fn greet(&self, channel: &mut Channel) -> Result<(), HandoverError> {
        let objection = if peer_user(&channel.0)? == user() {
            let hello: Hello = channel.receive()?.decode(Kind::Hello)?;
            self.objection(&hello)
        } else {
            Some("it comes from another user".to_owned())
        };
        if let Some(reason) = objection {
            let refusal = Refusal {
                reason: reason.clone(),
            };
            channel.send(Kind::Refusal, &refusal)?;
            return Err(HandoverError::Refused(reason));
        }
        let welcome = Welcome {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            edge_id: self.edge_id.clone(),
            connections: self.handle.memory().connections,
            clock_ns: u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX),
        };
        Ok(channel.send(Kind::Welcome, &welcome)?)
    }

    /// Why this successor gets nothing.
    fn objection(&self, hello: &Hello) -> Option<String> {
        let differs =
            |wanted: &str, ours: SocketAddr| !wanted.is_empty() && wanted.parse() != Ok(ours);
        if hello.format != FORMAT {
            Some(format!(
                "version {} speaks format {} of the hand-over, version {} speaks {FORMAT}: drain \
                 this edge and start the other anew",
                hello.version,
                hello.format,
                env!("CARGO_PKG_VERSION"),
            ))
        } else if self.handle.is_draining() {
            Some("it is draining".to_owned())
        } else if !self.handle.is_healthy() {
            Some("one of its shards has failed: drain it and start anew".to_owned())
        } else if differs(&hello.ws, self.ws) || differs(&hello.tcp, self.tcp) {
            Some(format!(
                "it listens on {} (ws) and {} (tcp), and an upgrade cannot change that",
                self.ws, self.tcp
            ))
        } else if !hello.edge_id.is_empty() && hello.edge_id != self.edge_id {
            Some(format!(
                "its edge_id is {:?}, and an upgrade cannot change that",
                self.edge_id
            ))
        } else {
            None
        }
    }

    /// Everything, up to `Commit`. How many connections that were.
    fn give(&self, channel: &mut Channel, holding: &mut Holding<'_>) -> io::Result<u64> {
        let listeners = holding.read_no_more()?;
        self.settle();
        self.give_listeners(channel, listeners)?;
        let mut connections = 0;
        for orders in holding.depart() {
            connections += give_shard(channel, orders)?;
        }
        let resume = self.handle.resume();
        let end = state::End {
            connections,
            core_time_ms: resume.from_ms,
            core_incarnation: resume.core_incarnation,
        };
        channel.send(Kind::End, &end)?;
        channel.receive()?.expect(Kind::Ready)?;
        channel.send(Kind::Commit, &())?;
        Ok(connections)
    }

    /// Waits until the core has answered everything, so that no client has to be told that the
    /// outcome of something is unknown; not for ever.
    fn settle(&self) {
        let began = Instant::now();
        while self.handle.awaits_core() && began.elapsed() < SETTLE_MAX {
            std::thread::sleep(SETTLE_POLL);
        }
    }

    fn give_listeners(&self, channel: &mut Channel, mut all: Listening) -> io::Result<()> {
        all.push((socket::UPGRADE, self.listener.try_clone()?.into()));
        for (kind, socket) in &self.others {
            all.push((*kind, socket.try_clone()?));
        }
        while !all.is_empty() {
            let some = all.split_off(all.len().saturating_sub(PASSED_MAX));
            let (kinds, sockets): (Vec<u32>, Vec<OwnedFd>) = some.into_iter().unzip();
            channel.send_with(Kind::Listeners, &state::Listeners { kinds }, &sockets)?;
        }
        Ok(())
    }
}

/// Hands one shard's connections over, a batch at a time. The shard makes the next one while the
/// successor adopts.
fn give_shard(channel: &mut Channel, orders: &Sender<Order>) -> io::Result<u64> {
    let mut connections = 0;
    let mut next = ask(orders)?;
    loop {
        let batch = match next.recv_timeout(STEP_MAX) {
            Ok(batch) => batch?,
            Err(_) => return Err(io::Error::other("a shard did not come to rest")),
        };
        if batch.connections.is_empty() {
            return Ok(connections);
        }
        next = ask(orders)?;
        connections += batch.connections.len() as u64;
        let Batch {
            connections,
            sockets,
        } = batch;
        channel.send_with(Kind::Batch, &state::Batch { connections }, &sockets)?;
        drop(sockets);
        channel.receive()?.expect(Kind::Adopted)?;
    }
}

fn ask(orders: &Sender<Order>) -> io::Result<Receiver<io::Result<Batch>>> {
    let (answer, batch) = bounded(1);
    let asked = orders.send(Order::Next(answer));
    asked.map_err(|_| io::Error::other("a shard has given the hand-over up"))?;
    Ok(batch)
}

/// Waits for `Taken`. Without it in time the socket is shut: from then on the successor cannot send it
/// any more, and what it has sent before still counts.
fn verdict(channel: &mut Channel) -> io::Result<()> {
    let answer = channel.receive().and_then(|m| m.expect(Kind::Taken));
    if answer.is_ok() {
        return Ok(());
    }
    channel.0.shutdown(Shutdown::Both)?;
    let late = channel.receive().and_then(|m| m.expect(Kind::Taken));
    late.or(answer)
}

/// The shards while they hold still. Let go on drop, unless they are gone.
struct Holding<'h> {
    handle: &'h EdgeHandle,
    orders: Vec<Sender<Order>>,
    gone: bool,
}

impl<'h> Holding<'h> {
    fn new(handle: &'h EdgeHandle) -> Self {
        Self {
            handle,
            orders: Vec::new(),
            gone: false,
        }
    }

    /// Nobody accepts or reads any more when this returns: copies of the listening sockets.
    fn read_no_more(&self) -> io::Result<Listening> {
        let shards = self.handle.inboxes().len();
        let (held, is_held) = bounded(shards);
        for inbox in self.handle.inboxes() {
            inbox.push(ToShard::Hold { held: held.clone() });
        }
        drop(held);
        let mut all = Listening::new();
        for _ in 0..shards {
            let listeners = is_held
                .recv_timeout(STEP_MAX)
                .map_err(|error| match error {
                    RecvTimeoutError::Timeout => io::Error::other("a shard does not come to rest"),
                    RecvTimeoutError::Disconnected => io::Error::other("a shard has ended"),
                })?;
            all.extend(listeners?.into_iter().map(|(id, fd)| (id.into(), fd)));
        }
        Ok(all)
    }

    /// Has the shards do nothing but follow orders.
    fn depart(&mut self) -> &[Sender<Order>] {
        for inbox in self.handle.inboxes() {
            let (orders, of_shard) = bounded(1);
            inbox.push(ToShard::Depart { orders: of_shard });
            self.orders.push(orders);
        }
        &self.orders
    }

    /// The successor has everything.
    fn gone(mut self) {
        self.gone = true;
        self.handle.set_handed_over();
        for orders in self.orders.drain(..) {
            // It waits for exactly this.
            let _ = orders.send(Order::Gone);
        }
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        // Who follows orders goes on when there is nobody left to give them.
        self.orders.clear();
        for inbox in self.handle.inboxes() {
            inbox.push(ToShard::LetGo);
        }
    }
}
