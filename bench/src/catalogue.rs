//! What every figure of every scenario means, by name: one list for budgets, pages and documentation.
//!
//! Invariants: a scenario brings no figure that is not here (a run of each in the tests says so); no
//! name has two meanings.
//!
//! Called by [`crate::budget`], by the pages, and by `trunkline bench figures`.

use std::fmt::Write as _;

/// A figure's name and its meaning in a sentence.
type Entry = (&'static str, &'static str);

/// Single figures.
const METRICS: &[Entry] = &[
    ("ack_rate", "Messages stored and acknowledged"),
    (
        "connect_rate",
        "Sessions established, from the first dial to the last `connected`",
    ),
    (
        "server_cpu_per_message",
        "CPU time of the server for each acknowledged message",
    ),
];

/// Distributions.
const LATENCIES: &[Entry] = &[
    ("ack", "From the moment a message was due to its ack"),
    (
        "delivery",
        "From the moment a message was due to its delivery",
    ),
];

/// Names that a typo may have meant, at least this alike.
const ALIKE_MIN: f64 = 0.75;
const SUGGESTED_MAX: usize = 3;

/// Names of all single figures.
pub fn metrics() -> Vec<&'static str> {
    METRICS.iter().map(|(name, _)| *name).collect()
}

/// Names of all distributions.
pub fn latencies() -> Vec<&'static str> {
    LATENCIES.iter().map(|(name, _)| *name).collect()
}

/// Whether some scenario brings a single figure of this name.
pub fn is_metric(name: &str) -> bool {
    METRICS.iter().any(|(known, _)| *known == name)
}

/// What a figure means.
pub fn about(name: &str) -> Option<&'static str> {
    let all = || METRICS.iter().chain(LATENCIES);
    all()
        .find(|(known, _)| *known == name)
        .map(|(_, about)| *about)
}

/// All of them as text.
pub fn text() -> String {
    let width = |list: &[Entry]| list.iter().map(|(n, _)| n.len()).max().unwrap_or(0);
    let width = width(METRICS).max(width(LATENCIES));
    let mut out = String::new();
    for (title, list) in [("Figures", METRICS), ("Distributions", LATENCIES)] {
        let _ = writeln!(out, "{title}");
        for (name, about) in list {
            let _ = writeln!(out, "  {name:width$}  {about}");
        }
    }
    let fields = crate::budget::LATENCY_FIELDS.join(", ");
    let _ = writeln!(out, "Of a distribution, as in ack.p99_ms: {fields}");
    out
}

/// The names nearest to `name`, nearest first; none if none is near.
pub fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut near: Vec<_> = names
        .into_iter()
        .map(|known| (alike(name, known), known))
        .filter(|(alike, _)| *alike >= ALIKE_MIN)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    near.into_iter()
        .map(|(_, known)| known)
        .take(SUGGESTED_MAX)
        .collect()
}

/// 0 to 1. One slip counts as near in a name of any length.
fn alike(name: &str, known: &str) -> f64 {
    let alike = strsim::jaro_winkler(name, known);
    match strsim::damerau_levenshtein(name, known) {
        0 | 1 => alike.max(ALIKE_MIN),
        _ => alike,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_name_means_two_things() {
        let names: BTreeSet<_> = METRICS.iter().chain(LATENCIES).map(|e| e.0).collect();
        assert_eq!(names.len(), METRICS.len() + LATENCIES.len());
    }

    #[test]
    fn a_typo_finds_its_name() {
        let near = nearest("conect_rate", metrics());
        assert_eq!(near.first(), Some(&"connect_rate"));
        assert_eq!(nearest("zzz", metrics()), Vec::<&str>::new());
    }
}
