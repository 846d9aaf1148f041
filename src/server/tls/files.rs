//! Certificates and keys in PEM files, and whether the files have changed.

use super::TlsConfig;
use crate::driver::{files::read_regular, http};
use rustls::{
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// No chain of certificates comes near it.
const LARGEST_FILE: u64 = 1 << 20;

/// Why TLS cannot be served as configured. Each text is one line that names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file of certificates.
    #[error("cannot use the certificate file {path:?}: {why}; name a PEM file with --tls-cert-file")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file with a key.
    #[error("cannot use the key file {path:?}: {why}; name a PEM file with --tls-key-file")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A key that belongs to another certificate.
    #[error("the key in {key:?} is not that of the first certificate in {certificate:?}: give files that belong together")]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The file of the clients' authorities.
    #[error("cannot use the authorities in {path:?}: {why}; name a PEM file with --tls-client-ca-file")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Clients' certificates shall be checked against nothing.
    #[error("clients' certificates cannot be checked without authorities: name their PEM file with --tls-client-ca-file")]
    NoAuthorities,
    /// TLS without a certificate.
    #[error("TLS needs a certificate and its key: name their files with --tls-cert-file and --tls-key-file")]
    NoCertificate,
    /// The library refuses the settings.
    #[error("TLS cannot be served as configured: {0}")]
    Settings(String),
}

/// What tells that a file has changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen(Vec<Option<(SystemTime, u64)>>);

impl Seen {
    /// The files of `config` as they are now.
    pub(super) fn of(config: &TlsConfig) -> Self {
        let files = config.pairs.iter().flat_map(|(certificate, key)| [certificate, key]).chain(&config.client_ca);
        let look = |path: &PathBuf| fs::metadata(path).ok().and_then(|meta| Some((meta.modified().ok()?, meta.len())));
        Self(files.map(look).collect())
    }
}

/// The certificates of a file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read_regular(path, LARGEST_FILE).map_err(|error| error.to_string())?;
    http::certificates(&bytes).map_err(|error| error.to_string())
}

/// A chain and its key.
pub(super) fn read(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let refuse = |why| TlsError::Certificate { path: certificate.to_owned(), why };
    let chain = certificates(certificate).map_err(refuse)?;
    // What the library says of a key may quote it: only kinds of failure are told.
    let refuse = |why: &str| TlsError::Key { path: key.to_owned(), why: why.to_owned() };
    let pem = read_regular(key, LARGEST_FILE).map_err(|error| refuse(&error.to_string()))?;
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| refuse("it holds no private key in PEM"))?;
    CertifiedKey::from_der(chain, private, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => TlsError::Mismatch { certificate: certificate.to_owned(), key: key.to_owned() },
        rustls::Error::InvalidCertificate(why) => {
            TlsError::Certificate { path: certificate.to_owned(), why: format!("its first certificate is malformed: {why:?}") }
        }
        _ => refuse("it holds a key of an unknown kind"),
    })
}
