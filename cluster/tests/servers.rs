//! The servers themselves, started as operators and other tests start them. They share one ring of three
//! Cassandra nodes, because its start is what costs; each test uses what it needs of it.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use trunkline_cluster::cassandra::NATIVE_PORT;
use trunkline_cluster::cql::{Connection, Consistency};
use trunkline_cluster::process::State;
use trunkline_cluster::{
    CassandraConfig, CassandraNode, Installed, KafkaConfig, KafkaNode, Lifetime, Node, RedisConfig,
    RedisNode, RedisTls, Wanted, install,
};

/// Two loaded cores start three nodes in less.
const PATIENCE: Duration = Duration::from_secs(240);

fn installed() -> Installed {
    let cache = trunkline_cluster::install::default_cache().unwrap();
    install(&cache, Wanted::ALL).unwrap_or_else(|e| panic!("{e}"))
}

/// Four loopback addresses that nobody else uses: their own network of 127.0.0.0/8, so that no port is
/// taken, also not by a client's end somewhere.
fn addresses() -> [Ipv4Addr; 4] {
    let pid = std::process::id();
    for attempt in 0..1_000_u32 {
        let number = pid.wrapping_mul(31).wrapping_add(attempt) % (64 * 256);
        let third = (number % 256) as u8;
        let second = 64 + (number / 256) as u8;
        let all = [1, 2, 3, 4].map(|last| Ipv4Addr::new(127, second, third, last));
        if all
            .iter()
            .all(|&a| TcpListener::bind((a, NATIVE_PORT)).is_ok())
        {
            return all;
        }
    }
    panic!("no free network in 127.64.0.0/10");
}

struct Ring {
    nodes: Vec<CassandraNode>,
}

/// The ring, for one test at a time. A test leaves all its nodes running.
fn ring() -> MutexGuard<'static, Ring> {
    static RING: OnceLock<Mutex<Ring>> = OnceLock::new();
    let ring = RING.get_or_init(|| Mutex::new(start_ring(&installed())));
    ring.lock().expect("no test before this one failed")
}

/// Where the ring lives. It runs until this process ends, so the next run clears its directory away.
fn ring_dir() -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for entry in fs::read_dir(all).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap_or_default();
        let Some(pid) = name.strip_prefix("ring-") else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    all.join(format!("ring-{}", std::process::id()))
}

fn start_ring(installed: &Installed) -> Ring {
    let begun = Instant::now();
    let dir = ring_dir();
    let addresses = &addresses()[..3];
    let nodes: Vec<_> = (0..3)
        .map(|index| {
            let home = dir.join(format!("cassandra-{}", index + 1));
            let config = CassandraConfig::of_ring(&home, addresses, index);
            CassandraNode::start(installed, config).unwrap_or_else(|e| panic!("{e}"))
        })
        .collect();
    for node in &nodes {
        ready(node);
    }
    for node in &nodes {
        node.wait_ring(PATIENCE).unwrap_or_else(|e| panic!("{e}"));
    }
    tell(
        "three Cassandra nodes",
        begun,
        nodes.iter().map(|n| n as &dyn Node),
    );
    Ring { nodes }
}

fn ready(node: &dyn Node) {
    node.wait_ready(PATIENCE).unwrap_or_else(|e| panic!("{e}"));
}

/// For whoever wants to know where a run's time and memory go.
fn tell<'a>(what: &str, begun: Instant, nodes: impl Iterator<Item = &'a dyn Node>) {
    let mib: Vec<u64> = nodes
        .map(|n| n.rss_bytes().unwrap_or(0) / 1024 / 1024)
        .collect();
    println!(
        "{what}: ready after {:.1?}, resident {mib:?} MiB",
        begun.elapsed()
    );
}

/// The first column of what `text` selects.
fn run(node: &CassandraNode, text: &str, consistency: Consistency) -> Result<Vec<String>, String> {
    let mut connection = Connection::open(node.address()).map_err(|e| e.to_string())?;
    let rows = connection
        .query(text, consistency)
        .map_err(|e| e.to_string())?;
    let first = |row: Vec<Option<Vec<u8>>>| row.into_iter().next().flatten().unwrap_or_default();
    rows.into_iter()
        .map(|row| String::from_utf8(first(row)).map_err(|e| e.to_string()))
        .collect()
}

/// Until the other nodes have noticed what happened to one.
fn until_runs(node: &CassandraNode, text: &str, consistency: Consistency) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match run(node, text, consistency) {
            Ok(rows) => return rows,
            Err(e) => assert!(Instant::now() < deadline, "{text}: {e}"),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn three_nodes_form_a_ring_that_outlives_the_crash_of_one() {
    let mut ring = ring();
    let [first, _, killed] = &mut ring.nodes[..] else {
        panic!("three nodes");
    };
    for text in [
        "CREATE KEYSPACE crash WITH replication = {'class':'NetworkTopologyStrategy','dc1':3}",
        "CREATE TABLE crash.kept (id int PRIMARY KEY, word text)",
    ] {
        run(first, text, Consistency::One).unwrap();
    }
    // All three replicas have to answer.
    let insert = |id, word| format!("INSERT INTO crash.kept (id, word) VALUES ({id}, '{word}')");
    until_runs(first, &insert(1, "before"), Consistency::All);

    killed.kill9().unwrap();
    assert_eq!(killed.state(), State::Ended);
    until_runs(first, &insert(2, "without"), Consistency::Quorum);
    let select = "SELECT word FROM crash.kept WHERE id = 1";
    let refused = run(first, select, Consistency::All);
    assert!(refused.is_err(), "two cannot answer for three: {refused:?}");

    let begun = Instant::now();
    killed.restart().unwrap();
    ready(killed);
    killed.wait_ring(PATIENCE).unwrap_or_else(|e| panic!("{e}"));
    tell("a killed node", begun, std::iter::once(killed as &dyn Node));
    assert_eq!(until_runs(first, select, Consistency::All), ["before"]);
}

#[test]
fn a_node_tells_its_version_and_is_paused_and_resumed() {
    let ring = ring();
    let node = &ring.nodes[1];
    let text = "SELECT release_version FROM system.local";
    assert_eq!(run(node, text, Consistency::One).unwrap(), ["5.0.9"]);
    node.pause().unwrap();
    let silent = node.wait_ready(Duration::from_millis(1));
    assert!(silent.is_err(), "a paused node does not answer");
    assert_eq!(node.state(), State::Paused);
    node.resume().unwrap();
    ready(node);
    for node in &ring.nodes {
        node.wait_ring(PATIENCE).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// What was acknowledged under `batch` is there after a crash, with no other replica to ask.
#[test]
fn one_node_alone_keeps_what_it_acknowledged_through_a_crash_and_a_stop() {
    let installed = installed();
    let dir = tempfile::tempdir().unwrap();
    let address = [addresses()[3]];
    let config = CassandraConfig::of_ring(dir.path(), &address, 0);
    let begun = Instant::now();
    let mut node = CassandraNode::start(&installed, config).unwrap();
    ready(&node);
    tell(
        "one Cassandra node",
        begun,
        std::iter::once(&node as &dyn Node),
    );
    let one = Consistency::One;
    for text in [
        "CREATE KEYSPACE alone WITH replication = {'class':'SimpleStrategy','replication_factor':1}",
        "CREATE TABLE alone.kept (id int PRIMARY KEY, word text)",
    ] {
        run(&node, text, one).unwrap();
    }
    for id in 0..200 {
        let text = format!("INSERT INTO alone.kept (id, word) VALUES ({id}, 'w{id}')");
        run(&node, &text, one).unwrap();
    }
    node.kill9().unwrap();
    let again = |node: &mut CassandraNode| {
        node.restart().unwrap();
        ready(node);
        run(node, "SELECT word FROM alone.kept", one).unwrap().len()
    };
    assert_eq!(again(&mut node), 200);
    node.stop().unwrap();
    assert_eq!(again(&mut node), 200);
    node.stop().unwrap();
}

#[test]
fn redis_wants_its_password_and_keeps_its_data() {
    let installed = installed();
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let config = redis_config(dir.path(), None);
    let mut redis = RedisNode::start(&installed, config).unwrap();
    ready(&redis);
    tell("Redis", begun, std::iter::once(&redis as &dyn Node));
    let refused = redis.command(None, &["GET", "k"]).unwrap();
    assert!(refused.contains("NOAUTH"), "{refused}");
    let password = Some("open7sesame");
    assert_eq!(redis.command(password, &["SET", "k", "v"]).unwrap(), "OK");
    redis.stop().unwrap();
    redis.restart().unwrap();
    ready(&redis);
    assert_eq!(redis.command(password, &["GET", "k"]).unwrap(), "v");
}

#[test]
fn redis_speaks_tls_alone_where_it_is_told_to() {
    let installed = installed();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let (key, certificate) = (file("key.pem"), file("cert.pem"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args(["-days", "2", "-subj", "/CN=redis", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl: apt-get install -y openssl");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let tls = RedisTls {
        ca: certificate.clone(),
        certificate,
        key,
    };
    let config = redis_config(&file("data"), Some(tls));
    let mut plain = config.clone();
    plain.tls = None;
    let redis = RedisNode::start(&installed, config).unwrap();
    ready(&redis);
    assert_eq!(
        redis.command(Some("open7sesame"), &["PING"]).unwrap(),
        "PONG"
    );
    // The same place asked without TLS.
    let address = redis.address();
    let said = Command::new(&installed.redis().unwrap().client)
        .args([
            "-h",
            &address.ip().to_string(),
            "-p",
            &address.port().to_string(),
            "PING",
        ])
        .output()
        .unwrap();
    assert!(
        !String::from_utf8_lossy(&said.stdout).contains("PONG"),
        "{said:?}"
    );
}

fn redis_config(dir: &Path, tls: Option<RedisTls>) -> RedisConfig {
    let address = addresses()[3];
    let free = TcpListener::bind((address, 0)).unwrap();
    RedisConfig {
        dir: dir.to_owned(),
        address,
        port: free.local_addr().unwrap().port(),
        password: Some("open7sesame".into()),
        tls,
        lifetime: Lifetime::Bound,
    }
}

#[test]
fn kafka_gives_back_what_was_produced_also_after_a_crash() {
    let installed = installed();
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let config = KafkaConfig::at(dir.path().to_owned(), addresses()[3]);
    let mut kafka = KafkaNode::start(&installed, config).unwrap();
    ready(&kafka);
    tell("Kafka", begun, std::iter::once(&kafka as &dyn Node));
    let create = ["--create", "--topic", "t", "--partitions", "1"];
    kafka
        .tool("org.apache.kafka.tools.TopicCommand", &create, "")
        .unwrap();
    let producer = "org.apache.kafka.tools.ConsoleProducer";
    kafka
        .tool(producer, &["--topic", "t"], "one\ntwo\nthree\n")
        .unwrap();
    kafka.kill9().unwrap();
    kafka.restart().unwrap();
    ready(&kafka);
    let consume = [
        "--topic",
        "t",
        "--from-beginning",
        "--max-messages",
        "3",
        "--timeout-ms",
        "60000",
    ];
    let consumer = "org.apache.kafka.tools.consumer.ConsoleConsumer";
    let came = kafka.tool(consumer, &consume, "").unwrap();
    assert_eq!(came.lines().collect::<Vec<_>>(), ["one", "two", "three"]);
    kafka.stop().unwrap();
}
