//! What the embedded store owes to a process that dies, and to a disk that fails.
//!
//! This executable starts itself again as a child that commits batch after batch and reports each
//! on its standard output once `commit` has returned. The parent kills it with SIGKILL, or stands
//! between it and its fsyncs with a small library (`fsync_gate.c`, built by the C compiler), and
//! then looks at what the directory holds.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use rand::RngExt;
use tempfile::TempDir;
use trunkline_core::store::embedded::{EmbeddedOptions, EmbeddedStore, OpenError};
use trunkline_core::store::{
    ConversationWrites, MessageStore, Order, ReadRange, Snapshot, StoreError, WriteBatch,
};
use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;
use trunkline_proto::store::{ConversationRow, MemberRow, WatermarkRow};

/// Names the role of a child process; not set in the parent.
const ROLE: &str = "STORE_CRASH_ROLE";
/// The directory of a child's store.
const DIRECTORY: &str = "STORE_CRASH_DIRECTORY";
/// Begins every line that a child says, apart from those of the test harness.
const SAYS: &str = "child: ";
/// For everything that must come.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long a report that must not come is waited for.
const SILENCE: Duration = Duration::from_millis(300);

const CONVERSATIONS: u128 = 3;
const ROUNDS: u32 = 10;

// ---- what is written, and how it is checked ----

fn conversation(n: u128) -> ConversationId {
    ConversationId::from_bytes(n.to_be_bytes())
}

/// Messages that a batch puts into each conversation.
fn messages_in(batch: u64) -> u64 {
    1 + batch % 4
}

/// The head of each conversation after `batch`.
fn head_after(batch: u64) -> u64 {
    (1..=batch).map(messages_in).sum()
}

fn message(n: u128, batch: u64, seq: u64) -> Message {
    let id = conversation(n);
    let length = (seq * 7_919 % 9_000) as usize;
    Message {
        conversation_id: id.to_string(),
        message_id: seq * 10 + n as u64,
        seq,
        sender_id: "ann".to_owned(),
        client_msg_id: format!("{batch}-{seq}"),
        content: format!("batch {batch} of {id} {}", letters(seq, length)),
        content_type: "text/plain".to_owned(),
        media: None,
        ts: batch,
    }
}

/// Text that hardly compresses, the same for the same seed.
fn letters(seed: u64, length: usize) -> String {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(b' ' + (state >> 33) as u8 % 95)
    };
    (0..length).map(|_| next()).collect()
}

/// Batch `batch`: rows of every kind, in several conversations, all bearing its number.
fn batch(batch: u64) -> WriteBatch {
    let seqs = head_after(batch - 1) + 1..=head_after(batch);
    let writes = |n| ConversationWrites {
        id: conversation(n),
        row: Some(ConversationRow {
            kind: 2,
            version: batch,
            ..ConversationRow::default()
        }),
        members: vec![(
            "ann".to_owned(),
            MemberRow {
                joined_at: batch,
                ..MemberRow::default()
            },
        )],
        messages: seqs
            .clone()
            .map(|seq| Arc::new(message(n, batch, seq)))
            .collect(),
        watermarks: vec![(
            "ann".to_owned(),
            WatermarkRow {
                delivered_seq: batch,
                read_seq: batch,
            },
        )],
    };
    WriteBatch {
        conversations: (1..=CONVERSATIONS).map(writes).collect(),
    }
}

/// With the least memory, so that kills also hit the writing of table files.
fn open(directory: &Path) -> Result<EmbeddedStore, OpenError> {
    let options = EmbeddedOptions {
        memtable_bytes: 1 << 20,
        ..EmbeddedOptions::default()
    };
    EmbeddedStore::open(directory, &options)
}

fn load(store: &EmbeddedStore, n: u128) -> Result<Option<Snapshot>, StoreError> {
    let loaded = store.load(conversation(n), 1).now_or_never();
    loaded.expect("the embedded store blocks, it never waits")
}

fn commit(store: &EmbeddedStore, number: u64) -> Result<(), StoreError> {
    let committed = store.commit(&batch(number)).now_or_never();
    committed.expect("the embedded store blocks, it never waits")
}

/// The last batch that the store holds, 0 if none.
fn last_batch(store: &EmbeddedStore) -> Result<u64, StoreError> {
    Ok(load(store, 1)?.map_or(0, |snapshot| snapshot.row.version))
}

/// Checks that batches 1 to some last one are there, each whole and none else; returns the last.
fn check_whole(store: &EmbeddedStore) -> u64 {
    let last = last_batch(store).expect("readable");
    let head = head_after(last);
    for n in 1..=CONVERSATIONS {
        let Some(snapshot) = load(store, n).expect("readable") else {
            assert_eq!(last, 0, "conversation {n} is missing");
            continue;
        };
        assert_eq!(snapshot.row.version, last, "row of conversation {n}");
        assert_eq!(snapshot.head, head, "head of conversation {n}");
        assert_eq!(snapshot.members[0].1.joined_at, last);
        assert_eq!(snapshot.watermarks[0].1.delivered_seq, last);
        let range = ReadRange {
            after: 0,
            before: u64::MAX,
            limit: u32::MAX,
            order: Order::OldestFirst,
        };
        let read = store.read(conversation(n), range).now_or_never();
        let mut read = read.expect("never waits").expect("readable").into_iter();
        for number in 1..=last {
            for seq in head_after(number - 1) + 1..=head_after(number) {
                let found = read.next();
                assert!(
                    found == Some(message(n, number, seq)),
                    "message {seq} of batch {number}"
                );
            }
        }
        assert_eq!(read.next(), None, "beyond batch {last}");
    }
    let floor = store.message_id_floor().now_or_never();
    let highest = if last == 0 {
        0
    } else {
        head * 10 + CONVERSATIONS as u64
    };
    assert_eq!(floor.expect("never waits").expect("readable"), highest);
    last
}

// ---- the child ----

fn say(what: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{SAYS}{what}").expect("the parent listens");
    out.flush().expect("the parent listens");
}

/// Not a test of its own: where the child process begins. Without a role there is nothing to do.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).expect("the parent names it"));
    let store = open(&directory).expect("opened");
    match role.as_str() {
        "commit for ever" => commit_for_ever(&store),
        "commit as told" => commit_as_told(&store),
        other => panic!("no role {other}"),
    }
}

fn commit_for_ever(store: &EmbeddedStore) {
    let last = last_batch(store).expect("readable");
    for number in last + 1.. {
        commit(store, number).expect("committed");
        say(number);
    }
}

/// For each line on standard input: commits the next batch, or reads.
fn commit_as_told(store: &EmbeddedStore) {
    let mut next = last_batch(store).expect("readable") + 1;
    say("ready");
    for line in std::io::stdin().lines() {
        match line.expect("the parent speaks").as_str() {
            "commit" => match commit(store, next) {
                Ok(()) => {
                    say(format_args!("committed {next}"));
                    next += 1;
                }
                Err(error) => say(format_args!("refused {error:?}")),
            },
            "read" => match last_batch(store) {
                Ok(last) => say(format_args!("last {last}")),
                Err(error) => say(format_args!("refused {error:?}")),
            },
            other => panic!("no order {other}"),
        }
    }
}

// ---- the parent ----

/// A child process with what it says; killed when dropped.
struct Running {
    child: Child,
    orders: ChildStdin,
    says: Receiver<String>,
}

impl Running {
    /// `gate`: the library to put before the C library, and its directory.
    fn start(role: &str, directory: &Path, gate: Option<&Gate>) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this executable"));
        command
            .args(["child", "--exact", "--nocapture"])
            .env(ROLE, role)
            .env(DIRECTORY, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(gate) = gate {
            command
                .env("LD_PRELOAD", &gate.library)
                .env("FSYNC_GATE", gate.directory.path());
        }
        let mut child = command.spawn().expect("started");
        let orders = child.stdin.take().expect("piped");
        let out = child.stdout.take().expect("piped");
        let (send, says) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines() {
                // The harness's own lines, and a last one cut off by the kill, are none of ours.
                let Ok(line) = line else { return };
                if let Some((_, said)) = line.split_once(SAYS)
                    && send.send(said.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Self {
            child,
            orders,
            says,
        }
    }

    fn order(&mut self, what: &str) {
        writeln!(self.orders, "{what}").expect("the child listens");
    }

    fn hear(&self) -> String {
        self.says
            .recv_timeout(DEADLINE)
            .expect("a word from the child")
    }

    /// SIGKILL; returns what else it had said.
    fn kill(mut self) -> Vec<String> {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
        // Ends with the thread that reads the pipe, at the end of what was said.
        self.says.iter().collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone, unless a test failed in between.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The library that stands between a child and its fsyncs.
struct Gate {
    directory: TempDir,
    library: PathBuf,
}

impl Gate {
    fn build() -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let library = directory.path().join("fsync_gate.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fsync_gate.c");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(&library)
            .args([source, "-ldl"])
            .status();
        let status = status.expect("this test needs a C compiler under the name cc");
        assert!(status.success(), "cc failed: {status}");
        Self { directory, library }
    }

    fn set(&self, name: &str) {
        std::fs::write(self.directory.path().join(name), b"").expect("written");
    }

    fn clear(&self, name: &str) {
        std::fs::remove_file(self.directory.path().join(name)).expect("removed");
    }

    /// The file whose fsync waits at the gate. `None` if the child reports before one does.
    fn entered(&self, child: &Running) -> Result<PathBuf, String> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Ok(path) = std::fs::read_to_string(self.directory.path().join("entered")) {
                return Ok(path.into());
            }
            match child.says.recv_timeout(Duration::from_millis(1)) {
                Ok(said) => return Err(said),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("the child is gone"),
            }
            assert!(Instant::now() < deadline, "neither fsync nor report");
        }
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

/// Ten children, one after another on the same directory, each killed after a random number of
/// commits, wherever it then is.
#[test]
fn every_reported_batch_outlives_a_kill_and_none_is_torn() {
    let parent = tempfile::tempdir().expect("tempdir");
    let directory = parent.path().join("store");
    let mut reported = 0;
    for round in 0..ROUNDS {
        let child = Running::start("commit for ever", &directory, None);
        let kill_after = rand::rng().random_range(1..300);
        let mut heard: Vec<String> = (0..kill_after).map(|_| child.hear()).collect();
        heard.extend(child.kill());
        for said in &heard {
            let number: u64 = said.parse().expect("a batch number");
            assert_eq!(number, reported + 1, "reported in order");
            reported = number;
        }
        let store = open(&directory).expect("opened after the kill");
        let last = check_whole(&store);
        // One may have been committed whose report the kill cut off.
        assert!(
            (reported..=reported + 1).contains(&last),
            "round {round}: {reported} reported, {last} there"
        );
        reported = last;
    }
}

/// A power failure may leave any of the pages of a commit under way unwritten. The batch was never
/// reported, so it must vanish whole, and take nothing else with it.
#[test]
fn a_batch_whose_pages_did_not_all_reach_the_disk_vanishes_whole() {
    const PAGE: usize = 4_096;
    const BEFORE: u64 = 6;
    /// A new journal has zeros behind its batches, one that was opened again has not.
    const PREALLOCATED: u64 = 1 << 20;
    let parent = tempfile::tempdir().expect("tempdir");
    let directory = parent.path().join("store");
    let journal = directory.join("database/0.jnl");
    let ends = [BEFORE, BEFORE + 1].map(|last| {
        let store = open(&directory).expect("opened");
        for number in last_batch(&store).expect("readable") + 1..=last {
            commit(&store, number).expect("committed");
        }
        drop(store);
        let written = std::fs::read(&journal).expect("readable");
        written
            .iter()
            .rposition(|&byte| byte != 0)
            .expect("batches")
            + 1
    });
    let mut whole = std::fs::read(&journal).expect("readable");
    whole.truncate(ends[1]);
    std::fs::remove_file(&journal).expect("kept in memory");
    let pages: Vec<usize> = (ends[0] / PAGE..ends[1].div_ceil(PAGE)).collect();
    assert!(pages.len() > 3, "the last batch has many pages: {pages:?}");
    let mut rng = rand::rng();
    let singles = pages.iter().map(|&page| vec![page]);
    let several = (0..20).map(|_| {
        let lost = pages.iter().copied().filter(|_| rng.random_bool(0.5));
        lost.collect::<Vec<_>>()
    });
    let cases = singles.chain(several).filter(|lost| !lost.is_empty());
    for (lost, tail) in cases.zip([0, PREALLOCATED].into_iter().cycle()) {
        let mut torn = whole.clone();
        for page in &lost {
            let first = (page * PAGE).max(ends[0]);
            let end = ((page + 1) * PAGE).min(ends[1]);
            torn[first..end].fill(0);
        }
        let copy = tempfile::tempdir().expect("tempdir");
        copy_directory(&directory, copy.path());
        let mut file = std::fs::File::create(copy.path().join("database/0.jnl")).expect("made");
        file.write_all(&torn).expect("written");
        file.set_len(torn.len() as u64 + tail).expect("lengthened");
        let store = open(copy.path()).unwrap_or_else(|e| panic!("pages {lost:?} lost: {e}"));
        assert_eq!(check_whole(&store), BEFORE, "pages {lost:?} lost");
        commit(&store, BEFORE + 1).expect("committed");
        drop(store);
        let store = open(copy.path()).expect("opened");
        assert_eq!(
            check_whole(&store),
            BEFORE + 1,
            "repeated after pages {lost:?} were lost"
        );
    }
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("readable").is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// The first start makes the directory; wherever it is killed, the next one is none the worse.
#[test]
fn a_first_start_killed_at_any_moment_can_be_repeated() {
    let parent = tempfile::tempdir().expect("tempdir");
    // How long a first start takes here, so that the kills fall into it and shortly behind.
    let start = Instant::now();
    let child = Running::start("commit for ever", &parent.path().join("whole"), None);
    assert_eq!(child.hear(), "1");
    let whole = start.elapsed();
    child.kill();
    let (mut before, mut after) = (0, 0);
    for round in 0..30 {
        let directory = parent.path().join(round.to_string());
        let child = Running::start("commit for ever", &directory, None);
        // Not a wait for anything: it is the moment of the kill that is drawn.
        std::thread::sleep(whole.mul_f64(rand::rng().random_range(0.1..1.3)));
        let reported = child.kill().len() as u64;
        let last = check_whole(&open(&directory).expect("opened after the kill"));
        assert!(
            (reported..=reported + 1).contains(&last),
            "{reported}, {last}"
        );
        if last == 0 {
            before += 1;
        } else {
            after += 1;
        }
    }
    println!("killed before the first commit: {before}, after: {after}");
}

/// While the fsync of the journal hangs, nothing is reported; once it is through, the batch is.
#[test]
fn a_commit_returns_after_its_fsync_has_returned() {
    let parent = tempfile::tempdir().expect("tempdir");
    let directory = parent.path().join("store");
    let gate = Gate::build();
    let mut child = Running::start("commit as told", &directory, Some(&gate));
    assert_eq!(child.hear(), "ready");
    for number in 1..=3 {
        gate.set("closed");
        child.order("commit");
        let journal = match gate.entered(&child) {
            Ok(path) => path,
            Err(said) => panic!("the child said {said:?} without an fsync"),
        };
        assert!(journal.starts_with(&directory), "{}", journal.display());
        // The fsync covers the batch: the journal file has it already.
        let written = std::fs::read(&journal).expect("readable");
        // Letters at its end: the journal compresses long messages, but finds nothing in these.
        let last = message(CONVERSATIONS, number, head_after(number)).content;
        let end = &last.as_bytes()[last.len() - 20..];
        assert!(
            contains(&written, end),
            "fsync before the write in {}",
            journal.display()
        );
        let early = child.says.recv_timeout(SILENCE);
        assert_eq!(early, Err(RecvTimeoutError::Timeout), "reported too early");
        gate.clear("entered");
        gate.clear("closed");
        assert_eq!(child.hear(), format!("committed {number}"));
    }
    child.kill();
    assert_eq!(check_whole(&open(&directory).expect("opened")), 3);
}

/// After a failed fsync nobody knows what the disk holds, so the store answers nothing more, also
/// when the disk seems well again. A restart reads the journal, and then all is known.
#[test]
fn a_failed_fsync_fails_the_store_until_it_is_opened_again() {
    let parent = tempfile::tempdir().expect("tempdir");
    let directory = parent.path().join("store");
    let gate = Gate::build();
    let mut child = Running::start("commit as told", &directory, Some(&gate));
    assert_eq!(child.hear(), "ready");
    child.order("commit");
    assert_eq!(child.hear(), "committed 1");
    gate.set("fail");
    child.order("commit");
    let refusal = child.hear();
    assert!(refusal.starts_with("refused Failed"), "{refusal}");
    gate.clear("fail");
    for order in ["commit", "read", "commit"] {
        child.order(order);
        assert_eq!(child.hear(), refusal, "to {order}");
    }
    child.kill();
    let last = check_whole(&open(&directory).expect("opened"));
    assert!((1..=2).contains(&last), "{last}");
    let mut child = Running::start("commit as told", &directory, Some(&gate));
    assert_eq!(child.hear(), "ready");
    child.order("commit");
    assert_eq!(child.hear(), format!("committed {}", last + 1));
    child.kill();
}

/// The lock goes with the process that holds it, and only then.
#[test]
fn a_directory_is_refused_while_another_process_has_it_open() {
    let parent = tempfile::tempdir().expect("tempdir");
    let directory = parent.path().join("store");
    let child = Running::start("commit as told", &directory, None);
    assert_eq!(child.hear(), "ready");
    let error = open(&directory).err().expect("in use");
    assert!(
        matches!(&error, OpenError::Locked(at) if *at == directory),
        "{error}"
    );
    assert!(
        error.to_string().contains(&directory.display().to_string()),
        "{error}"
    );
    child.kill();
    open(&directory).expect("free again");
}
