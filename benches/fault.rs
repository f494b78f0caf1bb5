//! placeholder while the fault handler settles
fn main() {}
