//! `trunkline cluster`: Cassandra, Redis, Kafka, cores and edges on this machine, for trying things out.
//! The command line of it, and what it says; the work is done in `cluster`.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command};
use trunkline_cluster::install::default_cache;
use trunkline_cluster::up::{CASSANDRA_MAX, PARTS_MAX, Plan, Report, Shape, down, status, up};
use trunkline_cluster::{ClusterError, CommitLogSync, Wanted, install};

use crate::exit::Failure;

const DIR_DEFAULT: &str = "./cluster-data";
const SYNCS: [&str; 3] = ["batch", "group", "periodic"];
const SERVERS: [&str; 3] = ["cassandra", "redis", "kafka"];

/// The command line of `trunkline cluster`.
pub fn command() -> Command {
    Command::new("cluster")
        .about("Run Cassandra, Redis, Kafka, cores and edges on this machine, to try things out")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(install_command())
        .subcommand(up_command())
        .subcommand(
            Command::new("servers")
                .about("Cassandra, Redis and Kafka alone")
                .subcommand_required(true)
                .arg_required_else_help(true)
                .subcommand(servers_up_command()),
        )
        .subcommand(
            Command::new("status")
                .about("Say what runs, where, and how much memory it holds")
                .arg(dir_flag())
                .arg(
                    Arg::new("json")
                        .long("json")
                        .action(ArgAction::SetTrue)
                        .help("For tools"),
                )
                .after_help("Exit code 0: everything runs. 1: something does not."),
        )
        .subcommand(
            Command::new("down")
                .about("End everything, and remove its files")
                .arg(dir_flag())
                .arg(
                    Arg::new("keep")
                        .long("keep")
                        .action(ArgAction::SetTrue)
                        .help("Keep data and logs; `up` goes on with them"),
                ),
        )
        .after_help(
            "Everything listens on loopback addresses. What it takes: docs/operating/cluster.md.\n\n\
             Examples:\n  \
             trunkline cluster up --edges 2 --cores 1          no other servers\n  \
             trunkline cluster servers up                      3 × Cassandra, Redis, Kafka\n  \
             trunkline cluster status\n  \
             trunkline cluster down",
        )
}

fn install_command() -> Command {
    Command::new("install")
        .about("Fetch the servers: Maven Central by checksum, Debian packages")
        .arg(
            Arg::new("servers")
                .value_name("SERVER")
                .num_args(0..)
                .value_parser(SERVERS)
                .help("Which [default: all]"),
        )
        .arg(cache_flag())
        .after_help(
            "Java and Redis are Debian packages: as root they are installed, otherwise the command \
             that does it is printed. Run again, it checks what is there.",
        )
}

fn up_command() -> Command {
    let command = Command::new("up")
        .about("Start everything, and wait until it is ready")
        .arg(count_flag("edges", PARTS_MAX, "2").help("How many edges"))
        .arg(count_flag("cores", PARTS_MAX, "1").help("How many cores; several need --cassandra"));
    with_servers(command, ["0", "0", "0"])
}

fn servers_up_command() -> Command {
    let command = Command::new("up").about("Start them, and wait until they are ready");
    with_servers(command, ["3", "1", "1"])
}

/// The flags of the servers, with how many of each there are by default.
fn with_servers(command: Command, [cassandra, redis, kafka]: [&'static str; 3]) -> Command {
    command
        .arg(count_flag("cassandra", CASSANDRA_MAX, cassandra).help("How many Cassandra nodes"))
        .arg(count_flag("redis", 1, redis).help("Whether Redis runs"))
        .arg(count_flag("kafka", 1, kafka).help("Whether Kafka runs"))
        .arg(dir_flag())
        .arg(
            Arg::new("base")
                .long("base")
                .value_name("ADDRESS")
                .default_value("127.0.0.1")
                .value_parser(clap::value_parser!(Ipv4Addr))
                .help("The first of each kind listens here, the next on the addresses after it"),
        )
        .arg(
            Arg::new("heap")
                .long("heap")
                .value_name("MIB")
                .default_value("1024")
                .value_parser(clap::value_parser!(u32).range(256..=32_768))
                .help("Heap of each Cassandra node"),
        )
        .arg(
            Arg::new("commitlog")
                .long("commitlog")
                .value_name("WHEN")
                .default_value("batch")
                .value_parser(SYNCS)
                .help("Cassandra writes to disk before it acknowledges (batch, group), or later"),
        )
        .arg(cache_flag())
}

fn count_flag(name: &'static str, max: u8, default: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("COUNT")
        .default_value(default)
        .value_parser(clap::value_parser!(u8).range(0..=i64::from(max)))
}

fn dir_flag() -> Arg {
    Arg::new("dir")
        .long("dir")
        .value_name("DIR")
        .default_value(DIR_DEFAULT)
        .value_parser(clap::value_parser!(PathBuf))
        .help("Where the cluster's data, logs and pid files are")
}

fn cache_flag() -> Arg {
    Arg::new("cache")
        .long("cache")
        .value_name("DIR")
        .value_parser(clap::value_parser!(PathBuf))
        .help("Where downloads are kept [default: ~/.cache/trunkline/servers]")
}

pub fn run(matches: &ArgMatches) -> Result<String, Failure> {
    match matches.subcommand() {
        Some(("install", matches)) => run_install(matches),
        Some(("up", matches)) => run_up(matches),
        Some(("servers", matches)) => match matches.subcommand() {
            Some((_, matches)) => run_up(matches),
            None => Err(Failure::Runtime("no such subcommand".into())),
        },
        Some(("status", matches)) => {
            let reports = status(&path(matches, "dir")?).map_err(failure)?;
            let text = if matches.get_flag("json") {
                let text = serde_json::to_string_pretty(&reports);
                text.map_err(|e| Failure::Runtime(e.to_string()))? + "\n"
            } else {
                table(&reports)
            };
            if reports.iter().all(|r| r.state == "running") {
                return Ok(text);
            }
            print!("{text}");
            Err(Failure::Reported)
        }
        Some(("down", matches)) => {
            let dir = path(matches, "dir")?;
            down(&dir, matches.get_flag("keep"), &mut tell).map_err(failure)?;
            Ok(String::new())
        }
        _ => Err(Failure::Runtime("no such subcommand".into())),
    }
}

fn run_install(matches: &ArgMatches) -> Result<String, Failure> {
    let named: Vec<&String> = matches
        .get_many::<String>("servers")
        .into_iter()
        .flatten()
        .collect();
    let wants = |server: &str| named.is_empty() || named.iter().any(|n| *n == server);
    let wanted = Wanted {
        cassandra: wants("cassandra"),
        redis: wants("redis"),
        kafka: wants("kafka"),
    };
    let cache = cache(matches)?;
    install(&cache, wanted).map_err(failure)?;
    Ok(format!("installed; downloads are in {}\n", cache.display()))
}

fn run_up(matches: &ArgMatches) -> Result<String, Failure> {
    // `servers up` knows no cores and edges.
    let count = |name| match matches.try_get_one::<u8>(name) {
        Ok(found) => found.copied().unwrap_or(0),
        Err(_) => 0,
    };
    let get = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let plan = Plan {
        shape: Shape {
            base: matches
                .get_one("base")
                .copied()
                .unwrap_or(Ipv4Addr::LOCALHOST),
            cassandra: count("cassandra"),
            redis: count("redis"),
            kafka: count("kafka"),
            cores: count("cores"),
            edges: count("edges"),
        },
        dir: path(matches, "dir")?,
        cache: cache(matches)?,
        binary: std::env::current_exe().map_err(|e| Failure::Runtime(e.to_string()))?,
        heap_mib: matches.get_one("heap").copied().unwrap_or(1_024),
        commitlog_sync: CommitLogSync::parse(&get("commitlog")).unwrap_or(CommitLogSync::Batch),
    };
    let reports = up(&plan, &mut tell).map_err(failure)?;
    Ok(table(&reports))
}

fn path(matches: &ArgMatches, name: &str) -> Result<PathBuf, Failure> {
    let found = matches.get_one::<PathBuf>(name).cloned();
    found.ok_or_else(|| Failure::configuration(format!("--{name}"), "is needed"))
}

fn cache(matches: &ArgMatches) -> Result<PathBuf, Failure> {
    match matches.get_one::<PathBuf>("cache") {
        Some(dir) => Ok(dir.clone()),
        None => default_cache().map_err(failure),
    }
}

/// Progress, for whoever waits.
fn tell(line: &str) {
    eprintln!("{line}");
}

fn table(reports: &[Report]) -> String {
    let mut text = String::new();
    for report in reports {
        let pid = report.pid.map_or_else(|| "-".into(), |p| p.to_string());
        let resident = report
            .resident_bytes
            .map_or_else(|| "-".into(), |b| format!("{} MiB", b / 1024 / 1024));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<12} {:<8} {pid:>8} {resident:>9}  {}",
            report.name, report.state, report.address
        );
    }
    text
}

fn failure(error: ClusterError) -> Failure {
    match error {
        ClusterError::Usage(message) => Failure::configuration("cluster", message),
        other => Failure::Runtime(other.to_string()),
    }
}
