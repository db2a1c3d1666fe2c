//! A comparison as a page: verdicts, distributions laid over each other, series side by side.

use hdrhistogram::Histogram;
use maud::{Markup, html};

use super::charts::{Named, distributions, overlaid};
use super::{plot, shell};
use crate::compare::{Comparison, Verdict};
use crate::result::{Latency, Series};
use crate::stored::{Stored, histogram};
use crate::units::{number, words};

/// The page of a comparison of the same runs that it was made from.
pub fn page(comparison: &Comparison, before: &[Stored], after: &[Stored]) -> String {
    let body = html! {
        (header(comparison))
        @if !comparison.warnings.is_empty() {
            h2.bad { "Warnings" }
            div.card.problems { ul { @for w in &comparison.warnings { li.bad { (w) } } } }
        }
        (table(comparison))
        (latencies(before, after))
        (series(before, after))
        (conditions(comparison))
    };
    shell("trunkline bench compare", &body)
}

fn header(comparison: &Comparison) -> Markup {
    let worse = comparison.count(Verdict::Worse);
    html! {
        div.top {
            div {
                h1 { "trunkline bench compare" }
                div.muted { (comparison.before.scenario) ", threshold " (number(comparison.threshold * 100.0)) " %" }
            }
            div {
                @if worse > 0 { span.badge.bad { "✗ " (worse) " worse" } " " }
                @else { span.badge.good { "✓ nothing worse" } " " }
                span.badge { (comparison.count(Verdict::Better)) " better" } " "
                span.badge { (comparison.count(Verdict::Same)) " same" }
            }
        }
        div.pairs {
            @for (name, side) in [("Before", &comparison.before), ("After", &comparison.after)] {
                div.card {
                    h2 { (name) }
                    @for file in &side.files { div { (file) } }
                    p.muted { code { (side.git_revision.as_deref().unwrap_or("no one revision")) } }
                }
            }
        }
    }
}

fn table(comparison: &Comparison) -> Markup {
    html! {
        h2 { "Figures" }
        div.card { table.wide {
            tr { th { "" } th.n { "before" } th.n { "after" } th.n { "ratio" } th { "" } }
            @for row in &comparison.rows {
                tr {
                    td { code { (row.figure) } }
                    td.n { (row.side(row.before)) }
                    td.n { (row.side(row.after)) }
                    td.n { (row.ratio_text()) }
                    td.bad[row.verdict == Verdict::Worse].good[row.verdict == Verdict::Better] {
                        (row.verdict.word().to_lowercase())
                    }
                }
            }
        } }
    }
}

fn latencies(before: &[Stored], after: &[Stored]) -> Markup {
    let (Some(first), Some(_)) = (before.first(), after.first()) else {
        return html! {};
    };
    let plots = first.run.latencies.keys().flat_map(|name| {
        let sides = [
            ("before", merged(before, name)),
            ("after", merged(after, name)),
        ];
        let named: Vec<_> = sides
            .iter()
            .filter_map(|(side, l)| Some(Named::new(side, l.as_ref()?)))
            .collect();
        distributions(&words(name), &named)
    });
    let plots: Vec<_> = plots.collect();
    html! {
        @if !plots.is_empty() {
            h2 { "Latency" }
            div.plots { @for p in &plots { (plot::figure(p)) } }
        }
    }
}

/// The runs of a side as one distribution; the first run's where one cannot be read.
fn merged(side: &[Stored], name: &str) -> Option<Latency> {
    let all: Vec<_> = side
        .iter()
        .filter_map(|s| s.run.latencies.get(name))
        .collect();
    let first = (*all.first()?).clone();
    let histograms: Option<Vec<Histogram<u64>>> = all.iter().map(|l| histogram(l)).collect();
    let sum = histograms.and_then(|all| {
        let mut all = all.into_iter();
        let mut sum = all.next()?;
        for histogram in all {
            sum.add(histogram).ok()?;
        }
        Latency::of(&sum)
    });
    Some(sum.unwrap_or(first))
}

/// The first run of each side: curves over time of different runs have no sum.
fn series(before: &[Stored], after: &[Stored]) -> Markup {
    let of = |side: &[Stored]| -> Vec<Series> {
        side.first()
            .map(|s| s.run.series.clone())
            .unwrap_or_default()
    };
    let (b, a) = (of(before), of(after));
    let plots = overlaid([("before", &b), ("after", &a)]);
    html! {
        @if !plots.is_empty() {
            h2 { "Over time, first run of each side" }
            div.plots { @for p in &plots { (plot::figure(p)) } }
        }
    }
}

fn conditions(comparison: &Comparison) -> Markup {
    html! {
        @if !comparison.differences.is_empty() {
            h2 { "Not the same conditions" }
            div.card { table {
                tr { th { "" } th { "before" } th { "after" } }
                @for d in &comparison.differences {
                    tr { td { (d.what) } td { (d.before) } td { (d.after) } }
                }
            } }
        }
    }
}
