//! TLS of the server's own.

use super::*;
use crate::{
    driver::{
        http::{Http, HttpOptions, ProxyChoice, Token},
        websocket::{ByteStream, Message},
    },
    server::{ClientAuth, Redirect, StartError, TlsConfig, TlsError, TlsVersion},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use std::{fs, path::PathBuf, sync::Arc};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Who signs certificates.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self { certificate: params.self_signed(&key).unwrap(), issuer: Issuer::new(params, key) }
    }

    /// A certificate for these names and its key, both in PEM.
    fn issue(&self, names: &[&str]) -> (String, String) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn root(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }
}

/// Certificates in a folder.
struct Files {
    folder: TempDir,
    authority: Authority,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), authority: Authority::new() }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn pair(&self, name: &str, names: &[&str]) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.authority.issue(names);
        (self.write(&format!("{name}.crt"), &certificate), self.write(&format!("{name}.key"), &key))
    }

    fn config(&self) -> TlsConfig {
        TlsConfig {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            pairs: vec![self.pair("local", &["127.0.0.1", "localhost"])],
            min_version: TlsVersion::default(),
            client_auth: ClientAuth::default(),
            client_ca: None,
        }
    }

    async fn world(&self, tls: TlsConfig) -> World {
        World::with(|config| {
            config.tls = Some(tls);
            config.redirect = Redirect::Never;
        })
        .await
    }

    /// Makes a handshake for `name`.
    async fn connect(
        &self,
        world: &World,
        name: &str,
        versions: &[&'static SupportedProtocolVersion],
        own: Option<(String, String)>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.root()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let stream = TcpStream::connect(world.running.https_address().unwrap()).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        timeout(LIMIT, TlsConnector::from(Arc::new(config)).connect(name, stream)).await.unwrap()
    }

    /// Whether a request is answered on a connection with this certificate of the client's own.
    async fn is_served(&self, world: &World, own: Option<(String, String)>) -> bool {
        let Ok(mut stream) = self.connect(world, "localhost", BOTH, own).await else { return false };
        // With TLS 1.3 the client hears of a refusal only after its own part of the handshake.
        if stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.is_err() {
            return false;
        }
        let mut answer = Vec::new();
        let read = timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap();
        read.is_ok() && answer.starts_with(b"HTTP/1.1 200")
    }
}

const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

fn client(world: &World, files: &Files) -> Http {
    let options = HttpOptions { extra_roots: vec![files.authority.root()], proxy: ProxyChoice::Direct, ..HttpOptions::default() };
    Http::new(world.running.access_url(), Some(Token::new(world.admin.as_str())), options).unwrap()
}

#[tokio::test]
async fn calls_sockets_and_both_kinds_of_relay_connection_go_over_tls() {
    let files = Files::new();
    let world = files.world(files.config()).await;
    let port = world.running.https_address().unwrap().port();
    assert_eq!(world.running.access_url(), format!("https://127.0.0.1:{port}"));
    let http = client(&world, &files);
    let me: Value = http.get_json("/api/v2/users/me").await.unwrap();
    assert_eq!(me["username"], "admin");
    let info: Value = http.get_json("/api/v2/workspaceagents/connection").await.unwrap();
    let node = &info["derp_map"]["Regions"]["999"]["Nodes"][0];
    assert_eq!((&node["DERPPort"], &node["ForceHTTP"]), (&Value::from(port), &Value::Null));

    let watch = format!("/api/v2/workspaces/{}/watch-ws", world.workspace.id);
    let mut socket = http.websocket(&watch, None).await.unwrap();
    let first = timeout(LIMIT, socket.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(first, Message::Text(text) if text.starts_with(b"{")));

    // The relay greets whoever comes.
    let mut greeting = [0; 13];
    let mut bare = http.upgrade_derp("/derp").await.unwrap();
    timeout(LIMIT, bare.read_exact(&mut greeting)).await.unwrap().unwrap();
    let mut wrapped = ByteStream::new(http.websocket("/derp", Some("derp")).await.unwrap());
    let mut again = [0; 13];
    timeout(LIMIT, wrapped.read_exact(&mut again)).await.unwrap().unwrap();
    assert_eq!(greeting, again);
}

#[tokio::test]
async fn http_1_1_is_spoken_even_to_those_who_would_rather_have_http_2() {
    let files = Files::new();
    let world = files.world(files.config()).await;
    let stream = files.connect(&world, "localhost", BOTH, None).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
}

#[tokio::test]
async fn the_name_that_a_client_asks_for_chooses_the_certificate() {
    let files = Files::new();
    let mut tls = files.config();
    tls.pairs.push(files.pair("wild", &["*.apps.test"]));
    tls.pairs.push(files.pair("other", &["other.test"]));
    let world = files.world(tls).await;
    for name in ["localhost", "8080--dev--ann.apps.test", "other.test", "127.0.0.1"] {
        // The client's own check of the name decides.
        assert!(files.connect(&world, name, BOTH, None).await.is_ok(), "{name}");
    }
    assert!(files.connect(&world, "unknown.test", BOTH, None).await.is_err());
}

#[tokio::test]
async fn the_oldest_version_is_the_one_that_was_set() {
    let files = Files::new();
    let old = &[&rustls::version::TLS12];
    let world = files.world(files.config()).await;
    assert!(files.connect(&world, "localhost", old, None).await.is_ok());
    let world = files.world(TlsConfig { min_version: TlsVersion::Tls13, ..files.config() }).await;
    assert!(files.connect(&world, "localhost", old, None).await.is_err());
    assert!(files.connect(&world, "localhost", BOTH, None).await.is_ok());
}

#[tokio::test]
async fn clients_certificates_are_asked_for_and_checked_as_was_set() {
    let files = Files::new();
    let (known, stranger) = (files.authority.issue(&["ann"]), Authority::new().issue(&["eve"]));
    let ca = files.write("clients.pem", &files.authority.certificate.pem());
    for (client_auth, without, with_stranger, with_known) in [
        (ClientAuth::None, true, true, true),
        (ClientAuth::Request, true, true, true),
        (ClientAuth::RequireAny, false, true, true),
        (ClientAuth::VerifyIfGiven, true, false, true),
        (ClientAuth::RequireAndVerify, false, false, true),
    ] {
        let world = files.world(TlsConfig { client_auth, client_ca: Some(ca.clone()), ..files.config() }).await;
        assert_eq!(files.is_served(&world, None).await, without, "{client_auth:?} without");
        assert_eq!(files.is_served(&world, Some(stranger.clone())).await, with_stranger, "{client_auth:?} with a stranger's");
        assert_eq!(files.is_served(&world, Some(known.clone())).await, with_known, "{client_auth:?} with a known one");
    }
}

#[tokio::test]
async fn a_changed_certificate_counts_from_the_next_connection_and_a_broken_one_changes_nothing() {
    let files = Files::new();
    let world = files.world(files.config()).await;
    let served = async || {
        let stream = files.connect(&world, "localhost", BOTH, None).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let first = served().await;
    assert_eq!(served().await, first);
    files.pair("local", &["localhost"]);
    let second = served().await;
    assert_ne!(second, first);
    files.write("local.crt", "no certificate");
    assert_eq!(served().await, second);
    let error = world.running.reload_certificates().unwrap_err();
    assert!(matches!(error, TlsError::Certificate { .. }), "{error}");
    assert_eq!(served().await, second);
    files.pair("local", &["localhost"]);
    world.running.reload_certificates().unwrap();
    assert_ne!(served().await, second);
}

#[tokio::test]
async fn plain_http_goes_to_https_but_for_health_checks_and_the_relay() {
    let files = Files::new();
    let world = World::with(|config| {
        config.tls = Some(files.config());
        config.transport_security = Some("max-age=300; preload".into());
    })
    .await;
    let http = client(&world, &files);
    let reply = http.call(crate::driver::http::Method::Get, "/api/v2/buildinfo", None::<&()>).await.unwrap();
    assert_eq!(reply.header("strict-transport-security"), Some("max-age=300; preload"));

    // The helper that makes a world speaks plain HTTP, so a second server shows the redirect.
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.tls = Some(files.config());
    config.redirect = Redirect::ToHttps;
    let running = serve(config).await.unwrap();
    let answer = call(running.address(), "GET", "/api/v2/workspaces?q=a", &[], None).await;
    let there = format!("{}/api/v2/workspaces?q=a", running.access_url());
    assert_eq!((answer.status, answer.header("location")), (307, Some(there.as_str())));
    for path in ["/healthz", "/derp/latency-check"] {
        assert_eq!(call(running.address(), "GET", path, &[], None).await.status, 200, "{path}");
    }
    assert_eq!(call(running.address(), "GET", "/derp", &[], None).await.status, 426);
    // An agent may have an http URL of its own.
    let rpc = "/api/v2/workspaceagents/me/rpc?version=2.0";
    assert_eq!(call(running.address(), "GET", rpc, &handshake(None), None).await.status, 401);
    running.shutdown().await;
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_with_the_reason() {
    let files = Files::new();
    let (certificate, key) = files.pair("good", &["localhost"]);
    let (_, other_key) = files.pair("other", &["localhost"]);
    let junk = files.write("junk.pem", "junk");
    let broken = files.write("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let missing = files.folder.path().join("missing.pem");
    let error = async |pairs: &[(&PathBuf, &PathBuf)], client_auth, client_ca: Option<&PathBuf>| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        let pairs = pairs.iter().map(|(c, k)| ((*c).clone(), (*k).clone())).collect();
        config.tls = Some(TlsConfig { pairs, client_auth, client_ca: client_ca.cloned(), ..files.config() });
        let error = serve(config).await.unwrap_err();
        assert!(matches!(error, StartError::Tls(_)), "{error:?}");
        let text = error.to_string();
        assert!(!text.contains('\n') && text.len() < 400, "{text:?} is not one line");
        text
    };
    let none = ClientAuth::None;
    let named = |path: &PathBuf| format!("{path:?}");
    for (pair, file, why) in [
        ((&missing, &key), &missing, "No such file"),
        ((&junk, &key), &junk, "no certificate"),
        ((&broken, &key), &broken, "malformed"),
        ((&certificate, &missing), &missing, "No such file"),
        ((&certificate, &junk), &junk, "no private key"),
        ((&certificate, &certificate), &certificate, "no private key"),
        ((&certificate, &other_key), &other_key, "not that of the first certificate"),
    ] {
        let text = error(&[pair], none, None).await;
        assert!(text.contains(&named(file)) && text.contains(why), "{text}");
    }
    assert!(error(&[], none, None).await.contains("--tls-cert-file"));
    let pair = (&certificate, &key);
    assert!(error(&[pair], ClientAuth::RequireAndVerify, None).await.contains("--tls-client-ca-file"));
    let text = error(&[pair], ClientAuth::VerifyIfGiven, Some(&junk)).await;
    assert!(text.contains(&named(&junk)) && text.contains("--tls-client-ca-file"), "{text}");
}
