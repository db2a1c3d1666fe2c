//! Where the ticks of an axis stand: on 1, 2 and 5 times a power of ten, in binary units for bytes.

use crate::units::tick;

/// One axis: values in the plot's own coordinates, with what stands beside them.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What is counted, said once.
    pub title: String,
    pub min: f64,
    pub max: f64,
    pub ticks: Vec<(f64, String)>,
}

/// Percentiles that have a tick, and the coordinate of a percentile: the number of nines.
pub const PERCENTILES: [(f64, &str); 6] = [
    (50.0, "50 %"),
    (90.0, "90 %"),
    (99.0, "99 %"),
    (99.9, "99.9 %"),
    (99.99, "99.99 %"),
    (99.999, "99.999 %"),
];

/// `99.0` → 2: how many nines.
pub fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).log10()
}

impl Axis {
    /// From 50 % to the percentile with `nines_max` nines.
    pub fn percentiles(nines_max: f64) -> Self {
        let ticks = PERCENTILES
            .iter()
            .map(|(p, text)| (nines(*p), (*text).to_owned()));
        Self {
            title: "percentile".to_owned(),
            min: nines(50.0),
            max: nines_max,
            ticks: ticks.filter(|(at, _)| *at <= nines_max + 1e-9).collect(),
        }
    }

    /// Logarithmic over `min..=max`, both above 0; coordinates are powers of ten. Where there is no room
    /// for `ticks_max` of them only the powers of ten have a tick.
    pub fn log(title: &str, unit: &str, min: f64, max: f64, ticks_max: usize) -> Self {
        let steps = |power: i32| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(power));
        let powers = min.log10().floor() as i32..=max.log10().ceil() as i32;
        let all: Vec<f64> = powers.flat_map(steps).collect();
        let from = all.iter().rposition(|v| *v <= min * 1.000_001).unwrap_or(0);
        let to = all
            .iter()
            .position(|v| *v >= max * 0.999_999)
            .unwrap_or(all.len() - 1)
            .max(from + 1);
        let shown = &all[from..=to];
        let sparse = shown.len() > ticks_max;
        let is_power = |v: f64| (v.log10() - v.log10().round()).abs() < 1e-9;
        let ticks = shown.iter().filter(|v| !sparse || is_power(**v));
        Self {
            title: title.to_owned(),
            min: shown[0].log10(),
            max: shown[shown.len() - 1].log10(),
            ticks: ticks.map(|v| (v.log10(), tick(*v, unit))).collect(),
        }
    }

    /// Linear over `min..=max`; from 0 unless the values lie in a narrow band far from it.
    pub fn linear(title: &str, unit: &str, min: f64, max: f64) -> Self {
        let (low, high) = if min >= 0.0 && min < 0.8 * max {
            (0.0, max)
        } else {
            (min, max)
        };
        let (low, high) = match high - low {
            span if span > 0.0 => (low, high),
            _ if high == 0.0 => (0.0, 1.0),
            _ => (low.min(0.0), high.max(0.0)),
        };
        let step = step(high - low, unit.starts_with("bytes"));
        let first = (low / step + 1e-9).floor() as i64;
        let last = (high / step - 1e-9).ceil() as i64;
        Self {
            title: title.to_owned(),
            min: first as f64 * step,
            max: last as f64 * step,
            ticks: (first..=last)
                .map(|i| i as f64 * step)
                .map(|v| (v, tick(v, unit)))
                .collect(),
        }
    }

    /// Seconds since the start of the run.
    pub fn seconds(max: f64) -> Self {
        let step = step(max.max(1e-3), false);
        let last = (max / step + 1e-9).floor() as i64;
        Self {
            title: "seconds since the start".to_owned(),
            min: 0.0,
            max: max.max(1e-3),
            ticks: (0..=last)
                .map(|i| i as f64 * step)
                .map(|v| (v, tick(v, "count")))
                .collect(),
        }
    }
}

/// The distance of four to six ticks over `span`.
fn step(span: f64, is_binary: bool) -> f64 {
    let unit = match is_binary {
        true => 1024f64.powi(span.max(1.0).log(1024.0).floor() as i32),
        false => 1.0,
    };
    let rough = span / unit / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let lead = match rough / power {
        lead if lead <= 1.0 => 1.0,
        lead if lead <= 2.0 => 2.0,
        lead if lead <= 5.0 => 5.0,
        _ => 10.0,
    };
    lead * power * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| &text[..]).collect()
    }

    #[test]
    fn ticks_are_round_and_hold_the_values() {
        let axis = Axis::linear("", "per_second", 3.0, 47_500.0);
        assert_eq!(texts(&axis), ["0", "10k", "20k", "30k", "40k", "50k"]);
        let axis = Axis::linear("", "bytes", 0.0, 5.2 * 1073741824.0);
        assert_eq!(texts(&axis)[..3], ["0 B", "2 GiB", "4 GiB"]);
        assert!(axis.max >= 5.2 * 1073741824.0);
        let flat = Axis::linear("", "count", 0.0, 0.0);
        assert!(flat.max > flat.min);
        let band = Axis::linear("", "count", 995.0, 1_005.0);
        assert!(band.min > 900.0 && band.min <= 995.0 && band.max >= 1_005.0);
    }

    #[test]
    fn a_logarithmic_axis_holds_its_values_and_is_never_empty() {
        let axis = Axis::log("", "ms", 0.3, 60.0, 10);
        assert!(axis.min <= 0.3f64.log10() && axis.max >= 60f64.log10());
        assert_eq!(texts(&axis)[0], "200 µs");
        let wide = Axis::log("", "ms", 0.001, 1_000.0, 10);
        assert_eq!(wide.ticks.len(), 7);
        let point = Axis::log("", "ms", 1.0, 1.0, 10);
        assert!(point.max > point.min);
    }

    #[test]
    fn percentiles_are_counted_in_nines() {
        assert!((nines(99.9) - 3.0).abs() < 1e-9);
        assert_eq!(
            texts(&Axis::percentiles(4.0)),
            ["50 %", "90 %", "99 %", "99.9 %", "99.99 %"]
        );
    }
}
