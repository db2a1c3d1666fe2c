//! x
pub mod backoff;
pub mod event;
pub mod inbox;
pub mod machine;
pub mod marks;
pub mod outbox;
