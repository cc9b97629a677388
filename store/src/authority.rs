//! Makes requests of old etcd clients acceptable to HTTP/2.
//!
//! etcd's Go client up to 3.4 dials single endpoints by URL (`etcdctl endpoint status`, `snapshot save`, `defrag`) and so
//! sends `:authority: http://host:port`, which is no authority. h2 resets such requests, and has no setting for it. The
//! authority means nothing here; so the scheme in the first HEADERS frame of a connection is overwritten in place, with
//! characters whose Huffman codes are as long (RFC 7541, appendix B): `http://` becomes `httpj--`. The client's later
//! requests refer to that header in the connection's table, so the first frame is all there is to do.
//!
//! [`Scanner`] gives every other byte back unchanged, and only holds back that one frame until it is whole. It does no
//! I/O: see [`crate::traffic`].

use bytes::{Buf, BufMut, BytesMut};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
/// The largest frame before a client learns of another limit.
const MAX_FRAME: usize = 16 << 10;

/// A literal header that is added to the table, named by the static table's entry 1, `:authority`.
const AUTHORITY: u8 = 0x41;

/// Huffman codes, each with the bits of the last byte that belong to it.
struct Code {
    wrong: &'static [u8],
    right: &'static [u8],
    last_mask: u8,
}

const CODES: [Code; 2] = [
    // http:// → httpj--
    Code {
        wrong: &[0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x00],
        right: &[0x9d, 0x29, 0xaf, 0xa2, 0xcb, 0x00],
        last_mask: 0x80,
    },
    // https:// → httpsj--
    Code {
        wrong: &[0x9d, 0x29, 0xad, 0x17, 0x18, 0x60],
        right: &[0x9d, 0x29, 0xad, 0x1d, 0x16, 0x58],
        last_mask: 0xfc,
    },
];

/// Overwrites a scheme in the authority of a header block, if there is one.
fn repair(block: &mut [u8]) {
    for at in 0..block.len() {
        if block[at] != AUTHORITY {
            continue;
        }
        let Some(value) = block.get_mut(at + 2..) else { return };
        for Code { wrong, right, last_mask } in &CODES {
            let Some(found) = value.get_mut(..wrong.len()) else { continue };
            let last = wrong.len() - 1;
            if found[..last] == wrong[..last] && found[last] & last_mask == wrong[last] {
                found[..last].copy_from_slice(&right[..last]);
                found[last] = (found[last] & !last_mask) | right[last];
                return;
            }
        }
        for plain in [&b"http://"[..], b"https://"] {
            if value.starts_with(plain) {
                value[plain.len() - 3..plain.len()].copy_from_slice(b"j--");
                return;
            }
        }
    }
}

#[derive(Default)]
enum Stage {
    #[default]
    Preface,
    Frames,
    Done,
}

/// What was read of a connection and not yet handed on: `held` is still looked at, `ready` is not.
#[derive(Default)]
pub struct Scanner {
    stage: Stage,
    held: BytesMut,
    ready: BytesMut,
    /// Bytes of a frame's payload that pass.
    passing: usize,
}

impl Scanner {
    /// Whether there is nothing more to look at: what is read from now on may be handed on as it is.
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done) && self.ready.is_empty()
    }

    /// Looks at what was read; nothing: at the end, so that what is held is all that will come.
    pub fn look(&mut self, read: &[u8]) {
        if read.is_empty() {
            return self.release();
        }
        self.held.extend_from_slice(read);
        self.scan();
    }

    /// Moves what may be handed on into `space`, as far as there is room; how much.
    pub fn hand_on(&mut self, space: &mut impl BufMut) -> usize {
        let count = self.ready.len().min(space.remaining_mut());
        space.put_slice(&self.ready[..count]);
        self.ready.advance(count);
        if self.ready.is_empty() {
            self.ready = BytesMut::new();
        }
        count
    }

    fn release(&mut self) {
        self.stage = Stage::Done;
        self.ready.extend_from_slice(&self.held);
        self.held = BytesMut::new();
    }

    /// Moves on as far as what is held allows.
    fn scan(&mut self) {
        loop {
            match self.stage {
                Stage::Done => return,
                Stage::Preface => {
                    let known = self.held.len().min(PREFACE.len());
                    if self.held[..known] != PREFACE[..known] {
                        // HTTP/1.
                        return self.release();
                    }
                    if known < PREFACE.len() {
                        return;
                    }
                    self.passing = PREFACE.len();
                    self.stage = Stage::Frames;
                }
                Stage::Frames => {
                    let pass = self.passing.min(self.held.len());
                    self.ready.extend_from_slice(&self.held[..pass]);
                    self.held.advance(pass);
                    self.passing -= pass;
                    let Some(&[a, b, c, kind, ..]) = self.held.first_chunk::<FRAME_HEADER>() else { return };
                    let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                    if kind != HEADERS {
                        self.passing = FRAME_HEADER + length;
                        continue;
                    }
                    if length > MAX_FRAME {
                        return self.release();
                    }
                    let Some(block) = self.held.get_mut(FRAME_HEADER..FRAME_HEADER + length) else { return };
                    repair(block);
                    return self.release();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, payload.len() as u8, kind, 4, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    fn connection(payload: &[u8]) -> Vec<u8> {
        [PREFACE, &frame(4, &[0; 6]), &frame(HEADERS, payload), &frame(0, b"\x41\x07http://"), b"rest"]
            .concat()
    }

    /// However the bytes arrive.
    fn check(sent: &[u8], expected: &[u8]) {
        for step in [1, 2, 7, 100, 10_000] {
            let (mut scanner, mut found) = (Scanner::default(), Vec::new());
            for read in sent.chunks(step).chain([&[][..]]) {
                scanner.look(read);
                scanner.hand_on(&mut found);
            }
            assert!(scanner.is_done());
            assert_eq!(found, expected, "in steps of {step}");
        }
    }

    #[test]
    fn the_scheme_of_the_first_headers_is_overwritten() {
        // Huffman: "http://127.0.0.1:23790" and "https://a", as Go's encoder writes them.
        let http = [0x83, 0x41, 0x90, 0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x08, 0x9d, 0x5c];
        let repaired = [0x83, 0x41, 0x90, 0x9d, 0x29, 0xaf, 0xa2, 0xcb, 0x08, 0x9d, 0x5c];
        check(&connection(&http), &connection(&repaired));
        let https = [0x41, 0x87, 0x9d, 0x29, 0xad, 0x17, 0x18, 0x63, 0x7f];
        let repaired = [0x41, 0x87, 0x9d, 0x29, 0xad, 0x1d, 0x16, 0x5b, 0x7f];
        check(&connection(&https), &connection(&repaired));
        check(&connection(b"\x41\x08http://a"), &connection(b"\x41\x08httpj--a"));
    }

    #[test]
    fn everything_else_is_left_alone() {
        let fine = connection(&[0x41, 0x8a, 0x08, 0x9d, 0x5c, 0x0b, 0x81, 0x70]);
        check(&fine, &fine);
        for other in [&b"GET http:// HTTP/1.1\r\n\r\n"[..], b"", b"PRI * HT", b"A\x07http://"] {
            check(other, other);
        }
    }
}
