//! Figures as people read them: with the unit's sign, thousands apart, three figures where more would
//! be noise.
//!
//! Called by everything that shows a result. The names of the units are those of
//! [`crate::result::Metric::unit`]; an unknown one stands behind the figure as it is.

const KIB: f64 = 1024.0;

/// A figure with its unit: `4,724` `bytes` → `4.61 KiB`.
pub fn show(value: f64, unit: &str) -> String {
    match unit {
        "bytes" => bytes(value),
        "bytes_per_second" => format!("{}/s", bytes(value)),
        "ns" => time(value / 1e9),
        "us" => time(value / 1e6),
        "ms" => time(value / 1e3),
        "s" | "seconds" => time(value),
        "per_second" => format!("{}/s", number(value)),
        "percent" => format!("{} %", number(value)),
        "percent_of_core" => format!("{} % of a core", number(value)),
        "count" | "ratio" | "" => number(value),
        other => format!("{} {}", number(value), other.replace('_', " ")),
    }
}

/// The same for an axis, where the unit is said once: see [`axis_unit`].
pub fn tick(value: f64, unit: &str) -> String {
    match unit {
        "bytes" | "bytes_per_second" => bytes(value),
        "ms" => time(value / 1e3),
        _ => large(value),
    }
}

/// What is written beside an axis whose ticks come from [`tick`].
pub fn axis_unit(unit: &str) -> String {
    match unit {
        "ms" => "time".to_owned(),
        "bytes_per_second" | "per_second" => "per second".to_owned(),
        "percent_of_core" => "% of a core".to_owned(),
        "percent" => "%".to_owned(),
        "us" => "µs".to_owned(),
        other => other.replace('_', " "),
    }
}

/// `ack_latency` → `ack latency`.
pub fn words(name: &str) -> String {
    name.replace('_', " ")
}

fn bytes(value: f64) -> String {
    let size = value.abs();
    for (power, sign) in [(4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")] {
        let scale = KIB.powi(power);
        if size >= scale {
            return format!("{} {sign}", figures(value / scale));
        }
    }
    format!("{} B", figures(value))
}

fn time(seconds: f64) -> String {
    let size = seconds.abs();
    if size >= 600.0 {
        return format!("{} min", figures(seconds / 60.0));
    }
    for (scale, sign) in [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")] {
        if size >= scale {
            return format!("{} {sign}", figures(seconds / scale));
        }
    }
    format!("{} s", figures(seconds))
}

/// Whole when it is large, else three figures.
pub fn number(value: f64) -> String {
    if value.abs() >= 1_000.0 {
        return thousands(value);
    }
    figures(value)
}

/// `1200000` → `1.2M`.
fn large(value: f64) -> String {
    let size = value.abs();
    for (scale, sign) in [(1e9, "G"), (1e6, "M"), (1e4, "k")] {
        if size >= scale {
            let scale = scale.max(1e3).min(if sign == "k" { 1e3 } else { scale });
            return format!("{}{sign}", figures(value / scale));
        }
    }
    number(value)
}

/// Three figures, without zeros at the end that say nothing.
fn figures(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let digits = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.0995 || v == 0.0 => 2,
        _ => 4,
    };
    match digits {
        0 => thousands(value),
        _ => trimmed(value, digits),
    }
}

/// With at most so many `digits` behind the point, without zeros at the end.
pub fn trimmed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let short = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    (if short == "-0" { "0" } else { short }).to_owned()
}

/// Rounded to a whole number, with a comma after each three figures.
pub fn thousands(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let text = format!("{:.0}", value.abs());
    let mut out = String::with_capacity(text.len() * 4 / 3 + 1);
    for (i, digit) in text.chars().enumerate() {
        if i > 0 && (text.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if value < 0.0 && out != "0" {
        out.insert(0, '-');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_with_their_unit() {
        for (value, unit, text) in [
            (4_724.0, "bytes", "4.61 KiB"),
            (375.1, "bytes", "375 B"),
            (165_280.4, "per_second", "165,280/s"),
            (34.928, "us", "34.9 µs"),
            (24_182.0, "us", "24.2 ms"),
            (0.568831, "ms", "569 µs"),
            (104.8, "percent_of_core", "105 % of a core"),
            (1_000_000.0, "count", "1,000,000"),
            (0.0, "count", "0"),
            (-1_234.0, "count", "-1,234"),
            (3.0, "messages_per_send", "3 messages per send"),
            (7_200.0, "s", "120 min"),
        ] {
            assert_eq!(show(value, unit), text, "{value} {unit}");
        }
    }

    #[test]
    fn an_axis_has_room_for_its_ticks() {
        assert_eq!(tick(250_000.0, "per_second"), "250k");
        assert_eq!(tick(1_000_000.0, "count"), "1M");
        assert_eq!(tick(2_000.0, "count"), "2,000");
        assert_eq!(tick(1_073_741_824.0, "bytes"), "1 GiB");
        assert_eq!(tick(0.0, "count"), "0");
    }
}
