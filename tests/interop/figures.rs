//! What was measured, beside each other: ours, Go's, and the aim.

use std::sync::{Mutex, PoisonError};

/// Which way is better, and how a number is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    MegabitsPerSecond,
    PacketsPerSecond,
    Milliseconds,
    Megabytes,
    PerSecond,
    MillisecondsPerSecond,
    Microseconds,
    Percent,
}

impl Unit {
    fn write(self, value: f64) -> String {
        match self {
            Self::MegabitsPerSecond => format!("{value:.0} Mbit/s"),
            Self::PacketsPerSecond => format!("{value:.0} packets/s"),
            Self::Milliseconds => format!("{value:.1} ms"),
            Self::Megabytes => format!("{value:.1} MB"),
            Self::PerSecond => format!("{value:.1} /s"),
            Self::MillisecondsPerSecond => format!("{value:.2} ms/s"),
            Self::Microseconds => format!("{value:.2} µs"),
            Self::Percent => format!("{value:.1} %"),
        }
    }
}

/// What `DESIGN.md` §4 asks for.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// At least so many times Go's.
    TimesGo(f64),
    /// At most this, in the figure's unit.
    AtMost(f64),
    /// Nothing: the figure explains another.
    None,
}

/// One line of the summary.
#[derive(Debug, Clone)]
pub struct Figure {
    pub what: String,
    pub unit: Unit,
    pub ours: f64,
    pub go: f64,
    pub target: Target,
}

impl Figure {
    fn ratio(&self) -> f64 {
        // What is too little to be seen counts as one of the smallest steps that are written.
        self.ours / self.go.max(0.001)
    }

    fn target(&self) -> String {
        match self.target {
            Target::TimesGo(times) => format!("≥ {times:.0} × Go"),
            Target::AtMost(most) => {
                let most = match self.unit {
                    Unit::MillisecondsPerSecond => format!("{most} ms/s"),
                    unit => unit.write(most).replace(".0 ", " "),
                };
                format!("≤ {most}")
            }
            Target::None => "–".to_owned(),
        }
    }

    fn standing(&self) -> &'static str {
        let held = match self.target {
            Target::TimesGo(times) => self.ratio() >= times,
            Target::AtMost(most) => self.ours <= most,
            Target::None => return "–",
        };
        if held { "held" } else { "missed" }
    }

    /// The words of a cell.
    fn line(&self) -> String {
        let (ours, go) = (self.unit.write(self.ours), self.unit.write(self.go));
        let target = match self.target {
            Target::None => String::new(),
            _ => format!("; target {}: {}", self.target(), self.standing()),
        };
        format!("{}: ours {ours}, Go's {go}, ratio {:.2}{target}", self.what, self.ratio())
    }
}

/// The figures of a run.
#[derive(Debug, Default)]
pub struct Figures(Mutex<Vec<Figure>>);

impl Figures {
    /// Keeps them for the summary; gives the words of their cell.
    pub fn keep(&self, figures: Vec<Figure>) -> String {
        let words = figures.iter().map(Figure::line).collect::<Vec<_>>().join(" | ");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(figures);
        words
    }

    /// The summary, a line each; nothing when nothing was measured.
    pub fn summary(&self) -> Option<String> {
        let figures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if figures.is_empty() {
            return None;
        }
        let head = ["what", "ours", "Go's", "ratio", "target", ""].map(str::to_owned);
        let rows = figures.iter().map(|f| {
            let (ours, go) = (f.unit.write(f.ours), f.unit.write(f.go));
            [f.what.clone(), ours, go, format!("{:.2}", f.ratio()), f.target(), f.standing().to_owned()]
        });
        let table: Vec<[String; 6]> = std::iter::once(head).chain(rows).collect();
        let widths: [usize; 6] = std::array::from_fn(|at| table.iter().map(|row| row[at].chars().count()).max().unwrap_or(0));
        let line = |row: &[String; 6]| {
            let cells = row.iter().zip(widths).enumerate().map(|(at, (cell, width))| match at {
                1..=3 => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = format!("Both ends, the relay and what measures share {cores} cores.");
        let warning = cfg!(debug_assertions).then(|| "A debug build: ours mean nothing.".to_owned());
        let lines = [shared].into_iter().chain(warning).chain(table.iter().map(line));
        Some(lines.collect::<Vec<_>>().join("\n"))
    }
}
