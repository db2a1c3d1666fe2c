//! What every figure of every scenario means, by name: one list for budgets, pages and documentation.
//!
//! Invariants: a scenario brings no figure that is not here (a run of some of them in the tests says
//! so); no name has two meanings. In a name here `PROCESS` stands for `server` (all its processes) or
//! one of them (`serve`, `edge`, `core`), `*` for anything.
//!
//! Called by [`crate::budget`], by the pages, and by `trunkline bench figures`.

use std::fmt::Write as _;

/// A figure's name and its meaning in a sentence.
type Entry = (&'static str, &'static str);

/// Single figures.
const METRICS: &[Entry] = &[
    (
        "PROCESS_cpu",
        "CPU of a process of the server while it was measured",
    ),
    (
        "PROCESS_cpu_ns_per_delivery",
        "CPU time of a process for each delivery",
    ),
    (
        "PROCESS_cpu_ns_per_heartbeat",
        "CPU time of a process for each sign of life of a client",
    ),
    (
        "PROCESS_cpu_us_per_drained_session",
        "CPU time of a process for each session that was told to leave",
    ),
    (
        "PROCESS_cpu_us_per_message",
        "CPU time of a process for each acknowledged message",
    ),
    (
        "PROCESS_cpu_us_per_session",
        "CPU time of a process for each session that came up",
    ),
    (
        "PROCESS_cpu_us_per_storm_session",
        "CPU time of a process for each session that came back in the storm",
    ),
    (
        "PROCESS_tables_bytes_per_session",
        "What an edge says that its own tables cost for each session",
    ),
    ("acked_rate", "Messages stored and acknowledged"),
    (
        "anonymous_bytes_per_session",
        "Anonymous memory of the server for each further session",
    ),
    ("away", "Clients that were away when they were due to send"),
    (
        "beside_hot_acked_rate",
        "Messages acknowledged outside the hot conversation, beside it",
    ),
    (
        "beside_hot_generator_cpu",
        "CPU of the generator beside the hot conversation, which it drives",
    ),
    (
        "beside_hot_p99_ratio",
        "p99 of the acks outside the hot conversation, beside it to without it",
    ),
    (
        "beside_hot_server_cpu",
        "CPU of the server with the hot conversation",
    ),
    (
        "calm_p99_ratio",
        "p99 of the acks of those outside the storm, during it to before it",
    ),
    ("clean", "Sessions that left when they were told to"),
    (
        "connect_rate",
        "Sessions established, from the first dial to the last `connected`",
    ),
    ("connections", "Connections of the generator"),
    ("conversations", "Conversations in which messages were sent"),
    (
        "conversations_not_whole",
        "Conversations whose readers did not get what was sent",
    ),
    ("delivered", "Deliveries that arrived"),
    ("delivery_rate", "Deliveries that arrived in a second"),
    (
        "fetched",
        "Messages that clients fetched after they had been away",
    ),
    (
        "forced",
        "Sessions that the server ended when its time for draining was over",
    ),
    (
        "generator_bytes_per_client",
        "Memory of the generator for each further client",
    ),
    (
        "generator_cpu",
        "CPU of the generator while it was measured: near 100 % for each of its threads it is the bottleneck",
    ),
    (
        "generator_cpu_ns_per_*",
        "CPU time of the generator for each operation",
    ),
    (
        "generator_cpu_per_*",
        "CPU time of the generator for each operation",
    ),
    (
        "generator_cpu_us_per_*",
        "CPU time of the generator for each operation",
    ),
    ("half_open_first", "When the first dead socket was found"),
    ("half_open_found", "Dead sockets that the server found"),
    ("half_open_last", "When the last dead socket was found"),
    ("heartbeat_rate", "Signs of life of all clients together"),
    (
        "hot_acked_rate",
        "Messages acknowledged in the hot conversation",
    ),
    (
        "hot_delivery_rate",
        "Deliveries of the hot conversation's messages in a second",
    ),
    (
        "hot_refused",
        "Messages of the hot conversation that the server was too busy to take in",
    ),
    ("hot_sent", "Messages sent into the hot conversation"),
    (
        "kernel_bytes_per_session",
        "Kernel memory of the server's end of each further session",
    ),
    ("left", "Clients that left and came back"),
    (
        "memory_growth",
        "Growth of the server's memory over the run",
    ),
    ("missed_messages", "Messages written to those who were away"),
    (
        "missed_messages_seen",
        "Messages of those that their reader got after coming back",
    ),
    (
        "outboxes_max",
        "What the server kept for slow readers, at most",
    ),
    (
        "p99_ratio",
        "p99 of deliveries to those who read, with slow readers beside them to without",
    ),
    ("published", "Messages published to groups"),
    ("rate", "Messages answered in a second"),
    ("refused_connects", "Connects that the server refused"),
    (
        "refused_connects.*",
        "Connects that the server refused, by HTTP status",
    ),
    ("seconds_to_all", "Until the last session was up"),
    ("seconds_to_empty", "Until the drained process had ended"),
    (
        "seconds_to_synced",
        "Until the last client had what it missed",
    ),
    ("sent", "Messages sent"),
    (
        "server_cpu_per_delivery",
        "CPU time of the server for each delivery",
    ),
    (
        "server_cpu_per_handshake",
        "CPU time of the server for each connection made",
    ),
    (
        "server_cpu_per_message",
        "CPU time of the server for each answered message",
    ),
    (
        "server_memory",
        "Resident memory of the server with all sessions",
    ),
    (
        "server_memory_grown",
        "What the server's memory grew by while readers were slow",
    ),
    (
        "server_memory_per_connection",
        "Resident memory of the server for each connection",
    ),
    ("sessions", "Sessions that were up"),
    (
        "sessions_after",
        "Sessions that were up on the other edges afterwards",
    ),
    ("slow_clients", "Clients that did not read"),
    (
        "slow_clients_ended",
        "Clients that did not read and were ended for it",
    ),
    (
        "storm_connect_rate",
        "Sessions established when all came back at once",
    ),
    (
        "storm_seconds_to_all",
        "Until the last session was up again",
    ),
    ("synced", "Clients that had what they missed"),
    (
        "thread_cpu.*",
        "CPU of one thread of the server, by process and thread",
    ),
    ("told_to_leave", "Sessions that were told to leave"),
    (
        "unanswered",
        "Messages without an ack when the wait for them was over",
    ),
    (
        "user_bytes_per_session",
        "Resident memory of the server's processes for each further session",
    ),
    (
        "wrong_deliveries",
        "Deliveries that came twice, out of order, or after a gap",
    ),
];

/// Distributions.
const LATENCIES: &[Entry] = &[
    ("ack", "From the moment a message was due to its ack"),
    (
        "beside_hot_ack",
        "Acks outside the hot conversation, beside it",
    ),
    (
        "beside_hot_delivery",
        "Deliveries outside the hot conversation, beside it",
    ),
    (
        "calm_ack_before",
        "Acks of those outside the storm, before it",
    ),
    (
        "calm_ack_during",
        "Acks of those outside the storm, during it",
    ),
    (
        "connect",
        "From the moment a connect was due to `connected`",
    ),
    (
        "delivery",
        "From the moment a message was due to its delivery",
    ),
    (
        "delivery_before",
        "Deliveries to those who read, before others stopped reading",
    ),
    (
        "delivery_during",
        "Deliveries to those who read, while others did not",
    ),
    ("echo", "From the moment a message was due to its echo"),
    (
        "half_open_found_after",
        "From a peer's silent death to its discovery",
    ),
    (
        "hot_ack",
        "Acks in the hot conversation, which keeps a closed loop",
    ),
    (
        "hot_delivery",
        "Deliveries in the hot conversation, which keeps a closed loop",
    ),
    (
        "last_delivery",
        "From the moment a message was due to its last delivery",
    ),
    (
        "moved",
        "From the moment a drained session was due elsewhere to `connected`",
    ),
    (
        "reconnect",
        "From the moment a client was due back to `connected`",
    ),
    ("storm_connect", "From the moment of the cut to `connected`"),
    (
        "storm_synced",
        "From the moment of the cut to having what was missed",
    ),
    (
        "told_to_wait",
        "The delay that drained sessions were told to reconnect after",
    ),
];

/// Scenarios that compare servers put the name of one, or of two, in front.
const COMPARED: [&str; 6] = [
    "connect_rate",
    "delivery_rate",
    "latency_p50",
    "latency_p99",
    "rate",
    "server_cpu_per_message",
];

/// Names that a typo may have meant, at least this alike.
const ALIKE_MIN: f64 = 0.75;
const SUGGESTED_MAX: usize = 3;
/// First words of the names of the server's processes.
const PROCESSES: [&str; 4] = ["server", "serve", "edge", "core"];

/// Names of all single figures, without those that stand for many.
pub fn metrics() -> Vec<String> {
    let names = METRICS.iter().map(|(name, _)| *name);
    let each = |name: &'static str| match name.strip_prefix("PROCESS") {
        Some(tail) => PROCESSES.iter().map(|p| format!("{p}{tail}")).collect(),
        None => vec![name.to_owned()],
    };
    let names = names.filter(|name| !name.contains('*'));
    names.flat_map(each).collect()
}

/// Names of all distributions.
pub fn latencies() -> Vec<&'static str> {
    LATENCIES.iter().map(|(name, _)| *name).collect()
}

/// Whether some scenario brings a single figure of this name.
pub fn is_metric(name: &str) -> bool {
    let is_compared = || {
        let tail = name.split_once('.').map(|(_, tail)| tail);
        let tail = tail.map(|t| t.trim_end_matches("_least").trim_end_matches("_greatest"));
        tail.is_some_and(|tail| COMPARED.contains(&tail) || METRICS.iter().any(|e| e.0 == tail))
    };
    METRICS.iter().any(|(known, _)| stands_for(known, name)) || is_compared()
}

/// What a figure means.
pub fn about(name: &str) -> Option<&'static str> {
    let found = LATENCIES.iter().find(|(known, _)| *known == name);
    let found = found.or_else(|| METRICS.iter().find(|(known, _)| stands_for(known, name)));
    found.map(|(_, about)| *about)
}

fn stands_for(known: &str, name: &str) -> bool {
    if let Some(tail) = known.strip_prefix("PROCESS") {
        // `edge_b_cpu`: the second edge.
        let process = name.strip_suffix(tail);
        return process.is_some_and(|p| {
            let first = p.split('_').next().unwrap_or_default();
            PROCESSES.contains(&first)
        });
    }
    match known.strip_suffix('*') {
        Some(head) => name.starts_with(head),
        None => known == name,
    }
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
    let _ = writeln!(
        out,
        "PROCESS is server (all of them), serve, edge or core; * is anything."
    );
    let _ = writeln!(out, "Of a distribution, as in ack.p99_ms: {fields}.");
    out
}

/// The names nearest to `name`, nearest first; none if none is near.
pub fn nearest<S: AsRef<str> + Ord>(name: &str, names: impl IntoIterator<Item = S>) -> Vec<S> {
    let mut near: Vec<_> = names
        .into_iter()
        .map(|known| (alike(name, known.as_ref()), known))
        .filter(|(alike, _)| *alike >= ALIKE_MIN)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
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
        assert_eq!(near.first().map(String::as_str), Some("connect_rate"));
        assert_eq!(nearest("zzz", metrics()), Vec::<String>::new());
    }

    #[test]
    fn names_that_stand_for_many_do() {
        for name in [
            "edge_cpu_us_per_message",
            "edge_b_cpu",
            "thread_cpu.core/engine",
            "refused_connects.503",
            "uring.server_cpu_per_message_least",
        ] {
            assert!(is_metric(name), "{name}");
        }
        for name in [
            "hedge_cpu",
            "edge_cpu_us_per_massage",
            "PROCESS_cpu",
            "uring.fun",
        ] {
            assert!(!is_metric(name), "{name}");
        }
        let about = about("core_cpu_us_per_message");
        assert!(about.is_some_and(|a| a.contains("acknowledged message")));
    }
}
