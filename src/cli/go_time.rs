//! Durations in the form in which Go prints them, which programs read.

use std::time::Duration;

/// Whole milliseconds, below one the microseconds.
pub(super) fn rounded(time: Duration) -> String {
    if time < Duration::from_millis(1) { format!("{}µs", time.as_micros()) } else { go_text(Duration::from_millis(to_ms(time))) }
}

fn to_ms(time: Duration) -> u64 {
    u64::try_from((time.as_micros() + 500) / 1000).unwrap_or(u64::MAX)
}

/// A duration in full precision as Go prints it: `1m2.5s`, `359.591µs`, `27ns`.
pub(super) fn go_text(time: Duration) -> String {
    let nanos = time.as_nanos();
    let fraction = |unit: u128, name: &str| {
        let (whole, rest) = (nanos / unit, nanos % unit);
        let width = unit.ilog10() as usize;
        let digits = format!("{rest:0width$}");
        let digits = digits.trim_end_matches('0');
        if rest == 0 { format!("{whole}{name}") } else { format!("{whole}.{digits}{name}") }
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => fraction(1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(1_000_000, "ms"),
        _ => {
            let minutes = time.as_secs() / 60;
            let seconds = go_seconds(time - Duration::from_secs(minutes * 60));
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, m) => format!("{m}m{seconds}"),
                (h, m) => format!("{h}h{m}m{seconds}"),
            }
        }
    }
}

fn go_seconds(time: Duration) -> String {
    let rest = format!("{:09}", time.subsec_nanos());
    match rest.trim_end_matches('0') {
        "" => format!("{}s", time.as_secs()),
        digits => format!("{}.{digits}s", time.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_go_prints_them() {
        for (nanos, text) in [
            (0, "0s"),
            (27, "27ns"),
            (359_591, "359.591µs"),
            (1_500_000, "1.5ms"),
            (62_500_000_000, "1m2.5s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(go_text(Duration::from_nanos(nanos)), text);
        }
        assert_eq!(rounded(Duration::from_micros(412)), "412µs");
        assert_eq!(rounded(Duration::from_micros(12_600)), "13ms");
    }
}
