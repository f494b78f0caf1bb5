//! Fault delivery.
