//! Values of settings: how each kind is written and what it becomes.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tracing_subscriber::EnvFilter;

/// What sort of value a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `ip:port` or `localhost:port`.
    Address,
    Path,
    /// Free text; the name stands in `--help`.
    Text(&'static str),
    /// Free text that is never shown.
    Secret,
    Count {
        min: u64,
        max: u64,
    },
    /// `30s`, `500ms`, `5m`, `1h`, `2d`.
    Duration {
        min_ms: u64,
        max_ms: u64,
    },
    /// `65536`, `64 KiB`, `2 MB`.
    Bytes {
        min: u64,
        max: u64,
    },
    Switch,
    Choice(&'static [&'static str]),
    /// Comma-separated; the name stands in `--help`.
    List(&'static str),
    /// A tracing filter.
    Filter,
}

/// A value that passed its kind's check.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Address(SocketAddr),
    Text(String),
    Number(u64),
    Duration(Duration),
    Switch(bool),
    List(Vec<String>),
}

impl Kind {
    pub const fn is_secret(self) -> bool {
        matches!(self, Self::Secret)
    }

    /// What stands for the value in `--help`.
    pub fn placeholder(self) -> String {
        match self {
            Self::Address => "ADDR".into(),
            Self::Path => "PATH".into(),
            Self::Text(name) => name.into(),
            Self::Secret => "SECRET".into(),
            Self::Count { .. } => "N".into(),
            Self::Duration { .. } => "DURATION".into(),
            Self::Bytes { .. } => "SIZE".into(),
            Self::Switch => "true|false".into(),
            Self::Choice(choices) => choices.join("|"),
            Self::List(name) => format!("{name}[,{name}…]"),
            Self::Filter => "FILTER".into(),
        }
    }

    /// Reads a value. The error says what was expected, and never repeats a secret.
    pub fn parse(self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        match self {
            Self::Address => parse_address(text).map(Value::Address),
            Self::Path | Self::Text(_) if text.is_empty() => Err("is empty".into()),
            Self::Secret if text.is_empty() => Err("is empty".into()),
            Self::Path | Self::Text(_) | Self::Secret => Ok(Value::Text(text.into())),
            Self::Count { min, max } => {
                let n = text
                    .replace('_', "")
                    .parse()
                    .map_err(|_| format!("{text:?} is not a whole number"))?;
                in_range(n, min, max, u64::to_string).map(Value::Number)
            }
            Self::Duration { min_ms, max_ms } => {
                in_range(parse_duration_ms(text)?, min_ms, max_ms, |ms| {
                    show_duration(*ms)
                })
                .map(|ms| Value::Duration(Duration::from_millis(ms)))
            }
            Self::Bytes { min, max } => {
                in_range(parse_bytes(text)?, min, max, |n| format!("{n} bytes")).map(Value::Number)
            }
            Self::Switch => match text {
                "true" | "on" | "yes" | "1" => Ok(Value::Switch(true)),
                "false" | "off" | "no" | "0" => Ok(Value::Switch(false)),
                _ => Err(format!("{text:?} is neither true nor false")),
            },
            Self::Choice(choices) => choices
                .contains(&text)
                .then(|| Value::Text(text.into()))
                .ok_or_else(|| format!("{text:?} is none of {}", choices.join(", "))),
            Self::List(_) => {
                let items: Vec<String> = text.split(',').map(|i| i.trim().to_owned()).collect();
                if items.iter().any(String::is_empty) {
                    return Err(format!("{text:?} has an empty item"));
                }
                Ok(Value::List(items))
            }
            Self::Filter => EnvFilter::try_new(text)
                .map(|_| Value::Text(text.into()))
                .map_err(|e| format!("{text:?} is not a log filter: {e}")),
        }
    }
}

fn in_range(value: u64, min: u64, max: u64, show: impl Fn(&u64) -> String) -> Result<u64, String> {
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    Err(format!(
        "{} is not between {} and {}",
        show(&value),
        show(&min),
        show(&max)
    ))
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix("localhost:")
        && let Ok(port) = port.parse::<u16>()
    {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse().map_err(|_| {
        format!("{text:?} is not an address: write ip:port, for example 127.0.0.1:7400")
    })
}

/// Splits `30s` into 30 and `s`.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '_')
        .unwrap_or(text.len());
    let number = text[..digits].replace('_', "").parse().ok()?;
    Some((number, text[digits..].trim()))
}

/// Reads a duration with its unit.
pub fn parse_duration_ms(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a duration: write 500ms, 30s, 5m, 1h or 2d");
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ if number == 0 && unit.is_empty() => 1,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit_ms).ok_or_else(wrong)
}

/// Reads a size: bytes, or with a decimal or binary unit.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: write 65536, 64 KiB or 2 MB");
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let factor = match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(wrong)
}

/// Reads a count with an optional `k` or `M`: 100k.
pub fn parse_count(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a count: write 20000, 100k or 1M");
    let (number, unit) = number_and_unit(text.trim()).ok_or_else(wrong)?;
    let factor = match unit {
        "" => 1,
        "k" | "K" => 1_000,
        "m" | "M" => 1_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(wrong)
}

fn show_duration(ms: u64) -> String {
    match ms {
        0 => "0s".into(),
        ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_sizes_and_counts_take_their_units() {
        assert_eq!(parse_duration_ms("30s"), Ok(30_000));
        assert_eq!(parse_duration_ms("500ms"), Ok(500));
        assert_eq!(parse_duration_ms("2 d"), Ok(172_800_000));
        assert!(parse_duration_ms("30").is_err());
        assert!(parse_duration_ms("s").is_err());
        assert!(parse_duration_ms("-1s").is_err());
        assert!(parse_duration_ms("99999999999999999d").is_err());
        assert_eq!(parse_bytes("64 KiB"), Ok(65_536));
        assert_eq!(parse_bytes("2MB"), Ok(2_000_000));
        assert!(parse_bytes("2 XB").is_err());
        assert_eq!(parse_count("100k"), Ok(100_000));
        assert_eq!(parse_count("1M"), Ok(1_000_000));
        assert_eq!(parse_count("1_500"), Ok(1_500));
    }

    #[test]
    fn kinds_refuse_what_is_not_theirs_and_say_what_is() {
        let error = Kind::Address.parse("7400").unwrap_err();
        assert!(error.contains("127.0.0.1:7400"), "{error}");
        assert_eq!(
            Kind::Address.parse("localhost:0"),
            Ok(Value::Address(([127, 0, 0, 1], 0).into()))
        );
        let error = Kind::Count { min: 1, max: 9 }.parse("10").unwrap_err();
        assert!(error.contains("between 1 and 9"), "{error}");
        assert!(Kind::Choice(&["a", "b"]).parse("c").is_err());
        assert!(Kind::Switch.parse("maybe").is_err());
        assert!(Kind::List("X").parse("a,,b").is_err());
        assert!(Kind::Filter.parse("info,trunkline_edge=nonsense").is_err());
    }
}
