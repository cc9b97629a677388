//! URLs that members listen on and are reached at, as flags give them.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// `http://host:port` or `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub secure: bool,
    pub host: String,
    pub port: u16,
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not of the form http(s)://host:port");
        let (scheme, rest) = text.split_once("://").ok_or_else(invalid)?;
        let secure = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(format!("{text:?}: the scheme has to be http or https")),
        };
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(invalid)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains('/') {
            return Err(invalid());
        }
        Ok(Self { secure, host: host.to_owned(), port: port.parse().map_err(|_| invalid())? })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        if self.host.contains(':') {
            write!(out, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(out, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

impl Url {
    /// The address to listen on: as in etcd, an IP address or localhost.
    ///
    /// # Errors
    /// Any other name.
    pub fn listen_address(&self) -> Result<SocketAddr, String> {
        let host = if self.host == "localhost" { "127.0.0.1" } else { &self.host };
        let address = host.parse().map_err(|_| format!("{self}: expected an IP address to listen on"))?;
        Ok(SocketAddr::new(address, self.port))
    }
}

/// `name=url,name=url`; a name with several URLs comes several times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialCluster(pub Vec<(String, Vec<Url>)>);

impl FromStr for InitialCluster {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut members: Vec<(String, Vec<Url>)> = Vec::new();
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let (name, url) = item.split_once('=').ok_or_else(|| format!("{item:?} is not name=url"))?;
            let url: Url = url.parse()?;
            match members.iter_mut().find(|(known, _)| known == name) {
                Some((_, urls)) => urls.push(url),
                None => members.push((name.to_owned(), vec![url])),
            }
        }
        Ok(Self(members))
    }
}
