//! What `apply` has to remember so that `revert` can give back exactly what was there: one small
//! JSON file, written before the first sysctl is.
//!
//! `revert` writes, as root, what this file says. So a file that somebody else could have written is
//! refused: it belongs to the user who runs us, and nobody else may write it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where the state lies unless told otherwise.
pub const DEFAULT_PATH: &str = "/var/lib/trunkline/sysctl-state.json";

const VERSION: u32 = 1;
/// Bits of the mode by which others could write.
const OTHERS_WRITE: u32 = 0o022;

/// One key, before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub key: String,
    /// What it was before the first `apply`.
    pub was: String,
    /// What the last `apply` made of it.
    pub set: String,
}

/// What is applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    pub profile: String,
    /// The sysctl.d file that `--persist` wrote.
    pub persisted: Option<PathBuf>,
    /// In the order in which they were written.
    pub keys: Vec<Kept>,
}

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(
        "cannot {verb} the state {path}: {error}; run it as the user who applies profiles, or name another place with --state FILE"
    )]
    Io {
        verb: &'static str,
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error(
        "the state {path} is not usable ({message}); if no profile is applied any more, delete it"
    )]
    Broken { path: PathBuf, message: String },
    #[error(
        "the state {path} could have been written by others (owner {owner}, mode {mode:o}), and what it says would be written to the kernel: look at it, then `chown {me} {path} && chmod 600 {path}`"
    )]
    Foreign {
        path: PathBuf,
        owner: u32,
        mode: u32,
        me: u32,
    },
    #[error("another trunkline doctor works with {path}: wait for it to end")]
    Locked { path: PathBuf },
}

impl State {
    pub fn new(profile: &str) -> Self {
        Self {
            version: VERSION,
            profile: profile.to_owned(),
            persisted: None,
            keys: Vec::new(),
        }
    }

    /// Notes a change; what a key was is kept from the first one.
    pub fn note(&mut self, key: &str, was: &str, set: &str) {
        match self.keys.iter_mut().find(|k| k.key == key) {
            Some(kept) => set.clone_into(&mut kept.set),
            None => self.keys.push(Kept {
                key: key.to_owned(),
                was: was.to_owned(),
                set: set.to_owned(),
            }),
        }
    }

    /// The state at `path`; `None` where there is none.
    pub fn load(path: &Path) -> Result<Option<Self>, StateError> {
        let failed = |error| StateError::Io {
            verb: "read",
            path: path.to_owned(),
            error,
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        // Asked of the open file, not of the name: that cannot be exchanged in between.
        let meta = file.metadata().map_err(failed)?;
        let me = effective_uid().map_err(failed)?;
        if meta.uid() != me || meta.mode() & OTHERS_WRITE != 0 {
            return Err(StateError::Foreign {
                path: path.to_owned(),
                owner: meta.uid(),
                mode: meta.mode() & 0o7777,
                me,
            });
        }
        let text = io::read_to_string(file).map_err(failed)?;
        let broken = |message: String| StateError::Broken {
            path: path.to_owned(),
            message,
        };
        let state: Self = serde_json::from_str(&text).map_err(|e| broken(e.to_string()))?;
        if state.version != VERSION {
            return Err(broken(format!("it has version {}", state.version)));
        }
        Ok(Some(state))
    }

    /// Writes it whole or not at all, and for good: it must outlive a crash that comes right after.
    pub fn store(&self, path: &Path) -> Result<(), StateError> {
        let failed = |error| StateError::Io {
            verb: "write",
            path: path.to_owned(),
            error,
        };
        let directory = directory_of(path);
        fs::create_dir_all(&directory).map_err(failed)?;
        let text = serde_json::to_string_pretty(self)
            .map_err(io::Error::from)
            .map_err(failed)?;
        write_whole(path, &text, 0o600).map_err(failed)
    }

    /// Removes it; one that is not there is no mistake.
    pub fn remove(path: &Path) -> Result<(), StateError> {
        remove_if_there(path).map_err(|error| StateError::Io {
            verb: "remove",
            path: path.to_owned(),
            error,
        })
    }
}

/// Keeps others out of the state's folder for as long as the file is held.
pub fn lock(path: &Path) -> Result<File, StateError> {
    let failed = |error| StateError::Io {
        verb: "write",
        path: path.to_owned(),
        error,
    };
    let directory = directory_of(path);
    fs::create_dir_all(&directory).map_err(failed)?;
    let held = File::open(&directory).map_err(failed)?;
    match held.try_lock() {
        Ok(()) => Ok(held),
        Err(fs::TryLockError::WouldBlock) => Err(StateError::Locked {
            path: path.to_owned(),
        }),
        Err(fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Writes a file beside its place, and moves it there.
pub fn write_whole(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    remove_if_there(&beside)?;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(directory_of(path))?.sync_all()
}

pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => ".".into(),
    }
}

/// Whose rights this process has.
fn effective_uid() -> io::Result<u32> {
    // The owner of a process's folder in procfs is its effective user.
    Ok(fs::metadata("/proc/self")?.uid())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_kept_whole_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/state.json");
        assert_eq!(State::load(&path).unwrap(), None);
        let mut state = State::new("1m");
        state.note("a.b", "1", "2");
        state.note("a.b", "2", "3");
        state.store(&path).unwrap();
        let read = State::load(&path).unwrap().unwrap();
        assert_eq!(read, state);
        assert_eq!((&*read.keys[0].was, &*read.keys[0].set), ("1", "3"));
        State::remove(&path).unwrap();
        State::remove(&path).unwrap();
        assert_eq!(State::load(&path).unwrap(), None);
    }

    #[test]
    fn what_others_could_have_written_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        State::new("1m").store(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(
            State::load(&path),
            Err(StateError::Foreign { mode: 0o666, .. })
        ));
    }

    #[test]
    fn what_is_no_state_is_said_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        for text in [
            "{}",
            "nonsense",
            r#"{"version":2,"profile":"1m","persisted":null,"keys":[]}"#,
        ] {
            fs::write(&path, text).unwrap();
            let error = State::load(&path).unwrap_err();
            assert!(matches!(error, StateError::Broken { .. }), "{error}");
        }
    }

    #[test]
    fn two_at_a_time_are_one_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let held = lock(&path).unwrap();
        assert!(matches!(lock(&path), Err(StateError::Locked { .. })));
        drop(held);
        lock(&path).unwrap();
    }
}
