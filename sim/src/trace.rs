//! What happened, as text: a line for everything that crosses a boundary. Always hashed; kept whole
//! only when asked for.

use std::fmt::{Arguments, Write as _};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The trace of one run.
pub struct Trace {
    hash: Xxh3,
    line: String,
    lines: u64,
    kept: Option<String>,
}

impl Trace {
    /// `keep`: the whole text, with details that are not hashed.
    pub fn new(keep: bool) -> Self {
        Self {
            hash: Xxh3::new(),
            line: String::new(),
            lines: 0,
            kept: keep.then(String::new),
        }
    }

    /// Adds a line.
    pub fn line(&mut self, at_ns: u64, what: Arguments<'_>) {
        self.line.clear();
        // Writing to a String cannot fail.
        let _ = writeln!(
            self.line,
            "{:>6}.{:06} {what}",
            at_ns / 1_000_000,
            at_ns % 1_000_000
        );
        self.hash.update(self.line.as_bytes());
        self.lines += 1;
        if let Some(kept) = &mut self.kept {
            kept.push_str(&self.line);
        }
    }

    /// Adds what only a reader of the whole text wants to see.
    pub fn detail(&mut self, what: impl FnOnce() -> String) {
        if let Some(kept) = &mut self.kept {
            kept.push_str("              | ");
            kept.push_str(&what());
            kept.push('\n');
        }
    }

    /// The hash of all lines.
    pub fn hash(&self) -> u64 {
        self.hash.digest()
    }

    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// The text, if it was to be kept.
    pub fn text(self) -> Option<String> {
        self.kept
    }
}

/// A short name for bytes in a trace.
pub fn print(bytes: &[u8]) -> u32 {
    xxh3_64(bytes) as u32
}
