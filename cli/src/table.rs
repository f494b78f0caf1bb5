//! Text for people: aligned columns within 80 characters.

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};

/// No line of a report is longer.
pub const WIDTH: u16 = 80;

/// A table without lines, two spaces between its columns, the first column
/// to the left and the others to the right.
pub fn numbers(header: Option<Vec<String>>, rows: Vec<Vec<String>>) -> String {
    let mut table = plain();
    if let Some(header) = header {
        table.set_header(header);
    }
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        let first = column.index == 0;
        column.set_padding((0, 2));
        column.set_cell_alignment(if first { CellAlignment::Left } else { CellAlignment::Right });
    }
    finish(&table)
}

/// Names with what follows from them, wrapped to the right of the names.
pub fn facts(name_width: u16, rows: Vec<(String, String)>) -> String {
    let mut table = plain();
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.add_rows(rows.into_iter().map(|(name, fact)| vec![name, fact]));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
        let width = if column.index == 0 { name_width + 2 } else { WIDTH - name_width - 2 };
        column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
    }
    finish(&table)
}

/// Name, summary and source of each entry.
pub fn listing<'a>(entries: impl Iterator<Item = (&'a str, &'a str, &'a str)>) -> String {
    let rows: Vec<_> =
        entries.map(|(name, summary, source)| (name.to_owned(), format!("{summary}\nfrom: {source}"))).collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    facts(u16::try_from(width).expect("names are short"), rows)
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_width(WIDTH).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// The lines, without the spaces at their ends.
fn finish(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_aligned_to_the_right() {
        let rows = vec![vec!["fault".into(), "5 us".into()], vec!["munmap".into(), "12 us".into()]];
        assert_eq!(numbers(None, rows), "fault    5 us\nmunmap  12 us\n");
    }

    #[test]
    fn long_facts_wrap_within_the_width() {
        let text = facts(10, vec![("name".into(), "word ".repeat(40)), ("other".into(), "short".into())]);
        assert!(text.lines().count() > 2);
        assert!(text.lines().all(|line| line.chars().count() <= usize::from(WIDTH)), "{text}");
        assert!(text.lines().nth(1).is_some_and(|line| line.starts_with(&" ".repeat(12))), "{text}");
    }
}
