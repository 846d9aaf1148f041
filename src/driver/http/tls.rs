//! Trust for outgoing TLS: the system's roots, read when the first certificate has to be judged.
//!
//! Reading them costs milliseconds and memory that a plain `http://` server never needs. The provider is handed over
//! explicitly: a library must not install one for the whole process.

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem, pem::PemObject as _},
};
use rustls_platform_verifier::Verifier;
use std::{
    fmt,
    sync::{Arc, OnceLock},
};

/// Why PEM text cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PemError {
    /// It holds no certificate.
    #[error("there is no certificate in it")]
    NoCertificate,
    /// It holds no private key.
    #[error("there is no private key in it")]
    NoKey,
    /// It is broken.
    #[error("it is no PEM text: {0}")]
    Broken(String),
    /// Certificate and key do not belong together, or are of a kind that is not known.
    #[error("certificate and key cannot be used together: {0}")]
    Unusable(String),
}

/// All certificates of a PEM text.
///
/// # Errors
/// When there are none, or the text is broken.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|e| PemError::Broken(e.to_string()))?;
    if all.is_empty() { Err(PemError::NoCertificate) } else { Ok(all) }
}

/// A certificate with its key. The key never shows.
#[derive(Clone)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl Identity {
    /// Reads a certificate, with those that lead to its authority behind it, and its key.
    ///
    /// # Errors
    /// When one is missing or they do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, PemError> {
        let chain = certificates(chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| match e {
            pem::Error::NoItemsFound => PemError::NoKey,
            other => PemError::Broken(other.to_string()),
        })?;
        let identity = Self { chain, key: Arc::new(key) };
        // A pair that does not fit is better told now than by each handshake.
        let trust = Trust::new(Roots::new(Vec::new()), Expected::default());
        trust.client_config(Some(&identity)).map_err(|e| PemError::Unusable(e.to_string()))?;
        Ok(identity)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}

/// The roots that all clients with the same settings trust.
#[derive(Debug)]
pub(super) struct Roots {
    provider: Arc<CryptoProvider>,
    extra: Vec<CertificateDer<'static>>,
    loaded: OnceLock<Result<Verifier, Error>>,
}

impl Roots {
    /// The system's roots and `extra` ones.
    pub(super) fn new(extra: Vec<CertificateDer<'static>>) -> Arc<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Arc::new(Self { provider, extra, loaded: OnceLock::new() })
    }

    fn verifier(&self) -> Result<&Verifier, Error> {
        let load = || Verifier::new_with_extra_roots(self.extra.iter().cloned(), Arc::clone(&self.provider));
        self.loaded.get_or_init(load).as_ref().map_err(Clone::clone)
    }
}

/// What a relay map says of one host's certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Expected {
    /// The host that this is about.
    pub(super) host: String,
    /// The name on its certificate, where it is another one.
    pub(super) name: Option<ServerName<'static>>,
    /// No certificate is checked (a relay map's test switch).
    pub(super) anything: bool,
}

/// Which certificates a server may present to one client.
#[derive(Debug)]
pub(super) struct Trust {
    roots: Arc<Roots>,
    expected: Expected,
}

impl Trust {
    /// Trust in `roots`, but for what is `expected` of one host.
    pub(super) fn new(roots: Arc<Roots>, expected: Expected) -> Arc<Self> {
        Arc::new(Self { roots, expected })
    }

    /// The client configuration: HTTP/1.1 alone, because nothing else can be upgraded.
    pub(super) fn client_config(self: &Arc<Self>, identity: Option<&Identity>) -> Result<ClientConfig, Error> {
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.roots.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(self) as Arc<dyn ServerCertVerifier>);
        let mut config = match identity {
            Some(Identity { chain, key }) => config.with_client_auth_cert(chain.clone(), key.clone_key())?,
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// The name to check the certificate of `host` against; `None` when any certificate will do.
    fn name<'a>(&'a self, host: &'a ServerName<'a>) -> Option<&'a ServerName<'a>> {
        if !host.to_str().eq_ignore_ascii_case(&self.expected.host) {
            return Some(host);
        }
        if self.expected.anything { None } else { Some(self.expected.name.as_ref().unwrap_or(host)) }
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.name(host) {
            None => Ok(ServerCertVerified::assertion()),
            Some(name) => self.roots.verifier()?.verify_server_cert(certificate, intermediates, name, ocsp, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.roots.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.roots.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.roots.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ServerName<'static> {
        ServerName::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn certificates_and_keys_are_read_from_pem_and_what_does_not_fit_is_told() {
        let make = || rcgen::generate_simple_self_signed(["client.test".to_owned()]).unwrap();
        let (one, other) = (make(), make());
        let (cert, key) = (one.cert.pem(), one.signing_key.serialize_pem());
        assert_eq!(certificates(format!("{cert}{}", other.cert.pem()).as_bytes()).unwrap().len(), 2);
        assert_eq!(certificates(key.as_bytes()), Err(PemError::NoCertificate));
        let identity = Identity::from_pem(cert.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(format!("{identity:?}"), "Identity(..)");
        assert_eq!(Identity::from_pem(cert.as_bytes(), cert.as_bytes()).unwrap_err(), PemError::NoKey);
        let crossed = Identity::from_pem(cert.as_bytes(), other.signing_key.serialize_pem().as_bytes()).unwrap_err();
        assert!(matches!(crossed, PemError::Unusable(_)), "{crossed}");
    }

    #[test]
    fn what_a_relay_map_says_of_a_certificate_counts_for_its_host_and_its_client_alone() {
        let roots = Roots::new(Vec::new());
        let expected = |n: Option<&str>, anything| Expected { host: "relay.test".into(), name: n.map(name), anything };
        let (relay, proxy) = (name("RELAY.test"), name("proxy.test"));
        let named = Trust::new(Arc::clone(&roots), expected(Some("other.test"), false));
        assert_eq!((named.name(&relay), named.name(&proxy)), (Some(&name("other.test")), Some(&proxy)));
        let unchecked = Trust::new(Arc::clone(&roots), expected(None, true));
        assert_eq!((unchecked.name(&relay), unchecked.name(&proxy)), (None, Some(&proxy)));
        let plain = Trust::new(roots, Expected::default());
        assert_eq!(plain.name(&relay), Some(&relay));
    }
}
