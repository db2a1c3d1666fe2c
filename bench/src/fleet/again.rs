//! Requests that the server refused for the moment, and when they are to be made again.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use trunkline_proto::client::Error;
use trunkline_proto::codes::Code;

/// Until the next attempt when the refusal names no time.
const RETRY_NS: u64 = 200_000_000;

/// Clients whose request is to be made again.
#[derive(Debug, Default)]
pub struct Again(BinaryHeap<Reverse<(u64, u32)>>);

impl Again {
    /// Takes note of a refusal that passes: true if it is one. `random` spreads those of one moment
    /// over as long again.
    pub fn refused(&mut self, client: u32, error: &Error, now: u64, random: u64) -> bool {
        let passes = [Code::Overloaded, Code::Unavailable, Code::RateLimited];
        if !passes.iter().any(|code| code.as_str() == error.code) {
            return false;
        }
        let wait = match u64::from(error.retry_after_ms) * 1_000_000 {
            0 => RETRY_NS,
            ns => ns,
        };
        self.0.push(Reverse((now + wait + random % wait, client)));
        true
    }

    /// A client that is due by `now`.
    pub fn due(&mut self, now: u64) -> Option<u32> {
        let Reverse((at, client)) = *self.0.peek()?;
        (at <= now).then(|| {
            self.0.pop();
            client
        })
    }

    /// Until the next one is due.
    pub fn wait(&self, now: u64) -> Duration {
        let next = self.0.peek().map(|Reverse((at, _))| at.saturating_sub(now));
        next.map_or(Duration::MAX, Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passing_refusal_is_repeated_after_its_time() {
        let mut again = Again::default();
        let refusal = Error {
            retry_after_ms: 500,
            ..Code::Overloaded.error("full")
        };
        assert!(again.refused(7, &refusal, 1_000, 0));
        assert!(!again.refused(8, &Code::NotAMember.error("no"), 1_000, 0));
        assert_eq!(again.due(500_000_999), None);
        assert_eq!(again.wait(500_000_999), Duration::from_nanos(1));
        assert_eq!(again.due(500_001_000), Some(7));
        assert_eq!(again.due(u64::MAX), None);
        assert!(again.refused(9, &Code::Unavailable.error("?"), 0, u64::MAX));
        assert!(again.due(RETRY_NS).is_none() && again.due(2 * RETRY_NS) == Some(9));
    }
}
