//! The command lines of `bench echo`, `bench floor` and `bench pairs`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::contestant::{Contestant, Url};
use crate::BenchError;
use crate::args::{OutputArgs, parse_duration, seconds};

const ECHO_EXAMPLES: &str = "\
Examples:
  Our own edge over WebSocket, 1,000 connections with one message under way on each:
    trunkline bench echo --spawn --connections 1000 --pin-server 0 --pin-generator 1

  Any WebSocket echo server that runs already, at 20,000 messages a second:
    trunkline bench echo --url ws://127.0.0.1:9001/ --server-pid 4711 --rate 20000

  Start a server for the run:
    trunkline bench echo --url ws://127.0.0.1:{port}/ --command './echo-server {port}'

  NATS, each client subscribed to a subject of its own:
    trunkline bench echo --url nats+ws://127.0.0.1:8080/ --server-pid 4711";

const FLOOR_EXAMPLES: &str = "\
Examples:
  What the kernel alone costs for an echo, no frames and no state:
    trunkline bench floor --connections 10000 --pin-server 0 --pin-generator 1

  One message in, 5,000 prebuilt ones out:
    trunkline bench floor --shape fanout --connections 5000 --payload 128

  One message in, an answer and a delivery out:
    trunkline bench floor --shape chat --connections 1000";

const PAIRS_EXAMPLES: &str = "\
Examples:
  Our edge and the kernel's floor, five times in turn, medians and ratios:
    trunkline bench pairs --with floor=floor --with edge=edge --pairs 5 --pin-server 0 --pin-generator 1

  Our edge and another server:
    trunkline bench pairs --with edge=edge --with 'other=ws://127.0.0.1:{port}/ ./echo-server {port}'";

/// What a message leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// It comes back to whoever sent it
    Echo,
    /// The first connection publishes, and every connection gets it
    Fanout,
    /// It is answered, and goes to one other connection as well: a chat's 1:1 message
    Chat,
}

impl Shape {
    pub fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Fanout => "fanout",
            Self::Chat => "chat",
        }
    }
}

/// The load, the same for every contestant.
#[derive(Clone, Debug, Args, Serialize)]
#[command(next_help_heading = "Load")]
pub struct LoadArgs {
    #[arg(long, default_value_t = 1_000)]
    pub connections: u32,
    /// Handshakes under way at once
    #[arg(long, default_value_t = 256)]
    pub connect_inflight: u32,
    /// Messages under way: of each connection, or with --shape fanout of the publisher; 0: none, the
    /// connections idle
    #[arg(long, default_value_t = 1)]
    pub depth: u32,
    /// Messages per second over all connections, sent when they are due, whatever comes back;
    /// latencies count from then. 0: see --depth
    #[arg(long, default_value_t = 0)]
    pub rate: u32,
    /// Bytes of each message
    #[arg(long, default_value_t = 64)]
    pub payload: u32,
    #[arg(long, default_value = "8s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub duration: Duration,
    /// Load before anything is counted
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub warmup: Duration,
    #[arg(long, value_enum, default_value = "echo")]
    pub shape: Shape,
    /// Processor of a server that is started
    #[arg(long, value_name = "CORE")]
    pub pin_server: Option<usize>,
    /// Processor of the generator
    #[arg(long, value_name = "CORE")]
    pub pin_generator: Option<usize>,
}

impl LoadArgs {
    /// What clap cannot see.
    pub fn check(&self) -> Result<(), BenchError> {
        let wrong = |what: &str| Err(BenchError::Usage(what.to_owned()));
        if self.connections == 0 || self.connections >= 1 << 24 {
            return wrong("--connections: from 1 to 16,777,215");
        }
        if self.connect_inflight == 0 {
            return wrong("--connect-inflight: at least 1");
        }
        if !(1..=65_536).contains(&self.payload) {
            return wrong("--payload: from 1 to 65536 bytes");
        }
        if self.depth > 1_024 {
            return wrong("--depth: at most 1024");
        }
        if self.shape == Shape::Chat && !self.connections.is_multiple_of(2) {
            return wrong("--shape chat: an even number of connections");
        }
        if self.duration.is_zero() {
            return wrong("--duration: above zero");
        }
        Ok(())
    }
}

/// `trunkline bench echo`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = ECHO_EXAMPLES)]
pub struct EchoArgs {
    /// Start `trunkline edge --echo` and stop it afterwards
    #[arg(long, conflicts_with_all = ["url", "command"])]
    pub spawn: bool,
    /// With --spawn: over raw TCP instead of WebSocket
    #[arg(long, requires = "spawn")]
    pub tcp: bool,
    /// A server that sends everything back, tcp:// or ws://, or one to subscribe and publish at:
    /// nats+ws://, mqtt+ws://, centrifuge+ws://
    #[arg(long, value_name = "URL")]
    pub url: Option<Url>,
    /// Start this command as the server. {port} in it and in --url is a free port, {port2} another
    /// one, {file:PATH} a copy of a file in which these are filled in
    #[arg(
        long,
        value_name = "COMMAND",
        requires = "url",
        allow_hyphen_values = true
    )]
    pub command: Option<String>,
    /// The server's process, for its CPU and memory; comma-separated when there are several
    #[arg(long, value_name = "PID", value_delimiter = ',', conflicts_with_all = ["spawn", "command"])]
    pub server_pid: Vec<u32>,
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl EchoArgs {
    /// Whom these arguments name.
    pub fn contestant(&self) -> Result<Contestant, BenchError> {
        use super::protocol::Scheme;
        if self.spawn {
            let scheme = if self.tcp { Scheme::Tcp } else { Scheme::Ws };
            return Ok(Contestant::Edge { scheme });
        }
        let Some(url) = self.url.clone() else {
            let message = "name the server: --spawn for our own, or --url";
            return Err(BenchError::Usage(message.into()));
        };
        let Some(command) = &self.command else {
            return Ok(Contestant::Running {
                url,
                pids: self.server_pid.clone(),
            });
        };
        let command: Vec<_> = command.split_whitespace().map(str::to_owned).collect();
        if command.is_empty() {
            return Err(BenchError::Usage("--command: a command of no words".into()));
        }
        Ok(Contestant::Command { url, command })
    }
}

/// `trunkline bench floor`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = FLOOR_EXAMPLES)]
pub struct FloorArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `trunkline bench floor-server`
#[derive(Clone, Debug, Args)]
pub struct FloorServerArgs {
    #[arg(long, value_enum, default_value = "echo")]
    pub shape: Shape,
    #[arg(long, default_value_t = 64)]
    pub payload: u32,
}

/// `trunkline bench pairs`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = PAIRS_EXAMPLES)]
pub struct PairsArgs {
    /// NAME=floor, NAME=edge, NAME=edge-tcp, NAME=URL@PID for a server that runs, or "NAME=URL
    /// COMMAND…" for one to start, as with `echo --command`. Ratios are to the first
    #[arg(long = "with", value_name = "NAME=SERVER", value_parser = named)]
    pub contestants: Vec<(String, Contestant)>,
    /// Rounds; each measures every contestant once, in the order given
    #[arg(long, default_value_t = 5)]
    pub pairs: u32,
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl PairsArgs {
    /// What clap cannot see.
    pub fn check(&self) -> Result<(), BenchError> {
        let wrong = |what: &str| Err(BenchError::Usage(what.to_owned()));
        if self.contestants.len() < 2 {
            return wrong("--with: name two contestants or more");
        }
        let mut names: Vec<_> = self.contestants.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        if names.len() < self.contestants.len() {
            return wrong("--with: each contestant needs a name of its own");
        }
        if self.pairs == 0 {
            return wrong("--pairs: at least 1");
        }
        self.load.check()
    }
}

fn named(text: &str) -> Result<(String, Contestant), String> {
    let (name, contestant) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?}: NAME=SERVER"))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || !name.chars().all(plain) {
        return Err(format!("{name:?}: a name is of letters, digits, _ and -"));
    }
    Ok((name.to_owned(), contestant.parse()?))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Echo {
        #[command(flatten)]
        args: EchoArgs,
    }

    #[derive(Parser)]
    struct Pairs {
        #[command(flatten)]
        args: PairsArgs,
    }

    #[test]
    fn somebody_must_be_named() {
        let echo = Echo::try_parse_from(["echo"]).unwrap();
        assert!(echo.args.contestant().is_err());
        assert!(Echo::try_parse_from(["echo", "--spawn", "--url", "ws://a:1/"]).is_err());
        let echo = Echo::try_parse_from(["echo", "--url", "tcp://127.0.0.1:7"]).unwrap();
        let contestant = echo.args.contestant().unwrap();
        assert!(matches!(contestant, Contestant::Running { .. }));
    }

    #[test]
    fn pairs_need_two_names() {
        let parse = |with: &[&str]| {
            let words = with.iter().flat_map(|w| ["--with", w]);
            let words = std::iter::once("pairs").chain(words);
            Pairs::try_parse_from(words).map(|p| p.args.check())
        };
        assert!(parse(&[]).unwrap().is_err());
        assert!(parse(&["a=floor"]).unwrap().is_err());
        assert!(parse(&["a=floor", "a=edge"]).unwrap().is_err());
        assert!(parse(&["a=floor", "b=edge"]).unwrap().is_ok());
        assert!(parse(&["a b=floor", "b=edge"]).is_err());
    }

    #[test]
    fn loads_that_cannot_be_are_refused() {
        for wrong in [
            ["--connections", "0"],
            ["--payload", "0"],
            ["--depth", "1025"],
            ["--duration", "0s"],
        ] {
            let words = ["echo", "--spawn"].into_iter().chain(wrong);
            let echo = Echo::try_parse_from(words).unwrap();
            assert!(echo.args.load.check().is_err(), "{wrong:?}");
        }
    }
}
