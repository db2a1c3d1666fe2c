//! A whole cluster in a directory: `up`, `status`, `down`. Called by `trunkline cluster`.
//!
//! The directory holds `cluster.json` (what belongs to it), two secrets, and one directory for each process
//! with its pid file, log, configuration and data. Nothing else is remembered anywhere, so that `down`
//! finds everything also after `up` was interrupted.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::cassandra::{self, CassandraConfig, CassandraNode, CommitLogSync};
use crate::error::{ClusterError, Context as _};
use crate::install::{Wanted, install};
use crate::kafka::{self, KafkaConfig, KafkaNode};
use crate::node::Node;
use crate::platform::{self, Part, PlatformNode, Topology};
use crate::process::{Lifetime, Process, State};
use crate::redis::{self, RedisConfig, RedisNode};

const SHAPE_FILE: &str = "cluster.json";
const LOCK_FILE: &str = "lock";
const JWT_FILE: &str = "jwt-secret";
const REDIS_FILE: &str = "redis-password";
/// More processes of a kind than a machine for trying things out can be meant to hold.
pub const PARTS_MAX: u8 = 16;
pub const CASSANDRA_MAX: u8 = 9;
const READY_MS: u64 = 300_000;
/// What is not gone by then is killed.
const DOWN_MS: u64 = 60_000;
/// Resident beside the heap, measured: Cassandra's classes, compiled code, buffers and memtables.
const CASSANDRA_BESIDE_HEAP_MIB: u64 = 450;
const KAFKA_MIB: u64 = 350;
const OTHER_MIB: u64 = 128;

/// How many of each, and where: what `cluster.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// The first of each kind listens here, the next ones on the following addresses.
    pub base: Ipv4Addr,
    pub cassandra: u8,
    pub redis: u8,
    pub kafka: u8,
    pub cores: u8,
    pub edges: u8,
}

/// What `up` is asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    pub shape: Shape,
    pub dir: PathBuf,
    pub cache: PathBuf,
    /// `trunkline` itself.
    pub binary: PathBuf,
    /// Of each Cassandra node.
    pub heap_mib: u32,
    pub commitlog_sync: CommitLogSync,
}

/// One process, for people and tools.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub name: String,
    /// `running`, `paused`, `ended`.
    pub state: &'static str,
    pub pid: Option<u32>,
    pub resident_bytes: Option<u64>,
    pub address: String,
    pub log: PathBuf,
}

impl Shape {
    fn addresses(&self, count: u8) -> Vec<Ipv4Addr> {
        let [a, b, c, d] = self.base.octets();
        (0..count)
            .map(|i| Ipv4Addr::new(a, b, c, d.saturating_add(i)))
            .collect()
    }

    fn check(&self) -> Result<(), ClusterError> {
        let most = [
            self.cassandra,
            self.redis,
            self.kafka,
            self.cores,
            self.edges,
        ];
        let most = most.into_iter().max().unwrap_or(0);
        let wrong = if !self.base.is_loopback() || self.base.octets()[3].checked_add(most).is_none()
        {
            Some(format!(
                "{} is no loopback address with {most} after it",
                self.base
            ))
        } else if most == 0 {
            Some("nothing to start: name at least one of --cores and --cassandra".into())
        } else if self.cassandra > CASSANDRA_MAX || self.cores.max(self.edges) > PARTS_MAX {
            Some(format!(
                "at most {CASSANDRA_MAX} Cassandra nodes, {PARTS_MAX} cores, {PARTS_MAX} edges"
            ))
        } else if self.redis.max(self.kafka) > 1 {
            Some("at most one Redis and one Kafka".into())
        } else if self.edges > 0 && self.cores == 0 {
            Some("edges need a core: --cores 1".into())
        } else if self.cores > 1 && self.cassandra == 0 {
            Some(format!(
                "{} cores need a store that they share: --cassandra 3, or else --cores 1",
                self.cores
            ))
        } else {
            None
        };
        wrong.map_or(Ok(()), |text| Err(ClusterError::Usage(text)))
    }

    /// Every process by name with its address, in the order of starting.
    fn processes(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        let mut add = |kind: &str, count, place: &dyn Fn(Ipv4Addr) -> String| {
            for (index, ip) in self.addresses(count).into_iter().enumerate() {
                all.push((format!("{kind}-{}", index + 1), place(ip)));
            }
        };
        add("cassandra", self.cassandra, &|ip| {
            format!("{ip}:{}", cassandra::NATIVE_PORT)
        });
        add("redis", self.redis, &|ip| format!("{ip}:{}", redis::PORT));
        add("kafka", self.kafka, &|ip| format!("{ip}:{}", kafka::PORT));
        for (part, count) in [(Part::Core, self.cores), (Part::Edge, self.edges)] {
            add(part.as_str(), count, &|ip| platform::place(part, ip));
        }
        all
    }
}

/// Starts everything and waits until it is ready. `tell` gets a line for each thing that is. On failure
/// what was started is ended again; logs stay.
pub fn up(plan: &Plan, tell: &mut dyn FnMut(&str)) -> Result<Vec<Report>, ClusterError> {
    let shape = &plan.shape;
    shape.check()?;
    let dir = std::path::absolute(&plan.dir).context(|| plan.dir.display().to_string())?;
    let is_new = !dir.exists();
    fs::create_dir_all(&dir).context(|| dir.display().to_string())?;
    let _lock = lock(&dir)?;
    let topology = prepare(plan, &dir)
        .and_then(|topology| topology.check().map(|()| topology))
        .inspect_err(|_| {
            if is_new {
                // Nothing has begun; what is left of the attempt is of no use to anybody.
                let _ = forget(&dir, shape);
            }
        })?;
    let text = serde_json::to_string_pretty(shape).context(|| SHAPE_FILE.into())?;
    fs::write(dir.join(SHAPE_FILE), text).context(|| dir.join(SHAPE_FILE).display().to_string())?;
    if let Err(error) = start_all(plan, &topology, tell) {
        end_all(&dir, shape, &mut |_| {})?;
        return Err(error);
    }
    status(&dir)
}

/// Checks that nothing runs there and that the machine has room; makes the secrets.
fn prepare(plan: &Plan, dir: &Path) -> Result<Topology, ClusterError> {
    let shape = &plan.shape;
    if dir.join(SHAPE_FILE).exists() {
        let before = read_shape(dir)?;
        if before
            .processes()
            .iter()
            .any(|(name, _)| Process::find(&dir.join(name)).is_some())
        {
            return Err(ClusterError::Usage(format!(
                "a cluster runs in {0} already: trunkline cluster status --dir {0}, or down",
                dir.display()
            )));
        }
        if before.cassandra > 0 && (before.cassandra, before.base) != (shape.cassandra, shape.base)
        {
            return Err(ClusterError::Usage(format!(
                "{0} holds the data of {1} Cassandra nodes from {2} on: start it as it was, or drop it \
                 with trunkline cluster down --dir {0}",
                dir.display(),
                before.cassandra,
                before.base
            )));
        }
    }
    has_room(plan)?;
    let one = |count: u8| (count > 0).then_some(shape.base);
    Ok(Topology {
        binary: plan.binary.clone(),
        dir: dir.to_owned(),
        cores: shape.addresses(shape.cores),
        edges: shape.addresses(shape.edges),
        cassandra: shape.addresses(shape.cassandra),
        redis: one(shape.redis),
        redis_password: platform::secret(dir, REDIS_FILE)?,
        kafka: one(shape.kafka),
        jwt_secret: platform::secret(dir, JWT_FILE)?,
    })
}

/// Refuses what the machine's memory cannot hold, before the kernel kills somebody for it.
fn has_room(plan: &Plan) -> Result<(), ClusterError> {
    let shape = &plan.shape;
    let node_mib = u64::from(plan.heap_mib) + CASSANDRA_BESIDE_HEAP_MIB;
    let others = u64::from(shape.redis + shape.cores + shape.edges);
    let needed_mib = u64::from(shape.cassandra) * node_mib
        + u64::from(shape.kafka) * KAFKA_MIB
        + others * OTHER_MIB;
    let text = fs::read_to_string("/proc/meminfo").context(|| "/proc/meminfo".into())?;
    let available = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let available_mib = available
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(u64::MAX, |kib| kib / 1024);
    if needed_mib <= available_mib {
        return Ok(());
    }
    Err(ClusterError::Usage(format!(
        "this takes about {needed_mib} MiB and {available_mib} MiB are free: fewer nodes, or a smaller \
         --heap than {} MiB",
        plan.heap_mib
    )))
}

fn start_all(
    plan: &Plan,
    topology: &Topology,
    tell: &mut dyn FnMut(&str),
) -> Result<(), ClusterError> {
    let (shape, dir) = (&plan.shape, &topology.dir);
    let begun = Instant::now();
    let wanted = Wanted {
        cassandra: shape.cassandra > 0,
        redis: shape.redis > 0,
        kafka: shape.kafka > 0,
    };
    let installed = install(&plan.cache, wanted)?;
    let patience = Duration::from_millis(READY_MS);
    let mut ring = Vec::new();
    for index in 0..topology.cassandra.len() {
        let home = dir.join(format!("cassandra-{}", index + 1));
        let config = CassandraConfig {
            heap_mib: plan.heap_mib,
            commitlog_sync: plan.commitlog_sync,
            lifetime: Lifetime::Detached,
            ..CassandraConfig::of_ring(&home, &topology.cassandra, index)
        };
        ring.push(CassandraNode::start(&installed, config)?);
    }
    let mut servers: Vec<Box<dyn Node>> = Vec::new();
    if let Some(address) = topology.redis {
        let config = RedisConfig {
            dir: dir.join("redis-1"),
            address,
            port: redis::PORT,
            password: Some(topology.redis_password.clone()),
            tls: None,
            lifetime: Lifetime::Detached,
        };
        servers.push(Box::new(RedisNode::start(&installed, config)?));
    }
    if let Some(address) = topology.kafka {
        let config = KafkaConfig {
            lifetime: Lifetime::Detached,
            ..KafkaConfig::at(dir.join("kafka-1"), address)
        };
        servers.push(Box::new(KafkaNode::start(&installed, config)?));
    }
    let mut ready = |node: &dyn Node| {
        node.wait_ready(patience)?;
        let name = node.server().name();
        tell(&format!("{name} is ready after {:.1?}", begun.elapsed()));
        Ok::<(), ClusterError>(())
    };
    for node in &servers {
        ready(&**node)?;
    }
    for node in &ring {
        ready(node)?;
    }
    for node in &ring {
        node.wait_ring(patience)?;
    }
    for (part, count) in [(Part::Core, shape.cores), (Part::Edge, shape.edges)] {
        let parts: Result<Vec<_>, _> = (0..usize::from(count))
            .map(|index| PlatformNode::start(topology, part, index, Lifetime::Detached))
            .collect();
        for node in &parts? {
            ready(node)?;
        }
    }
    Ok(())
}

/// What runs of the cluster in `dir`.
pub fn status(dir: &Path) -> Result<Vec<Report>, ClusterError> {
    let shape = read_shape(dir)?;
    let report = |(name, address): (String, String)| {
        let home = dir.join(&name);
        let process = Process::find(&home);
        Report {
            state: match process.as_ref().map_or(State::Ended, Process::state) {
                State::Running => "running",
                State::Paused => "paused",
                State::Ended => "ended",
            },
            pid: process.as_ref().map(Process::pid),
            resident_bytes: process.as_ref().and_then(Process::rss_bytes),
            address,
            log: crate::process::log_path(&home),
            name,
        }
    };
    Ok(shape.processes().into_iter().map(report).collect())
}

/// Ends everything, clients' side first, and removes all files unless `keep`.
pub fn down(dir: &Path, keep: bool, tell: &mut dyn FnMut(&str)) -> Result<(), ClusterError> {
    read_shape(dir)?;
    let _lock = lock(dir)?;
    // Read again: somebody else may have been at it.
    let shape = read_shape(dir)?;
    end_all(dir, &shape, tell)?;
    if !keep {
        forget(dir, &shape)?;
    }
    Ok(())
}

fn end_all(dir: &Path, shape: &Shape, tell: &mut dyn FnMut(&str)) -> Result<(), ClusterError> {
    let names: Vec<String> = shape
        .processes()
        .into_iter()
        .rev()
        .map(|(n, _)| n)
        .collect();
    // Edges before cores before servers; those of a kind end together.
    for kind in ["edge-", "core-", "kafka-", "redis-", "cassandra-"] {
        let of_kind = names.iter().filter(|n| n.starts_with(kind));
        let mut ending: Vec<(&String, Process)> = of_kind
            .filter_map(|name| Some((name, Process::find(&dir.join(name))?)))
            .collect();
        for (_, process) in &ending {
            process.signal(Signal::TERM)?;
            process.signal(Signal::CONT)?;
        }
        let patience = Duration::from_millis(DOWN_MS);
        for (name, process) in &mut ending {
            if process.wait_ended(patience) {
                continue;
            }
            tell(&format!("{name} did not end within {patience:?}: killed"));
            process.signal(Signal::KILL)?;
            if !process.wait_ended(patience) {
                return Err(ClusterError::Stuck {
                    name: (*name).clone(),
                    pid: process.pid(),
                    waited: patience,
                });
            }
        }
    }
    Ok(())
}

/// Removes what `up` made, and the directory if nobody else keeps anything in it.
fn forget(dir: &Path, shape: &Shape) -> Result<(), ClusterError> {
    let gone = |done: std::io::Result<()>, path: &Path| match done {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).context(|| path.display().to_string())
        }
        _ => Ok(()),
    };
    for (name, _) in shape.processes() {
        let home = dir.join(name);
        gone(fs::remove_dir_all(&home), &home)?;
    }
    for name in [JWT_FILE, REDIS_FILE, SHAPE_FILE, LOCK_FILE] {
        let file = dir.join(name);
        gone(fs::remove_file(&file), &file)?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
        done => gone(done, dir),
    }
}

fn read_shape(dir: &Path) -> Result<Shape, ClusterError> {
    let file = dir.join(SHAPE_FILE);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(ClusterError::Usage(format!(
                "there is no cluster in {}: --dir names another place",
                dir.display()
            )));
        }
        Err(e) => return Err(e).context(|| file.display().to_string()),
    };
    serde_json::from_str(&text).context(|| file.display().to_string())
}

/// One `up` or `down` of a directory at a time.
fn lock(dir: &Path) -> Result<File, ClusterError> {
    let path = dir.join(LOCK_FILE);
    let file = File::create(&path).context(|| path.display().to_string())?;
    file.lock().context(|| path.display().to_string())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(cassandra: u8, cores: u8, edges: u8) -> Shape {
        Shape {
            base: Ipv4Addr::LOCALHOST,
            cassandra,
            redis: 0,
            kafka: 0,
            cores,
            edges,
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_cure() {
        let refused = |shape: Shape| shape.check().unwrap_err().to_string();
        assert!(refused(shape(0, 2, 2)).contains("--cassandra 3"));
        assert!(refused(shape(3, 0, 2)).contains("--cores 1"));
        assert!(refused(shape(0, 0, 0)).contains("nothing"));
        let public = Shape {
            base: Ipv4Addr::new(10, 0, 0, 1),
            ..shape(1, 0, 0)
        };
        assert!(refused(public).contains("loopback"));
        let end = Shape {
            base: Ipv4Addr::new(127, 0, 0, 254),
            ..shape(3, 0, 0)
        };
        assert!(refused(end).contains("loopback"));
        for good in [shape(0, 1, 2), shape(3, 2, 2), shape(3, 0, 0)] {
            good.check().unwrap();
        }
    }

    #[test]
    fn nothing_that_belongs_to_others_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let shape = shape(0, 1, 0);
        fs::create_dir(dir.path().join("core-1")).unwrap();
        fs::write(dir.path().join("theirs"), "x").unwrap();
        fs::write(
            dir.path().join(SHAPE_FILE),
            serde_json::to_string(&shape).unwrap(),
        )
        .unwrap();
        down(dir.path(), false, &mut |_| {}).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(down(dir.path(), false, &mut |_| {}).is_err());
    }
}
