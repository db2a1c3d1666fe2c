//! The scenarios on a fleet of chat clients. Each is a set of arguments and a `run` that gives a
//! [`crate::result::RunResult`]; [`common`] holds what they share.

pub mod chat;
pub mod common;
pub mod connect;
pub mod drain;
pub mod fanout;
pub mod hot;
pub mod idle;
pub mod slow;
pub mod soak;
pub mod storm;
