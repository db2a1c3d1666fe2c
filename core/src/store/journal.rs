//! The end of the engine's journal after a loss of power.
//!
//! A commit writes its batch into the journal and then fsyncs it. When the power goes in between,
//! any of the batch's pages may be missing. The engine drops such a batch when its structure is
//! broken, but when a page in the midst of a long value is missing, only the checksum is wrong, and
//! then the engine refuses to open at all. That batch was never reported as committed, and nothing
//! follows it, since each commit waits for the one before. So it is cut off here, which is what the
//! engine does with the others.
//!
//! A wrong checksum with a whole batch anywhere behind it is something else, a damaged disk: then
//! nothing is touched and the directory stays refused.
//!
//! Layout of the journal, version 3: batches, then zeros up to the preallocated length. A batch is
//! `1`, item count (u32), seqno (u64); items; `3`, XXH3 of the items (u64), `FJL` and 3. An item is
//! `2`, value type, compression, keyspace (u64), key length (u16), length of the value (u32), and as
//! it is stored (u32), key, value. Integers are little endian.
//! Called by [`super::open`], when the engine has found its journal invalid.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const TRAILER: &[u8] = b"FJL\x03";
/// Ends the name of a journal file; before it stands a number, highest for the one in use.
const EXTENSION: &str = "jnl";

/// Cuts a torn batch off the end of the newest journal in `database`. Answers how many bytes were
/// kept, or `None` if there is no such batch.
pub(super) fn cut_torn_batch(database: &Path) -> io::Result<Option<u64>> {
    let Some(path) = newest(database)? else {
        return Ok(None);
    };
    // Whole in memory: at most the preallocated length and one batch, and only on this path.
    let Some(kept) = torn_at(&std::fs::read(&path)?) else {
        return Ok(None);
    };
    let file = File::options().write(true).open(&path)?;
    file.set_len(kept as u64)?;
    file.sync_all()?;
    Ok(Some(kept as u64))
}

fn newest(database: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in std::fs::read_dir(database)? {
        let path = entry?.path();
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse().ok());
        if let Some(number) = number
            && path.extension().is_some_and(|found| found == EXTENSION)
        {
            newest = newest.max(Some((number, path)));
        }
    }
    Ok(newest.map(|(_, path): (u64, _)| path))
}

/// Where a torn last batch begins, if there is one.
fn torn_at(journal: &[u8]) -> Option<usize> {
    let mut end = 0;
    while let Some(length) = whole_batch(&journal[end..]) {
        end += length;
    }
    let rest = &journal[end..];
    let torn = rest.iter().any(|&byte| byte != 0);
    let mut starts = (1..rest.len()).filter(|&at| rest[at] == START);
    let followed = starts.any(|at| whole_batch(&rest[at..]).is_some());
    (torn && !followed).then_some(end)
}

/// The length of the batch that `bytes` begin with, if it is whole.
fn whole_batch(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    if take::<1>(&mut rest)? != [START] {
        return None;
    }
    let count = u32::from_le_bytes(take(&mut rest)?);
    let _seqno = take::<8>(&mut rest)?;
    let items = rest;
    for _ in 0..count {
        skip_item(&mut rest)?;
    }
    let items = &items[..items.len() - rest.len()];
    let ended = take::<1>(&mut rest)? == [END];
    let checksum = u64::from_le_bytes(take(&mut rest)?);
    let whole =
        ended && count > 0 && take::<4>(&mut rest)? == TRAILER && xxh3_64(items) == checksum;
    whole.then(|| bytes.len() - rest.len())
}

fn skip_item(rest: &mut &[u8]) -> Option<()> {
    if take::<1>(rest)? != [ITEM] {
        return None;
    }
    let _type_compression_keyspace = take::<10>(rest)?;
    let key = u16::from_le_bytes(take(rest)?);
    let _value = take::<4>(rest)?;
    let stored = u32::from_le_bytes(take(rest)?);
    let length = usize::from(key).checked_add(usize::try_from(stored).ok()?)?;
    *rest = rest.get(length..)?;
    Some(())
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};

    use super::*;

    const BATCHES: u32 = 3;

    /// A journal of the engine with some batches, and where each of them ends.
    fn journal() -> (Vec<u8>, Vec<usize>) {
        let directory = tempfile::tempdir().expect("tempdir");
        let database = Database::builder(directory.path()).open().expect("opened");
        let keyspace = database.keyspace("k", KeyspaceCreateOptions::default);
        let keyspace = keyspace.expect("made");
        let path = directory.path().join("0.jnl");
        let mut ends = Vec::new();
        for number in 0..BATCHES {
            let mut batch = database.batch().durability(Some(PersistMode::SyncData));
            batch.insert(&keyspace, number.to_be_bytes(), vec![7; 3_000]);
            // Long enough to be compressed.
            batch.insert(&keyspace, b"long", vec![8; 9_000]);
            batch.insert(&keyspace, b"empty", b"");
            batch.commit().expect("committed");
            let written = std::fs::read(&path).expect("readable");
            ends.push(
                written
                    .iter()
                    .rposition(|&byte| byte != 0)
                    .expect("a batch")
                    + 1,
            );
        }
        let mut journal = std::fs::read(&path).expect("readable");
        journal.truncate(ends[ends.len() - 1] + 1_000);
        (journal, ends)
    }

    #[test]
    fn batches_of_the_engine_are_found_whole() {
        let (journal, ends) = journal();
        let mut from = 0;
        for end in ends {
            assert_eq!(whole_batch(&journal[from..]), Some(end - from));
            from = end;
        }
        assert_eq!(whole_batch(&journal[from..]), None);
        assert_eq!(torn_at(&journal), None, "nothing is torn");
    }

    #[test]
    fn any_byte_of_the_last_batch_that_is_wrong_makes_it_torn() {
        let (mut journal, ends) = journal();
        let (from, to) = (ends[1], ends[2]);
        // The checksum does not cover the seqno.
        let seqno = from + 5..from + 13;
        for at in (from..to).filter(|at| !seqno.contains(at)) {
            journal[at] ^= 0x55;
            assert_eq!(torn_at(&journal), Some(from), "byte {at}");
            journal[at] ^= 0x55;
        }
    }

    #[test]
    fn a_batch_cut_off_at_any_place_is_torn() {
        let (journal, ends) = journal();
        for end in (ends[1] + 1..ends[2]).step_by(11) {
            assert_eq!(torn_at(&journal[..end]), Some(ends[1]), "cut at {end}");
        }
        assert_eq!(torn_at(&journal[..ends[1]]), None);
        assert_eq!(torn_at(&[]), None);
    }

    #[test]
    fn damage_with_a_whole_batch_behind_it_is_left_alone() {
        let (mut journal, ends) = journal();
        for at in [0, 20, ends[0] - 1, ends[0] + 20, ends[1] - 1] {
            journal[at] ^= 0x55;
            assert_eq!(torn_at(&journal), None, "byte {at}");
            journal[at] ^= 0x55;
        }
    }

    #[test]
    fn the_newest_journal_is_the_one_with_the_highest_number() {
        let directory = tempfile::tempdir().expect("tempdir");
        for name in ["9.jnl", "10.jnl", "2.jnl", "11.txt", "x.jnl"] {
            std::fs::write(directory.path().join(name), b"").expect("written");
        }
        let found = newest(directory.path()).expect("readable");
        assert_eq!(found, Some(directory.path().join("10.jnl")));
    }
}
