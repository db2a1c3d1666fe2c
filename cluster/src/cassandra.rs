//! A Cassandra 5.0 node: its configuration, start, and whether it has joined. Called by `up` and tests.
//!
//! The ring is laid out by hand: N nodes of one datacenter own N equal ranges from the first start, so that
//! nothing is streamed and all may start at once.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cql::{Cell, Connection, Consistency};
use crate::error::{ClusterError, Context as _};
use crate::install::Installed;
use crate::java;
use crate::node::{Node, Server};
use crate::process::{Launch, Lifetime};

/// Where every node's native transport listens, on its own address.
pub const NATIVE_PORT: u16 = 9_042;
/// Where nodes listen to each other.
pub const STORAGE_PORT: u16 = 7_000;
/// Netty's and the memtables' memory outside the heap.
const DIRECT_MIB: u32 = 256;
const MAIN_CLASS: &str = "org.apache.cassandra.service.CassandraDaemon";
/// How long a ring has to show that all its nodes send signs of life; they are due every second.
const GOSSIP_LOOK_MS: u64 = 200;

/// When a write is on disk: before it is acknowledged, or some time after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitLogSync {
    /// Acknowledged first, on disk within 10 s; a killed node may forget the last 100 ms.
    Periodic,
    /// On disk first. Wherever a node may be killed.
    Batch,
    /// On disk first, gathered over this many milliseconds.
    Group { window_ms: u32 },
}

impl CommitLogSync {
    /// `periodic`, `batch`, `group`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "periodic" => Some(Self::Periodic),
            "batch" => Some(Self::Batch),
            "group" => Some(Self::Group { window_ms: 5 }),
            _ => None,
        }
    }

    fn yaml(self) -> String {
        match self {
            Self::Periodic => "commitlog_sync: periodic\ncommitlog_sync_period: 10s".into(),
            Self::Batch => "commitlog_sync: batch".into(),
            Self::Group { window_ms } => {
                format!("commitlog_sync: group\ncommitlog_sync_group_window: {window_ms}ms")
            }
        }
    }
}

/// One node of a ring.
#[derive(Clone, Debug)]
pub struct CassandraConfig {
    /// Data, configuration, log and pid file.
    pub dir: PathBuf,
    /// A loopback address of its own.
    pub address: Ipv4Addr,
    pub native_port: u16,
    /// The same on all nodes of a ring.
    pub storage_port: u16,
    /// All nodes of the ring, in order; the node's place in it is that of its address.
    pub ring: Vec<Ipv4Addr>,
    pub cluster_name: String,
    pub heap_mib: u32,
    pub commitlog_sync: CommitLogSync,
    pub lifetime: Lifetime,
}

impl CassandraConfig {
    /// The node at `ring[index]`, with a heap that lets three of them live beside everything else.
    pub fn of_ring(dir: &Path, ring: &[Ipv4Addr], index: usize) -> Self {
        Self {
            dir: dir.to_owned(),
            address: ring.get(index).copied().unwrap_or(Ipv4Addr::LOCALHOST),
            native_port: NATIVE_PORT,
            storage_port: STORAGE_PORT,
            ring: ring.to_vec(),
            cluster_name: "trunkline".into(),
            heap_mib: 512,
            commitlog_sync: CommitLogSync::Batch,
            lifetime: Lifetime::Bound,
        }
    }

    fn index(&self) -> Result<usize, ClusterError> {
        let found = self.ring.iter().position(|&a| a == self.address);
        found.ok_or_else(|| {
            ClusterError::Usage(format!(
                "{} is not in the ring {:?}",
                self.address, self.ring
            ))
        })
    }

    /// Where its share of Murmur3's range begins: -2^63 + index × 2^64 / N.
    fn token(&self) -> Result<i128, ClusterError> {
        let (index, nodes) = (self.index()? as i128, self.ring.len() as i128);
        Ok(i128::from(i64::MIN) + index * (1_i128 << 64) / nodes)
    }

    fn yaml(&self) -> Result<String, ClusterError> {
        let dir = self.dir.display();
        let ring: Vec<String> = self.ring.iter().map(Ipv4Addr::to_string).collect();
        let quarter_mib = (self.heap_mib / 4).max(64);
        let mut yaml = format!(
            "cluster_name: '{}'\nnum_tokens: 1\ninitial_token: {}\nauto_bootstrap: false\n",
            self.cluster_name,
            self.token()?
        );
        let address = self.address;
        for line in [
            format!("listen_address: {address}"),
            format!("rpc_address: {address}"),
            format!("storage_port: {}", self.storage_port),
            format!("native_transport_port: {}", self.native_port),
            format!("data_file_directories: ['{dir}/data']"),
            format!("memtable_heap_space: {quarter_mib}MiB"),
            format!("memtable_offheap_space: {quarter_mib}MiB"),
            self.commitlog_sync.yaml(),
        ] {
            // Writing to a String cannot fail.
            let _ = writeln!(yaml, "{line}");
        }
        for name in ["commitlog", "hints", "saved_caches", "cdc_raw"] {
            let _ = writeln!(yaml, "{name}_directory: '{dir}/{name}'");
        }
        let _ = writeln!(
            yaml,
            "seed_provider:\n  - class_name: org.apache.cassandra.locator.SimpleSeedProvider\n    \
             parameters: [{{ seeds: '{}' }}]",
            ring.join(",")
        );
        yaml += FIXED_YAML;
        Ok(yaml)
    }

    fn flags(&self) -> Vec<String> {
        let dir = self.dir.display();
        let mut flags = java::memory_flags(self.heap_mib, DIRECT_MIB);
        flags.push("-Xss512k".into());
        for (key, value) in [
            ("jdk.attach.allowAttachSelf", "true".to_owned()),
            ("io.netty.tryReflectionSetAccessible", "true".to_owned()),
            ("cassandra.config", format!("file://{dir}/cassandra.yaml")),
            (
                "cassandra-rackdc.properties",
                format!("file://{dir}/rackdc.properties"),
            ),
            ("logback.configurationFile", format!("{dir}/logback.xml")),
            ("cassandra-foreground", "yes".to_owned()),
            ("cassandra.storagedir", dir.to_string()),
            ("cassandra.logdir", dir.to_string()),
            // A ring with given tokens has nothing to wait for.
            ("cassandra.ring_delay_ms", "2000".to_owned()),
            ("cassandra.skip_wait_for_gossip_to_settle", "0".to_owned()),
            ("cassandra.shutdown_announce_in_ms", "100".to_owned()),
        ] {
            flags.push(format!("-D{key}={value}"));
        }
        for (kind, modules) in [("exports", EXPORTS), ("opens", OPENS)] {
            for (module, packages) in modules {
                for package in *packages {
                    flags.push(format!("--add-{kind}={module}/{package}=ALL-UNNAMED"));
                }
            }
        }
        flags
    }
}

/// What does not depend on the node. Sizes and thread counts are for several nodes on few cores.
const FIXED_YAML: &str = "\
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: GossipingPropertyFileSnitch
authenticator: AllowAllAuthenticator
authorizer: AllowAllAuthorizer
# A new cluster: no formats of older versions.
storage_compatibility_mode: NONE
# `auto` means direct I/O on an SSD: a killed node then forgets up to a whole period of `periodic`.
commitlog_disk_access_mode: mmap
commitlog_segment_size: 16MiB
commitlog_total_space: 256MiB
disk_failure_policy: stop
commit_failure_policy: stop
auto_snapshot: false
memtable_allocation_type: offheap_objects
memtable_flush_writers: 1
concurrent_reads: 16
concurrent_writes: 32
concurrent_compactors: 1
native_transport_max_threads: 32
file_cache_size: 32MiB
networking_cache_size: 16MiB
key_cache_size: 0MiB
row_cache_size: 0MiB
counter_cache_size: 0MiB
prepared_statements_cache_size: 8MiB
paxos_variant: v2
# Room for a machine that does other things as well.
read_request_timeout: 10s
write_request_timeout: 5s
range_request_timeout: 15s
request_timeout: 15s
";

/// What Cassandra takes out of Java's own modules (its `conf/jvm17-server.options`).
const EXPORTS: &[(&str, &[&str])] = &[
    (
        "java.base",
        &[
            "jdk.internal.misc",
            "jdk.internal.ref",
            "java.lang.ref",
            "sun.nio.ch",
        ],
    ),
    ("java.management.rmi", &["com.sun.jmx.remote.internal.rmi"]),
    ("java.rmi", &["sun.rmi.registry", "sun.rmi.server"]),
    ("java.sql", &["java.sql"]),
    ("jdk.attach", &["sun.tools.attach"]),
    ("jdk.unsupported", &["sun.misc"]),
];
const OPENS: &[(&str, &[&str])] = &[
    (
        "java.base",
        &[
            "java.io",
            "java.lang",
            "java.lang.module",
            "java.lang.reflect",
            "java.net",
            "java.nio",
            "java.util",
            "java.util.concurrent",
            "java.util.concurrent.atomic",
            "jdk.internal.loader",
            "jdk.internal.math",
            "jdk.internal.module",
            "jdk.internal.ref",
            "jdk.internal.reflect",
            "jdk.internal.util.jar",
            "sun.nio.ch",
        ],
    ),
    ("jdk.management", &["com.sun.management.internal"]),
];

const LOGBACK: &str = "\
<configuration>
  <appender name='out' class='ch.qos.logback.core.ConsoleAppender'>
    <encoder><pattern>%date %-5level [%thread] %logger{1}: %msg%n</pattern></encoder>
  </appender>
  <root level='INFO'><appender-ref ref='out'/></root>
</configuration>
";

/// A node that was started.
#[derive(Debug)]
pub struct CassandraNode {
    config: CassandraConfig,
    server: Server,
}

impl CassandraNode {
    /// Writes its configuration and starts it; it is not ready yet.
    pub fn start(installed: &Installed, config: CassandraConfig) -> Result<Self, ClusterError> {
        let dir = &config.dir;
        fs::create_dir_all(dir).context(|| dir.display().to_string())?;
        let rack = format!("dc=dc1\nrack=rack{}\n", config.index()? + 1);
        for (name, text) in [
            ("cassandra.yaml", config.yaml()?),
            ("rackdc.properties", rack),
            ("logback.xml", LOGBACK.to_owned()),
        ] {
            let path = dir.join(name);
            fs::write(&path, text).context(|| path.display().to_string())?;
        }
        let class_path = installed.class_path("cassandra")?;
        let launch = Launch {
            program: installed.java()?.to_owned(),
            args: java::arguments(dir, "java", &config.flags(), &class_path, &[MAIN_CLASS])?,
            ..Self::launch(&config)?
        };
        Ok(Self {
            server: Server::start(launch)?,
            config,
        })
    }

    fn launch(config: &CassandraConfig) -> Result<Launch, ClusterError> {
        Ok(Launch {
            name: format!("cassandra-{}", config.index()? + 1),
            program: "java".into(),
            args: Vec::new(),
            env: Vec::new(),
            dir: config.dir.clone(),
            lifetime: config.lifetime,
        })
    }

    /// Where drivers connect.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.config.address, self.config.native_port))
    }

    /// Waits until this node sees every node of its ring joined (NORMAL) and alive: its count of each
    /// one's heartbeats rises while it is looked at.
    pub fn wait_ring(&self, patience: Duration) -> Result<(), ClusterError> {
        let nodes = self.config.ring.len();
        let mut first: Option<Vec<Peer>> = None;
        let deadline = Instant::now() + patience;
        self.server.wait_until(patience, || {
            let seen = self.peers()?;
            let normal = seen.iter().filter(|p| p.is_normal).count();
            if normal != nodes {
                return Err(format!("it sees {normal} of {nodes} nodes joined"));
            }
            let before = first.get_or_insert_with(|| seen.clone());
            let alive = |p: &&Peer| {
                let then = before.iter().find(|b| b.address == p.address);
                then.is_some_and(|b| (p.generation, p.heartbeat) > (b.generation, b.heartbeat))
            };
            let alive = seen.iter().filter(alive).count();
            if alive == nodes {
                return Ok(());
            }
            if Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(GOSSIP_LOOK_MS));
            }
            Err(format!("it hears {alive} of {nodes} nodes"))
        })
    }

    /// Whom it knows by gossip, itself included.
    fn peers(&self) -> Result<Vec<Peer>, String> {
        let mut connection = Connection::open(self.address()).map_err(|e| e.to_string())?;
        let rows = connection
            .query(
                "SELECT address, generation, heartbeat, status_with_port \
                 FROM system_views.gossip_info",
                Consistency::One,
            )
            .map_err(|e| e.to_string())?;
        Ok(rows.iter().map(|row| Peer::read(row)).collect())
    }
}

/// A row of `system_views.gossip_info`.
#[derive(Clone, Debug)]
struct Peer {
    address: Vec<u8>,
    generation: i32,
    heartbeat: i32,
    is_normal: bool,
}

impl Peer {
    fn read(row: &[Cell]) -> Self {
        let bytes = |index: usize| row.get(index).cloned().flatten().unwrap_or_default();
        let int = |index| bytes(index).try_into().map_or(0, i32::from_be_bytes);
        Self {
            address: bytes(0),
            generation: int(1),
            heartbeat: int(2),
            is_normal: bytes(3).starts_with(b"NORMAL"),
        }
    }
}

impl Node for CassandraNode {
    fn server(&self) -> &Server {
        &self.server
    }

    fn server_mut(&mut self) -> &mut Server {
        &mut self.server
    }

    /// Until its native transport answers, which it does once it has joined.
    fn wait_ready(&self, patience: Duration) -> Result<(), ClusterError> {
        self.server.wait_until(patience, || {
            let mut connection = Connection::open(self.address()).map_err(|e| e.to_string())?;
            let rows = connection.query("SELECT bootstrapped FROM system.local", Consistency::One);
            let state = rows.map_err(|e| e.to_string())?.concat().concat_cells();
            if state == b"COMPLETED" {
                return Ok(());
            }
            Err(format!("it joins: {}", String::from_utf8_lossy(&state)))
        })
    }
}

/// The cells of a row in one.
trait ConcatCells {
    fn concat_cells(self) -> Vec<u8>;
}

impl ConcatCells for Vec<Cell> {
    fn concat_cells(self) -> Vec<u8> {
        self.into_iter().flatten().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_divided_evenly_from_the_smallest_token() {
        let ring: Vec<Ipv4Addr> = (1..=3).map(|i| Ipv4Addr::new(127, 0, 0, i)).collect();
        let token = |index| {
            let config = CassandraConfig::of_ring(Path::new("/x"), &ring, index);
            config.token().unwrap()
        };
        assert_eq!(token(0), i128::from(i64::MIN));
        let third = (1_i128 << 64) / 3;
        assert!((token(1) - token(0) - third).abs() <= 1);
        assert!((token(2) - token(1) - third).abs() <= 1);
        let stranger = CassandraConfig {
            address: Ipv4Addr::new(127, 0, 0, 9),
            ..CassandraConfig::of_ring(Path::new("/x"), &ring, 0)
        };
        assert!(matches!(stranger.token(), Err(ClusterError::Usage(_))));
    }
}
