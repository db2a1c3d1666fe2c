//! kernel-tuning
