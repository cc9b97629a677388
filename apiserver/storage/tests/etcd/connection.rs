//! The way to the store: TLS, several endpoints, none that answers.

use crate::*;

#[tokio::test]
async fn an_unreachable_store_is_an_error_in_time() {
    let unused = server::free_address();
    let storage =
        Storage::connect(StoreConfig::new(vec![format!("http://{unused}")]), CancellationToken::new())
            .unwrap();
    let maps = storage.resource(config_maps());
    assert!(matches!(timely(storage.ping()).await, Err(keelson_storage::StoreError::Unavailable(_))));
    assert!(matches!(timely(maps.create(key("a"), map("a", 0), None)).await, Err(Error::Store(_))));
    assert!(matches!(timely(maps.get(key("a"), ReadVersion::Any)).await, Err(Error::Store(_))));
    assert!(!storage.ready());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_is_reached_over_tls() {
    keelson_component_base::tls::install_provider();
    let directory = tempfile::Builder::new().prefix("keelson-storage-").tempdir().unwrap();
    let tls = certificates(directory.path());
    let server = Server::start_with_tls(directory.path()).await;
    let connect = |tls: Option<StoreTls>| {
        let config = StoreConfig { tls, ..StoreConfig::new(vec![server.endpoint()]) };
        Storage::connect(config, CancellationToken::new())
    };
    let storage = connect(Some(tls.clone())).unwrap();
    let maps = storage.resource(config_maps());
    timely(storage.wait_ready()).await;
    let created = timely(maps.create(key("a"), map("a", 0), None)).await.unwrap();
    assert_eq!(timely(maps.get(key("a"), ReadVersion::Latest)).await.unwrap().body(), created.body());

    for refused in [
        None,
        Some(StoreTls { client: None, ..tls.clone() }),
        Some(StoreTls { ca_file: None, ..tls.clone() }),
    ] {
        let error = timely(connect(refused.clone()).unwrap().ping()).await.unwrap_err();
        assert!(matches!(error, keelson_storage::StoreError::Unavailable(_)), "{refused:?}: {error:?}");
    }
    let missing = StoreTls { ca_file: Some("/nowhere/ca.crt".into()), client: None };
    let error = connect(Some(missing)).err().unwrap().to_string();
    assert!(error.contains("/nowhere/ca.crt"), "{error}");
}

/// An authority, a server for [`server::HOST`] and a client, as files.
fn certificates(directory: &std::path::Path) -> StoreTls {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_file = write("ca.crt", ca.self_signed(&ca_key).unwrap().pem());
    let issuer = Issuer::new(ca, ca_key);
    let issue = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![server::HOST.into()]).unwrap().signed_by(&key, &issuer).unwrap();
        (write(&format!("{name}.crt"), certificate.pem()), write(&format!("{name}.key"), key.serialize_pem()))
    };
    issue("server");
    StoreTls { ca_file: Some(ca_file), client: Some(issue("client")) }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_endpoint_serves_when_one_is_gone() {
    let server = Server::start().await;
    let endpoints = vec![format!("http://{}", server::free_address()), server.endpoint()];
    let storage = Storage::connect(StoreConfig::new(endpoints), CancellationToken::new()).unwrap();
    let maps = storage.resource(config_maps());
    timely(storage.wait_ready()).await;
    maps.create(key("a"), map("a", 0), None).await.unwrap();
    assert_eq!(timely(maps.get(key("a"), ReadVersion::Latest)).await.unwrap().name(), "a");
}
