//! Compiles the `.proto` files with protox: no protoc is needed.

/// Every `.proto` file with a package of its own, below `proto/`. What these import needs no line here.
const FILES: &[&str] = &[
    "etcd/kv.proto",
    "etcd/rpc.proto",
    "etcd/lock.proto",
    "etcd/election.proto",
    "grpc/health.proto",
    "peer/command.proto",
    "peer/peer.proto",
    "cri/api.proto",
];

/// What kube-store's clients may call: its server reflection describes these.
const REFLECTED: &[&str] = &["etcd/rpc.proto", "etcd/lock.proto", "etcd/election.proto", "grpc/health.proto"];

/// Packages whose `bytes` fields become `bytes::Bytes`: values are shared there, never copied.
const SHARED_BYTES: &[&str] =
    &[".mvccpb", ".etcdserverpb", ".v3lockpb", ".v3electionpb", ".keelson.peer", ".storepb"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let mut builder = tonic_prost_build::configure();
    for package in SHARED_BYTES {
        builder = builder.bytes(*package);
    }
    builder.compile_fds(descriptors)?;
    let reflected = protox::Compiler::new(["proto"])?
        .include_imports(true)
        .open_files(REFLECTED)?
        .encode_file_descriptor_set();
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    std::fs::write(std::path::Path::new(&out).join("reflected.bin"), reflected)?;
    Ok(())
}
