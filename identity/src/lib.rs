//! Who a client is: JSON Web Tokens, checked, minted for development, and the secret they hang on.
//!
//! Invariants:
//! 1. Time is handed in, never read, wherever a token is checked: both tiers and the simulator give
//!    their own.
//! 2. An [`Identity`] names a valid user id, always.
//! 3. Only the algorithms of the key source are accepted; the token's own header chooses nothing.
//!
//! Called by the edge's sessions (each `connect`), by the core's REST front (each call) and by the
//! command line (`trunkline token`).

mod dev_secret;
mod hs256;
mod numeric_date;
mod verify;

pub use dev_secret::DevSecret;
pub use verify::{Identity, KeySource, TOKEN_BYTES_MAX, TokenError, Verifier, mint, mint_at};
