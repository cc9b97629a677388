//! keelson-network
fn main() {}
