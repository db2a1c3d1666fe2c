//! A Kafka 4 broker that is its own controller (KRaft). Called by `up` and tests.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::{ClusterError, Context as _};
use crate::install::Installed;
use crate::java;
use crate::node::{Node, Server};
use crate::process::{Launch, Lifetime};

/// Where clients connect.
pub const PORT: u16 = 9_092;
/// Where the broker talks to its own controller.
pub const CONTROLLER_PORT: u16 = 9_093;
const DIRECT_MIB: u32 = 64;
const ANSWER_MS: u64 = 2_000;
/// ApiVersions, version 0, correlation 1, client id "t", behind its length: every broker answers it.
const API_VERSIONS: [u8; 15] = [0, 0, 0, 11, 0, 18, 0, 0, 0, 0, 0, 1, 0, 1, b't'];

/// One broker.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    /// Data, configuration, log and pid file.
    pub dir: PathBuf,
    pub address: Ipv4Addr,
    pub port: u16,
    pub controller_port: u16,
    pub heap_mib: u32,
    pub lifetime: Lifetime,
}

impl KafkaConfig {
    /// On its usual ports, with a heap that is enough for one machine's topics.
    pub fn at(dir: PathBuf, address: Ipv4Addr) -> Self {
        Self {
            dir,
            address,
            port: PORT,
            controller_port: CONTROLLER_PORT,
            heap_mib: 256,
            lifetime: Lifetime::Bound,
        }
    }

    fn text(&self) -> String {
        let Self {
            address,
            port,
            controller_port,
            ..
        } = self;
        let mut lines = vec![
            "process.roles=broker,controller".to_owned(),
            "node.id=1".into(),
            format!("controller.quorum.voters=1@{address}:{controller_port}"),
            format!(
                "listeners=CLIENTS://{address}:{port},CONTROLLER://{address}:{controller_port}"
            ),
            format!("advertised.listeners=CLIENTS://{address}:{port}"),
            "controller.listener.names=CONTROLLER".into(),
            "inter.broker.listener.name=CLIENTS".into(),
            "listener.security.protocol.map=CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT".into(),
            format!("log.dirs={}", self.dir.join("data").display()),
            "num.network.threads=2".into(),
            "num.io.threads=4".into(),
            "num.partitions=4".into(),
            "group.initial.rebalance.delay.ms=0".into(),
            "log.cleaner.dedupe.buffer.size=16777216".into(),
        ];
        // Kafka keeps three copies of its own topics by default; there is one broker.
        for topic in [
            "offsets.topic",
            "transaction.state.log",
            "share.coordinator.state.topic",
        ] {
            lines.push(format!("{topic}.replication.factor=1"));
        }
        for topic in ["transaction.state.log", "share.coordinator.state.topic"] {
            lines.push(format!("{topic}.min.isr=1"));
        }
        for topic in [
            "offsets.topic",
            "transaction.state.log",
            "share.coordinator.state.topic",
        ] {
            lines.push(format!("{topic}.num.partitions=4"));
        }
        lines.join("\n") + "\n"
    }
}

/// A broker that was started.
#[derive(Debug)]
pub struct KafkaNode {
    config: KafkaConfig,
    java: PathBuf,
    class_path: String,
    server: Server,
}

impl KafkaNode {
    /// Writes its configuration, prepares its data directory the first time, and starts it; it is not ready
    /// yet.
    pub fn start(installed: &Installed, config: KafkaConfig) -> Result<Self, ClusterError> {
        let dir = &config.dir;
        fs::create_dir_all(dir.join("data")).context(|| dir.display().to_string())?;
        let file = dir.join("server.properties");
        fs::write(&file, config.text()).context(|| file.display().to_string())?;
        let (java, class_path) = (installed.java()?.to_owned(), installed.class_path("kafka")?);
        let properties = file.display().to_string();

        if !dir.join("data/meta.properties").exists() {
            let cluster = URL_SAFE_NO_PAD.encode(uuid::Uuid::now_v7());
            let words = [
                "kafka.tools.StorageTool",
                "format",
                "-t",
                &cluster,
                "-c",
                &properties,
            ];
            run_tool(&java, &config, &class_path, &words, "")?;
        }
        let mut flags = java::memory_flags(config.heap_mib, DIRECT_MIB);
        flags.push("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn".into());
        let args = java::arguments(
            dir,
            "java",
            &flags,
            &class_path,
            &["kafka.Kafka", &properties],
        )?;
        let launch = Launch {
            name: "kafka-1".into(),
            program: java.clone(),
            args,
            env: Vec::new(),
            dir: dir.clone(),
            lifetime: config.lifetime,
        };
        Ok(Self {
            server: Server::start(launch)?,
            java,
            class_path,
            config,
        })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.config.address, self.config.port))
    }

    /// Runs one of Kafka's own command-line tools (`org.apache.kafka.tools.…`) with `input`; what it prints.
    /// `--bootstrap-server` is added.
    pub fn tool(&self, class: &str, words: &[&str], input: &str) -> Result<String, ClusterError> {
        let address = self.address().to_string();
        let words = [&[class, "--bootstrap-server", &address], words].concat();
        run_tool(&self.java, &self.config, &self.class_path, &words, input)
    }
}

fn run_tool(
    java: &std::path::Path,
    config: &KafkaConfig,
    class_path: &str,
    class: &[&str],
    input: &str,
) -> Result<String, ClusterError> {
    let flags = java::memory_flags(config.heap_mib, DIRECT_MIB);
    let args = java::arguments(&config.dir, "tool", &flags, class_path, class)?;
    let what = || class.join(" ");
    let mut child = Command::new(java)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(what)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that ended early says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().context(what)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(ClusterError::Install {
        what: what(),
        detail: String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
    })
}

impl Node for KafkaNode {
    fn server(&self) -> &Server {
        &self.server
    }

    fn server_mut(&mut self) -> &mut Server {
        &mut self.server
    }

    fn wait_ready(&self, patience: Duration) -> Result<(), ClusterError> {
        self.server.wait_until(patience, || {
            answers(self.address()).map_err(|e| e.to_string())
        })
    }
}

fn answers(address: SocketAddr) -> std::io::Result<()> {
    let patience = Duration::from_millis(ANSWER_MS);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(&API_VERSIONS)?;
    // Length, correlation.
    let mut head = [0; 8];
    stream.read_exact(&mut head)?;
    if head[4..] == API_VERSIONS[8..12] {
        return Ok(());
    }
    Err(std::io::Error::other("it answers, but not as Kafka does"))
}
