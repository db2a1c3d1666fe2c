//! The command line of `trunkline bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

/// Scenarios.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// Chat at a given rate, 1:1 and in groups, and measure what comes back
    #[command(after_long_help = CHAT_EXAMPLES)]
    Chat(ChatArgs),
}

const CHAT_EXAMPLES: &str = "\
Examples:
  Start a server of its own, 1,000 clients, 20,000 messages a second for 10 s:
    trunkline bench chat --spawn --connections 1000 --rate 20000

  As many as the server takes (each client keeps 16 messages under way):
    trunkline bench chat --spawn --connections 1000 --rate 0 --inflight 16

  One group of 500, one message at a time, deliveries per second:
    trunkline bench chat --spawn --connections 500 --groups 1 --group-size 500 --group-share 1 --rate 0 --inflight 1 --senders 1

  Memory of 18,000 idle sessions:
    trunkline bench chat --spawn --connections 18000 --rate 0 --inflight 0 --duration 1s

  A server that runs already, with its secret:
    trunkline bench chat --ws 127.0.0.1:7400 --http 127.0.0.1:7410 --secret … --server-pid 4711";

/// `trunkline bench chat`
#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    /// Start `trunkline serve` on free ports and a new data directory, and stop it afterwards
    #[arg(long)]
    pub spawn: bool,
    /// More arguments for the server that --spawn starts
    #[arg(
        long,
        value_name = "ARGS",
        allow_hyphen_values = true,
        requires = "spawn"
    )]
    pub spawn_args: Option<String>,
    /// Where the server's WebSockets are
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7400")]
    pub ws: String,
    /// Where its raw TCP is (--transport tcp)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7401")]
    pub tcp: String,
    /// Where its REST is (to create groups)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7410")]
    pub http: String,
    /// The server's JWT secret
    #[arg(long, env = "TRUNKLINE_JWT_SECRET", hide_env_values = true)]
    pub secret: Option<String>,
    /// The data directory whose development secret signs the tokens
    #[arg(long, value_name = "DIR", default_value = "./data")]
    pub data: PathBuf,
    /// The server's process, for its CPU and memory; comma-separated when there are several
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pub server_pid: Vec<u32>,
    #[arg(long, value_enum, default_value = "ws-proto")]
    pub transport: Transport,
    /// Clients; each is a user of its own
    #[arg(long, default_value_t = 1_000)]
    pub connections: u32,
    /// Handshakes under way at once
    #[arg(long, default_value_t = 256)]
    pub connect_inflight: u32,
    /// Messages per second over all clients, sent when they are due, whatever comes back; 0: see
    /// --inflight
    #[arg(long, default_value_t = 10_000)]
    pub rate: u32,
    /// With --rate 0: messages that each sender keeps under way; 0: none, the sessions idle
    #[arg(long, default_value_t = 8)]
    pub inflight: u32,
    /// How many of the clients send; default all
    #[arg(long)]
    pub senders: Option<u32>,
    /// Groups to create
    #[arg(long, default_value_t = 0)]
    pub groups: u32,
    /// Members of each, taken round from the clients
    #[arg(long, default_value_t = 10)]
    pub group_size: u32,
    /// Part of the messages that goes to groups, 0 to 1; the others go to each client's partner
    #[arg(long, default_value_t = 0.0)]
    pub group_share: f64,
    /// Bytes of a message's content, 17 to 1000
    #[arg(long, default_value_t = 128)]
    pub payload: u32,
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Load before anything is counted
    #[arg(long, default_value = "2s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// Generator threads
    #[arg(long, default_value_t = 1)]
    pub threads: u32,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What the clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    WsProto,
    WsJson,
    Tcp,
}

impl ChatArgs {
    /// Messages that each sender keeps under way; `None`: an open loop at `rate`.
    pub fn closed_loop(&self) -> Option<u32> {
        (self.rate == 0).then_some(self.inflight)
    }

    /// What clap cannot see.
    pub fn check(&self) -> Result<(), crate::BenchError> {
        let wrong = |what: &str| Err(crate::BenchError::Usage(what.to_owned()));
        if !(17..=1000).contains(&self.payload) {
            return wrong("--payload: from 17 (the time of the message) to 1000 bytes");
        }
        if !(0.0..=1.0).contains(&self.group_share) {
            return wrong("--group-share: from 0 to 1");
        }
        if self.group_share > 0.0 && self.groups == 0 {
            return wrong("--group-share needs --groups");
        }
        if self.groups > 0 && !(2..=self.connections).contains(&self.group_size) {
            return wrong("--group-size: from 2 to the number of connections");
        }
        if self.connections < 2 || self.connections >= 1 << 24 {
            return wrong("--connections: from 2 to 16,777,215");
        }
        if self.threads == 0 || self.threads > self.connections / 2 {
            return wrong("--threads: at least 1, and two connections for each");
        }
        Ok(())
    }
}

/// `300ms`, `10s`, `2m`, `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number
        .parse()
        .map_err(|_| format!("{text:?}: a number and ms, s, m or h"))?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(format!("{text:?}: the unit is ms, s, m or h")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|e| format!("{text:?}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert!(parse_duration("10").is_err());
        assert!(parse_duration("-1s").is_err());
        assert!(parse_duration("s").is_err());
    }
}
