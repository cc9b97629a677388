//! The connection against real TLS servers: multiplexing, credentials, trust, failures and several servers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "the helpers of a test fail as the test does")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use http::{HeaderMap, Request, StatusCode, header};
use keelson_client::kubeconfig::Source;
use keelson_client::{ClusterConfig, connect, connect_with, raw};
use keelson_component_base::health::Checks;
use keelson_component_base::metrics::Registry;
use keelson_component_base::serve::{Body, Endpoints, Peer, Route, text};
use keelson_component_base::tls::{ClientAuth, ServerTls};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

struct Authority {
    dir: tempfile::TempDir,
    pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new([]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let dir = tempfile::Builder::new().prefix("keelson-client-").tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), &pem).unwrap();
        Self { dir, pem, issuer: rcgen::Issuer::new(params, key) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn issue(&self, name: &str, san: &str) -> (PathBuf, PathBuf) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new([san.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let paths = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        std::fs::write(&paths.0, certificate.pem()).unwrap();
        std::fs::write(&paths.1, key.serialize_pem()).unwrap();
        paths
    }

    fn config(&self, address: SocketAddr) -> ClusterConfig {
        ClusterConfig::anonymous(
            &format!("https://{address}"),
            Some(Source::Inline(self.pem.clone().into_bytes())),
        )
    }
}

/// What a server saw of a request.
#[derive(Clone)]
struct Seen {
    peer: SocketAddr,
    certificates: usize,
    headers: HeaderMap,
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Seen>>>);

impl Log {
    fn record<B>(&self, request: &Request<B>) {
        let peer = request.extensions().get::<Peer>().unwrap();
        let seen = Seen {
            peer: peer.address,
            certificates: peer.certificates.len(),
            headers: request.headers().clone(),
        };
        self.0.lock().unwrap().push(seen);
    }

    fn connections(&self) -> usize {
        self.0.lock().unwrap().iter().map(|seen| seen.peer).collect::<BTreeSet<_>>().len()
    }

    fn last(&self) -> Seen {
        self.0.lock().unwrap().last().cloned().unwrap()
    }
}

struct Server {
    address: SocketAddr,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(authority: &Authority, address: &str, san: &str, routes: Vec<Route>) -> Self {
        let (cert_file, key_file) = authority.issue("server", san);
        let client_ca_file = Some(authority.path("ca.crt"));
        let mut endpoints = Endpoints::new(address.parse().unwrap(), Checks::new(), Registry::new());
        endpoints.tls =
            Some(ServerTls { cert_file, key_file, client_ca_file, client_auth: ClientAuth::Optional });
        endpoints.routes = routes;
        let bound = endpoints.bind().await.unwrap();
        let cancel = CancellationToken::new();
        Self { address: bound.local_addr(), cancel: cancel.clone(), task: tokio::spawn(bound.run(cancel)) }
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

fn logging(log: &Log) -> Route {
    let log = log.clone();
    Route::new("/version", move |request| {
        log.record(&request);
        async { text(StatusCode::OK, "v1.36") }
    })
}

async fn get(client: &kube::Client) -> Result<String, String> {
    let body = raw::get(client, "/version").await.map_err(|error| describe(&error))?;
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

#[tokio::test]
async fn requests_share_one_connection_and_carry_the_identity() {
    let authority = Authority::new();
    let log = Log::default();
    let server = Server::start(&authority, "127.0.0.1:0", "127.0.0.1", vec![logging(&log)]).await;
    let (certificate, key) = authority.issue("client", "client");
    let kubeconfig = authority.path("kubeconfig");
    let text = format!(
        "current-context: c\nclusters: [{{name: k, cluster: {{server: 'https://{}', certificate-authority: ca.crt}}}}]\n\
         contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         users: [{{name: u, user: {{client-certificate: {}, client-key: {}, token: secret}}}}]\n",
        server.address,
        certificate.file_name().and_then(|name| name.to_str()).unwrap(),
        key.display(),
    );
    std::fs::write(&kubeconfig, text).unwrap();
    let client = connect(&kubeconfig, "kubelet/v1.36.0").unwrap();
    let answers = futures::future::join_all((0..50).map(|_| get(&client))).await;
    assert!(answers.iter().all(|answer| answer.as_deref() == Ok("v1.36")));
    assert_eq!(log.connections(), 1);
    let seen = log.last();
    assert_eq!(seen.certificates, 1);
    assert_eq!(seen.headers[header::USER_AGENT], "kubelet/v1.36.0");
    assert_eq!(seen.headers[header::AUTHORIZATION], "Bearer secret");
    server.stop().await;
}

#[tokio::test]
async fn a_full_connection_gets_a_second_beside_it() {
    let authority = Authority::new();
    let log = Log::default();
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::new(Semaphore::new(0));
    let route = {
        let (log, gate, waiting) = (log.clone(), gate.clone(), waiting.clone());
        Route::new("/version", move |request| {
            log.record(&request);
            let (gate, waiting) = (gate.clone(), waiting.clone());
            async move {
                waiting.add_permits(1);
                let _opened = gate.acquire().await;
                text(StatusCode::OK, "late")
            }
        })
    };
    let server = Server::start(&authority, "127.0.0.1:0", "127.0.0.1", vec![route]).await;
    let client = connect_with(authority.config(server.address), "x").unwrap();
    let requests: Vec<_> = (0..250)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { get(&client).await })
        })
        .collect();
    // All of them are being served at once.
    waiting.acquire_many(250).await.unwrap().forget();
    assert_eq!(log.connections(), 2);
    gate.add_permits(250);
    for request in requests {
        assert_eq!(request.await.unwrap().as_deref(), Ok("late"));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_restarted_server_is_dialed_again() {
    let authority = Authority::new();
    let log = Log::default();
    let server = Server::start(&authority, "127.0.0.1:0", "127.0.0.1", vec![logging(&log)]).await;
    let address = server.address;
    let client = connect_with(authority.config(address), "x").unwrap();
    get(&client).await.unwrap();
    server.stop().await;
    let error = get(&client).await.unwrap_err();
    assert!(error.contains(&format!("no API server can be reached: dialing https://{address}")), "{error}");
    let server = Server::start(&authority, &address.to_string(), "127.0.0.1", vec![logging(&log)]).await;
    get(&client).await.unwrap();
    assert_eq!(log.connections(), 2);
    server.stop().await;
}

#[tokio::test]
async fn the_next_server_is_tried() {
    let authority = Authority::new();
    let log = Log::default();
    let server = Server::start(&authority, "127.0.0.1:0", "127.0.0.1", vec![logging(&log)]).await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = authority.config(closed.local_addr().unwrap());
    drop(closed);
    config.servers.push(format!("https://{}", server.address));
    let client = connect_with(config, "x").unwrap();
    assert_eq!(get(&client).await.as_deref(), Ok("v1.36"));
    server.stop().await;
}

#[tokio::test]
async fn trust_is_checked_and_can_be_given_a_name() {
    let authority = Authority::new();
    let server = Server::start(&authority, "127.0.0.1:0", "kubernetes", vec![logging(&Log::default())]).await;
    let mut config = authority.config(server.address);
    let error = get(&connect_with(config.clone(), "x").unwrap()).await.unwrap_err();
    assert!(error.contains("certificate not valid for name"), "{error}");
    config.tls_server_name = Some("kubernetes".to_owned());
    assert!(get(&connect_with(config.clone(), "x").unwrap()).await.is_ok());

    config.certificate_authority = Some(Source::Inline(Authority::new().pem.into_bytes()));
    let error = get(&connect_with(config.clone(), "x").unwrap()).await.unwrap_err();
    assert!(error.contains("invalid peer certificate"), "{error}");
    config.insecure_skip_tls_verify = true;
    assert!(get(&connect_with(config.clone(), "x").unwrap()).await.is_ok());

    config.client_certificate =
        Some((Source::File("/nowhere.crt".into()), Source::File("/nowhere.key".into())));
    let error = connect_with(config, "x").err().unwrap();
    assert!(describe(&error).contains("/nowhere.crt"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn a_refused_token_is_read_again() {
    let authority = Authority::new();
    let token_file = authority.path("token");
    std::fs::write(&token_file, "old\n").unwrap();
    let route = Route::new("/version", |request: Request<_>| async move {
        let authorized = request.headers()[header::AUTHORIZATION] == "Bearer new";
        if authorized { text(StatusCode::OK, "yes") } else { unauthorized() }
    });
    let server = Server::start(&authority, "127.0.0.1:0", "127.0.0.1", vec![route]).await;
    let mut config = authority.config(server.address);
    config.token = Some(Source::File(token_file.clone()));
    let client = connect_with(config, "x").unwrap();
    std::fs::write(&token_file, "old").unwrap();
    assert!(get(&client).await.is_err());
    std::fs::write(&token_file, "new\n").unwrap();
    assert_eq!(get(&client).await.as_deref(), Ok("yes"));
    std::fs::remove_file(&token_file).unwrap();
    assert_eq!(get(&client).await.as_deref(), Ok("yes"), "the token read before is kept");
    server.stop().await;
}

fn unauthorized() -> http::Response<Body> {
    let status = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","code":401,"reason":"Unauthorized","message":"no"}"#;
    text(StatusCode::UNAUTHORIZED, status)
}

#[tokio::test]
async fn errors_of_the_api_come_back_as_status() {
    let authority = Authority::new();
    let routes = vec![Route::new("/version", |_| async { unauthorized() })];
    let server = Server::start(&authority, "127.0.0.1:0", "127.0.0.1", routes).await;
    let client = connect_with(authority.config(server.address), "x").unwrap();
    match raw::get(&client, "/version").await {
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, status.reason.as_str()), (401, "Unauthorized"))
        }
        other => panic!("{other:?}"),
    }
    match raw::get(&client, "/nothing").await {
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, status.message.as_str()), (404, "404 page not found"))
        }
        other => panic!("{other:?}"),
    }
    server.stop().await;
}

#[test]
fn a_missing_kubeconfig_is_named() {
    let error = connect(Path::new("/nowhere/kubelet.conf"), "x").err().unwrap();
    assert!(describe(&error).contains("/nowhere/kubelet.conf"));
}
