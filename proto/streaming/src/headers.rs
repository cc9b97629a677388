//! SPDY/3 header blocks: name-value pairs, compressed with zlib and the protocol's dictionary (SPDY/3.1 §2.6.10).
//!
//! One compressor and one decompressor live as long as a session; blocks must pass through them in order.
//! flate2's own dictionary calls need another backend, so the dictionary is run through the codec first: the window
//! it leaves is what a preset dictionary gives.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// A block that inflates to more than this is an attack, not headers.
const MAX_BLOCK: usize = 64 << 10;
const MAX_PAIRS: u32 = 256;

/// Why a header block cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    #[error("header block is not zlib with the SPDY dictionary")]
    Zlib,
    #[error("header block is too large")]
    TooLarge,
    #[error("header block is cut short or malformed")]
    Malformed,
}

/// Name and value; names are lower-case on the wire.
pub type Headers = Vec<(String, String)>;

/// Writes header blocks.
pub struct Compressor {
    deflate: Compress,
    started: bool,
}

impl Default for Compressor {
    fn default() -> Self {
        let mut deflate = Compress::new(Compression::default(), false);
        let mut window = Vec::with_capacity(DICTIONARY.len() * 2);
        // Into memory with room for all of it: this cannot fail, and what it writes is not for the wire.
        let _ = deflate.compress_vec(DICTIONARY, &mut window, FlushCompress::Sync);
        Self { deflate, started: false }
    }
}

impl Compressor {
    /// The next block of the session.
    pub fn encode(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = Vec::new();
        let length = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes();
        plain.extend(length(headers.len()));
        for (name, value) in headers {
            for text in [*name, *value] {
                plain.extend(length(text.len()));
                plain.extend(text.as_bytes());
            }
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        if !self.started {
            self.started = true;
            // zlib header: deflate with a 32 KiB window, dictionary present; then the dictionary's checksum.
            block.extend([0x78, 0xbb]);
            block.extend(adler32(DICTIONARY).to_be_bytes());
        }
        let before = self.deflate.total_in();
        let mut consumed = 0;
        loop {
            block.reserve(plain.len() + 64);
            let rest = plain.get(consumed..).unwrap_or_default();
            let _ = self.deflate.compress_vec(rest, &mut block, FlushCompress::Sync);
            consumed = usize::try_from(self.deflate.total_in() - before).unwrap_or(usize::MAX);
            if consumed >= plain.len() && block.len() < block.capacity() {
                return block;
            }
        }
    }
}

/// Reads header blocks.
pub struct Decompressor {
    inflate: Decompress,
    started: bool,
}

impl Default for Decompressor {
    fn default() -> Self {
        let mut inflate = Decompress::new(false);
        // The dictionary as a stored deflate block: type 0, length, its complement, bytes.
        let length = u16::try_from(DICTIONARY.len()).unwrap_or(u16::MAX);
        let mut stored = vec![0];
        stored.extend(length.to_le_bytes());
        stored.extend((!length).to_le_bytes());
        stored.extend(DICTIONARY);
        let mut window = Vec::with_capacity(DICTIONARY.len() + 64);
        let _ = inflate.decompress_vec(&stored, &mut window, FlushDecompress::Sync);
        Self { inflate, started: false }
    }
}

impl Decompressor {
    /// The next block of the session.
    ///
    /// # Errors
    /// The session cannot go on after any of them: the decompressor has lost its place.
    pub fn decode(&mut self, mut block: &[u8]) -> Result<Headers, HeaderError> {
        if !self.started {
            self.started = true;
            // Method, flags and the dictionary's checksum.
            let (head, rest) = block.split_at_checked(6).ok_or(HeaderError::Zlib)?;
            let expected = adler32(DICTIONARY).to_be_bytes();
            let deflate = head.first().is_some_and(|method| method & 0x0f == 8);
            let dictionary =
                head.get(1).is_some_and(|flags| flags & 0x20 != 0) && head.get(2..) == Some(&expected[..]);
            if !deflate || !dictionary {
                return Err(HeaderError::Zlib);
            }
            block = rest;
        }
        let mut plain: Vec<u8> = Vec::with_capacity(4096);
        loop {
            let (before_in, before_out) = (self.inflate.total_in(), plain.len());
            let status = self
                .inflate
                .decompress_vec(block, &mut plain, FlushDecompress::Sync)
                .map_err(|_| HeaderError::Zlib)?;
            let used = usize::try_from(self.inflate.total_in() - before_in).unwrap_or(0);
            block = block.get(used..).unwrap_or_default();
            if plain.len() > MAX_BLOCK {
                return Err(HeaderError::TooLarge);
            }
            let stuck = used == 0 && plain.len() == before_out;
            if status == Status::StreamEnd
                || (block.is_empty() && plain.len() < plain.capacity())
                || stuck && plain.len() < plain.capacity()
            {
                break;
            }
            plain.reserve(4096);
        }
        parse(&plain)
    }
}

fn parse(mut plain: &[u8]) -> Result<Headers, HeaderError> {
    let count = take_u32(&mut plain)?;
    if count > MAX_PAIRS {
        return Err(HeaderError::TooLarge);
    }
    let mut text = || -> Result<String, HeaderError> {
        let length = usize::try_from(take_u32(&mut plain)?).map_err(|_| HeaderError::Malformed)?;
        let (head, rest) = plain.split_at_checked(length).ok_or(HeaderError::Malformed)?;
        plain = rest;
        Ok(String::from_utf8_lossy(head).into_owned())
    };
    (0..count).map(|_| Ok((text()?, text()?))).collect()
}

fn take_u32(bytes: &mut &[u8]) -> Result<u32, HeaderError> {
    let (head, rest) = bytes.split_first_chunk::<4>().ok_or(HeaderError::Malformed)?;
    *bytes = rest;
    Ok(u32::from_be_bytes(*head))
}

/// RFC 1950's checksum.
fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65521;
        (a, (b + a) % 65521)
    });
    (b << 16) | a
}

#[rustfmt::skip]
/// SPDY/3 §2.6.10.1: words with their lengths, then loose text.
const DICTIONARY: &[u8] = b"\
\x00\x00\x00\x07options\x00\x00\x00\x04head\x00\x00\x00\x04post\x00\x00\x00\x03put\x00\x00\x00\x06delete\
\x00\x00\x00\x05trace\x00\x00\x00\x06accept\x00\x00\x00\x0eaccept-charset\x00\x00\x00\x0faccept-encoding\
\x00\x00\x00\x0faccept-language\x00\x00\x00\x0daccept-ranges\x00\x00\x00\x03age\x00\x00\x00\x05allow\
\x00\x00\x00\x0dauthorization\x00\x00\x00\x0dcache-control\x00\x00\x00\x0aconnection\x00\x00\x00\x0ccontent-base\
\x00\x00\x00\x10content-encoding\x00\x00\x00\x10content-language\x00\x00\x00\x0econtent-length\
\x00\x00\x00\x10content-location\x00\x00\x00\x0bcontent-md5\x00\x00\x00\x0dcontent-range\x00\x00\x00\x0ccontent-type\
\x00\x00\x00\x04date\x00\x00\x00\x04etag\x00\x00\x00\x06expect\x00\x00\x00\x07expires\x00\x00\x00\x04from\
\x00\x00\x00\x04host\x00\x00\x00\x08if-match\x00\x00\x00\x11if-modified-since\x00\x00\x00\x0dif-none-match\
\x00\x00\x00\x08if-range\x00\x00\x00\x13if-unmodified-since\x00\x00\x00\x0dlast-modified\x00\x00\x00\x08location\
\x00\x00\x00\x0cmax-forwards\x00\x00\x00\x06pragma\x00\x00\x00\x12proxy-authenticate\x00\x00\x00\x13proxy-authorization\
\x00\x00\x00\x05range\x00\x00\x00\x07referer\x00\x00\x00\x0bretry-after\x00\x00\x00\x06server\x00\x00\x00\x02te\
\x00\x00\x00\x07trailer\x00\x00\x00\x11transfer-encoding\x00\x00\x00\x07upgrade\x00\x00\x00\x0auser-agent\
\x00\x00\x00\x04vary\x00\x00\x00\x03via\x00\x00\x00\x07warning\x00\x00\x00\x10www-authenticate\x00\x00\x00\x06method\
\x00\x00\x00\x03get\x00\x00\x00\x06status\x00\x00\x00\x06200 OK\x00\x00\x00\x07version\x00\x00\x00\x08HTTP/1.1\
\x00\x00\x00\x03url\x00\x00\x00\x06public\x00\x00\x00\x0aset-cookie\x00\x00\x00\x0akeep-alive\x00\x00\x00\x06origin\
100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,\
text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_protocols() {
        assert_eq!(DICTIONARY.len(), 1423);
        assert_eq!(adler32(DICTIONARY), 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_of_a_session_share_their_window() {
        let (mut compressor, mut decompressor) = (Compressor::default(), Decompressor::default());
        let long = "x".repeat(5000);
        for value in ["stdin", "stdout", &long, "", "stdin"] {
            let block = compressor.encode(&[("streamtype", value), ("user-agent", "a")]);
            let headers = decompressor.decode(&block).unwrap();
            let expected =
                vec![("streamtype".to_owned(), value.to_owned()), ("user-agent".to_owned(), "a".to_owned())];
            assert_eq!(headers, expected);
        }
    }

    #[test]
    fn malformed_blocks_are_errors() {
        let check = |block: &[u8]| assert!(Decompressor::default().decode(block).is_err(), "{block:?}");
        check(b"");
        check(b"\x78\x9c\x00\x00\x00\x00");
        let mut good = Compressor::default().encode(&[("a", "b")]);
        good.truncate(good.len() / 2);
        check(&good);
        let mut stored = vec![0x78, 0xbb];
        stored.extend(adler32(DICTIONARY).to_be_bytes());
        stored.extend([0, 4, 0, 0xfb, 0xff, 0xff, 0xff, 0xff, 0xff]);
        check(&stored);
    }
}
