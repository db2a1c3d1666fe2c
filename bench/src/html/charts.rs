//! Which plots a result gives: percentiles and histogram of its distributions, and its series over
//! time. Pure: results in, [`Plot`]s out.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::axis::{Axis, PERCENTILES, nines};
use super::plot::{CURVES_MAX, Curve, Plot, Point, thin};
use crate::result::{Latency, Series};
use crate::stored::histogram;
use crate::units::{axis_unit, show, words};

/// Bars of a histogram over the whole of its axis.
const BINS: usize = 60;
/// Series in one plot differ by at most this: a smaller one would lie on the axis.
const SCALE_MAX: f64 = 10.0;
const NS_PER_MS: f64 = 1e6;

/// A distribution under the name it has in the legend.
#[derive(Clone, Debug)]
pub struct Named<'a> {
    pub name: String,
    pub latency: &'a Latency,
    /// All of it, where the result holds it.
    pub histogram: Option<Histogram<u64>>,
}

impl<'a> Named<'a> {
    pub fn new(name: &str, latency: &'a Latency) -> Self {
        Self {
            name: name.to_owned(),
            latency,
            histogram: histogram(latency),
        }
    }

    fn min_ms(&self) -> f64 {
        match &self.histogram {
            Some(h) => (h.min_nz() as f64 / NS_PER_MS).max(1e-6),
            None => self.latency.p50_ms.max(1e-6),
        }
    }
}

/// Percentiles on an axis of nines, and the histogram; nothing without distributions.
pub fn distributions(title: &str, all: &[Named<'_>]) -> Vec<Plot> {
    let plots = all.chunks(CURVES_MAX).flat_map(|some| {
        let bars = histograms(title, some);
        [Some(percentiles(title, some)), bars]
    });
    plots.flatten().collect()
}

fn percentiles(title: &str, all: &[Named<'_>]) -> Plot {
    let nines_max = all.iter().map(|n| resolution(n.latency.count)).max();
    let curves: Vec<_> = all
        .iter()
        .enumerate()
        .map(|(color, named)| Curve {
            name: named.name.clone(),
            color,
            filled: false,
            points: percentile_points(named),
        })
        .collect();
    let values = || curves.iter().flat_map(|c| &c.points).map(|p| p.y);
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    Plot {
        title: format!("{title}: percentiles"),
        x: Axis::percentiles(f64::from(nines_max.unwrap_or(2))),
        y: Axis::log("latency", "ms", 10f64.powf(low), 10f64.powf(high), 10),
        curves,
    }
}

/// How many nines so many samples can tell, from two to five.
fn resolution(count: u64) -> u32 {
    count.max(1).ilog10().clamp(2, 5)
}

fn percentile_points(named: &Named<'_>) -> Vec<Point> {
    let point = |x: f64, ms: f64| {
        let percentile = 100.0 * (1.0 - 10f64.powf(-x));
        Point {
            x,
            y: ms.max(1e-6).log10(),
            x_text: format!("{} %", crate::units::trimmed(percentile, 4)),
            y_text: show(ms, "ms"),
        }
    };
    let Some(histogram) = &named.histogram else {
        let l = named.latency;
        let known = [l.p50_ms, l.p90_ms, l.p99_ms, l.p999_ms];
        let known = PERCENTILES.iter().zip(known);
        return known.map(|((p, _), ms)| point(nines(*p), ms)).collect();
    };
    let (from, to) = (nines(50.0), f64::from(resolution(named.latency.count)));
    let steps = 120;
    (0..=steps)
        .map(|i| from + (to - from) * f64::from(i) / f64::from(steps))
        .map(|x| {
            let ns = histogram.value_at_quantile(1.0 - 10f64.powf(-x));
            point(x, ns as f64 / NS_PER_MS)
        })
        .collect()
}

/// Share of the samples in bins of equal ratio; `None` if no distribution is held in full.
fn histograms(title: &str, all: &[Named<'_>]) -> Option<Plot> {
    let held = || all.iter().filter_map(|n| Some((n, n.histogram.as_ref()?)));
    let low = held()
        .map(|(n, _)| n.min_ms())
        .fold(f64::INFINITY, f64::min);
    let high = held().map(|(n, _)| n.latency.max_ms).fold(0.0, f64::max);
    if !low.is_finite() || high <= 0.0 {
        return None;
    }
    let x = Axis::log("latency", "ms", low, high.max(low), 6);
    let curves: Vec<_> = all
        .iter()
        .enumerate()
        .filter_map(|(color, n)| {
            Some(Curve {
                name: n.name.clone(),
                color,
                filled: true,
                points: bars(n.histogram.as_ref()?, &x),
            })
        })
        .collect();
    let top = curves
        .iter()
        .flat_map(|c| &c.points)
        .map(|p| p.y)
        .fold(0.0, f64::max);
    Some(Plot {
        title: format!("{title}: histogram"),
        y: Axis::linear("% of the samples", "percent", 0.0, top),
        x,
        curves,
    })
}

/// The outline of the bars: two points for each.
fn bars(histogram: &Histogram<u64>, x: &Axis) -> Vec<Point> {
    let width = (x.max - x.min) / BINS as f64;
    let mut counts = [0u64; BINS];
    for value in histogram.iter_recorded() {
        let ms = (value.value_iterated_to() as f64 / NS_PER_MS).max(1e-6);
        let bin = ((ms.log10() - x.min) / width).max(0.0) as usize;
        counts[bin.min(BINS - 1)] += value.count_since_last_iteration();
    }
    let mut points = Vec::with_capacity(2 * BINS);
    for (bin, count) in counts.iter().enumerate() {
        let (from, to) = (x.min + width * bin as f64, x.min + width * (bin + 1) as f64);
        let share = 100.0 * *count as f64 / histogram.len().max(1) as f64;
        let between = |at: f64| show(10f64.powf(at), "ms");
        for x in [from, to] {
            points.push(Point {
                x,
                y: share,
                x_text: format!("{} – {}", between(from), between(to)),
                y_text: format!("{} %, {count} samples", crate::units::trimmed(share, 3)),
            });
        }
    }
    points
}

/// Series over time, those of one unit and like size in one plot.
pub fn over_time(series: &[Series]) -> Vec<Plot> {
    let mut groups: Vec<Vec<&Series>> = Vec::new();
    for one in series.iter().filter(|s| !s.points.is_empty()) {
        let fits = |group: &&mut Vec<&Series>| {
            group.len() < CURVES_MAX
                && group[0].unit == one.unit
                && group.iter().all(|other| alike(peak(other), peak(one)))
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.push(one),
            None => groups.push(vec![one]),
        }
    }
    groups.iter().map(|group| timeline(group)).collect()
}

/// The same series of two sides, in one plot each.
pub fn overlaid(sides: [(&str, &[Series]); 2]) -> Vec<Plot> {
    let mut by_name: BTreeMap<(&str, &str), Vec<Series>> = BTreeMap::new();
    for (side, series) in sides {
        for one in series.iter().filter(|s| !s.points.is_empty()) {
            let named = Series {
                name: side.to_owned(),
                ..one.clone()
            };
            let both = by_name.entry((&one.name, &one.unit)).or_default();
            both.push(named);
        }
    }
    let plots = by_name.iter().map(|((name, _), both)| {
        let mut plot = timeline(&both.iter().collect::<Vec<_>>());
        plot.title = words(name);
        plot
    });
    plots.collect()
}

fn peak(series: &Series) -> f64 {
    let sizes = series.points.iter().map(|p| p[1].abs());
    sizes.fold(0.0, f64::max)
}

fn alike(a: f64, b: f64) -> bool {
    a == 0.0 || b == 0.0 || (a / b).max(b / a) <= SCALE_MAX
}

fn timeline(group: &[&Series]) -> Plot {
    let unit = group.first().map_or("", |s| s.unit.as_str());
    let points = || group.iter().flat_map(|s| &s.points).filter(|p| finite(p));
    let fold = |i: usize, start: f64, f: fn(f64, f64) -> f64| points().map(|p| p[i]).fold(start, f);
    let (low, high) = (
        fold(1, f64::INFINITY, f64::min),
        fold(1, f64::NEG_INFINITY, f64::max),
    );
    let (low, high) = if low.is_finite() {
        (low, high)
    } else {
        (0.0, 0.0)
    };
    let names: Vec<_> = group.iter().map(|s| words(&s.name)).collect();
    Plot {
        title: names.join(", "),
        x: Axis::seconds(fold(0, 0.0, f64::max)),
        y: Axis::linear(&axis_unit(unit), unit, low, high),
        curves: group
            .iter()
            .enumerate()
            .map(|(color, series)| Curve {
                name: words(&series.name),
                color,
                filled: group.len() == 1 && low >= 0.0,
                points: time_points(series),
            })
            .collect(),
    }
}

fn time_points(series: &Series) -> Vec<Point> {
    let whole: Vec<_> = series.points.iter().copied().filter(finite).collect();
    let points = thin(&whole).into_iter();
    points
        .map(|[x, y]| Point {
            x,
            y,
            x_text: format!("{} s", crate::units::trimmed(x, 2)),
            y_text: show(y, &series.unit),
        })
        .collect()
}

fn finite(point: &[f64; 2]) -> bool {
    point.iter().all(|v| v.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, unit: &str, values: &[f64]) -> Series {
        let points = values.iter().enumerate().map(|(i, v)| [i as f64, *v]);
        Series {
            name: name.to_owned(),
            unit: unit.to_owned(),
            points: points.collect(),
        }
    }

    #[test]
    fn series_share_a_plot_when_they_share_unit_and_size() {
        let plots = over_time(&[
            series("sent", "per_second", &[10.0, 20.0]),
            series("acked", "per_second", &[9.0, 19.0]),
            series("sockets", "count", &[1.0, 1e6]),
            series("lost", "count", &[0.0, 2.0]),
            series("never", "count", &[]),
            series("refused", "per_second", &[0.0, 0.0]),
        ]);
        let titles: Vec<_> = plots.iter().map(|p| &p.title[..]).collect();
        assert_eq!(titles, ["sent, acked, refused", "sockets", "lost"]);
    }

    #[test]
    fn a_histogram_shows_each_sample_once() {
        let mut recorded = Histogram::<u64>::new(3).unwrap();
        for ms in 1..=200u64 {
            recorded.record(ms * 500_000).unwrap();
        }
        let latency = Latency::of(&recorded).unwrap();
        let plots = distributions("ack", &[Named::new("ack", &latency)]);
        assert_eq!(plots.len(), 2);
        let bars = &plots[1].curves[0].points;
        let sum: f64 = bars.iter().step_by(2).map(|p| p.y).sum();
        assert!((sum - 100.0).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn percentiles_go_as_far_as_the_samples_do() {
        assert_eq!(resolution(500), 2);
        assert_eq!(resolution(10_000), 4);
        let mut recorded = Histogram::<u64>::new(3).unwrap();
        recorded.record_n(1_000_000, 9_900).unwrap();
        recorded.record_n(50_000_000, 100).unwrap();
        let latency = Latency::of(&recorded).unwrap();
        let plot = percentiles("x", &[Named::new("x", &latency)]);
        let points = &plot.curves[0].points;
        let at = |nines: f64| points.iter().find(|p| p.x >= nines - 1e-9).unwrap().y;
        assert!((at(1.0)).abs() < 0.01, "p90 is 1 ms: {}", at(1.0));
        assert!(at(3.0) > 1.6, "p99.9 is 50 ms: {}", at(3.0));
    }

    #[test]
    fn without_its_histogram_a_distribution_still_has_four_percentiles() {
        let mut recorded = Histogram::<u64>::new(3).unwrap();
        recorded.record_n(1_000_000, 10_000).unwrap();
        let mut latency = Latency::of(&recorded).unwrap();
        latency.histogram.clear();
        let plots = distributions("x", &[Named::new("x", &latency)]);
        assert_eq!(plots.len(), 1);
        assert_eq!(plots[0].curves[0].points.len(), 4);
    }
}
