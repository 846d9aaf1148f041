//! Trust for outgoing TLS: the system's roots, read when the first certificate has to be judged.
//!
//! Reading them costs milliseconds and memory that a plain `http://` server never needs. The provider is handed over
//! explicitly: a library must not install one for the whole process.

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use rustls_platform_verifier::Verifier;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// Which certificates a server may present.
#[derive(Debug)]
pub(super) struct Trust {
    provider: Arc<CryptoProvider>,
    extra: Vec<CertificateDer<'static>>,
    anything: bool,
    loaded: OnceLock<Result<Verifier, Error>>,
    /// Host names whose certificate carries another name (a relay map's `CertName`).
    names: Mutex<BTreeMap<String, String>>,
}

impl Trust {
    /// The system's roots and `extra` ones; with `anything` no certificate is checked (a relay map's test switch).
    pub(super) fn new(extra: Vec<CertificateDer<'static>>, anything: bool) -> Arc<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Arc::new(Self { provider, extra, anything, loaded: OnceLock::new(), names: Mutex::default() })
    }

    /// The client configuration: HTTP/1.1 alone, because nothing else can be upgraded.
    pub(super) fn client_config(self: &Arc<Self>) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(self) as Arc<dyn ServerCertVerifier>)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// From now on the certificate of `host` is checked against `name`.
    pub(super) fn expect_name(&self, host: &str, name: &str) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(host.to_ascii_lowercase(), name.to_owned());
    }

    fn verifier(&self) -> Result<&Verifier, Error> {
        let load = || Verifier::new_with_extra_roots(self.extra.iter().cloned(), Arc::clone(&self.provider));
        self.loaded.get_or_init(load).as_ref().map_err(Clone::clone)
    }

    fn expected(&self, host: &ServerName<'_>) -> Option<ServerName<'static>> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let name = names.get(&host.to_str().to_ascii_lowercase())?;
        ServerName::try_from(name.clone()).ok()
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
        if self.anything {
            return Ok(ServerCertVerified::assertion());
        }
        let expected = self.expected(host);
        self.verifier()?.verify_server_cert(certificate, intermediates, expected.as_ref().unwrap_or(host), ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
