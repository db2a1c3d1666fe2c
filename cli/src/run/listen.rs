//! Where a process really listens: told to people on stdout, and to tools in the ports file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
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
