//! `coder version`: needs no network, no login and no configuration (`cli.md` §2.1).

use super::{
    args::{Output, Version},
    output,
};
use serde_json::json;

/// Lets an operator choose what editors compare with the server's version.
const REPORTED: &str = "CODER_REPORTED_VERSION";

pub(super) fn run(args: &Version) -> anyhow::Result<u8> {
    let version = std::env::var(REPORTED).ok().filter(|v| !v.is_empty()).unwrap_or_else(|| crate::VERSION.to_owned());
    match args.output {
        Output::Text => output::line(&format!("Coder {version}"))?,
        Output::Json => output::line(&serde_json::to_string_pretty(&json!({
            "version": version,
            "build_time": "0001-01-01T00:00:00Z",
            "external_url": "",
            "slim": false,
            "agpl": true,
            "boring_crypto": false,
        }))?)?,
    }
    Ok(0)
}
