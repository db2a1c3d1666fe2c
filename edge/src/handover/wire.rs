//! Messages on the Unix socket: a byte of kind, four of length, the body; descriptors go with the
//! header.

use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use prost::Message;

use super::HandoverError;
use crate::ring::{peer_user, receive_with, send_with, user};

/// Kinds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Hello = 1,
    Welcome = 2,
    Refusal = 3,
    Begin = 4,
    Listeners = 5,
    Batch = 6,
    Adopted = 7,
    End = 8,
    Ready = 9,
    Commit = 10,
    Taken = 11,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Hello,
        Self::Welcome,
        Self::Refusal,
        Self::Begin,
        Self::Listeners,
        Self::Batch,
        Self::Adopted,
        Self::End,
        Self::Ready,
        Self::Commit,
        Self::Taken,
    ];
}

/// Kind and length.
const HEADER_BYTES: usize = 5;

/// A message as it came.
pub(super) struct Received {
    pub kind: Kind,
    pub body: Vec<u8>,
    pub sockets: Vec<OwnedFd>,
}

impl Received {
    /// The body, if the message is of this kind.
    pub fn decode<M: Message + Default>(&self, kind: Kind) -> io::Result<M> {
        self.expect(kind)?;
        M::decode(&self.body[..]).map_err(io::Error::other)
    }

    pub fn expect(&self, kind: Kind) -> io::Result<()> {
        if self.kind == kind {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "{:?} came where {kind:?} was due",
            self.kind
        )))
    }
}

/// One end of the conversation.
pub(super) struct Channel(pub UnixStream);

impl Channel {
    /// No step of the other side is waited for longer than `wait_max`.
    pub fn new(socket: UnixStream, wait_max: Duration) -> io::Result<Self> {
        let channel = Self(socket);
        channel.wait_at_most(wait_max)?;
        Ok(channel)
    }

    pub fn wait_at_most(&self, wait_max: Duration) -> io::Result<()> {
        self.0.set_read_timeout(Some(wait_max))?;
        self.0.set_write_timeout(Some(wait_max))
    }

    pub fn send(&mut self, kind: Kind, body: &impl Message) -> io::Result<()> {
        self.send_with(kind, body, &[])
    }

    pub fn send_with(
        &mut self,
        kind: Kind,
        body: &impl Message,
        sockets: &[OwnedFd],
    ) -> io::Result<()> {
        let body = body.encode_to_vec();
        let length = u32::try_from(body.len())
            .map_err(|_| io::Error::other("a message of over 4 GiB of state"))?;
        let mut header = [kind as u8, 0, 0, 0, 0];
        header[1..].copy_from_slice(&length.to_be_bytes());
        send_with(&self.0, &header, sockets)?;
        self.0.write_all(&body)
    }

    pub fn receive(&mut self) -> io::Result<Received> {
        let mut header = [0; HEADER_BYTES];
        let mut sockets = Vec::new();
        let mut filled = 0;
        while filled < HEADER_BYTES {
            match receive_with(&self.0, &mut header[filled..], &mut sockets)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        let [kind, length @ ..] = header;
        let kind = Kind::ALL.into_iter().find(|known| *known as u8 == kind);
        let kind = kind.ok_or_else(|| io::Error::other("a message of an unknown kind"))?;
        let length = u32::from_be_bytes(length);
        let mut body = Vec::new();
        // Grows with what comes, not with what was announced.
        (&self.0).take(u64::from(length)).read_to_end(&mut body)?;
        if body.len() < length as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Received {
            kind,
            body,
            sockets,
        })
    }
}

/// `@name` is a name of this network namespace, anything else a path.
fn address(name: &str) -> io::Result<SocketAddr> {
    match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}

/// The listener of an edge that can be upgraded. A file that a process left behind is replaced.
pub fn listen(name: &str) -> io::Result<UnixListener> {
    let path = (!name.starts_with('@')).then(|| Path::new(name));
    if let Some(path) = path
        && path.exists()
    {
        if UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind_addr(&address(name)?)?;
    if let Some(path) = path {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(listener)
}

/// Connects to the edge that listens there, and makes sure that it is this user's.
pub fn connect(name: &str) -> Result<UnixStream, HandoverError> {
    let connected = address(name).and_then(|address| UnixStream::connect_addr(&address));
    let stream = connected.map_err(|source| HandoverError::NobodyThere {
        name: name.to_owned(),
        source,
    })?;
    if peer_user(&stream)? != user() {
        return Err(HandoverError::ForeignUser {
            name: name.to_owned(),
        });
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::super::{STEP_MAX, state};
    use super::*;

    #[test]
    fn messages_arrive_whole_with_their_descriptors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let end = state::End {
            connections: 7,
            core_time_ms: 9,
            core_incarnation: 4,
        };
        let sockets: Vec<OwnedFd> = vec![ours.try_clone().unwrap().into()];
        let mut ours = Channel::new(ours, STEP_MAX).unwrap();
        let mut theirs = Channel::new(theirs, STEP_MAX).unwrap();
        ours.send_with(Kind::End, &end, &sockets).unwrap();
        ours.send(Kind::Commit, &()).unwrap();
        let got = theirs.receive().unwrap();
        assert_eq!(got.sockets.len(), 1);
        assert_eq!(got.decode::<state::End>(Kind::End).unwrap(), end);
        assert!(got.expect(Kind::Commit).is_err());
        drop((got, sockets));
        theirs.receive().unwrap().expect(Kind::Commit).unwrap();
        drop(ours);
        let over = theirs.receive().err().unwrap();
        assert_eq!(over.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_left_behind_is_replaced_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let name = path.to_str().unwrap();
        drop(listen(name).unwrap());
        let listener = listen(name).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(listen(name).is_err());
        assert!(connect(name).is_ok());
        drop(listener);
        assert!(matches!(
            connect(name),
            Err(HandoverError::NobodyThere { .. })
        ));
    }
}
