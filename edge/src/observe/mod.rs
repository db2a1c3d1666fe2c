//! What an operator sees: numbers, the admin pages.

pub mod counters;
