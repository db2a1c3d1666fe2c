//! The engine against a store in memory, driven input by input.

mod cache;
mod commits;
mod hints;
mod lists;
mod members;
mod model;
mod owned;
mod pages;
mod receipts;
mod rosters;
mod sends;
mod sessions;
mod world;
