//! Where a process really listens: told to people on stdout, and to tools in the ports file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::exit::Failure;

/// A listener for the front threads, and the address that it got.
pub fn bind(runtime: &Runtime, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    runtime
        .block_on(TcpListener::bind(address))
        .and_then(|listener| {
            let address = listener.local_addr()?;
            Ok((listener, address))
        })
        .map_err(|e| Failure::Runtime(format!("cannot listen on {address}: {e}")))
}

/// The listeners of a process by name.
#[derive(Debug, Default)]
pub struct Listening(BTreeMap<&'static str, SocketAddr>);

impl Listening {
    pub fn add(&mut self, name: &'static str, address: SocketAddr) {
        self.0.insert(name, address);
    }

    /// Writes the ports file, if one is wanted: whole, or not at all.
    pub fn write(&self, file: Option<&Path>) -> Result<(), Failure> {
        let Some(file) = file else { return Ok(()) };
        let ports: BTreeMap<_, _> = self.0.iter().map(|(n, a)| (*n, a.to_string())).collect();
        let failed = |e: &dyn std::fmt::Display| {
            Failure::Runtime(format!("ports file {}: {e}", file.display()))
        };
        let text = serde_json::to_vec(&ports).map_err(|e| failed(&e))?;
        let beside = file.with_extension("new");
        std::fs::write(&beside, text).map_err(|e| failed(&e))?;
        std::fs::rename(&beside, file).map_err(|e| failed(&e))
    }

    /// Tells stdout what runs, with `lines` of (what, where).
    pub fn banner(title: &str, lines: &[(&str, String)]) {
        let mut text = format!("{title}\n");
        for (what, place) in lines {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {what:<10} {place}");
        }
        let mut out = std::io::stdout();
        // A closed stdout is no reason not to serve.
        let _ = out.write_all(text.as_bytes());
        let _ = out.flush();
    }
}

/// An address that a browser on this machine can open: "any" is none.
pub fn openable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_file_holds_addresses_by_name_and_nothing_is_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ports.json");
        let mut listening = Listening::default();
        listening.add("ws", ([127, 0, 0, 1], 7).into());
        listening.write(Some(&path)).unwrap();
        listening.add("tcp", ([127, 0, 0, 1], 8).into());
        listening.write(Some(&path)).unwrap();
        let read: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let expected = serde_json::json!({"ws": "127.0.0.1:7", "tcp": "127.0.0.1:8"});
        assert_eq!(read, expected);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let nowhere = Path::new("/nonexistent/ports.json");
        assert!(listening.write(Some(nowhere)).is_err());
    }

    #[test]
    fn the_page_can_be_opened_wherever_it_listens() {
        let any: SocketAddr = "0.0.0.0:7410".parse().unwrap();
        assert_eq!(openable(any).to_string(), "127.0.0.1:7410");
        let any: SocketAddr = "[::]:7410".parse().unwrap();
        assert_eq!(openable(any).to_string(), "[::1]:7410");
    }
}
