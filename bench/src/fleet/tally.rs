//! What a worker saw: counts and distributions, added up over workers.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::BenchError;

/// What was seen since the tally was last taken.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Sessions that came up.
    pub sessions: u64,
    /// From the moment at which a connect was due to `connected`.
    pub connect: Histogram<u64>,
    /// Refused upgrades by HTTP status.
    pub refused: BTreeMap<u16, u64>,
    /// Connects that failed before that, by the error's name.
    pub connect_errors: BTreeMap<String, u64>,
    /// Sessions that the server closed, by close code; 0: without a code.
    pub closes: BTreeMap<u16, u64>,
    /// Signs of life given.
    pub heartbeats: u64,
    /// Error frames by code.
    pub errors: BTreeMap<String, u64>,
    /// Messages that were due and could not be sent: the client was not up, or its socket did not
    /// take what came before.
    pub not_sent: u64,
    /// What a scenario counts, by its name for it.
    pub counts: BTreeMap<&'static str, u64>,
    /// What a scenario times, by its name for it.
    pub times: BTreeMap<&'static str, Histogram<u64>>,
}

/// ns, three digits, growing as needed.
pub fn histogram() -> Histogram<u64> {
    Histogram::new(3).unwrap_or_else(|_| unreachable!("3 is a valid precision"))
}

/// Into a histogram that grows: any number of ns fits.
pub fn record(histogram: &mut Histogram<u64>, ns: u64) {
    let recorded = histogram.record(ns);
    debug_assert!(
        recorded.is_ok(),
        "an auto-sized histogram takes every value"
    );
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            sessions: 0,
            connect: histogram(),
            refused: BTreeMap::new(),
            connect_errors: BTreeMap::new(),
            closes: BTreeMap::new(),
            heartbeats: 0,
            errors: BTreeMap::new(),
            not_sent: 0,
            counts: BTreeMap::new(),
            times: BTreeMap::new(),
        }
    }
}

impl Tally {
    /// One more of what a scenario counts.
    pub fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    /// How often it was counted.
    pub fn counted(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// An error that a scenario expected.
    pub fn excuse(&mut self, code: &str) {
        if let Some(n) = self.errors.get_mut(code) {
            *n -= 1;
            if *n == 0 {
                self.errors.remove(code);
            }
        }
    }

    /// One more duration of what a scenario times.
    pub fn time(&mut self, name: &'static str, ns: u64) {
        record(self.times.entry(name).or_insert_with(histogram), ns);
    }

    /// Adds another worker's.
    pub fn add(&mut self, other: &Self) -> Result<(), BenchError> {
        let failed = |e: hdrhistogram::errors::AdditionError| BenchError::Server(e.to_string());
        self.sessions += other.sessions;
        self.heartbeats += other.heartbeats;
        self.not_sent += other.not_sent;
        merge(&mut self.refused, &other.refused);
        merge(&mut self.connect_errors, &other.connect_errors);
        merge(&mut self.closes, &other.closes);
        merge(&mut self.errors, &other.errors);
        merge(&mut self.counts, &other.counts);
        self.connect.add(&other.connect).map_err(failed)?;
        for (name, times) in &other.times {
            let mine = self.times.entry(name).or_insert_with(histogram);
            mine.add(times).map_err(failed)?;
        }
        Ok(())
    }
}

fn merge<K: Ord + Clone>(into: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
    for (key, n) in from {
        *into.entry(key.clone()).or_default() += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_add_up() {
        let mut all = Tally::default();
        for worker in 0..2u64 {
            let mut tally = Tally::default();
            for ms in 1..=500 {
                record(&mut tally.connect, (worker * 500 + ms) * 1_000_000);
                tally.time("ack", ms);
            }
            tally.count("seen");
            *tally.closes.entry(4409).or_default() += 2;
            all.add(&tally).unwrap();
        }
        assert_eq!((all.counted("seen"), all.counted("absent")), (2, 0));
        assert_eq!(all.closes[&4409], 4);
        assert_eq!(all.times["ack"].len(), 1_000);
        let latency = crate::result::Latency::of(&all.connect).unwrap();
        assert!((495.0..=505.0).contains(&latency.p50_ms), "{latency:?}");
        assert!((999.0..=1_001.0).contains(&latency.max_ms), "{latency:?}");
    }
}
