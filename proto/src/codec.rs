//! tonic's codec with buffers that fit the messages.
//!
//! tonic's own makes two buffers of 8 KiB for each call, which cost more than the messages in them; and keys and values
//! that were decoded keep the whole buffer alive, as they share it.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstDecoder};

/// Holds most answers to writes, and the head of others.
const ANSWER: usize = 128;
/// Bytes of a stream's messages that go into one piece, as tonic has it.
const PIECE: usize = 32 << 10;

/// Protobuf messages: `T` out, `U` in.
#[derive(Debug)]
pub struct FittingCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for FittingCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for FittingCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = FittingEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        FittingEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        // Without a buffer to begin with, the first piece that arrives makes one of its size. (Nothing here accepts
        // compressed messages: for those tonic would divide by this size.)
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(0, PIECE))
    }
}

/// Encodes into a buffer that grows at most once for each message.
#[derive(Debug)]
pub struct FittingEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for FittingEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.encoded_len());
        item.encode_raw(buffer);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(ANSWER, PIECE)
    }
}
