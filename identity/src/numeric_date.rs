//! `NumericDate` of RFC 7519: seconds since the Unix epoch, which may carry a fraction.

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// Whole seconds; fractions are cut off, times before 1970 count as 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NumericDate(pub(crate) u64);

impl<'de> Deserialize<'de> for NumericDate {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = NumericDate;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of seconds")
            }

            fn visit_u64<E: Error>(self, seconds: u64) -> Result<NumericDate, E> {
                Ok(NumericDate(seconds))
            }

            fn visit_i64<E: Error>(self, seconds: i64) -> Result<NumericDate, E> {
                Ok(NumericDate(seconds.max(0) as u64))
            }

            fn visit_f64<E: Error>(self, seconds: f64) -> Result<NumericDate, E> {
                // The cast saturates at both ends.
                Ok(NumericDate(seconds as u64))
            }
        }
        from.deserialize_any(Number)
    }
}
