//! What the servers share: the port on their command line and the listener on it. Started by
//! `bench/peers/run`.

use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// A listener on the port that the command line names, with a backlog as long as the kernel allows;
/// what it accepts has TCP_NODELAY.
pub fn listen() -> std::io::Result<TcpListener> {
    let port = std::env::args().nth(1).and_then(|word| word.parse().ok());
    let Some(port) = port else {
        eprintln!("usage: PORT");
        std::process::exit(64);
    };
    let address = SocketAddr::from(([127, 0, 0, 1], port));
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
