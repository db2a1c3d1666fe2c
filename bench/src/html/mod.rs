//! A result as a page: one file that needs nothing else, neither network nor another file.
//!
//! Invariants: every text of a result is escaped (it may come from elsewhere); the page loads nothing;
//! without its script it still shows everything but the values under the pointer.
//!
//! Called by `--html` of every scenario, by `bench report` and by `bench compare --html`.

pub mod axis;
mod charts;
pub mod compare;
pub mod plot;

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use crate::catalogue;
use crate::result::{Better, Latency, Metric, RunResult};
use crate::units::{show, thousands, words};
use charts::{Named, distributions, over_time};

/// The page of one run.
pub fn page(run: &RunResult) -> String {
    let body = html! {
        (header(run))
        (problems(&run.problems))
        (budgets(run))
        (tiles(run))
        (latencies(run))
        (timelines(run))
        (facts(run))
        (conditions(run))
    };
    shell(&format!("trunkline bench {}", run.scenario), &body)
}

/// What every page has around it.
fn shell(title: &str, body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                meta http-equiv="Content-Security-Policy"
                    content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
                title { (title) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                main { (body) }
                script { (PreEscaped(include_str!("hover.js"))) }
            }
        }
    }
    .into_string()
}

fn header(run: &RunResult) -> Markup {
    let seconds = run.finished_at_ms.saturating_sub(run.started_at_ms) as f64 / 1e3;
    let missed = run.budgets.iter().filter(|b| !b.kept).count();
    html! {
        div.top {
            div {
                h1 { "trunkline bench " (run.scenario) }
                div.muted { (date(run.started_at_ms)) ", " (show(seconds, "s")) }
            }
            div {
                @if !run.problems.is_empty() {
                    span.badge.bad { (count(run.problems.len(), "problem")) } " "
                }
                @if run.budgets.is_empty() {
                    span.badge { "no budgets" }
                } @else if missed == 0 {
                    span.badge.good { "✓ " (count(run.budgets.len(), "budget")) " kept" }
                } @else {
                    span.badge.bad { "✗ " (missed) " of " (count(run.budgets.len(), "budget")) " missed" }
                }
            }
        }
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn date(unix_ms: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(unix_ms))
}

fn problems(problems: &[String]) -> Markup {
    html! {
        @if !problems.is_empty() {
            h2.bad { "Problems" }
            div.card.problems { ul { @for problem in problems { li.bad { (problem) } } } }
        }
    }
}

fn budgets(run: &RunResult) -> Markup {
    html! {
        @if !run.budgets.is_empty() {
            h2 { "Budgets" }
            div.card { table {
                tr { th { "budget" } th.n { "found" } th { "" } }
                @for b in &run.budgets {
                    tr {
                        td { code { (b.budget) } }
                        td.n { (b.value.map_or("no such figure".to_owned(), crate::units::number)) }
                        td.good[b.kept].bad[!b.kept] { (if b.kept { "✓ kept" } else { "✗ missed" }) }
                    }
                }
            } }
        }
    }
}

/// Whether a figure is one of those that a reader looks for first: it has a good direction and is not
/// a part of another.
fn is_key(name: &str, metric: &Metric) -> bool {
    metric.better != Better::Neither && !name.starts_with("thread_cpu.")
}

fn tiles(run: &RunResult) -> Markup {
    let judged = run.metrics.iter().filter(|(name, m)| is_key(name, m));
    html! {
        h2 { "Key figures" }
        div.tiles {
            @for (name, metric) in judged {
                div.tile title=(about(name)) {
                    b { (show(metric.value, &metric.unit)) }
                    span { (words(name)) }
                }
            }
            @for (name, latency) in &run.latencies {
                div.tile title=(about(name)) {
                    b { (show(latency.p99_ms, "ms")) }
                    span { (words(name)) ", p99" }
                }
            }
        }
    }
}

/// What a figure means, in a sentence.
fn about(name: &str) -> String {
    catalogue::about(name).unwrap_or_default().to_owned()
}

fn latencies(run: &RunResult) -> Markup {
    let all: Vec<_> = run
        .latencies
        .iter()
        .map(|(name, latency)| Named::new(&words(name), latency))
        .collect();
    html! {
        @if !all.is_empty() {
            h2 { "Latency" }
            div.card { (latency_table(&run.latencies)) }
            p.muted { "From the moment an operation was due: a stall counts for everything that was due in it." }
            div.plots { @for plot in distributions("latency", &all) { (plot::figure(&plot)) } }
        }
    }
}

type Read = fn(&Latency) -> f64;

fn latency_table(latencies: &BTreeMap<String, Latency>) -> Markup {
    let columns: [(&str, Read); 6] = [
        ("p50", |l| l.p50_ms),
        ("p90", |l| l.p90_ms),
        ("p99", |l| l.p99_ms),
        ("p99.9", |l| l.p999_ms),
        ("max", |l| l.max_ms),
        ("mean", |l| l.mean_ms),
    ];
    html! {
        table.wide {
            tr {
                th { "" }
                @for (name, _) in columns { th.n { (name) } }
                th.n { "samples" }
            }
            @for (name, latency) in latencies {
                tr {
                    td title=(about(name)) { (words(name)) }
                    @for (_, read) in columns { td.n { (show(read(latency), "ms")) } }
                    td.n { (thousands(latency.count as f64)) }
                }
            }
        }
    }
}

fn timelines(run: &RunResult) -> Markup {
    let plots = over_time(&run.series);
    html! {
        @if !plots.is_empty() {
            h2 { "Over time" }
            div.plots { @for plot in &plots { (plot::figure(plot)) } }
        }
    }
}

/// All other figures.
fn facts(run: &RunResult) -> Markup {
    let facts: Vec<_> = run
        .metrics
        .iter()
        .filter(|(name, m)| !is_key(name, m))
        .map(|(name, m)| (words(name), show(m.value, &m.unit)))
        .collect();
    html! {
        @if !facts.is_empty() {
            h2 { "Facts" }
            div.card { (pairs(&facts)) }
        }
    }
}

fn pairs(rows: &[(String, String)]) -> Markup {
    html! { table { @for (name, value) in rows { tr { td.muted { (name) } td { (value) } } } } }
}

fn conditions(run: &RunResult) -> Markup {
    let host = &run.host;
    let mut machine = vec![
        ("processor".to_owned(), host.cpu.clone()),
        ("cores".to_owned(), host.cores.to_string()),
        ("memory".to_owned(), show(host.memory_bytes as f64, "bytes")),
        ("kernel".to_owned(), host.kernel.clone()),
    ];
    if let Some(files) = host.files_max {
        machine.push(("open files, at most".to_owned(), thousands(files as f64)));
    }
    let revision = run.git_revision.clone();
    machine.push((
        "revision".to_owned(),
        revision.unwrap_or_else(|| "not a checkout".to_owned()),
    ));
    let sysctls: Vec<_> = host.sysctls.clone().into_iter().collect();
    let parameters: Vec<_> = run
        .parameters
        .iter()
        .map(|(name, value)| (format!("--{name}"), parameter(value)))
        .collect();
    html! {
        h2 { "Conditions" }
        div.card { p { code { "trunkline " (run.command) } } }
        div.pairs {
            div.card { h2 { "Machine" } (pairs(&machine)) }
            div.card { h2 { "Parameters" } (pairs(&parameters)) }
            div.card { h2 { "Kernel settings" } (pairs(&sysctls)) }
        }
    }
}

/// A parameter as one would type it.
pub(crate) fn parameter(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(parameter).collect::<Vec<_>>().join(","),
        Value::Object(fields) => match (fields.get("secs"), fields.get("nanos")) {
            // A duration as serde writes it.
            (Some(secs), Some(nanos)) if fields.len() == 2 => {
                let seconds = secs.as_f64().unwrap_or(0.0) + nanos.as_f64().unwrap_or(0.0) / 1e9;
                format!("{}s", crate::units::trimmed(seconds, 3))
            }
            _ => value.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
