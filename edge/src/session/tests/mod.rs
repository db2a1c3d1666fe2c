//! Each rule of the external contract that a session keeps, with scripted peers on both sides.

mod clock;
mod draining;
mod frames;
mod link;
mod moving;
mod opening;
mod random;
mod slow;
