//! docs/races.md is what the catalogue says.

use std::path::Path;

#[test]
fn the_committed_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/races.md");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let page = vmalab_races::docs::page();
    let differs = committed.lines().zip(page.lines()).position(|(committed, now)| committed != now);
    assert!(
        committed == page,
        "docs/races.md is out of date from line {}: run scripts/docs-races.sh and commit it",
        differs.unwrap_or(committed.lines().count().min(page.lines().count())) + 1
    );
}
