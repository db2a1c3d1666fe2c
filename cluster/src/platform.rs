//! Trunkline's own parts as processes: what each is told on its command line, and when it is ready.
//! Called by `up`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::error::{ClusterError, Context as _};
use crate::node::{Node, Server};
use crate::process::{Launch, Lifetime};
use crate::{cassandra, kafka, redis};

/// The ports that the parts have by default, each on its own address.
const WS_PORT: u16 = 7_400;
const TCP_PORT: u16 = 7_401;
const HTTP_PORT: u16 = 7_410;
const GRPC_PORT: u16 = 7_420;
const EDGE_ADMIN_PORT: u16 = 7_430;
const CORE_ADMIN_PORT: u16 = 7_431;
/// What all cores of a cluster share in Cassandra.
const KEYSPACE: &str = "trunkline";
const ANSWER_MS: u64 = 2_000;

/// A part of the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Core,
    Edge,
}

impl Part {
    /// The subcommand that runs it, and the beginning of its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Edge => "edge",
        }
    }

    fn admin_port(self) -> u16 {
        match self {
            Self::Core => CORE_ADMIN_PORT,
            Self::Edge => EDGE_ADMIN_PORT,
        }
    }
}

/// Everything that the parts must know of each other and of the servers.
#[derive(Clone, Debug)]
pub struct Topology {
    /// `trunkline` itself.
    pub binary: PathBuf,
    pub dir: PathBuf,
    pub cores: Vec<Ipv4Addr>,
    pub edges: Vec<Ipv4Addr>,
    /// Where messages are kept; without any, in the one core's directory.
    pub cassandra: Vec<Ipv4Addr>,
    pub redis: Option<Ipv4Addr>,
    pub redis_password: String,
    pub kafka: Option<Ipv4Addr>,
    pub jwt_secret: String,
}

/// What a part is started with: flags, and what no process list may show.
#[derive(Clone, Debug)]
pub struct CommandLine {
    pub flags: Vec<String>,
    pub env: Vec<(String, String)>,
}

impl Topology {
    fn address(&self, part: Part, index: usize) -> Result<Ipv4Addr, ClusterError> {
        let all = match part {
            Part::Core => &self.cores,
            Part::Edge => &self.edges,
        };
        all.get(index).copied().ok_or_else(|| {
            ClusterError::Usage(format!("there is no {} {}", part.as_str(), index + 1))
        })
    }

    /// How the part is told all it must know: the one place that does. What it does not know yet, it
    /// refuses itself (see [`check`](Self::check)).
    pub fn command_line(&self, part: Part, index: usize) -> Result<CommandLine, ClusterError> {
        let own = self.address(part, index)?;
        let number = index + 1;
        let mut env = vec![("TRUNKLINE_JWT_SECRET".to_owned(), self.jwt_secret.clone())];
        let at = |ip: &Ipv4Addr, port| format!("{ip}:{port}");
        let list = |ips: &[Ipv4Addr], port, scheme: &str| {
            let all: Vec<_> = ips
                .iter()
                .map(|ip| format!("{scheme}{ip}:{port}"))
                .collect();
            all.join(",")
        };
        let mut told = vec![("admin", at(&own, part.admin_port()))];
        match part {
            Part::Core => {
                told.extend([
                    ("http", at(&own, HTTP_PORT)),
                    ("grpc", at(&own, GRPC_PORT)),
                    ("worker-id", number.to_string()),
                    (
                        "data",
                        self.dir_of(part, index).join("data").display().to_string(),
                    ),
                ]);
                if let Some(edge) = self.edges.first() {
                    told.push(("ws-url", format!("ws://{}", at(edge, WS_PORT))));
                    told.push(("tcp-url", format!("tcp://{}", at(edge, TCP_PORT))));
                }
                if !self.cassandra.is_empty() {
                    let nodes = list(&self.cassandra, cassandra::NATIVE_PORT, "");
                    told.push(("store", format!("cassandra://{nodes}/{KEYSPACE}")));
                }
                if let Some(ip) = &self.redis {
                    let url = format!("redis://:{}@{}", self.redis_password, at(ip, redis::PORT));
                    env.push(("TRUNKLINE_REGISTRY".into(), url));
                }
                if let Some(ip) = &self.kafka {
                    told.push(("bus", format!("kafka://{}", at(ip, kafka::PORT))));
                }
            }
            Part::Edge => told.extend([
                ("ws", at(&own, WS_PORT)),
                ("tcp", at(&own, TCP_PORT)),
                ("edge-id", format!("edge-{number}")),
                ("core", list(&self.cores, GRPC_PORT, "http://")),
            ]),
        }
        let mut flags: Vec<String> = told
            .into_iter()
            .flat_map(|(flag, value)| [format!("--{flag}"), value])
            .collect();
        if part == Part::Core {
            // Everything listens on loopback.
            flags.push("--dev-tokens".into());
        }
        Ok(CommandLine { flags, env })
    }

    /// The part's own directory.
    pub fn dir_of(&self, part: Part, index: usize) -> PathBuf {
        self.dir.join(format!("{}-{}", part.as_str(), index + 1))
    }

    /// Asks the binary whether it can do what the parts would be told, before anything is started.
    pub fn check(&self) -> Result<(), ClusterError> {
        for (part, count) in [
            (Part::Core, self.cores.len()),
            (Part::Edge, self.edges.len()),
        ] {
            for index in 0..count {
                let line = self.command_line(part, index)?;
                let output = Command::new(&self.binary)
                    .args(["config", "check", "--role", part.as_str()])
                    .args(&line.flags)
                    .envs(line.env)
                    .output()
                    .context(|| self.binary.display().to_string())?;
                if !output.status.success() {
                    return Err(ClusterError::Usage(format!(
                        "{} {} cannot run in this cluster:\n{}",
                        part.as_str(),
                        index + 1,
                        String::from_utf8_lossy(&[output.stdout, output.stderr].concat())
                            .trim_end()
                    )));
                }
            }
        }
        Ok(())
    }
}

/// A core or an edge that was started.
#[derive(Debug)]
pub struct PlatformNode {
    admin: SocketAddr,
    server: Server,
}

impl PlatformNode {
    /// Starts it; it is not ready yet.
    pub fn start(
        topology: &Topology,
        part: Part,
        index: usize,
        lifetime: Lifetime,
    ) -> Result<Self, ClusterError> {
        let line = topology.command_line(part, index)?;
        let args = [vec![part.as_str().to_owned()], line.flags].concat();
        let launch = Launch {
            name: format!("{}-{}", part.as_str(), index + 1),
            program: topology.binary.clone(),
            args,
            env: line.env,
            dir: topology.dir_of(part, index),
            lifetime,
        };
        Ok(Self {
            admin: SocketAddr::from((topology.address(part, index)?, part.admin_port())),
            server: Server::start(launch)?,
        })
    }
}

impl Node for PlatformNode {
    fn server(&self) -> &Server {
        &self.server
    }

    fn server_mut(&mut self) -> &mut Server {
        &mut self.server
    }

    fn wait_ready(&self, patience: Duration) -> Result<(), ClusterError> {
        self.server.wait_until(patience, || {
            let asked = ureq::get(format!("http://{}/readyz", self.admin))
                .config()
                .timeout_global(Some(Duration::from_millis(ANSWER_MS)))
                // A proxy of this machine's is for other places.
                .proxy(None)
                .build()
                .call();
            asked.map(|_| ()).map_err(|e| e.to_string())
        })
    }
}

/// Where people look at a part, for `status`.
pub fn place(part: Part, address: Ipv4Addr) -> String {
    match part {
        Part::Core => format!("http://{address}:{HTTP_PORT}/"),
        Part::Edge => format!("ws://{address}:{WS_PORT}"),
    }
}

/// The path of a file with a secret in `dir`, made with fresh randomness when it is not there.
pub fn secret(dir: &Path, name: &str) -> Result<String, ClusterError> {
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = dir.join(name);
    let what = || path.display().to_string();
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context(what),
        _ => {}
    }
    let mut random = [0; 32];
    let mut source = std::fs::File::open("/dev/urandom").context(|| "/dev/urandom".into())?;
    source
        .read_exact(&mut random)
        .context(|| "/dev/urandom".into())?;
    let text: String = random.iter().map(|b| format!("{b:02x}")).collect();
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = file.open(&path).context(what)?;
    file.write_all(text.as_bytes()).context(what)?;
    Ok(text)
}
