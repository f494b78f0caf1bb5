//! What must be so of every entry.

use std::collections::BTreeSet;
use vmalab::races::Mutant;
use vmalab_races::{CATALOGUE, Race};

fn assert_sound(race: &Race) {
    let name = race.name;
    assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{name}: names are typed");
    for text in [race.title, race.source, race.story, race.check] {
        assert!(!text.is_empty() && text.trim() == text, "{name}: '{text}'");
    }
    assert!(
        !race.title.ends_with('.') && race.story.ends_with(['.', ')']),
        "{name}: a title is a line, a story is sentences"
    );
    assert!(!race.locks.is_empty() && !race.executors.is_empty() && !race.spaces.is_empty(), "{name}");
    assert!(!race.script.is_empty(), "{name}: no script");
    assert!(race.script.iter().all(|step| step.actor < race.actors.len()), "{name}: a step of nobody");
    for (i, actor) in race.actors.iter().enumerate() {
        assert!(race.script.iter().any(|step| step.actor == i), "{name}: {} has no step", actor.name);
    }
}

#[test]
fn entries_are_sound_and_names_are_unique() {
    let names: BTreeSet<&str> = CATALOGUE.iter().map(|race| race.name).collect();
    assert_eq!(names.len(), CATALOGUE.len());
    CATALOGUE.iter().for_each(|race| assert_sound(race));
}

#[test]
fn every_mutant_has_an_entry() {
    for &mutant in Mutant::ALL {
        assert!(CATALOGUE.iter().any(|race| race.mutant == mutant), "no entry runs the mutant {}", mutant.name());
    }
}
