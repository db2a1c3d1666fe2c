//! The command line of `trunkline bench`: the scenarios, and the flags that several of them share.
//! What only one scenario understands stands beside it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::BenchError;
use crate::budget::Budget;
use crate::echo::args::{EchoArgs, FloorArgs, FloorServerArgs, PairsArgs};
use crate::plan::args::PlanArgs;
use crate::scenario::chat::ChatArgs;
use crate::scenario::connect::ConnectArgs;
use crate::scenario::drain::DrainArgs;
use crate::scenario::fanout::FanoutArgs;
use crate::scenario::idle::IdleArgs;
use crate::scenario::slow::SlowArgs;
use crate::scenario::soak::SoakArgs;
use crate::scenario::storm::StormArgs;
use crate::tools::{CompareArgs, ExampleArgs, ReportArgs, RunArgs};

/// Scenarios.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// Establish sessions as fast as possible or at a rate, and perhaps all at once again
    Connect(Box<ConnectArgs>),
    /// Hold idle sessions: memory, and the cost of their signs of life
    Idle(Box<IdleArgs>),
    /// Chat at a given rate, 1:1 and in groups, and see that everybody sees everything
    Chat(Box<ChatArgs>),
    /// Messages to groups whose members are all online: what a delivery costs
    Fanout(Box<FanoutArgs>),
    /// Kill an edge: how long until all its clients are on another one, and what the others feel
    Storm(Box<StormArgs>),
    /// Members that stop reading, and clients that fall silent
    Slow(Box<SlowArgs>),
    /// Chat for long while clients come and go, and watch memory
    Soak(Box<SoakArgs>),
    /// End an edge in order, with its clients on it
    Drain(Box<DrainArgs>),
    /// Messages to a server that sends them back, ours or any other: CPU time and latency of each
    Echo(Box<EchoArgs>),
    /// The same against a bare socket loop: what the kernel alone costs
    Floor(Box<FloorArgs>),
    /// The server that `floor` starts
    #[command(hide = true)]
    FloorServer(FloorServerArgs),
    /// Several servers in turn under the same load: medians and ratios
    Pairs(Box<PairsArgs>),
    /// Run the scenario that a file describes
    Run(RunArgs),
    /// Print a commented scenario file with all parameters and their defaults
    Example(ExampleArgs),
    /// Make the page of a stored result
    Report(ReportArgs),
    /// Compare stored results: what became better, worse, or stayed
    Compare(Box<CompareArgs>),
    /// Plan a fleet from stored results
    Plan(Box<PlanArgs>),
    /// List the figures of all scenarios and what they mean
    Figures,
}

/// Where the result goes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the result as a page to look at
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// A limit on a figure, such as `user_bytes_per_session<=400`; may be given several times
    #[arg(long, value_name = "EXPR")]
    pub budget: Vec<Budget>,
    /// Say nothing of the progress
    #[arg(long)]
    pub quiet: bool,
    /// Take parameters from this scenario file; flags that are typed replace them
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The server under load.
#[derive(Clone, Debug, Args, Serialize)]
#[command(next_help_heading = "Server")]
pub struct TargetArgs {
    /// Start `trunkline serve` on free ports and a new data directory, and stop it afterwards
    #[arg(long, conflicts_with = "spawn_two")]
    pub spawn: bool,
    /// Start the two tiers as processes of their own: a core, and as many edges as the scenario needs
    #[arg(long)]
    pub spawn_two: bool,
    /// More arguments for the server (--spawn) or the edges (--spawn-two) that are started
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub spawn_args: Option<String>,
    /// More arguments for the core that --spawn-two starts
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub spawn_core_args: Option<String>,
    /// Where the server's WebSockets are; comma-separated when there are several edges
    #[arg(
        long,
        value_name = "ADDR",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400"
    )]
    pub ws: Vec<String>,
    /// Where its raw TCP is (--transport tcp)
    #[arg(
        long,
        value_name = "ADDR",
        value_delimiter = ',',
        default_value = "127.0.0.1:7401"
    )]
    pub tcp: Vec<String>,
    /// Where its REST is (to create groups)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7410")]
    pub http: String,
    /// Where its admin pages are, for its own view of its memory; comma-separated, edges first
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    pub admin: Vec<String>,
    /// The server's JWT secret
    #[arg(long, env = "TRUNKLINE_JWT_SECRET", hide_env_values = true)]
    #[serde(skip)]
    pub secret: Option<String>,
    /// The data directory whose development secret signs the tokens
    #[arg(long, value_name = "DIR", default_value = "./data")]
    pub data: PathBuf,
    /// The server's process, for its CPU and memory; comma-separated when there are several
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pub server_pid: Vec<u32>,
}

/// The clients.
#[derive(Clone, Debug, Args, Serialize)]
#[command(next_help_heading = "Clients")]
pub struct FleetArgs {
    /// Clients; each is a user of its own
    #[arg(long, short = 'n', default_value_t = 1_000)]
    pub connections: u32,
    /// What they speak
    #[arg(long, value_enum, default_value = "ws-proto")]
    pub transport: Transport,
    /// Where they put their token
    #[arg(long, value_enum, default_value = "header")]
    pub token: TokenPlace,
    /// Handshakes under way at once
    #[arg(long, default_value_t = 1_024)]
    pub connect_inflight: u32,
    /// Connects per second (`5000` or `5000/s`), each timed from when it was due; without: as fast as
    /// --connect-inflight lets them
    #[arg(long, value_name = "N/s", value_parser = parse_rate)]
    pub ramp: Option<f64>,
    /// Generator threads
    #[arg(long, default_value_t = 1)]
    pub threads: u32,
    /// The sign of life: a WebSocket pong (on raw TCP `heartbeat`) or a `heartbeat` frame, neither
    /// answered; an application `ping`, which is; or none
    #[arg(long, value_enum, default_value = "pong")]
    pub heartbeat: Heartbeat,
    /// How often each client gives it
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub heartbeat_every: Duration,
    /// Bytes of a user id
    #[arg(long, default_value_t = 16)]
    pub user_bytes: u32,
    /// Bytes of a device id
    #[arg(long, default_value_t = 4)]
    pub device_bytes: u32,
    /// What a connection of the generator that waits for bytes has armed in the kernel (io_uring): 864
    /// bytes that answer at once, or 256
    #[arg(long, value_enum, default_value = "multishot")]
    pub recv: Receive,
    /// Clients that share one source address, on loopback; default: 40 % of the kernel's range of
    /// ports, beyond which the search for a free port becomes long
    #[arg(long)]
    pub per_source: Option<u32>,
    /// Without one more connection for this long, connecting has failed
    #[arg(long, default_value = "20s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub stall_max: Duration,
}

/// What the clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    WsProto,
    WsJson,
    Tcp,
}

/// How the generator's sockets wait for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Receive {
    Multishot,
    Poll,
}

impl Receive {
    /// As the driver calls it.
    pub fn mode(self) -> trunkline_edge::ring::ReceiveMode {
        match self {
            Self::Multishot => trunkline_edge::ring::ReceiveMode::Multishot,
            Self::Poll => trunkline_edge::ring::ReceiveMode::Poll,
        }
    }
}

/// Where a WebSocket client's token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenPlace {
    /// `Authorization: Bearer`
    Header,
    /// `?access_token=`
    Query,
}

/// The sign of life that a client gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Heartbeat {
    Pong,
    Frame,
    Ping,
    None,
}

impl FleetArgs {
    /// What clap cannot see.
    pub fn check(&self) -> Result<(), BenchError> {
        let wrong = |what: &str| Err(BenchError::Usage(what.to_owned()));
        if self.connections < 2 || self.connections >= 1 << 24 {
            return wrong("--connections: from 2 to 16,777,215");
        }
        if self.threads == 0 || self.threads > self.connections / 2 {
            return wrong("--threads: at least 1, and two connections for each");
        }
        if self.connect_inflight < self.threads {
            return wrong("--connect-inflight: at least one for each of --threads");
        }
        if !(14..=64).contains(&self.user_bytes) || !(1..=64).contains(&self.device_bytes) {
            return wrong("--user-bytes: from 14 to 64; --device-bytes: from 1 to 64");
        }
        if self.heartbeat_every.is_zero() {
            return wrong("--heartbeat-every: more than nothing, or --heartbeat none");
        }
        Ok(())
    }
}

/// Arguments by the names of their flags, for the result.
pub fn parameters(args: &[&dyn ErasedArgs]) -> BTreeMap<String, serde_json::Value> {
    args.iter().flat_map(|args| args.flags()).collect()
}

/// Arguments that can be listed.
pub trait ErasedArgs {
    /// Value by flag.
    fn flags(&self) -> BTreeMap<String, serde_json::Value>;
}

impl<T: Serialize> ErasedArgs for T {
    fn flags(&self) -> BTreeMap<String, serde_json::Value> {
        let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(self) else {
            return BTreeMap::new();
        };
        let told = fields.into_iter().filter(|(_, value)| !value.is_null());
        told.map(|(name, value)| (name.replace('_', "-"), value))
            .collect()
    }
}

/// A duration in a result's parameters: seconds.
pub fn seconds<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(duration.as_secs_f64())
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

/// `5000` or `5000/s`: how many in a second.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    match number.parse() {
        Ok(rate) if rate > 0.0 && f64::is_finite(rate) => Ok(rate),
        _ => Err(format!(
            "{text:?}: a number above zero, as in 5000 or 5000/s"
        )),
    }
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

    #[test]
    fn rates_are_in_a_second() {
        assert_eq!(parse_rate("5000/s"), Ok(5_000.0));
        assert_eq!(parse_rate("0.5"), Ok(0.5));
        assert!(parse_rate("0").is_err());
        assert!(parse_rate("5/m").is_err());
    }
}
