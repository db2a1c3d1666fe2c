//! What the three servers share: their command line, their listener, and what they publish.
//!
//! Each is one thread and bare TCP: `echo` sends back what a read brought in one write; `fanout`
//! counts whole messages and sends as many to every connection. That is what `trunkline bench floor`
//! does on the edge's own ring, and in both a connection reads into a buffer of
//! [`READ_BYTES`].
//!
//! Started by `bench/baselines/run`.

use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// A connection's read buffer: these runtimes have one for each.
pub const READ_BYTES: usize = 4_096;

/// What a message leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Echo,
    Fanout,
}

/// The command line: PORT SHAPE PAYLOAD.
#[derive(Clone, Copy, Debug)]
pub struct Args {
    pub port: u16,
    pub shape: Shape,
    /// Bytes of a message.
    pub payload: usize,
}

impl Args {
    /// Reads the process's arguments, or says what they should have been and ends it.
    pub fn read() -> Self {
        let words: Vec<String> = std::env::args().skip(1).collect();
        Self::parse(&words).unwrap_or_else(|| {
            eprintln!("usage: PORT echo|fanout PAYLOAD_BYTES");
            std::process::exit(64);
        })
    }

    fn parse(words: &[String]) -> Option<Self> {
        let [port, shape, payload] = words else {
            return None;
        };
        let shape = match shape.as_str() {
            "echo" => Shape::Echo,
            "fanout" => Shape::Fanout,
            _ => return None,
        };
        let payload = payload.parse().ok().filter(|&n| n > 0)?;
        Some(Self {
            port: port.parse().ok()?,
            shape,
            payload,
        })
    }

    /// A listener with a backlog as long as the kernel allows; what it accepts has TCP_NODELAY.
    pub fn listen(&self) -> std::io::Result<TcpListener> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let socket = Socket::new(
            Domain::IPV4,
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&address.into())?;
        socket.listen(65_535)?;
        Ok(socket.into())
    }

    /// Several messages one behind the other, as the load generator expects them: letters that differ
    /// from themselves when shifted.
    pub fn block(&self) -> Vec<u8> {
        let message: Vec<u8> = (0..self.payload)
            .map(|i| b'a' + ((i + i / 26) % 26) as u8)
            .collect();
        message.repeat(MESSAGES_PER_WRITE)
    }
}

/// Messages that one write may carry.
pub const MESSAGES_PER_WRITE: usize = 64;

/// Counts the whole messages in what a connection receives.
#[derive(Debug, Default)]
pub struct Counter {
    begun: usize,
}

impl Counter {
    /// Messages that end within the next `length` bytes.
    pub fn messages(&mut self, length: usize, payload: usize) -> usize {
        let bytes = self.begun + length;
        self.begun = bytes % payload;
        bytes / payload
    }
}
