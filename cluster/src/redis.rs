//! A Redis (or Valkey) server, with a password and TLS where wanted. Called by `up` and tests.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::error::{ClusterError, Context as _};
use crate::install::{Installed, RedisPrograms};
use crate::node::{Node, Server};
use crate::process::{Launch, Lifetime};

/// Redis' own port.
pub const PORT: u16 = 6_379;
const MEMORY_MIB: u32 = 256;

/// Files in PEM for a server that speaks nothing but TLS.
#[derive(Clone, Debug)]
pub struct RedisTls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Who signed the server's certificate; clients need none.
    pub ca: PathBuf,
}

/// One server.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// Data, configuration, log and pid file.
    pub dir: PathBuf,
    pub address: Ipv4Addr,
    pub port: u16,
    /// Clients must give it; letters and digits.
    pub password: Option<String>,
    pub tls: Option<RedisTls>,
    pub lifetime: Lifetime,
}

impl RedisConfig {
    fn text(&self) -> Result<String, ClusterError> {
        let mut lines = vec![
            format!("bind {}", self.address),
            format!("dir \"{}\"", self.dir.display()),
            format!("maxmemory {MEMORY_MIB}mb"),
            // What is full refuses; nothing is thrown away behind somebody's back.
            "maxmemory-policy noeviction".into(),
            // Each second: what a restart finds is at most so old.
            "appendonly yes".into(),
            "appendfsync everysec".into(),
            "save \"\"".into(),
            "daemonize no".into(),
        ];
        if let Some(password) = &self.password {
            if password.is_empty() || !password.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err(ClusterError::Usage(
                    "a Redis password is of letters and digits here".into(),
                ));
            }
            lines.push(format!("requirepass {password}"));
        }
        match &self.tls {
            None => lines.push(format!("port {}", self.port)),
            Some(tls) => lines.extend([
                "port 0".into(),
                format!("tls-port {}", self.port),
                format!("tls-cert-file \"{}\"", tls.certificate.display()),
                format!("tls-key-file \"{}\"", tls.key.display()),
                format!("tls-ca-cert-file \"{}\"", tls.ca.display()),
                "tls-auth-clients no".into(),
            ]),
        }
        Ok(lines.join("\n") + "\n")
    }
}

/// A server that was started.
#[derive(Debug)]
pub struct RedisNode {
    config: RedisConfig,
    programs: RedisPrograms,
    server: Server,
}

impl RedisNode {
    /// Writes its configuration and starts it; it is not ready yet.
    pub fn start(installed: &Installed, config: RedisConfig) -> Result<Self, ClusterError> {
        let programs = installed.redis()?.clone();
        let file = config.dir.join("redis.conf");
        fs::create_dir_all(&config.dir).context(|| config.dir.display().to_string())?;
        fs::write(&file, config.text()?).context(|| file.display().to_string())?;
        let launch = Launch {
            name: "redis-1".into(),
            program: programs.server.clone(),
            args: vec![file.display().to_string()],
            env: Vec::new(),
            dir: config.dir.clone(),
            lifetime: config.lifetime,
        };
        Ok(Self {
            server: Server::start(launch)?,
            programs,
            config,
        })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.config.address, self.config.port))
    }

    /// Runs one command with Redis' own client, under this password; what it prints.
    pub fn command(&self, password: Option<&str>, words: &[&str]) -> Result<String, ClusterError> {
        let mut client = Command::new(&self.programs.client);
        client.args(["-h", &self.config.address.to_string()]);
        client.args(["-p", &self.config.port.to_string()]);
        if let Some(tls) = &self.config.tls {
            client.arg("--tls").arg("--cacert").arg(&tls.ca);
        }
        // In the environment, where other users cannot read it.
        match password {
            Some(password) => client.env("REDISCLI_AUTH", password),
            None => client.env_remove("REDISCLI_AUTH"),
        };
        let output = client
            .args(words)
            .output()
            .context(|| self.programs.client.display().to_string())?;
        let said = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&said).trim().to_owned())
    }
}

impl Node for RedisNode {
    fn server(&self) -> &Server {
        &self.server
    }

    fn server_mut(&mut self) -> &mut Server {
        &mut self.server
    }

    fn wait_ready(&self, patience: Duration) -> Result<(), ClusterError> {
        self.server.wait_until(patience, || {
            let said = self.command(self.config.password.as_deref(), &["PING"]);
            match said.map_err(|e| e.to_string())?.as_str() {
                "PONG" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
    }
}
