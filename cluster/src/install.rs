//! Gets what the rig runs: jars from Maven Central (`maven`), Java and Redis from Debian. Called by
//! `trunkline cluster install`, `up`, and tests. Two at once are safe: the second waits for the first.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{ClusterError, Context as _};
use crate::maven::{self, Jar};

/// Cassandra 5.0 runs on 11 and 17 only; Kafka 4 needs 17.
const JAVA_MAJOR: u32 = 17;
const JAVA_PACKAGE: &str = "openjdk-17-jre-headless";
/// Where Debian keeps every Java that is installed.
const JAVA_HOMES: &str = "/usr/lib/jvm";
/// Debian's packages that hold a Redis, best first: 12 has the one, 13 both.
const REDIS_PACKAGES: [&str; 2] = ["redis-server", "valkey-server"];
const LOCK_FILE: &str = "lock";

/// Which servers are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub cassandra: bool,
    pub redis: bool,
    pub kafka: bool,
}

impl Wanted {
    pub const ALL: Self = Self {
        cassandra: true,
        redis: true,
        kafka: true,
    };
}

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Installed {
    java: Option<PathBuf>,
    redis: Option<RedisPrograms>,
    jars: PathBuf,
}

/// The server and its client: of Redis or of Valkey.
#[derive(Clone, Debug)]
pub struct RedisPrograms {
    pub server: PathBuf,
    pub client: PathBuf,
}

/// `$XDG_CACHE_HOME/trunkline/servers`, or `~/.cache/trunkline/servers`.
pub fn default_cache() -> Result<PathBuf, ClusterError> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => std::env::home_dir()
            .ok_or_else(|| ClusterError::Usage("HOME is not set: give --cache DIR".into()))?
            .join(".cache"),
    };
    Ok(base.join("trunkline/servers"))
}

/// Installs what is missing of `wanted`, with the jars in `cache`, and checks what is there.
pub fn install(cache: &Path, wanted: Wanted) -> Result<Installed, ClusterError> {
    fs::create_dir_all(cache).context(|| format!("the cache {}", cache.display()))?;
    // Absolute: servers run in directories of their own.
    let cache = cache
        .canonicalize()
        .context(|| cache.display().to_string())?;
    let lock_path = cache.join(LOCK_FILE);
    let lock = File::create(&lock_path).context(|| lock_path.display().to_string())?;
    lock.lock().context(|| lock_path.display().to_string())?;

    let needs_java = wanted.cassandra || wanted.kafka;
    if needs_java && java().is_none() {
        apt_install(&format!("Java {JAVA_MAJOR}"), &[JAVA_PACKAGE])?;
    }
    if wanted.redis && redis().is_none() {
        apt_install("Redis", &REDIS_PACKAGES)?;
    }
    let jars_dir = cache.join("maven");
    for (is_wanted, server) in [(wanted.cassandra, "cassandra"), (wanted.kafka, "kafka")] {
        if is_wanted {
            maven::fetch(&maven::jars(server)?, &jars_dir)?;
        }
    }
    let installed = Installed {
        java: java(),
        redis: redis(),
        jars: jars_dir,
    };
    if needs_java {
        installed.java()?;
    }
    if wanted.redis {
        installed.redis()?;
    }
    Ok(installed)
}

impl Installed {
    pub fn java(&self) -> Result<&Path, ClusterError> {
        self.java.as_deref().ok_or_else(|| ClusterError::Missing {
            what: format!("Java {JAVA_MAJOR}"),
            cure: format!("as root: apt-get install -y {JAVA_PACKAGE}"),
        })
    }

    pub fn redis(&self) -> Result<&RedisPrograms, ClusterError> {
        self.redis.as_ref().ok_or_else(|| ClusterError::Missing {
            what: "Redis".into(),
            cure: format!("as root: apt-get install -y {}", REDIS_PACKAGES[0]),
        })
    }

    /// The class path of `server` (`cassandra`, `kafka`).
    pub fn class_path(&self, server: &str) -> Result<String, ClusterError> {
        let jars: Vec<Jar> = maven::jars(server)?;
        if let Some(path) = maven::absent(&jars, &self.jars).first() {
            return Err(ClusterError::Missing {
                what: path.display().to_string(),
                cure: "trunkline cluster install fetches it".into(),
            });
        }
        Ok(maven::class_path(&jars, &self.jars))
    }
}

/// The first of `names` in `PATH`.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A Java of the right major version: `JAVA_HOME`'s, the one in `PATH`, or one that Debian keeps aside.
fn java() -> Option<PathBuf> {
    let home = std::env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin/java"));
    let aside = fs::read_dir(JAVA_HOMES).ok().into_iter().flatten();
    let aside = aside.filter_map(|entry| Some(entry.ok()?.path().join("bin/java")));
    home.into_iter()
        .chain(in_path("java"))
        .chain(aside)
        .find(|java| java_major(java) == Some(JAVA_MAJOR))
}

fn java_major(java: &Path) -> Option<u32> {
    let output = Command::new(java).arg("-version").output().ok()?;
    // openjdk version "17.0.15" 2025-04-15
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let quoted = text.split('"').nth(1)?;
    quoted.split(['.', '-', '+']).next()?.parse().ok()
}

fn redis() -> Option<RedisPrograms> {
    let pair = |server, client| {
        Some(RedisPrograms {
            server: in_path(server)?,
            client: in_path(client)?,
        })
    };
    pair("redis-server", "redis-cli").or_else(|| pair("valkey-server", "valkey-cli"))
}

/// Installs the first of `packages` that Debian has; without root it says how.
fn apt_install(what: &str, packages: &[&str]) -> Result<(), ClusterError> {
    let missing = |cure: String| ClusterError::Missing {
        what: what.to_owned(),
        cure,
    };
    if in_path("apt-get").is_none() {
        return Err(missing(format!(
            "this is no Debian: install it so that its commands are in PATH ({})",
            packages.join(" or ")
        )));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(missing(format!(
            "as root: apt-get update && apt-get install -y {}",
            packages.join(" || apt-get install -y ")
        )));
    }
    apt_get(&["update", "-qq"])?;
    let mut last = Ok(());
    for package in packages {
        last = apt_get(&["install", "-y", "-qq", "--no-install-recommends", package]);
        if last.is_ok() {
            break;
        }
    }
    last
}

fn apt_get(args: &[&str]) -> Result<(), ClusterError> {
    let what = format!("apt-get {}", args.join(" "));
    let output = Command::new("apt-get")
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .context(|| what.clone())?;
    if output.status.success() {
        return Ok(());
    }
    Err(ClusterError::Install {
        what,
        detail: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
