//! Output on a terminal fits its width: tables and sentences wrap at words, numbers stay whole. Files and
//! pipes get whole lines.

use crate::{Failure, print};
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table};
use std::borrow::Cow;

/// Columns of the terminal on standard output; `None` where it is no terminal.
pub fn width() -> Option<usize> {
    columns(terminal_size::terminal_size_of(std::io::stdout()))
}

fn columns(size: Option<(terminal_size::Width, terminal_size::Height)>) -> Option<usize> {
    size.map(|(width, _)| usize::from(width.0)).filter(|&w| w > 0)
}

/// Text for standard error: wrapped where that is a terminal.
pub fn for_stderr(text: String) -> String {
    match columns(terminal_size::terminal_size_of(std::io::stderr())) {
        Some(width) => wrapped(&text, width),
        None => text,
    }
}

/// Prints sentences and tables.
pub fn show(text: &str) -> Result<(), Failure> {
    match width() {
        Some(width) => print(&wrapped(text, width)),
        None => print(text),
    }
}

/// Wraps every line at spaces, so that options and paths stay whole, except lines of tables, which already
/// fit. Continuation lines are indented by two.
fn wrapped(text: &str, width: usize) -> String {
    let how = textwrap::Options::new(width)
        .subsequent_indent("  ")
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    let line = |line: &'_ str| match line.chars().next() {
        Some('┌' | '│' | '╞' | '└') => line.to_string(),
        _ => textwrap::fill(line, &how),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// A table with borders and this header. Columns are numbers, right-aligned and never wrapped, except those
/// listed in `words`.
pub fn table<'a>(header: impl IntoIterator<Item = impl Into<Cow<'a, str>>>, words: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(header.into_iter().map(|title| title.into().into_owned()));
    if let Some(width) = width() {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width.try_into().unwrap_or(u16::MAX));
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        // Two spaces between columns, one at the borders.
        column.set_padding((u16::from(i == 0), 1));
        if !words.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_wrap_at_words_and_tables_stay() {
        let text = "one two three four\n│ one two three four │";
        assert_eq!(wrapped(text, 9), "one two\n  three\n  four\n│ one two three four │");
        // A word that is wider than the terminal, such as a path, stays whole: it can be copied.
        assert_eq!(wrapped("written: /a/long-path", 9), "written:\n  /a/long-path");
    }
}
