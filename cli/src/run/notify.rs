//! Tells the service manager that the process is ready and which one is the main one (the protocol of
//! sd_notify(3): a datagram to the socket in `NOTIFY_SOCKET`). Without that variable nothing happens.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// This process serves from now on, also where another one did before.
pub fn ready() {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let state = format!("MAINPID={}\nREADY=1\n", std::process::id());
    if let Err(error) = tell(&name.to_string_lossy(), &state) {
        tracing::warn!("the service manager was not told that this process is ready: {error}");
    }
}

fn tell(name: &str, state: &str) -> io::Result<()> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_is_told_at_either_kind_of_address() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let path = path.to_str().unwrap();
        let name = format!("trunkline-notify-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        for (manager, told) in [
            (UnixDatagram::bind(path).unwrap(), path.to_owned()),
            (
                UnixDatagram::bind_addr(&abstract_address).unwrap(),
                format!("@{name}"),
            ),
        ] {
            tell(&told, "READY=1\n").unwrap();
            let mut bytes = [0; 32];
            let count = manager.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..count], b"READY=1\n");
        }
        assert!(tell("/nonexistent/notify", "READY=1\n").is_err());
    }
}
