//! Tables for people: columns as wide as they must be, two spaces apart.

use std::io::Write;

use super::failure::Failure;

/// Rows below a heading; prints nothing where there are none.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [&str; N]) {
        // A name with a control character in it must not move the cursor.
        let shown = |cell: &str| {
            cell.chars().flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect()
        };
        self.rows.push(cells.into_iter().map(shown).collect());
    }

    pub(super) fn print(&self) -> Result<(), Failure> {
        if self.rows.len() > 1 {
            std::io::stdout().lock().write_all(self.text().as_bytes()).map_err(Failure::output)?;
        }
        Ok(())
    }

    fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", "SIZE"]);
        table.row(["a", "1 B"]);
        table.row(["longer\n", "1.0 KiB"]);
        assert_eq!(table.text(), "NAME      SIZE\na         1 B\nlonger\\n  1.0 KiB\n");
    }
}
