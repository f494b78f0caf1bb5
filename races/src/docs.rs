//! docs/races.md, generated.
