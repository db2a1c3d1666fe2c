//! How a run tells what it is doing, while it does it. Scenarios call; the command line shows.

pub mod console;

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Listens to a run. Called from the scenario's thread only, at most some times a second.
pub trait Progress {
    /// A new part of the run begins; `total`: how far it goes, if that is known.
    fn phase(&self, name: &str, total: Option<u64>);

    /// The present part has come as far as `done`; `note` says what else there is to see.
    fn at(&self, done: u64, note: &str);
}

/// Lines on stderr: each part, and within it one line every few seconds.
#[derive(Debug)]
pub struct Lines {
    /// The part's extent, and when it was last told about.
    state: Mutex<(Option<u64>, Instant)>,
}

const EVERY: Duration = Duration::from_secs(5);

impl Lines {
    pub fn new() -> Self {
        Self {
            state: Mutex::new((None, Instant::now())),
        }
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress for Lines {
    fn phase(&self, name: &str, total: Option<u64>) {
        if let Ok(mut state) = self.state.lock() {
            *state = (total, Instant::now());
        }
        match total {
            Some(total) => eprintln!("{name}: {total}"),
            None => eprintln!("{name}"),
        }
    }

    fn at(&self, done: u64, note: &str) {
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        if state.1.elapsed() < EVERY {
            return;
        }
        state.1 = Instant::now();
        match state.0 {
            Some(total) => eprintln!("  {done} of {total} {note}"),
            None => eprintln!("  {done} {note}"),
        }
    }
}
