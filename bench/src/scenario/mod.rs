//! The scenarios on a fleet of chat clients. Each is a set of arguments and a `run` that gives a
//! [`crate::result::RunResult`]; [`common`] holds what they share.

pub mod common;
pub mod connect;
pub mod idle;
