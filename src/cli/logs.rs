//! Log lines on standard error or in a file, in the shape that support staff know: `DATE TIME [info]  target: text  key=value`.

use crate::driver::clock;
use std::{fmt, fs::File, sync::Mutex};
use tracing::{Event, Level, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, format::Writer},
    registry::LookupSpan,
};

/// Starts logging to standard error: `level` and above for our own parts, warnings for the libraries.
pub(super) fn start(level: LevelFilter) {
    begin(format!("tailnet={level}"), level, std::io::stderr);
}

/// The same, and the audit lines whatever the level.
pub(super) fn start_with_audit(level: LevelFilter) {
    begin(format!("tailnet={level},tailnet::audit=info"), level, std::io::stderr);
}

/// The same to a file.
pub(super) fn start_in(file: File, level: LevelFilter) {
    begin(format!("tailnet={level}"), level, Mutex::new(file));
}

fn begin(directives: String, level: LevelFilter, writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.min(level).into())
        .parse_lossy(directives);
    // A second subscriber in one process is refused, and the first one goes on.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false).event_format(Line).try_init();
}

/// The level of `-v`.
pub(super) const fn level(verbose: bool, quiet: LevelFilter) -> LevelFilter {
    if verbose { LevelFilter::DEBUG } else { quiet }
}

struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let since = clock::wall().since_unix();
        let at = jiff::Timestamp::new(i64::try_from(since.as_secs()).unwrap_or(0), 0).unwrap_or_default();
        let at = at.to_zoned(jiff::tz::TimeZone::UTC);
        let level = match *event.metadata().level() {
            Level::ERROR => "erro",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG => "debu",
            Level::TRACE => "trac",
        };
        let target = event.metadata().target().trim_start_matches("tailnet::");
        write!(out, "{}.{:03} [{level}]  {target}: ", at.strftime("%F %T"), since.subsec_millis())?;
        ctx.format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}
