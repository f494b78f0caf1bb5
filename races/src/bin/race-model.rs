//! Explores one entry of the catalogue in this build's model and prints the
//! outcome as JSON: `race-model NAME LOCK complete|mutant ITERATIONS SEED
//! PREEMPTIONS SECONDS`. `vmalab race --executor loom|shuttle` builds and calls it.

#[cfg(any(loom, shuttle))]
fn main() {
    use std::time::Duration;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, lock, kind, iterations, seed, preemptions, seconds] = &args[..] else {
        eprintln!("usage: race-model NAME LOCK complete|mutant ITERATIONS SEED PREEMPTIONS SECONDS");
        std::process::exit(2);
    };
    let number = |text: &String| text.parse::<u64>().expect("a number");
    let race = vmalab_races::find(name).expect("the name of an entry");
    let bounds = vmalab_races::model::Bounds {
        iterations: number(iterations),
        seed: number(seed),
        preemptions: number(preemptions) as usize,
        duration: Duration::from_secs(number(seconds)),
    };
    let lock = lock.parse().expect("the name of a lock");
    vmalab_races::model::explore(race, lock, kind == "mutant", bounds);
}

#[cfg(not(any(loom, shuttle)))]
fn main() {
    eprintln!("race-model is for model builds (--cfg loom or --cfg shuttle); use vmalab race");
    std::process::exit(2);
}
