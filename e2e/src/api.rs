//! Requests to the API server as bytes on the wire: for what kubectl hides, such as status codes,
//! single watch events and other people's credentials.
//!
//! The calls block, as tests do; the connection lives on a runtime of its own.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::{AsyncBufReadExt as _, StreamExt as _};
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt as _;
use keelson_client::ClusterConfig;
use kube::client::{Body, Client};
use serde_json::Value;
use tokio::runtime::Runtime;

/// What the server answered.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; null where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body, if the request succeeded.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.code < 300, "{} {}", self.code, String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// Asserts a `metav1.Status` failure and gives its message.
    #[track_caller]
    pub fn refused(&self, code: u16, reason: &str) -> String {
        let status = self.json();
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.code, code, "{text}");
        assert_eq!(status["kind"], "Status", "{text}");
        assert_eq!(status["status"], "Failure", "{text}");
        assert_eq!(status["code"], code, "{text}");
        assert_eq!(status["reason"].as_str().unwrap_or_default(), reason, "{text}");
        status["message"].as_str().unwrap_or_default().to_owned()
    }
}

/// A connection to an API server with one identity.
pub struct Api {
    runtime: Runtime,
    client: Client,
}

#[expect(clippy::expect_used, reason = "a test that cannot set out to ask has failed")]
impl Api {
    /// As the shared cluster's administrator.
    pub fn admin() -> Self {
        Self::with_kubeconfig(&crate::shared_cluster().layout().admin_kubeconfig())
    }

    /// As whom a kubeconfig says.
    pub fn with_kubeconfig(path: &Path) -> Self {
        Self::new(keelson_client::kubeconfig::load(path).expect("a kubeconfig"))
    }

    /// The shared cluster without credentials.
    pub fn anonymous() -> Self {
        Self::new(anonymous_config())
    }

    /// Another server of the shared cluster, such as a kubelet, without credentials.
    pub fn anonymous_at(server: &str) -> Self {
        Self::new(ClusterConfig { servers: vec![server.to_owned()], ..anonymous_config() })
    }

    /// The shared cluster with a bearer token.
    pub fn with_token(token: &str) -> Self {
        let token = keelson_client::kubeconfig::Source::Inline(token.as_bytes().to_vec());
        Self::new(ClusterConfig { token: Some(token), ..anonymous_config() })
    }

    fn new(config: ClusterConfig) -> Self {
        // Only the first call of a process installs it.
        keelson_component_base::tls::install_provider();
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime starts");
        let client = {
            let _inside = runtime.enter();
            keelson_client::connect_with(config, "keelson-e2e").expect("credentials load")
        };
        Self { runtime, client }
    }

    /// Sends a request with a JSON body; a PATCH is a merge patch.
    pub fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let content_type =
            if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let body = body.map(|value| value.to_string().into_bytes()).unwrap_or_default();
        self.send(method, path, content_type, body)
    }

    /// Sends a request and reads the whole answer, whatever its code.
    pub fn send(&self, method: Method, path: &str, content_type: &str, body: Vec<u8>) -> Answer {
        self.try_send(method, path, content_type, body).expect("the API server answers")
    }

    /// Like [`Api::send`], for a server that may not be there.
    pub fn try_send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Answer, String> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content_type)
            .body(Body::from(body))
            .map_err(|error| error.to_string())?;
        self.runtime.block_on(async {
            let response = self.client.send(request).await.map_err(|error| error.to_string())?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            Ok(Answer { code: parts.status.as_u16(), headers: parts.headers, body })
        })
    }

    /// An object or list, for conditions that are waited for.
    pub fn get(&self, path: &str) -> Result<Value, String> {
        let answer = self.try_send(Method::GET, path, "application/json", Vec::new())?;
        if answer.code == 200 {
            Ok(answer.json())
        } else {
            Err(format!("{} {}", answer.code, String::from_utf8_lossy(&answer.body)))
        }
    }

    /// Creates, must succeed.
    #[track_caller]
    pub fn create(&self, path: &str, object: &Value) -> Value {
        self.request(Method::POST, path, Some(object)).ok()
    }

    /// A token for a service account, as `kubectl create token` gets it.
    #[track_caller]
    pub fn token_for(&self, namespace: &str, account: &str) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request =
            serde_json::json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        self.create(&path, &request)["status"]["token"].as_str().expect("a token").to_owned()
    }

    /// Opens a watch; the path has the query with it.
    pub fn watch(&self, path: &str) -> Watch<'_> {
        let request = Request::builder().uri(path).body(Vec::new()).expect("a path");
        let lines = self.runtime.block_on(async {
            let stream = self.client.request_stream(request).await.expect("the watch starts");
            Box::pin(stream.lines().map(|line| line.map_err(|error| error.to_string())))
        });
        Watch { runtime: &self.runtime, lines }
    }
}

fn anonymous_config() -> ClusterConfig {
    let cluster = crate::shared_cluster();
    let authority = keelson_client::kubeconfig::Source::File(cluster.layout().pki().join("ca.crt"));
    ClusterConfig::anonymous(&cluster.settings.server, Some(authority))
}

/// The events of a watch, in their order.
pub struct Watch<'a> {
    runtime: &'a Runtime,
    lines: std::pin::Pin<Box<dyn futures::Stream<Item = Result<String, String>> + Send>>,
}

impl Watch<'_> {
    /// The next event; none where the watch ended or nothing came in time.
    pub fn next(&mut self, timeout: Duration) -> Option<Value> {
        let line = self.runtime.block_on(async { tokio::time::timeout(timeout, self.lines.next()).await });
        serde_json::from_str(&line.ok()??.ok()?).ok()
    }

    /// The next event that is no bookmark, as (type, object).
    #[track_caller]
    #[expect(clippy::panic, reason = "an event that never came is a failed test")]
    pub fn event(&mut self, timeout: Duration) -> (String, Value) {
        loop {
            match self.next(timeout) {
                Some(event) if event["type"] == "BOOKMARK" => {}
                Some(event) => {
                    return (event["type"].as_str().unwrap_or_default().to_owned(), event["object"].clone());
                }
                None => panic!("no event within {timeout:?}"),
            }
        }
    }
}
