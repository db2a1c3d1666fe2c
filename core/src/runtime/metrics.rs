//! What the core's process counts, under names that begin with `trunkline_core_`.
//!
//! Figures of the engine come from a snapshot that its thread publishes now and then; the rest are
//! atomics that are written where the thing happens.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode_registry,
};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::Snapshot;
use crate::engine::EngineStats;
use crate::ownership::stats::{OwnershipFigures, OwnershipStats};
use crate::store::stats::{StoreFigures, StoreStats};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(crate) method: String,
    pub(crate) route: String,
    pub(crate) status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: String,
}

type U64Gauge = Gauge<u64, AtomicU64>;

pub(crate) struct Metrics {
    registry: Registry,
    commit_seconds: Histogram,
    commit_messages: Histogram,
    commit_failures: Counter,
    turn_events: Histogram,
    link_operations_in: Counter,
    link_operations_out: Counter,
    link_cuts: Family<ReasonLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histogram,
    queue_depth: U64Gauge,
    requests_outstanding: U64Gauge,
}

impl Metrics {
    pub(super) fn new(
        snapshot: Arc<Mutex<Arc<Snapshot>>>,
        store: Option<Arc<StoreStats>>,
        ownership: Option<Arc<OwnershipStats>>,
    ) -> Self {
        let mut registry = Registry::with_prefix("trunkline_core");
        let metrics = Self {
            commit_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            commit_messages: Histogram::new(exponential_buckets(1.0, 2.0, 15)),
            commit_failures: Counter::default(),
            turn_events: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            link_operations_in: Counter::default(),
            link_operations_out: Counter::default(),
            link_cuts: Family::default(),
            requests: Family::default(),
            request_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 17)),
            queue_depth: Gauge::default(),
            requests_outstanding: Gauge::default(),
            registry: Registry::default(),
        };
        metrics.register(&mut registry);
        registry.register_collector(Box::new(EngineCollector { snapshot }));
        if let Some(store) = store {
            registry.register_collector(Box::new(StoreCollector { store }));
        }
        if let Some(ownership) = ownership {
            registry.register_collector(Box::new(OwnershipCollector { ownership }));
        }
        Self {
            registry,
            ..metrics
        }
    }

    fn register(&self, to: &mut Registry) {
        let seconds = || Unit::Seconds;
        to.register_with_unit(
            "commit",
            "Time from handing a batch to the store until it was durable",
            seconds(),
            self.commit_seconds.clone(),
        );
        to.register(
            "commit_messages",
            "Messages in one commit",
            self.commit_messages.clone(),
        );
        to.register(
            "commit_failures",
            "Commits that the store did not confirm",
            self.commit_failures.clone(),
        );
        to.register(
            "turn_events",
            "Events that the engine took in one turn",
            self.turn_events.clone(),
        );
        to.register(
            "link_operations_in",
            "Operations that edges sent",
            self.link_operations_in.clone(),
        );
        to.register(
            "link_operations_out",
            "Operations sent to edges",
            self.link_operations_out.clone(),
        );
        to.register(
            "link_cuts",
            "Edge streams that the core gave up",
            self.link_cuts.clone(),
        );
        to.register(
            "http_requests",
            "HTTP requests answered",
            self.requests.clone(),
        );
        to.register_with_unit(
            "http_request",
            "Time to answer an HTTP request",
            seconds(),
            self.request_seconds.clone(),
        );
        to.register(
            "queue_depth",
            "Events that wait for the engine",
            self.queue_depth.clone(),
        );
        to.register(
            "requests_outstanding",
            "REST calls that the engine has not answered yet",
            self.requests_outstanding.clone(),
        );
    }

    pub(super) fn committed(&self, took: Duration, messages: usize, durable: bool) {
        if durable {
            self.commit_seconds.observe(took.as_secs_f64());
            self.commit_messages.observe(messages as f64);
        } else {
            self.commit_failures.inc();
        }
    }

    pub(super) fn turned(&self, events: usize) {
        self.turn_events.observe(events as f64);
    }

    pub(super) fn operations_in(&self, operations: usize) {
        self.link_operations_in.inc_by(operations as u64);
    }

    pub(super) fn operations_out(&self, operations: usize) {
        self.link_operations_out.inc_by(operations as u64);
    }

    pub(super) fn cut(&self, reason: &str) {
        self.link_cuts
            .get_or_create(&ReasonLabels {
                reason: reason.to_owned(),
            })
            .inc();
    }

    pub(crate) fn answered(&self, labels: &RequestLabels, took: Duration) {
        self.requests.get_or_create(labels).inc();
        self.request_seconds.observe(took.as_secs_f64());
    }

    /// Appends everything in the Prometheus text form, version 0.0.4.
    pub(super) fn encode(&self, queue_depth: usize, outstanding: usize, out: &mut String) {
        self.queue_depth.set(queue_depth as u64);
        self.requests_outstanding.set(outstanding as u64);
        let mut open_metrics = String::new();
        if encode_registry(&mut open_metrics, &self.registry).is_err() {
            // Writing to a String does not fail; a collector of ours would have to.
            tracing::error!("a metric could not be encoded");
        }
        to_prometheus_text(&open_metrics, out);
    }
}

/// OpenMetrics as Prometheus' older text form, which every scraper reads and which can be joined
/// with the text of others: no units, and counters are described under their samples' name.
fn to_prometheus_text(open_metrics: &str, out: &mut String) {
    // Each family begins with HELP, then TYPE.
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|typed| typed.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let text = help.take().map_or("", |(_, text)| text);
            let _ = writeln!(out, "# HELP {name}{suffix} {text}");
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with("# UNIT ") {
            let _ = writeln!(out, "{line}");
        }
    }
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> std::fmt::Result {
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> std::fmt::Result {
    let metric = ConstGauge::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

#[derive(Debug)]
struct EngineCollector {
    snapshot: Arc<Mutex<Arc<Snapshot>>>,
}

impl Collector for EngineCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let snapshot = Arc::clone(&self.snapshot.lock());
        for (name, help, value) in engine_counters(&snapshot.engine) {
            counter(&mut encoder, name, help, value)?;
        }
        for (name, help, value) in engine_gauges(&snapshot.engine) {
            gauge(&mut encoder, name, help, value)?;
        }
        let waiting = snapshot.edges.iter().map(|e| e.waiting as u64).sum();
        gauge(
            &mut encoder,
            "link_operations_waiting",
            "Operations that wait for credit of an edge",
            waiting,
        )
    }
}

type Figure = (&'static str, &'static str, u64);

#[rustfmt::skip]
fn engine_counters(stats: &EngineStats) -> Vec<Figure> {
    vec![
        ("sends", "Messages that were given a seq", stats.sends),
        ("acks", "Acks that went out, duplicates among them", stats.acks),
        ("duplicates", "Sends recognised by their client_msg_id", stats.duplicates),
        ("conflicts", "Sends whose client_msg_id stands for other content", stats.conflicts),
        ("delivery_items", "Deliveries of messages, one for each message and edge", stats.delivery_items),
        ("delivery_handles", "Sessions that deliveries were addressed to", stats.delivery_handles),
        ("roster_items", "Deliveries that named a roster in place of sessions", stats.roster_items),
        ("roster_evictions", "Rosters dropped to make room", stats.roster_evictions),
        ("receipts", "Watermarks that rose", stats.receipts),
        ("receipt_items", "Receipts that went out", stats.receipt_items),
        ("loads", "Conversations asked of the store", stats.loads),
        ("load_failures", "Conversations that the store did not answer for", stats.load_failures),
        ("reads", "Pages asked of the store", stats.reads),
        ("reads_cached", "Pages answered from memory", stats.reads_cached),
        ("commits", "Commits begun, repeats not counted", stats.commits),
        ("commit_retries", "Commits repeated since their outcome was unknown", stats.commit_retries),
        ("committed", "Messages committed", stats.committed),
        ("rate_limited", "Sends refused with rate_limited", stats.rate_limited),
        ("overloaded", "Operations refused with overloaded", stats.overloaded),
        ("errors", "Errors answered, of every code", stats.errors),
        ("replaced", "Sessions closed for a newer one of the same device", stats.replaced),
        ("hints", "Hints sent to sessions that were announced again", stats.hints),
        ("hints_spared", "Conversations that hints did not have to look at", stats.hints_spared),
        ("evictions", "Conversations dropped from memory to make room", stats.evictions),
        ("stale", "Operations and tokens that named something gone", stats.stale),
    ]
}

#[rustfmt::skip]
fn engine_gauges(stats: &EngineStats) -> Vec<Figure> {
    vec![
        ("edges", "Attached edges", stats.edges),
        ("sessions", "Sessions in the registry", stats.sessions),
        ("users", "Users known at present", stats.users),
        ("rosters", "Conversations whose recipients the edges keep", stats.rosters),
        ("roster_handles", "Sessions in rosters", stats.roster_handles),
        ("conversations", "Conversations in memory", stats.conversations),
        ("dedup_entries", "Entries of all dedup windows", stats.dedup_entries),
        ("operations_open", "Operations in the batch that the next commit takes", stats.operations_open),
        ("operations_waiting", "Operations that wait for a conversation", stats.operations_waiting),
    ]
}

#[derive(Debug)]
struct StoreCollector {
    store: Arc<StoreStats>,
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        for (name, help, value) in store_counters(&self.store.figures()) {
            counter(&mut encoder, name, help, value)?;
        }
        Ok(())
    }
}

#[rustfmt::skip]
fn store_counters(store: &StoreFigures) -> Vec<Figure> {
    vec![
        ("store_commits", "Batches committed", store.commits),
        ("store_failed_commits", "Batches that were not, or of which it is not known", store.failed_commits),
        ("store_messages", "Messages in committed batches", store.messages),
        ("store_bytes", "Bytes of keys and rows in committed batches", store.bytes),
        ("store_reads", "Loads, reads and index look-ups", store.reads),
        ("store_messages_read", "Messages that these returned", store.messages_read),
    ]
}

#[derive(Debug)]
struct OwnershipCollector {
    ownership: Arc<OwnershipStats>,
}

impl Collector for OwnershipCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let figures = self.ownership.figures();
        for (name, help, value) in ownership_counters(&figures) {
            counter(&mut encoder, name, help, value)?;
        }
        for (name, help, value) in ownership_gauges(&figures) {
            gauge(&mut encoder, name, help, value)?;
        }
        Ok(())
    }
}

#[rustfmt::skip]
fn ownership_counters(ownership: &OwnershipFigures) -> Vec<Figure> {
    vec![
        ("ownership_gains", "Partitions that came to this core", ownership.gains),
        ("ownership_take_overs", "Of these, partitions of cores that died", ownership.take_overs),
        ("ownership_hand_overs", "Partitions handed to another core", ownership.hand_overs),
        ("ownership_losses", "Partitions that others took, having declared this core dead", ownership.losses),
        ("ownership_lapses", "Leases that were not renewed in time", ownership.lapses),
        ("ownership_catch_ups", "Journals of earlier owners to be read, one for each partition", ownership.catch_ups),
        ("ownership_renewals", "Renewals of the lease", ownership.renewals),
        ("ownership_statements", "Statements asked of the control tables", ownership.statements),
        ("ownership_statements_unanswered", "Of these, without an answer in time", ownership.statements_unanswered),
    ]
}

#[rustfmt::skip]
fn ownership_gauges(ownership: &OwnershipFigures) -> Vec<Figure> {
    vec![
        ("ownership_partitions", "Partitions held under a valid lease", ownership.held),
        ("ownership_lease_left_ms", "How long the lease is good without another renewal", ownership.lease_left_ms),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ownership::clock::KernelClock;

    #[test]
    fn counters_are_described_under_the_name_of_their_samples() {
        let open_metrics = "# HELP a Sum.\n# TYPE a counter\na_total 1\n\
            # HELP b_seconds Time.\n# TYPE b_seconds histogram\n# UNIT b_seconds seconds\n\
            b_seconds_sum 0.5\n";
        let mut text = String::new();
        to_prometheus_text(open_metrics, &mut text);
        assert_eq!(
            text,
            "# HELP a_total Sum.\n# TYPE a_total counter\na_total 1\n\
             # HELP b_seconds Time.\n# TYPE b_seconds histogram\nb_seconds_sum 0.5\n"
        );
    }

    #[test]
    fn ownership_is_shown_where_there_is_any() {
        let page = |ownership| {
            let mut text = String::new();
            Metrics::new(Arc::default(), None, ownership).encode(0, 0, &mut text);
            text
        };
        let clock = Arc::new(KernelClock);
        let shown = page(Some(Arc::new(OwnershipStats::new(clock))));
        for line in [
            "trunkline_core_ownership_lapses_total 0",
            "trunkline_core_ownership_take_overs_total 0",
            "trunkline_core_ownership_hand_overs_total 0",
            "trunkline_core_ownership_partitions 0",
            "trunkline_core_ownership_lease_left_ms 0",
        ] {
            assert!(shown.lines().any(|l| l == line), "{line} in {shown}");
        }
        assert!(!page(None).contains("ownership"));
    }
}
