//! Compiles the `.proto` files with protox: no protoc is needed.

/// Every `.proto` file with a package of its own, below `proto/`. What these import needs no line here.
const FILES: &[&str] =
    &["etcd/kv.proto", "etcd/rpc.proto", "peer/command.proto", "peer/peer.proto", "cri/api.proto"];

/// Packages whose `bytes` fields become `bytes::Bytes`: values are shared there, never copied.
const SHARED_BYTES: &[&str] = &[".mvccpb", ".etcdserverpb", ".keelson.peer", ".storepb"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let mut builder = tonic_prost_build::configure().codec_path("crate::codec::FittingCodec");
    for package in SHARED_BYTES {
        builder = builder.bytes(*package);
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
