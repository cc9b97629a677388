//! Raft messages from a peer's bytes.
//!
//! rust-protobuf 2 recurses without a bound when it skips unknown groups (RUSTSEC-2024-0437). So the bytes are walked
//! here first, without recursion beyond the four message types of the protocol: anything with a group is refused.

use keelson_raft::{EntryType, Message};
use protobuf::Message as _;

/// Bytes of one message; entries are bounded by the request size and by the size of an append message.
pub const MAX_MESSAGE: usize = 64 << 20;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    #[error("a message of {0} bytes is too long")]
    TooLong(usize),
    #[error("a message is not of the protocol")]
    Malformed,
}

/// A message type, by the fields of it that hold messages.
struct Shape(&'static [(u64, &'static Shape)]);

static PLAIN: Shape = Shape(&[]);
static SNAPSHOT_METADATA: Shape = Shape(&[(1, &PLAIN)]);
static SNAPSHOT: Shape = Shape(&[(2, &SNAPSHOT_METADATA)]);
/// What an entry holds that changes the configuration: it is parsed when it is applied.
static CONFIGURATION_CHANGE: Shape = Shape(&[(2, &PLAIN)]);
static MESSAGE: Shape = Shape(&[(7, &PLAIN), (9, &SNAPSHOT)]);

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn is_plain(mut bytes: &[u8], shape: &Shape) -> Option<()> {
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let length = match tag & 7 {
            0 => {
                varint(&mut bytes)?;
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let body = bytes.get(..length)?;
        if tag & 7 == 2
            && let Some((_, inner)) = shape.0.iter().find(|(field, _)| *field == tag >> 3)
        {
            is_plain(body, inner)?;
        }
        bytes = bytes.get(length..)?;
    }
    Some(())
}

/// # Errors
/// Bytes that no member sends.
pub fn decode(bytes: &[u8]) -> Result<Message, WireError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(WireError::TooLong(bytes.len()));
    }
    is_plain(bytes, &MESSAGE).ok_or(WireError::Malformed)?;
    let message = Message::parse_from_bytes(bytes).map_err(|_| WireError::Malformed)?;
    for entry in &message.entries {
        if entry.get_entry_type() != EntryType::EntryNormal {
            is_plain(&entry.data, &CONFIGURATION_CHANGE).ok_or(WireError::Malformed)?;
        }
    }
    Ok(message)
}

/// The bytes of a message; none if it cannot be encoded, and then it is as good as lost.
pub fn encode(message: &Message) -> Option<Vec<u8>> {
    message.write_to_bytes().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_raft::{Entry, MessageType};

    #[test]
    fn round_trips() {
        let mut message = Message { term: 7, from: 1, to: 2, ..Message::default() };
        message.set_msg_type(MessageType::MsgAppend);
        message.mut_entries().push(Entry { index: 3, data: vec![0x0b; 100].into(), ..Entry::default() });
        message.mut_snapshot().mut_metadata().mut_conf_state().voters.push(9);
        assert_eq!(decode(&encode(&message).unwrap()), Ok(message));
    }

    #[test]
    fn groups_are_refused_before_they_are_parsed() {
        let nested = [0xa3, 0x06].repeat(1 << 20);
        assert_eq!(decode(&nested), Err(WireError::Malformed));
        let mut inside = vec![7 << 3 | 2, 2, 0xa3, 0x06];
        assert_eq!(decode(&inside), Err(WireError::Malformed));
        inside[0] = 12 << 3 | 2;
        assert!(decode(&inside).is_ok(), "a field of bytes may hold anything");
    }

    #[test]
    fn groups_in_a_change_of_the_configuration_are_refused() {
        for (kind, expected) in [
            (EntryType::EntryNormal, true),
            (EntryType::EntryConfChange, false),
            (EntryType::EntryConfChangeV2, false),
        ] {
            let mut entry = Entry { data: vec![0xa3, 0x06].into(), ..Entry::default() };
            entry.set_entry_type(kind);
            let mut message = Message::default();
            message.mut_entries().push(entry);
            assert_eq!(decode(&encode(&message).unwrap()).is_ok(), expected, "{kind:?}");
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic() {
        let mut runner = proptest::test_runner::TestRunner::default();
        let bytes = proptest::collection::vec(proptest::num::u8::ANY, 0..64);
        runner
            .run(&bytes, |bytes| {
                let _ = decode(&bytes);
                Ok(())
            })
            .unwrap();
    }
}
