//! What a page says and does not say.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hdrhistogram::Histogram;

use super::*;
use crate::compare::Comparison;
use crate::result::{BudgetOutcome, Series};
use crate::stored::Stored;

const HOSTILE: &str = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&";

/// A run of which every text is `text`.
fn run_of(text: &str) -> RunResult {
    let mut histogram = Histogram::<u64>::new(3).unwrap();
    for us in 1..5_000u64 {
        histogram.record(us * us).unwrap();
    }
    let mut run = RunResult::begin(text, BTreeMap::from([(text.to_owned(), text.into())]));
    run.command = text.to_owned();
    run.git_revision = Some(text.to_owned());
    run.host.cpu = text.to_owned();
    run.host.kernel = text.to_owned();
    run.host.sysctls = BTreeMap::from([(text.to_owned(), text.to_owned())]);
    run.metric(text, 12.5, text, Better::Higher);
    run.metric(&format!("{text} "), 1.0, text, Better::Neither);
    run.latency(text, &histogram);
    run.latency(&format!("{text} "), &histogram);
    run.series.push(Series {
        name: text.to_owned(),
        unit: text.to_owned(),
        points: vec![[0.0, 1.0], [1.0, 5.0]],
    });
    run.budgets.push(BudgetOutcome {
        budget: text.to_owned(),
        value: None,
        kept: false,
    });
    run.problems.push(text.to_owned());
    run.finish();
    run
}

fn scripts(page: &str) -> usize {
    page.matches("<script").count()
}

#[test]
fn no_text_of_a_result_becomes_markup() {
    let run = run_of(HOSTILE);
    let side = [Stored {
        path: PathBuf::from(HOSTILE),
        run: run.clone(),
    }];
    let comparison = Comparison::of(&side, &side, 0.05);
    for page in [page(&run), compare::page(&comparison, &side, &side)] {
        assert_eq!(scripts(&page), 1, "the page's own");
        assert!(!page.contains("<img"), "{page}");
        assert!(page.contains("&lt;img src=x"));
    }
}

#[test]
fn a_page_loads_nothing() {
    let page = page(&run_of("x"));
    for way in ["src=", "href=", "@import", "url(", "fetch(", "import("] {
        assert!(!page.contains(way), "{way}");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn a_page_shows_every_part_of_the_result() {
    let mut run = run_of("plain");
    run.metric("connect_rate", 48_000.0, "per_second", Better::Higher);
    run.parameters.insert(
        "duration".into(),
        serde_json::to_value(Duration::from_millis(1_500)).unwrap(),
    );
    let page = page(&run);
    for part in [
        "48,000/s",
        "connect rate",
        "1 problem",
        "1 of 1 budget missed",
        "no such figure",
        "latency: percentiles",
        "latency: histogram",
        "Over time",
        "Kernel settings",
        "1.5s",
    ] {
        assert!(page.contains(part), "{part}");
    }
    run.budgets[0].kept = true;
    assert!(super::page(&run).contains("1 budget kept"));
}
