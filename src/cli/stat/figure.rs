//! One figure: how much of something is used.

use serde_json::{Value, json};

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure {
    pub(super) used: f64,
    /// `None` where there is no limit.
    pub(super) total: Option<f64>,
    /// `cores` or `B`.
    pub(super) unit: &'static str,
}

impl Figure {
    /// For people, in multiples of a factor with a name: `0.998/23.5 GiB (4%)`.
    pub(super) fn text(&self, prefix: Option<(&str, f64)>) -> String {
        let (name, factor) = prefix.unwrap_or(("", 1.0));
        let unit = self.unit;
        let used = short(self.used / factor);
        match self.total {
            Some(total) if total > 0.0 => {
                format!("{used}/{} {name}{unit} ({:.0}%)", short(total / factor), 100.0 * self.used / total)
            }
            _ => format!("{used} {name}{unit}"),
        }
    }

    pub(super) fn json(&self) -> Value {
        json!({ "total": self.total.map(plain), "unit": self.unit, "used": plain(self.used) })
    }
}

/// A whole number without a fraction, as Go writes it.
#[expect(clippy::cast_possible_truncation, reason = "checked to be whole and small")]
fn plain(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 9e15 { json!(number as i64) } else { json!(number) }
}

/// Three figures or so: 0.998, 1.25, 23.5, 252.
fn short(number: f64) -> String {
    let digits = match number.abs() {
        0.0 => 0,
        n if n < 1.0 => 3,
        n if n < 10.0 => 2,
        n if n < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{number:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_percentages_whole() {
        for (number, text) in
            [(0.0, "0"), (0.9984, "0.998"), (1.999_999, "2"), (1.25, "1.25"), (23.5, "23.5"), (252.4, "252"), (100.0, "100")]
        {
            assert_eq!(short(number), text);
        }
        let cores = Figure { used: 0.3, total: Some(2.0), unit: "cores" };
        assert_eq!(cores.text(None), "0.3/2 cores (15%)");
        assert_eq!(cores.json().to_string(), r#"{"total":2,"unit":"cores","used":0.3}"#);
        let open = Figure { used: 1_572_864.0, total: None, unit: "B" };
        assert_eq!(open.text(Some(("Mi", 1_048_576.0))), "1.5 MiB");
        assert_eq!(open.json().to_string(), r#"{"total":null,"unit":"B","used":1572864}"#);
    }
}
