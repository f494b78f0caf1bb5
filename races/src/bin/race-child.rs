//! Runs one entry of the catalogue in this build's executor and prints the
//! outcome as JSON: `race-child NAME LOCK complete|mutant ITERATIONS SEED
//! PREEMPTIONS SECONDS`. `vmalab race --executor loom|shuttle` builds and calls
//! it in a model build; in the usual build it is the process of a scheduled race.

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Err(message) = vmalab_races::child_main(&args) {
        eprintln!("{message}");
        std::process::exit(2);
    }
}
