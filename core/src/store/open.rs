//! Opening the embedded store's directory: its lock, its creation, its schema version, its tuning.
//!
//! # Layout
//! `lock` is held exclusively as long as the store is open. `database` is the engine's. A new
//! database is made whole under `database.new`, fsynced and then renamed, so that a crash during the
//! first start leaves nothing that a second start could trip over.
//! Called by [`super::embedded`] alone.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use fjall::config::{CompressionPolicy, FilterPolicy};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::journal;

/// The schema that this build writes. Raised when an older build must not touch the directory.
pub(super) const SCHEMA_VERSION: u64 = 1;

/// Least value of [`EmbeddedOptions::journal_bytes_max`]: the engine's journal files are this long.
pub const JOURNAL_BYTES_MIN: u64 = 64 << 20;
/// Memtable of each keyspace that holds small, rarely written rows.
const SMALL_MEMTABLE_BYTES: u64 = 4 << 20;
/// Table files kept open; the others are opened when they are read.
const OPEN_FILES_MAX: usize = 512;

/// How far the threads that write and merge table files stand back (setpriority(2)): a quarter of
/// what a commit beside them gets. No further, because they hold the journal's lock at times.
const WORKER_NICE: i32 = 5;

const LOCK: &str = "lock";
const DATABASE: &str = "database";
const DATABASE_NEW: &str = "database.new";

/// Key in `meta` of the schema version, 8 bytes big endian.
const META_SCHEMA_VERSION: &[u8] = b"schema_version";
/// Key in `meta` of the highest message id ever committed, 8 bytes big endian.
pub(super) const META_MESSAGE_ID_FLOOR: &[u8] = b"message_id_floor";

/// How the embedded store uses memory, disk and processors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedOptions {
    /// Blocks of table files kept in memory.
    pub cache_bytes: u64,
    /// Messages collected in memory before they become a table file. Up to four more of this size
    /// may wait for the disk; then commits wait. Read when the directory is created.
    pub memtable_bytes: u64,
    /// Journal kept before lagging memtables are written out: bounds the time of a restart after a
    /// crash. At least [`JOURNAL_BYTES_MIN`].
    pub journal_bytes_max: u64,
    /// Threads that write and merge table files; asleep when there is nothing to do. The first of
    /// them does not merge: with two it spins for as long as the other one is busy merging, with
    /// three there is one left to take the next merge off its hands. One alone can wait for itself.
    pub workers: usize,
    /// LZ4 for the levels that hold the bulk of the data. Read when the directory is created.
    pub compress: bool,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 32 << 20,
            memtable_bytes: 16 << 20,
            journal_bytes_max: 128 << 20,
            workers: 3,
            compress: true,
        }
    }
}

/// Why a directory could not be opened as a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Stop the other process, or give this one another directory.
    #[error("{} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// Start the newer version again; there is no way back.
    #[error(
        "{} was written by a newer version: its schema is {found}, this version knows {known}",
        .dir.display()
    )]
    NewerSchema {
        dir: PathBuf,
        found: u64,
        known: u64,
    },
    /// Correct the configuration.
    #[error("option {name} of the store must be at least {least}, not {value}")]
    Option {
        name: &'static str,
        value: u64,
        least: u64,
    },
    /// Permissions, a full or failing disk.
    #[error("{}: {source}", .path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The files are damaged: restore a backup.
    #[error("the database in {} cannot be opened: {reason}", .dir.display())]
    Damaged { dir: PathBuf, reason: String },
}

/// An open directory.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) tables: Tables,
    pub(super) message_id_floor: u64,
    /// Released last: fields are dropped in this order.
    pub(super) lock: File,
}

/// The keyspaces.
pub(super) struct Tables {
    pub(super) messages: Keyspace,
    pub(super) conversations: Keyspace,
    pub(super) members: Keyspace,
    pub(super) user_conversations: Keyspace,
    pub(super) watermarks: Keyspace,
    pub(super) meta: Keyspace,
}

/// Opens the store in `dir`, which it makes if there is none.
pub(super) fn open(dir: &Path, options: &EmbeddedOptions) -> Result<Opened, OpenError> {
    check(options)?;
    make_directory(dir)?;
    let lock = lock(dir)?;
    let path = dir.join(DATABASE);
    if !path.try_exists().map_err(io(&path))? {
        create(dir, options)?;
    }
    let damaged = |error: fjall::Error| damaged(dir, error);
    let database = open_or_mend(&path, options)?.map_err(damaged)?;
    // First of all keyspaces, so that nothing is added to a directory of a newer version.
    let meta = meta_keyspace(&database).map_err(damaged)?;
    check_schema(dir, &meta)?;
    let tables = Tables::open(&database, meta, options).map_err(damaged)?;
    let message_id_floor = read_u64(dir, &tables.meta, META_MESSAGE_ID_FLOOR)?.unwrap_or(0);
    Ok(Opened {
        database,
        tables,
        message_id_floor,
        lock,
    })
}

fn check(options: &EmbeddedOptions) -> Result<(), OpenError> {
    let least = [
        (
            "journal_bytes_max",
            options.journal_bytes_max,
            JOURNAL_BYTES_MIN,
        ),
        ("memtable_bytes", options.memtable_bytes, 1 << 20),
        ("workers", options.workers as u64, 2),
    ];
    match least.into_iter().find(|(_, value, least)| value < least) {
        Some((name, value, least)) => Err(OpenError::Option { name, value, least }),
        None => Ok(()),
    }
}

/// Makes `dir` and its missing parents, each durably: a directory's name is its parent's data.
fn make_directory(dir: &Path) -> Result<(), OpenError> {
    let missing: Vec<&Path> = dir
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .collect();
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    for made in missing.into_iter().rev() {
        match made.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync(parent)?,
            _ => sync(Path::new("."))?,
        }
    }
    Ok(())
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}

/// Makes an empty database with all keyspaces and the schema version.
fn create(dir: &Path, options: &EmbeddedOptions) -> Result<(), OpenError> {
    let unfinished = dir.join(DATABASE_NEW);
    if unfinished.try_exists().map_err(io(&unfinished))? {
        std::fs::remove_dir_all(&unfinished).map_err(io(&unfinished))?;
    }
    fill(&unfinished, options).map_err(|error| damaged(dir, error))?;
    sync_directories(&unfinished)?;
    let path = dir.join(DATABASE);
    std::fs::rename(&unfinished, &path).map_err(io(&path))?;
    sync(dir)
}

fn fill(path: &Path, options: &EmbeddedOptions) -> fjall::Result<()> {
    let database = open_database(path, options)?;
    let meta = meta_keyspace(&database)?;
    let tables = Tables::open(&database, meta, options)?;
    tables
        .meta
        .insert(META_SCHEMA_VERSION, SCHEMA_VERSION.to_be_bytes())?;
    database.persist(PersistMode::SyncAll)
}

fn open_database(path: &Path, options: &EmbeddedOptions) -> fjall::Result<Database> {
    // Threads inherit the priority of the thread that starts them, and lowering it is for good.
    std::thread::scope(|scope| {
        let opener = scope.spawn(|| {
            lower_priority();
            open_here(path, options)
        });
        opener
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// On Linux the priority is the calling thread's own (setpriority(2), "C library/kernel
/// differences").
fn lower_priority() {
    if let Err(error) = rustix::process::setpriority_process(None, WORKER_NICE) {
        tracing::warn!("merging table files will disturb commits: no lower priority: {error}");
    }
}

fn open_here(path: &Path, options: &EmbeddedOptions) -> fjall::Result<Database> {
    Database::builder(path)
        .cache_size(options.cache_bytes)
        .max_journaling_size(options.journal_bytes_max)
        .max_cached_files(Some(OPEN_FILES_MAX))
        .worker_threads(options.workers)
        .open()
}

/// Opens the database, and if its journal ends in a torn batch, does so without that batch.
fn open_or_mend(
    path: &Path,
    options: &EmbeddedOptions,
) -> Result<fjall::Result<Database>, OpenError> {
    let opened = open_database(path, options);
    let Err(fjall::Error::JournalRecovery(reason)) = &opened else {
        return Ok(opened);
    };
    let Some(kept) = journal::cut_torn_batch(path).map_err(io(path))? else {
        return Ok(opened);
    };
    tracing::warn!(
        path = %path.display(), ?reason, kept,
        "cut off a batch that was never committed: power was lost while it was written"
    );
    Ok(open_database(path, options))
}

fn check_schema(dir: &Path, meta: &Keyspace) -> Result<(), OpenError> {
    match read_u64(dir, meta, META_SCHEMA_VERSION)? {
        Some(SCHEMA_VERSION) => Ok(()),
        Some(found) if found > SCHEMA_VERSION => Err(OpenError::NewerSchema {
            dir: dir.to_owned(),
            found,
            known: SCHEMA_VERSION,
        }),
        found => Err(OpenError::Damaged {
            dir: dir.to_owned(),
            reason: format!("no schema has the version {}", found.unwrap_or(0)),
        }),
    }
}

fn read_u64(dir: &Path, meta: &Keyspace, key: &[u8]) -> Result<Option<u64>, OpenError> {
    let Some(row) = meta.get(key).map_err(|error| damaged(dir, error))? else {
        return Ok(None);
    };
    match <[u8; 8]>::try_from(&row[..]) {
        Ok(bytes) => Ok(Some(u64::from_be_bytes(bytes))),
        Err(_) => Err(OpenError::Damaged {
            dir: dir.to_owned(),
            reason: format!("meta row {} has {} bytes", key.escape_ascii(), row.len()),
        }),
    }
}

fn meta_keyspace(database: &Database) -> fjall::Result<Keyspace> {
    database.keyspace("meta", small)
}

impl Tables {
    fn open(database: &Database, meta: Keyspace, options: &EmbeddedOptions) -> fjall::Result<Self> {
        Ok(Self {
            messages: database.keyspace("messages", || messages(options))?,
            conversations: database.keyspace("conversations", small)?,
            members: database.keyspace("members", small)?,
            user_conversations: database.keyspace("user_conversations", small)?,
            watermarks: database.keyspace("watermarks", small)?,
            meta,
        })
    }
}

/// Messages are only ever read by range: filters would cost memory and never be asked.
fn messages(options: &EmbeddedOptions) -> KeyspaceCreateOptions {
    let compression = if options.compress {
        let (none, lz4) = (CompressionType::None, CompressionType::Lz4);
        CompressionPolicy::new([none, none, lz4])
    } else {
        CompressionPolicy::disabled()
    };
    KeyspaceCreateOptions::default()
        .max_memtable_size(options.memtable_bytes)
        .filter_policy(FilterPolicy::disabled())
        .data_block_compression_policy(compression)
}

fn small() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(SMALL_MEMTABLE_BYTES)
}

fn sync_directories(path: &Path) -> Result<(), OpenError> {
    for entry in std::fs::read_dir(path).map_err(io(path))? {
        let entry = entry.map_err(io(path))?;
        if entry.file_type().map_err(io(path))?.is_dir() {
            sync_directories(&entry.path())?;
        }
    }
    sync(path)
}

fn sync(path: &Path) -> Result<(), OpenError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(io(path))
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    move |source| OpenError::Io {
        path: path.to_owned(),
        source,
    }
}

fn damaged(dir: &Path, error: fjall::Error) -> OpenError {
    match error {
        fjall::Error::Locked => OpenError::Locked(dir.to_owned()),
        fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source)) => {
            OpenError::Io {
                path: dir.to_owned(),
                source,
            }
        }
        other => OpenError::Damaged {
            dir: dir.to_owned(),
            reason: format!("{other:?}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_default(dir: &Path) -> Result<Opened, OpenError> {
        open(dir, &EmbeddedOptions::default())
    }

    #[test]
    fn a_directory_is_open_once_and_the_refusal_names_it() {
        let parent = tempfile::tempdir().expect("tempdir");
        let dir = parent.path().join("deep/er/store");
        let first = open_default(&dir).expect("a new directory");
        let error = open_default(&dir).err().expect("held");
        assert!(
            matches!(&error, OpenError::Locked(at) if *at == dir),
            "{error}"
        );
        assert!(error.to_string().contains("deep/er/store"), "{error}");
        drop(first);
        open_default(&dir).expect("released");
    }

    #[test]
    fn a_newer_schema_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let opened = open_default(dir.path()).expect("a new directory");
        let newer = (SCHEMA_VERSION + 1).to_be_bytes();
        opened
            .tables
            .meta
            .insert(META_SCHEMA_VERSION, newer)
            .expect("written");
        drop(opened);
        for _ in 0..2 {
            let error = open_default(dir.path()).err().expect("newer");
            assert!(
                matches!(
                    &error,
                    OpenError::NewerSchema {
                        found: 2,
                        known: 1,
                        ..
                    }
                ),
                "{error}"
            );
            assert!(
                error
                    .to_string()
                    .contains(&dir.path().display().to_string())
            );
        }
    }

    #[test]
    fn a_meta_row_of_another_size_is_damage() {
        let dir = tempfile::tempdir().expect("tempdir");
        let opened = open_default(dir.path()).expect("a new directory");
        opened
            .tables
            .meta
            .insert(META_SCHEMA_VERSION, b"1")
            .expect("written");
        drop(opened);
        let error = open_default(dir.path()).err().expect("damaged");
        assert!(matches!(&error, OpenError::Damaged { .. }), "{error}");
    }

    #[test]
    fn a_creation_cut_short_is_begun_again() {
        let dir = tempfile::tempdir().expect("tempdir");
        let unfinished = dir.path().join(DATABASE_NEW);
        std::fs::create_dir_all(unfinished.join("keyspaces")).expect("made");
        std::fs::write(unfinished.join("0.jnl"), b"half").expect("made");
        open_default(dir.path()).expect("begun again");
        assert!(!unfinished.exists());
    }

    #[test]
    fn options_below_their_least_are_refused_by_name() {
        let dir = tempfile::tempdir().expect("tempdir");
        for (name, options) in [
            (
                "journal_bytes_max",
                EmbeddedOptions {
                    journal_bytes_max: JOURNAL_BYTES_MIN - 1,
                    ..EmbeddedOptions::default()
                },
            ),
            (
                "workers",
                EmbeddedOptions {
                    workers: 0,
                    ..EmbeddedOptions::default()
                },
            ),
        ] {
            let error = open(dir.path(), &options).err().expect("too small");
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn a_file_in_the_directorys_place_is_named() {
        let file = tempfile::NamedTempFile::new().expect("tempfile");
        let error = open_default(file.path()).err().expect("no directory");
        assert!(
            error
                .to_string()
                .contains(&file.path().display().to_string()),
            "{error}"
        );
    }
}
