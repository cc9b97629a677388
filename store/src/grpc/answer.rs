//! Answers of a watch stream on their way out. Events that many watches are told of are encoded once and shared: only
//! what stands before them differs.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use keelson_proto::codec::FittingCodec;
use keelson_proto::etcd::etcdserverpb::{WatchRequest, WatchResponse};
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};

use crate::watch::Changes;

/// A stream's buffer to begin with.
const FIRST: usize = 1 << 10;
/// Bytes of answers that make one piece on the connection.
const PIECE: usize = 32 << 10;

/// One message to the client.
#[derive(Debug)]
pub struct Answer {
    /// Everything but the events, or those that are for this watch alone.
    pub head: WatchResponse,
    /// Events behind that.
    pub shared: Vec<Arc<Changes>>,
}

impl From<WatchResponse> for Answer {
    fn from(head: WatchResponse) -> Self {
        Self { head, shared: Vec::new() }
    }
}

impl Answer {
    pub fn encoded_len(&self) -> usize {
        self.head.encoded_len() + self.shared.iter().map(|changes| changes.encoded().len()).sum::<usize>()
    }
}

/// Watch requests in, answers out.
#[derive(Debug, Default)]
pub struct AnswerCodec;

#[derive(Debug)]
pub struct AnswerEncoder;

impl Codec for AnswerCodec {
    type Encode = Answer;
    type Decode = WatchRequest;
    type Encoder = AnswerEncoder;
    type Decoder = <FittingCodec<WatchResponse, WatchRequest> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        AnswerEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        FittingCodec::<WatchResponse, WatchRequest>::default().decoder()
    }
}

impl Encoder for AnswerEncoder {
    type Item = Answer;
    type Error = Status;

    fn encode(&mut self, answer: Answer, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // Fields may come in any order, and `events` has the highest number.
        buffer.reserve(answer.encoded_len());
        answer.head.encode_raw(buffer);
        for changes in &answer.shared {
            buffer.put_slice(changes.encoded());
        }
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(FIRST, PIECE)
    }
}

/// Answers that are handed over together, or why the stream ends.
pub type Batch = Result<Vec<Answer>, Status>;

/// The answers of a stream, one by one.
pub struct Batches {
    receiver: mpsc::Receiver<Batch>,
    current: std::vec::IntoIter<Answer>,
}

impl Batches {
    pub fn new(receiver: mpsc::Receiver<Batch>) -> Self {
        Self { receiver, current: Vec::new().into_iter() }
    }
}

impl tokio_stream::Stream for Batches {
    type Item = Result<Answer, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(answer) = self.current.next() {
                return Poll::Ready(Some(Ok(answer)));
            }
            match ready!(self.receiver.poll_recv(context)) {
                Some(Ok(batch)) => self.current = batch.into_iter(),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use keelson_proto::etcd::etcdserverpb::ResponseHeader;
    use keelson_proto::etcd::mvccpb::event::EventType;
    use keelson_proto::etcd::mvccpb::{Event, KeyValue};

    use super::*;
    use crate::mvcc::Record;
    use crate::watch::Change;

    #[test]
    fn shared_events_are_what_a_client_would_get_otherwise() {
        let kv = |key: &'static str| KeyValue { key: key.into(), value: "v".into(), ..KeyValue::default() };
        let change =
            |key, tombstone| Change { record: Arc::new(Record { kv: kv(key), tombstone }), previous: None };
        let head = WatchResponse {
            header: Some(ResponseHeader { revision: 7, ..ResponseHeader::default() }),
            watch_id: 3,
            ..WatchResponse::default()
        };
        let first = Arc::new(Changes::new(vec![change("a", false), change("b", true)]));
        let second = Arc::new(Changes::new(vec![change("c", false)]));
        let answer = Answer { head: head.clone(), shared: vec![first, second] };
        let mut bytes = answer.head.encode_to_vec();
        answer.shared.iter().for_each(|changes| bytes.extend_from_slice(changes.encoded()));
        assert_eq!(bytes.len(), answer.encoded_len());
        let event = |key, kind: EventType| Event { r#type: kind as i32, kv: Some(kv(key)), prev_kv: None };
        let events =
            vec![event("a", EventType::Put), event("b", EventType::Delete), event("c", EventType::Put)];
        assert_eq!(WatchResponse::decode(&bytes[..]).unwrap(), WatchResponse { events, ..head });
    }
}
