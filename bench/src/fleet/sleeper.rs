//! Clients that do not read: plain sockets, each an ordinary session, whose bytes pile up in the
//! kernel and then in the server. (The fleet's own driver always reads.) Few: each costs a file
//! descriptor.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::people::People;
use super::wire::{self, FromServer, Upgraded};
use crate::BenchError;
use crate::args::Transport;

/// Bytes that a sleeper's socket takes before its window closes: little, so that the server feels it
/// soon. The kernel doubles it and has a least value of its own.
const RECEIVE_BUFFER: usize = 4_096;
/// The segments that it announces, as a client on an Ethernet would: the kernel's buffer at the
/// server grows with them, and loopback's are 64 KiB.
const SEGMENT: u32 = 1_448;
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// A session that does not read.
pub struct Sleeper {
    stream: TcpStream,
}

/// How a sleeper's session ended, when it looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// With a close frame that bears this code.
    Code(u16),
    /// Without one.
    Broken,
    /// It has not: the server still waits for it.
    Alive,
}

impl Sleeper {
    /// Connects as client `number`, over WebSocket, and falls asleep when its session is up.
    pub fn connect(server: SocketAddr, people: &People, number: u32) -> Result<Self, BenchError> {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.set_tcp_mss(SEGMENT)?;
        socket.connect(&server.into())?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let mut request = Vec::new();
        people.put_request(number, u128::from(number), &mut request);
        stream.write_all(&request)?;
        let mut seen = Vec::new();
        let mut byte = [0; 1];
        // Byte by byte: what lies behind `connected` stays in the kernel.
        loop {
            if stream.read(&mut byte)? == 0 {
                return Err(BenchError::Server("a slow client was not let in".into()));
            }
            seen.push(byte[0]);
            let failed = |e: wire::WireError| BenchError::Server(e.0);
            let head = match wire::upgraded(&seen).map_err(failed)? {
                None => continue,
                Some(Upgraded::Yes(head)) => head,
                Some(Upgraded::No(status, _)) => {
                    let message = format!("a slow client was refused: HTTP {status}");
                    return Err(BenchError::Server(message));
                }
            };
            // What a client that offers the binary protocol is sent.
            let first = wire::split(Transport::WsProto, &seen[head..]).map_err(failed)?;
            if first.is_some_and(|(_, frame)| frame == FromServer::Connected) {
                return Ok(Self { stream });
            }
        }
    }

    /// Gives a sign of life: it sends, though it does not read. False: the server has gone.
    pub fn sign(&mut self) -> bool {
        let mut pong = Vec::new();
        wire::put_masked(10, b"", 0, &mut pong);
        self.stream.write_all(&pong).is_ok()
    }

    /// Wakes up, reads all that is there, and leaves.
    pub fn wake(mut self) -> Result<Ending, BenchError> {
        self.stream
            .set_read_timeout(Some(Duration::from_millis(500)))?;
        let mut bytes = Vec::new();
        let mut chunk = vec![0; 1 << 16];
        let ended = loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => break true,
                Ok(n) => bytes.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    break false;
                }
                Err(_) => break true,
            }
        };
        let mut rest = &bytes[..];
        while let Ok(Some((length, frame))) = wire::split(Transport::WsProto, rest) {
            if let FromServer::Close(code) = frame {
                return Ok(Ending::Code(code));
            }
            rest = &rest[length..];
        }
        Ok(if ended { Ending::Broken } else { Ending::Alive })
    }
}
