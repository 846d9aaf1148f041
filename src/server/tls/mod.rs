//! TLS of the server's own: certificates from files, chosen by the name that a client asks for.
//!
//! The files are looked at when a client comes, once a second at most: a renewed certificate counts from the next
//! connection on. Files that cannot be used are named in the log and the old certificates stay.

mod client_auth;
mod files;

pub use files::TlsError;

use crate::driver::clock;
use files::{Seen, read};
use rustls::{
    ServerConfig,
    client::verify_server_name,
    crypto::CryptoProvider,
    pki_types::ServerName,
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// How long a client may take for its handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(15);
/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(1) };

/// The oldest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsVersion {
    /// 1.2
    #[default]
    Tls12,
    /// 1.3
    Tls13,
}

/// What is asked of clients' certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientAuth {
    /// Nothing.
    #[default]
    None,
    /// One may come, whatever it is.
    Request,
    /// One must come, whatever it is.
    RequireAny,
    /// One may come, signed by a known authority.
    VerifyIfGiven,
    /// One must come, signed by a known authority.
    RequireAndVerify,
}

/// How TLS is served.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// Where; port 0 for any free one.
    pub address: SocketAddr,
    /// Files of certificate chains and of their keys, in PEM. The first pair serves names that no other has.
    pub pairs: Vec<(PathBuf, PathBuf)>,
    /// The oldest version spoken.
    pub min_version: TlsVersion,
    /// What is asked of clients.
    pub client_auth: ClientAuth,
    /// The authorities that sign clients' certificates, in PEM.
    pub client_ca: Option<PathBuf>,
}

/// TLS as it is served now.
#[derive(Debug)]
pub(super) struct Tls {
    config: TlsConfig,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    served: Arc<ServerConfig>,
    /// The files as they were when they were last read.
    seen: Seen,
    looked_at: crate::base::Instant,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be used.
    pub(super) fn open(config: TlsConfig) -> Result<Self, TlsError> {
        let seen = Seen::of(&config);
        let served = server_config(&config)?;
        Ok(Self { config, now: Mutex::new(Now { served, seen, looked_at: clock::now() }) })
    }

    /// Reads the files again, whether they have changed or not.
    ///
    /// # Errors
    /// When one cannot be used; what was served stays.
    pub(super) fn reload(&self) -> Result<(), TlsError> {
        let seen = Seen::of(&self.config);
        let served = server_config(&self.config);
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.seen = seen;
        now.looked_at = clock::now();
        now.served = served?;
        Ok(())
    }

    /// Reads the files again if they have changed.
    fn look(&self) {
        {
            let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
            if clock::now() - now.looked_at < LOOK_EVERY {
                return;
            }
            now.looked_at = clock::now();
            if Seen::of(&self.config) == now.seen {
                return;
            }
        }
        match self.reload() {
            Ok(()) => tracing::info!("the certificates were read again"),
            // Told once for each change of the files.
            Err(error) => tracing::warn!(%error, "the certificates stay what they were"),
        }
    }

    /// Makes the handshake with a client.
    ///
    /// # Errors
    /// When it fails or takes too long.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.look();
        let served = Arc::clone(&self.now.lock().unwrap_or_else(PoisonError::into_inner).served);
        timeout(HANDSHAKE_TIME, TlsAcceptor::from(served).accept(stream)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

fn server_config(config: &TlsConfig) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: &[_] = match config.min_version {
        TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::Tls13 => &[&rustls::version::TLS13],
    };
    let chosen = Chosen::read(config, &provider)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|error| TlsError::Settings(error.to_string()))?;
    let mut served = match client_auth::verifier(config, &provider)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    }
    .with_cert_resolver(Arc::new(chosen));
    // Nothing else can be upgraded to a WebSocket or to the relay's protocol.
    served.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(served))
}

/// The certificates, and which one is for whom.
#[derive(Debug)]
struct Chosen(Vec<Arc<CertifiedKey>>);

impl Chosen {
    fn read(config: &TlsConfig, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let pairs = config.pairs.iter().map(|(certificate, key)| read(certificate, key, provider).map(Arc::new));
        let pairs: Vec<_> = pairs.collect::<Result<_, _>>()?;
        if pairs.is_empty() { Err(TlsError::NoCertificate) } else { Ok(Self(pairs)) }
    }

    fn for_name(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let named = name.and_then(|name| ServerName::try_from(name).ok()).and_then(|name| {
            self.0.iter().find(|pair| {
                let parsed = pair.end_entity_cert().ok().and_then(|certificate| ParsedCertificate::try_from(certificate).ok());
                parsed.is_some_and(|parsed| verify_server_name(&parsed, &name).is_ok())
            })
        });
        named.or_else(|| self.0.first())
    }
}

impl ResolvesServerCert for Chosen {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.for_name(hello.server_name()).cloned()
    }
}
