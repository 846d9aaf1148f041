//! What an HTTP call can end with. No text holds a token, a header or a query string.

use super::{proxy::Proxy, without_secrets};
use crate::driver::clock;
use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use reqwest::header::{DATE, HeaderMap, LOCATION};
use rustls::{CertificateError, Error as TlsError, pki_types::UnixTime};
use serde::Deserialize;
use std::{error::Error as _, time::Duration};
use url::Url;

/// Longest piece of a plain-text answer shown to people.
const MAX_TEXT: usize = 300;
/// From here on two clocks do not agree.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_mins(5);

/// Why a call failed, told apart by what a caller does about it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The address of the server is none.
    #[error("{0:?} is not the URL of a server: it has to begin with http:// or https:// and name a host")]
    Url(String),
    /// A header, proxy or certificate setting cannot be used.
    #[error("unusable HTTP setting: {0}")]
    Setting(String),
    /// No connection: name, route, proxy or TLS.
    #[error("cannot reach {host}: {reason}")]
    Connect {
        /// Host and port, and the proxy on the way there.
        host: String,
        /// What the system or the library says.
        reason: String,
    },
    /// Nothing came in time.
    #[error("{host} did not answer within {after:?}")]
    Timeout {
        /// Host and port, and the proxy on the way there.
        host: String,
        /// The limit that passed.
        after: Duration,
    },
    /// The connection broke, or the answer is not what was asked for.
    #[error("unusable answer from {host}: {reason}")]
    Answer {
        /// Host and port, and the proxy on the way there.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server refused.
    #[error("{0}")]
    Refused(Box<Refusal>),
}

impl HttpError {
    /// The status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(refusal) => Some(refusal.status),
            _ => None,
        }
    }

    /// Whether no connection came about, so that another protocol to the same place would fail alike.
    #[must_use]
    pub const fn is_connect(&self) -> bool {
        matches!(self, Self::Connect { .. })
    }

    pub(super) fn from_reqwest(url: &Url, limit: Duration, e: &reqwest::Error) -> Self {
        let host = host_of(url);
        let mut deepest: &dyn std::error::Error = e;
        while let Some(source) = deepest.source() {
            deepest = source;
        }
        // The outermost text may quote the whole URL; the deepest never does.
        let reason = match of_tls(deepest).and_then(explained) {
            Some(reason) => reason,
            None if e.source().is_none() => "the request failed".to_owned(),
            None => match deepest.to_string() {
                // The library's errors about what is no HTTP begin alike.
                text if text.starts_with("invalid HTTP") => format!("{text}; if it speaks TLS, its URL begins with https://"),
                text => text,
            },
        };
        if e.is_timeout() {
            Self::Timeout { host, after: limit }
        } else if e.is_connect() {
            Self::Connect { host, reason }
        } else {
            Self::Answer { host, reason }
        }
    }

    /// The same with the proxy on the way named, where that may be the one to blame.
    pub(super) fn through(mut self, proxy: &Proxy) -> Self {
        let by = |host: &mut String| *host = format!("{host} through the proxy {proxy}");
        match &mut self {
            Self::Connect { host, .. } | Self::Timeout { host, .. } | Self::Answer { host, .. } => by(host),
            Self::Refused(refusal) if matches!(refusal.status, 407 | 502..=504) => by(&mut refusal.host),
            Self::Refused(_) | Self::Url(_) | Self::Setting(_) => {}
        }
        self
    }
}

/// What a person can do about a TLS error.
fn explained(error: &TlsError) -> Option<String> {
    let text = match error {
        TlsError::InvalidMessage(_) => "it does not speak TLS; is its URL http://, not https://?",
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is of an authority that is not trusted here (UnknownIssuer): name that one's certificate with \
             --client-tls-ca-file or SSL_CERT_FILE"
        }
        // The check's own errors have no names here.
        TlsError::InvalidCertificate(CertificateError::Other(other)) => match format!("{other:?}") {
            text if text.contains("UnsupportedCertVersion") => {
                "its certificate is of X.509 version 1, which says neither for which names nor for what it is: the server \
                 needs one of version 3"
            }
            text if text.contains("CaUsedAsEndEntity") => {
                "its certificate is an authority's (CA:TRUE) and not a server's: the server needs one that it issued"
            }
            _ => return None,
        },
        TlsError::InvalidCertificate(why) => return of_clock(why),
        _ => return None,
    };
    Some(text.to_owned())
}

/// The TLS error inside: the I/O errors that wrap it do not name it as their source.
fn of_tls<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e TlsError> {
    error.downcast_ref::<TlsError>().or_else(|| of_tls(error.downcast_ref::<std::io::Error>()?.get_ref()?))
}

/// What is wrong with a certificate that this machine's clock finds too young or too old: either of the two may be.
fn of_clock(why: &CertificateError) -> Option<String> {
    let (what, bound, now) = match *why {
        CertificateError::NotValidYetContext { time, not_before } => ("is not valid before", not_before, time),
        CertificateError::ExpiredContext { time, not_after } => ("was valid until", not_after, time),
        _ => return None,
    };
    let day = |time: UnixTime| Timestamp::from_second(i64::try_from(time.as_secs()).ok()?).ok();
    let (bound, now) = (day(bound)?, day(now)?);
    Some(format!("its certificate {what} {bound}, and the clock of this machine says {now}; is the clock right?"))
}

/// How far the clock that wrote `Date` is ahead of this machine's.
fn ahead(headers: &HeaderMap) -> Option<SignedDuration> {
    let theirs = rfc2822::parse(headers.get(DATE)?.to_str().ok()?).ok()?.timestamp();
    let ours = SignedDuration::try_from(clock::wall().since_unix()).ok()?;
    Some(theirs.as_duration() - ours)
}

/// A time in the largest unit of which it holds two.
fn roughly(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    match minutes / 60 {
        0..2 => format!("{minutes} minutes"),
        hours @ 2..48 => format!("{hours} hours"),
        hours => format!("{} days", hours / 24),
    }
}

/// A status of 400 or more, with what the server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Host and port, and the proxy that may have answered instead.
    pub host: String,
    /// Method and path, without the query.
    pub request: String,
    /// The HTTP status.
    pub status: u16,
    /// The server's message, or the standard text of the status.
    pub message: String,
    /// The server's explanation; may be empty.
    pub detail: String,
    /// Complaints about single fields.
    pub validations: Vec<Validation>,
    /// How far the server's clock is ahead of this machine's, if it said and they do not agree.
    pub ahead: Option<SignedDuration>,
}

/// One field that the server did not like.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Validation {
    /// The field's name.
    #[serde(default)]
    pub field: String,
    /// What is wrong with it.
    #[serde(default)]
    pub detail: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} refused with status {}: {}", self.host, self.status, self.message.trim_end_matches('.'))?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail.trim_end_matches('.'))?;
        }
        for v in &self.validations {
            write!(f, "; {}: {}", v.field, v.detail)?;
        }
        // What a login is worth depends on the time.
        if let (401, Some(ahead)) = (self.status, self.ahead) {
            let way = if ahead.is_negative() { "behind" } else { "ahead of" };
            write!(f, "; its clock is {} {way} this machine's", roughly(ahead.unsigned_abs()))?;
        }
        Ok(())
    }
}

impl Refusal {
    pub(super) fn parse(url: &Url, request: String, status: reqwest::StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Body {
            message: String,
            #[serde(default)]
            detail: String,
            #[serde(default)]
            validations: Option<Vec<Validation>>,
        }
        let fallback = status.canonical_reason().unwrap_or("unknown status").to_owned();
        let (message, detail, validations) = match serde_json::from_slice::<Body>(body) {
            Ok(body) => (body.message, body.detail, body.validations.unwrap_or_default()),
            Err(_) => {
                let message = elsewhere(url, headers).or_else(|| wants_tls(url, body)).or_else(|| first_line(body));
                (message.unwrap_or(fallback), String::new(), Vec::new())
            }
        };
        let ahead = ahead(headers).filter(|ahead| ahead.abs() >= CLOCKS_DIFFER);
        Self { host: host_of(url), request, status: status.as_u16(), message, detail, validations, ahead }
    }
}

/// Where a redirection leads that was not followed: a server with TLS sends those away who come without.
fn elsewhere(url: &Url, headers: &HeaderMap) -> Option<String> {
    let target = url.join(headers.get(LOCATION)?.to_str().ok()?).ok()?;
    let shown = without_secrets(target.as_str());
    let base = shown.strip_suffix(url.path()).unwrap_or(shown);
    (target.origin() != url.origin()).then(|| format!("it sends to {base}: use that URL if you trust it"))
}

/// What servers with TLS say to those who come without.
fn wants_tls(url: &Url, body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let says = text.contains("HTTP request to an HTTPS server") || text.contains("HTTP request was sent to HTTPS port");
    (says && url.scheme() == "http").then(|| "it speaks TLS: its URL begins with https://".to_owned())
}

/// The first line of a plain-text body; a page of HTML is nothing to show.
fn first_line(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?.trim();
    if text.is_empty() || text.starts_with('<') {
        return None;
    }
    Some(text.lines().next()?.chars().take(MAX_TEXT).filter(|c| !c.is_control()).collect())
}

/// Host and, unless it is the scheme's own, port.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::{StatusCode, header::HeaderValue};
    use rustls::{
        pki_types::{CertificateDer, pem::PemObject as _},
        server::ParsedCertificate,
    };

    /// What `openssl x509 -req` makes when it is not told of extensions.
    const VERSION_1: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBFDCBuwIURp02W4LD0GINZBhbP6wdlLT8gjwwCgYIKoZIzj0EAwIwDTELMAkG\n\
A1UEAwwCdjEwHhcNMjYxMTI3MDQwMTU3WhcNMjYxMTI4MDQwMTU3WjANMQswCQYD\n\
VQQDDAJ2MTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABByey9tmiTm4GRFM3UC2\n\
6ANo40C4JDXfrk4Gq1inw6IPCmLCpplz1XP/YeTYoW56RHsby+R/DzaaZMWSd0b1\n\
ZVowCgYIKoZIzj0EAwIDSAAwRQIhANqdvRPrKmcEiET2DP5jXvU03k21YewvHSaL\n\
1C19m1omAiAjpYk5sXY4VBNd8X5XIpdfzqAA6z3bRBerFSNUYxw7Rg==\n\
-----END CERTIFICATE-----\n\
";

    #[test]
    fn a_certificate_of_version_1_is_told_as_such() {
        let certificate = CertificateDer::from_pem_slice(VERSION_1.as_bytes()).unwrap();
        let error = ParsedCertificate::try_from(&certificate).err().unwrap();
        assert!(explained(&error).is_some_and(|said| said.contains("X.509 version 1")), "{error:?}");
        assert_eq!(explained(&TlsError::DecryptError), None);
    }

    fn refused(status: StatusCode, ahead: i64) -> String {
        let now = i64::try_from(clock::wall().since_unix().as_secs()).unwrap();
        let date = rfc2822::to_string(&Timestamp::from_second(now + ahead).unwrap().to_zoned(jiff::tz::TimeZone::UTC)).unwrap();
        let headers = [(DATE, HeaderValue::try_from(date).unwrap())].into_iter().collect();
        let url = Url::parse("http://h").unwrap();
        Refusal::parse(&url, "GET /".to_owned(), status, &headers, br#"{"message":"No."}"#).to_string()
    }

    #[test]
    fn a_login_refused_by_another_clock_names_the_clocks() {
        let said = |ahead| refused(StatusCode::UNAUTHORIZED, ahead);
        assert_eq!(said(0), "h refused with status 401: No");
        assert_eq!(said(290), said(0));
        assert_eq!(said(-290), said(0));
        assert!(said(610).ends_with("; its clock is 10 minutes ahead of this machine's"), "{}", said(610));
        assert!(said(-3 * 3_600 - 30).ends_with("; its clock is 3 hours behind this machine's"), "{}", said(-10_830));
        assert!(said(90 * 86_400).contains(" 90 days ") || said(90 * 86_400).contains(" 89 days "));
        assert_eq!(refused(StatusCode::FORBIDDEN, 90 * 86_400), "h refused with status 403: No");
    }
}
