//! A store with one writer at a time, over tables that several cores reach: see
//! `docs/adr/0007-several-cores.md`.
//!
//! # Layout
//! - [`rows`]: the statements that it is made of

pub mod rows;
