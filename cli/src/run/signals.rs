//! The signals that end a process, as the run loop waits for them.

use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use super::Ended;
use crate::exit::Failure;

/// How often a drain is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Registered signals. Made before anything listens, so that none is missed.
pub struct Ending {
    signals: Signals,
}

impl Ending {
    pub fn register() -> Result<Self, Failure> {
        Signals::new([SIGTERM, SIGINT])
            .map(|signals| Self { signals })
            .map_err(|e| Failure::Runtime(format!("cannot watch signals: {e}")))
    }

    /// To end the wait without a signal, for a successor has taken over.
    pub fn handed_over(&self) -> impl FnOnce() + Send + 'static {
        let handle: Handle = self.signals.handle();
        move || handle.close()
    }

    /// Blocks until a signal comes. SIGTERM calls `drain`, then waits until `is_over` or the next
    /// signal; SIGINT returns at once.
    pub fn wait(&mut self, drain: impl FnOnce(), is_over: impl Fn() -> bool) -> Ended {
        let signal = self
            .signals
            .forever()
            .find(|s| [SIGTERM, SIGINT].contains(s));
        match signal {
            None => return Ended::HandedOver,
            Some(SIGTERM) => {}
            Some(signal) => return Ended::Stopped(signal),
        }
        tracing::info!("draining");
        drain();
        while !is_over() {
            if let Some(signal) = self.signals.pending().next() {
                tracing::warn!("stopping in the midst of a drain");
                return Ended::Stopped(signal);
            }
            std::thread::sleep(POLL);
        }
        Ended::Drained
    }
}
