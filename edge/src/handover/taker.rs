//! The successor, as the one who takes: asks for everything, adopts it, and says when it has it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::state::{self, Connection, End, Hello, Listeners, Refusal, Welcome};
use super::wire::{Channel, Kind};
use super::{Batch, FORMAT, HandoverError, PREPARE_MAX};
use crate::link::Resume;

/// What a predecessor offers.
pub(crate) struct Offer {
    channel: Channel,
    pub welcome: Welcome,
}

/// What came, but for the connections.
pub(crate) struct Came {
    channel: Channel,
    /// Listening sockets by their number in [`super::socket`].
    pub listeners: BTreeMap<u32, Vec<OwnedFd>>,
    pub resume: Resume,
    pub connections: u64,
}

impl Offer {
    /// Greets the edge that runs. `ws`, `tcp`: where this one is configured to listen.
    pub fn ask(
        stream: UnixStream,
        ws: SocketAddr,
        tcp: SocketAddr,
        edge_id: &str,
    ) -> Result<Self, HandoverError> {
        // Any free port is as good as the one there is.
        let wanted = |address: SocketAddr| match address.port() {
            0 => String::new(),
            _ => address.to_string(),
        };
        let mut channel = Channel::new(stream, PREPARE_MAX)?;
        let hello = Hello {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ws: wanted(ws),
            tcp: wanted(tcp),
            edge_id: edge_id.to_owned(),
        };
        channel.send(Kind::Hello, &hello)?;
        let answer = channel.receive()?;
        if answer.kind == Kind::Refusal {
            let Refusal { reason } = answer.decode(Kind::Refusal)?;
            return Err(HandoverError::Refused(reason));
        }
        let welcome: Welcome = answer.decode(Kind::Welcome)?;
        if welcome.format != FORMAT {
            return Err(HandoverError::Format {
                theirs: welcome.format,
            });
        }
        Ok(Self { channel, welcome })
    }

    /// The predecessor's clock, to go on with.
    pub const fn clock(&self) -> Duration {
        Duration::from_nanos(self.welcome.clock_ns)
    }

    /// Takes everything; `adopt` puts the connections of a batch where they go, and touches none.
    pub fn take(
        mut self,
        mut adopt: impl FnMut(Batch) -> Result<(), HandoverError>,
    ) -> Result<Came, HandoverError> {
        self.channel.send(Kind::Begin, &())?;
        let mut listeners: BTreeMap<u32, Vec<OwnedFd>> = BTreeMap::new();
        let mut connections = 0;
        loop {
            let message = self.channel.receive()?;
            match message.kind {
                Kind::Listeners => {
                    let Listeners { kinds } = message.decode(Kind::Listeners)?;
                    same(kinds.len(), message.sockets.len())?;
                    for (kind, socket) in kinds.into_iter().zip(message.sockets) {
                        listeners.entry(kind).or_default().push(socket);
                    }
                }
                Kind::Batch => {
                    let batch: state::Batch = message.decode(Kind::Batch)?;
                    let (batch, sockets): (Vec<Connection>, _) =
                        (batch.connections, message.sockets);
                    same(batch.len(), sockets.len())?;
                    connections += batch.len() as u64;
                    adopt(Batch {
                        connections: batch,
                        sockets,
                    })?;
                    self.channel.send(Kind::Adopted, &())?;
                }
                _ => {
                    let end: End = message.decode(Kind::End)?;
                    same(end.connections as usize, connections as usize)?;
                    return Ok(Came {
                        channel: self.channel,
                        listeners,
                        resume: Resume {
                            from_ms: end.core_time_ms,
                            core_incarnation: end.core_incarnation,
                        },
                        connections,
                    });
                }
            }
        }
    }
}

impl Came {
    /// The last step: when this returns, the sockets are this process's, and the predecessor ends.
    /// After an error they are still the predecessor's.
    pub fn commit(&mut self) -> Result<(), HandoverError> {
        self.channel.send(Kind::Ready, &())?;
        self.channel.receive()?.expect(Kind::Commit)?;
        Ok(self.channel.send(Kind::Taken, &())?)
    }

    /// What the predecessor waits for the end of.
    pub fn into_stream(self) -> UnixStream {
        self.channel.0
    }
}

fn same(announced: usize, came: usize) -> Result<(), HandoverError> {
    if announced == came {
        return Ok(());
    }
    let what = format!("{announced} sockets were announced, {came} came");
    Err(HandoverError::Broken(io::Error::other(what)))
}
