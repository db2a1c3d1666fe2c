//! A comparison as text: one line for each figure.

use std::fmt::{self, Write as _};

use super::{Comparison, Row, Spread, Verdict};
use crate::units::show;

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, side) in [("before", &self.before), ("after", &self.after)] {
            let revision = side.git_revision.as_deref().unwrap_or("no one revision");
            writeln!(
                f,
                "{name:<7} {} at {revision}: {}",
                side.scenario,
                side.files.join(", ")
            )?;
        }
        writeln!(f)?;
        table(f, &self.rows)?;
        for warning in &self.warnings {
            writeln!(f, "WARNING  {warning}")?;
        }
        for d in &self.differences {
            writeln!(
                f,
                "         {}: {} before, {} after",
                d.what, d.before, d.after
            )?;
        }
        writeln!(
            f,
            "{} worse, {} better, {} same within {} %, {} within the spread of the runs",
            self.count(Verdict::Worse),
            self.count(Verdict::Better),
            self.count(Verdict::Same),
            crate::units::number(self.threshold * 100.0),
            self.count(Verdict::Noise),
        )
    }
}

impl Verdict {
    pub fn word(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "WORSE",
            Self::Same => "same",
            Self::Noise => "noise",
            Self::Shown => "",
        }
    }
}

impl Row {
    /// A side's median, and half of its range in percent of it when there are several runs.
    pub fn side(&self, spread: Option<Spread>) -> String {
        let Some(s) = spread else {
            return "–".to_owned();
        };
        let mut text = show(s.median, &self.unit);
        if s.runs > 1 && s.median != 0.0 {
            let percent = 50.0 * (s.max - s.min) / s.median.abs();
            let _ = write!(text, " ±{percent:.1} %");
        }
        text
    }

    pub fn ratio_text(&self) -> String {
        self.ratio
            .map_or_else(|| "–".to_owned(), |r| format!("{r:.3}"))
    }
}

fn table(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    let head = ["", "before", "after", "ratio", ""].map(str::to_owned);
    let lines: Vec<[String; 5]> = std::iter::once(head)
        .chain(rows.iter().map(|row| {
            [
                row.figure.clone(),
                row.side(row.before),
                row.side(row.after),
                row.ratio_text(),
                row.verdict.word().to_owned(),
            ]
        }))
        .collect();
    let width = |i: usize| {
        let widths = lines.iter().map(|l| l[i].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2), width(3)];
    for [figure, before, after, ratio, verdict] in &lines {
        let line = format!(
            "{figure:<w0$}  {before:>w1$}  {after:>w2$}  {ratio:>w3$}  {verdict}",
            w0 = widths[0],
            w1 = widths[1],
            w2 = widths[2],
            w3 = widths[3],
        );
        writeln!(f, "{}", line.trim_end())?;
    }
    writeln!(f)
}
