//! Measures the embedded store: messages of 200 B over 10,000 conversations, in commits of several
//! sizes, each fsynced; then pages of the newest 50. Prints one line for each.
//!
//! `cargo run --release -p trunkline-core --example store_rate [DIRECTORY] [SECONDS] [WORKERS] [MEMTABLE_MIB]`
//!
//! Put DIRECTORY on the disk in question: an fsync to a file system in memory costs nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use trunkline_core::store::embedded::{EmbeddedOptions, EmbeddedStore};
use trunkline_core::store::{ConversationWrites, MessageStore, Order, ReadRange, WriteBatch};
use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;

const CONVERSATIONS: u128 = 10_000;
const CONTENT_BYTES: usize = 200;
const SIZES: [usize; 4] = [1, 64, 512, 4_096];
const PAGES: usize = 5_000;
/// Random letters of which each message is a cutting, so that messages do not compress together.
const POOL_BYTES: usize = 1 << 20;

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let mut args = std::env::args().skip(1);
    let directory = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds = args.next().map_or(Ok(5), |text| text.parse())?;
    let defaults = EmbeddedOptions::default();
    let workers = args
        .next()
        .map_or(Ok(defaults.workers), |text| text.parse())?;
    let memtable = args.next().map(|text| text.parse::<u64>()).transpose()?;
    let options = EmbeddedOptions {
        workers,
        memtable_bytes: memtable.map_or(defaults.memtable_bytes, |mib| mib << 20),
        ..defaults
    };
    let directory = directory.join(format!("store-rate-{}", std::process::id()));
    println!("{options:?}");
    for size in SIZES {
        let result = measure(&directory, &options, size, Duration::from_secs(seconds));
        std::fs::remove_dir_all(&directory)?;
        result?;
    }
    Ok(())
}

fn measure(
    directory: &std::path::Path,
    options: &EmbeddedOptions,
    size: usize,
    time: Duration,
) -> Result<(), AnyError> {
    let store = EmbeddedStore::open(directory, options)?;
    let mut rng = rand::rng();
    let mut load = Load::new(&mut rng);
    let mut took = Vec::new();
    let (cpu, start) = (cpu_time()?, Instant::now());
    while start.elapsed() < time {
        let batch = load.batch(size, &mut rng);
        let begun = Instant::now();
        now(store.commit(&batch))?;
        took.push(begun.elapsed());
    }
    let elapsed = start.elapsed();
    let cpu = cpu_time()?.saturating_sub(cpu);
    let messages = (took.len() * size) as f64;
    let pages = read_pages(&store, &load, &mut rng)?;
    let figures = store.stats().figures();
    println!(
        "commits of {size:>4}: {:>7.0} msg/s, commit {}, {:.1} µs CPU/msg; page of 50: {}; \
         {:.2} bytes on disk per byte written, RSS {} MiB",
        messages / elapsed.as_secs_f64(),
        spread(&mut took),
        cpu.as_secs_f64() * 1e6 / messages,
        spread(&mut pages.clone()),
        store.disk_bytes()? as f64 / figures.bytes as f64,
        rss_kib()? / 1_024,
    );
    Ok(())
}

/// Random conversations, each with its next seq.
struct Load {
    heads: Vec<(ConversationId, u64)>,
    pool: String,
    message_id: u64,
}

impl Load {
    fn new(rng: &mut impl Rng) -> Self {
        let letters: Vec<char> = ('a'..='z').collect();
        let pool = (0..POOL_BYTES).map(|_| letters.choose(rng).copied().unwrap_or('e'));
        let spread = |n: u128| ConversationId::from_bytes((n << 100 | n).to_be_bytes());
        Self {
            heads: (1..=CONVERSATIONS).map(|n| (spread(n), 0)).collect(),
            pool: pool.collect(),
            message_id: 0,
        }
    }

    fn batch(&mut self, size: usize, rng: &mut impl Rng) -> WriteBatch {
        let picked = rand::seq::index::sample(rng, self.heads.len(), size);
        let conversations = picked.into_iter().map(|place| {
            let (id, head) = &mut self.heads[place];
            *head += 1;
            let from = rng.random_range(0..POOL_BYTES - CONTENT_BYTES);
            self.message_id += 1;
            ConversationWrites {
                id: *id,
                row: None,
                members: Vec::new(),
                messages: vec![Arc::new(Message {
                    conversation_id: id.to_string(),
                    message_id: self.message_id,
                    seq: *head,
                    sender_id: "user-12345".to_owned(),
                    client_msg_id: self.message_id.to_string(),
                    content: self.pool[from..from + CONTENT_BYTES].to_owned(),
                    content_type: String::new(),
                    media: None,
                    ts: 1_700_000_000_000 + self.message_id,
                })],
                watermarks: Vec::new(),
            }
        });
        WriteBatch {
            conversations: conversations.collect(),
        }
    }
}

fn read_pages(
    store: &EmbeddedStore,
    load: &Load,
    rng: &mut impl Rng,
) -> Result<Vec<Duration>, AnyError> {
    let newest = ReadRange {
        after: 0,
        before: u64::MAX,
        limit: 50,
        order: Order::NewestFirst,
    };
    let mut took = Vec::with_capacity(PAGES);
    for _ in 0..PAGES {
        let (id, _) = load.heads[rng.random_range(0..load.heads.len())];
        let begun = Instant::now();
        now(store.read(id, newest))?;
        took.push(begun.elapsed());
    }
    Ok(took)
}

/// The result of a future that never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    let result = future.now_or_never();
    result.expect("the embedded store blocks, it never waits")
}

fn spread(took: &mut [Duration]) -> String {
    took.sort_unstable();
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize];
    format!(
        "p50 {:.0?} p99 {:.0?} max {:.0?}",
        at(0.5),
        at(0.99),
        at(1.0)
    )
}

/// Processor time of all threads of this process, from the kernel's statistics.
fn cpu_time() -> Result<Duration, AnyError> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name in parentheses may hold spaces: count from behind it.
    let (_, fields) = stat.rsplit_once(')').ok_or("no name in stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.map(str::parse::<u64>).sum::<Result<_, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}

fn rss_kib() -> Result<u64, AnyError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let value = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(value.ok_or("no VmRSS in status")?.parse()?)
}
