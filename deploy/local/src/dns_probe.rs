//! Asking the cluster's DNS server one question, to know that it answers.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

/// Why a question got no address for an answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("{0:?} is no DNS name")]
    Name(String),
    #[error("no answer from {0}")]
    Exchange(SocketAddr, #[source] std::io::Error),
    #[error("the question to {0} cannot be written")]
    Question(SocketAddr, #[source] hickory_proto::ProtoError),
    #[error("the answer from {0} is malformed")]
    Answer(SocketAddr, #[source] hickory_proto::serialize::binary::DecodeError),
    #[error("{0} answered {1} without an address")]
    NoAddress(SocketAddr, ResponseCode),
}

/// The IPv4 addresses that `server` gives for `name`.
pub fn lookup(server: SocketAddr, name: &str) -> Result<Vec<IpAddr>, ProbeError> {
    let name = Name::from_str(name).map_err(|_| ProbeError::Name(name.to_owned()))?;
    let mut question = Message::new(std::process::id() as u16, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name, RecordType::A));
    let bytes = question.to_vec().map_err(|error| ProbeError::Question(server, error))?;

    let exchange = || -> std::io::Result<Vec<u8>> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.connect(server)?;
        socket.send(&bytes)?;
        let mut answer = vec![0; 4096];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    };
    let answer = exchange().map_err(|error| ProbeError::Exchange(server, error))?;
    let answer = Message::from_vec(&answer).map_err(|error| ProbeError::Answer(server, error))?;
    let addresses: Vec<IpAddr> = answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            _ => None,
        })
        .collect();
    if addresses.is_empty() {
        Err(ProbeError::NoAddress(server, answer.metadata.response_code))
    } else {
        Ok(addresses)
    }
}
