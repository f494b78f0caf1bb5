//! Prints docs/races.md. `scripts/docs-races.sh` writes the file.

fn main() {
    print!("{}", vmalab_races::docs::page());
}
