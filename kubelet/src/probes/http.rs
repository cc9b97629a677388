//! HTTP requests of probes and lifecycle hooks: GET, HTTP/1.1, any certificate, redirects within the same host.

use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use rustls::pki_types::ServerName;

use super::{dial_error, join, port};

const BODY_LIMIT: usize = 10 << 10;
const MAX_REDIRECTS: usize = 10;

/// A request that is ready to be sent.
#[derive(Debug, Clone)]
pub struct Request {
    https: bool,
    host: String,
    port: u16,
    path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// The request of an `httpGet`; `ip` unless it names a host itself.
    pub fn of(get: &HTTPGetAction, container: &Container, ip: &str, agent: &str) -> Result<Self, String> {
        let mut headers: Vec<(String, String)> =
            get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
        let has = |headers: &[(String, String)], name: &str| {
            headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name))
        };
        if !has(&headers, "user-agent") {
            headers.push(("User-Agent".to_owned(), format!("{agent}/1.36")));
        }
        if !has(&headers, "accept") {
            headers.push(("Accept".to_owned(), "*/*".to_owned()));
        }
        let path = get.path.as_deref().unwrap_or_default();
        Ok(Self {
            https: get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
            host: get.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(ip).to_owned(),
            port: port(&get.port, container)?,
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
            headers,
        })
    }

    fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", join(&self.host, self.port), self.path)
    }
}

/// Passes if the answer is a success or a redirect.
pub async fn probe(request: &Request, limit: Duration) -> Result<(), String> {
    let status = get(request, limit).await?;
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {status}"))
    }
}

/// The status code of the answer, after redirects to the same host.
pub async fn get(request: &Request, limit: Duration) -> Result<u16, String> {
    let quoted = format!("Get {:?}", request.url());
    let timed_out = || {
        Err(format!("{quoted}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"))
    };
    let follow = async {
        let mut request = request.clone();
        for _ in 0..=MAX_REDIRECTS {
            let (status, location) = send(&request).await.map_err(|error| format!("{quoted}: {error}"))?;
            match location.and_then(|location| redirected(&request, &location)) {
                Some(path) if (300..400).contains(&status) => request.path = path,
                _ => return Ok(status),
            }
        }
        Err(format!("{quoted}: stopped after 10 redirects"))
    };
    match tokio::time::timeout(limit, follow).await {
        Ok(result) => result,
        Err(_) => timed_out(),
    }
}

/// The path of a redirect, if it stays on the host.
fn redirected(request: &Request, location: &str) -> Option<String> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(location.to_owned());
    }
    let uri: http::Uri = location.parse().ok()?;
    let scheme = if request.https { "https" } else { "http" };
    let same = uri.scheme_str() == Some(scheme)
        && uri.host() == Some(request.host.as_str())
        && uri.port_u16().unwrap_or(if request.https { 443 } else { 80 }) == request.port;
    same.then(|| uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string))
}

async fn send(request: &Request) -> Result<(u16, Option<String>), String> {
    let address = join(&request.host, request.port);
    let stream = tokio::net::TcpStream::connect((request.host.as_str(), request.port))
        .await
        .map_err(|error| dial_error(&address, &error))?;
    if !request.https {
        return exchange(stream, request, &address).await;
    }
    let name = ServerName::try_from(request.host.clone()).map_err(|error| error.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(crate::server::trust::any_certificate()));
    let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
    exchange(stream, request, &address).await
}

async fn exchange<S>(stream: S, request: &Request, address: &str) -> Result<(u16, Option<String>), String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let mut builder = http::Request::get(&request.path);
    let host = request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    builder = builder.header("Host", host.map_or(address, |(_, value)| value)).header("Connection", "close");
    for (name, value) in request.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
        builder = builder.header(name, value);
    }
    let built = builder.body(Empty::<bytes::Bytes>::new()).map_err(|error| error.to_string())?;
    let response = sender.send_request(built).await.map_err(|error| match error.is_incomplete_message() {
        true => "EOF".to_owned(),
        false => error.to_string(),
    })?;
    let status = response.status().as_u16();
    let location =
        response.headers().get("location").and_then(|value| value.to_str().ok()).map(str::to_owned);
    // The body is read so that the server can finish, but not more of it than upstream reads.
    let _ = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
    connection.abort();
    Ok((status, location))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn serve(answers: &[&'static str]) -> u16 {
        let answers = answers.to_vec();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }

    fn request(port: u16) -> Request {
        let get: HTTPGetAction =
            serde_json::from_value(serde_json::json!({"port": port, "path": "x"})).unwrap();
        Request::of(&get, &Container::default(), "127.0.0.1", "kube-probe").unwrap()
    }

    #[tokio::test]
    async fn codes_redirects_and_refusals() {
        let check = async |answers: &[&'static str], expected: Result<(), &str>| {
            let port = serve(answers).await;
            let got = probe(&request(port), Duration::from_secs(5)).await;
            assert_eq!(got, expected.map_err(str::to_owned), "{answers:?}");
        };
        check(&["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], Ok(())).await;
        check(
            &["HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"],
            Err("HTTP probe failed with statuscode: 500"),
        )
        .await;
        let there = "HTTP/1.1 302 Found\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n";
        let gone = "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n";
        check(&[there, gone], Err("HTTP probe failed with statuscode: 404")).await;
        let away = "HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n";
        check(&[away], Ok(())).await;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = probe(&request(port), Duration::from_secs(5)).await.unwrap_err();
        let expected = format!(
            "Get \"http://127.0.0.1:{port}/x\": dial tcp 127.0.0.1:{port}: connect: connection refused"
        );
        assert_eq!(error, expected);
    }
}
