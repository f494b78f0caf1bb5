//! [`SoftMmu`]: page tables as an array of page states.
