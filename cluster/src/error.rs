//! What can go wrong with the rig; one variant for each thing that somebody can do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why the rig did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// A command or package is not there, and cannot be installed from here.
    #[error("{what} is missing: {cure}")]
    Missing { what: String, cure: String },
    /// A download or a package manager failed.
    #[error("{what} failed: {detail}")]
    Install { what: String, detail: String },
    /// What came is not what was pinned.
    #[error(
        "{path} is not the file that is pinned (SHA-256 {found}, wanted {wanted}): a mirror or proxy \
         altered it; remove it and install again from another one"
    )]
    Checksum {
        path: PathBuf,
        wanted: String,
        found: String,
    },
    /// The server's process ended by itself.
    #[error("{name} has ended; {log} says why:\n{tail}", log = log.display())]
    Died {
        name: String,
        log: PathBuf,
        tail: String,
    },
    /// The server runs but does not answer.
    #[error("{name} was not ready within {waited:?} ({doing}); {log} ends with:\n{tail}", log = log.display())]
    NotReady {
        name: String,
        waited: Duration,
        doing: String,
        log: PathBuf,
        tail: String,
    },
    /// It was told to end, and runs still.
    #[error(
        "{name} (process {pid}) did not end within {waited:?} after SIGTERM: kill -9 {pid} ends it"
    )]
    Stuck {
        name: String,
        pid: u32,
        waited: Duration,
    },
    /// The wish makes no sense, or does not fit to what is there.
    #[error("{0}")]
    Usage(String),
    /// A file or system call, with what it was for.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

/// Puts in front of an [`io::Error`] what was being done.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, ClusterError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, ClusterError> {
        self.map_err(|e| ClusterError::Io {
            what: what(),
            source: e.into(),
        })
    }
}
