//! What is asked of clients' certificates.

use super::{
    ClientAuth, TlsConfig,
    files::{TlsError, certificates},
};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use std::sync::Arc;

/// Who judges clients' certificates, if somebody shall.
pub(super) fn verifier(
    config: &TlsConfig,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    let any =
        |mandatory| Some(Arc::new(AnyCertificate { provider: Arc::clone(provider), mandatory }) as Arc<dyn ClientCertVerifier>);
    Ok(match config.client_auth {
        ClientAuth::None => None,
        ClientAuth::Request => any(false),
        ClientAuth::RequireAny => any(true),
        ClientAuth::VerifyIfGiven => Some(known(config, provider, false)?),
        ClientAuth::RequireAndVerify => Some(known(config, provider, true)?),
    })
}

fn known(config: &TlsConfig, provider: &Arc<CryptoProvider>, mandatory: bool) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let path = config.client_ca.as_ref().ok_or(TlsError::NoAuthorities)?;
    let refuse = |why| TlsError::Authorities { path: path.clone(), why };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path).map_err(refuse)? {
        roots
            .add(certificate)
            .map_err(|error| refuse(format!("it holds a certificate that is none of an authority: {error}")))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = if mandatory { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| refuse(error.to_string()))
}

/// Takes every certificate whose key the client proves to have.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
    mandatory: bool,
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
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
