//! Log lines on standard error or in a file, in the shape that support staff know: `DATE TIME [info]  target: text  key=value`.

use super::{
    log_file::LogFile,
    stderr::{self, Errors},
};
use crate::driver::clock;
use anyhow::Context as _;
use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    path::Path,
    sync::Mutex,
};
use tracing::{Event, Level, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer as _,
    filter::Targets,
    fmt::{
        FmtContext, FormatEvent, FormatFields, MakeWriter,
        format::{DefaultFields, Writer},
        writer::BoxMakeWriter,
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

/// Starts logging to standard error: `level` and above of our own parts.
pub(super) fn start(level: LevelFilter) {
    stderr::do_not_wait();
    begin(ours(level), || Errors);
}

/// The same, and the audit lines whatever the level.
pub(super) fn start_with_audit(level: LevelFilter) {
    stderr::do_not_wait();
    begin(ours(level).with_target("tailnet::audit", LevelFilter::INFO), || Errors);
}

/// The same to a file.
pub(super) fn start_in(file: File, level: LevelFilter) {
    stderr::do_not_wait();
    begin(ours(level), Mutex::new(file));
}

fn begin(filter: Targets, writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) {
    // A second subscriber in one process is refused, and the first one goes on.
    let _ = tracing_subscriber::registry().with(lines(BoxMakeWriter::new(writer)).with_filter(filter)).try_init();
}

/// What an agent logs: `level` and above to the file `human`, if it is named, and everything of ours to `file`.
pub(super) fn start_for_agent(level: LevelFilter, human: &Path, file: Option<LogFile>) -> anyhow::Result<()> {
    stderr::do_not_wait();
    let human = match human.as_os_str().as_encoded_bytes() {
        b"" => BoxMakeWriter::new(io::sink),
        b"/dev/stderr" => BoxMakeWriter::new(|| Errors),
        _ => {
            let opened = OpenOptions::new().create(true).append(true).open(human);
            let opened = opened.with_context(|| format!("cannot write the log {} of --log-human", human.display()))?;
            BoxMakeWriter::new(Mutex::new(opened))
        }
    };
    let Some(file) = file else {
        begin(ours(level), human);
        return Ok(());
    };
    begin_beside(level, human, file);
    Ok(())
}

/// `level` and above to standard error, and everything of ours to `file`.
pub(super) fn start_beside(level: LevelFilter, file: File) {
    stderr::do_not_wait();
    begin_beside(level, BoxMakeWriter::new(|| Errors), file);
}

fn begin_beside(level: LevelFilter, human: BoxMakeWriter, file: impl io::Write + Send + 'static) {
    let to_file = lines(BoxMakeWriter::new(Mutex::new(file))).with_filter(ours(LevelFilter::DEBUG));
    // A second subscriber in one process is refused, and the first one goes on.
    let _ = tracing_subscriber::registry().with(lines(human).with_filter(ours(level))).with(to_file).try_init();
}

fn lines<S>(writer: BoxMakeWriter) -> tracing_subscriber::fmt::Layer<S, DefaultFields, Line, BoxMakeWriter>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false).event_format(Line)
}

/// `level` and above of our own parts. What a library finds reaches people as an error, in words that help.
fn ours(level: LevelFilter) -> Targets {
    Targets::new().with_target("tailnet", level)
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
