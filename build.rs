//! Compiles the contract without protoc, and leaves its descriptors for reflection, all in `OUT_DIR`.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["collections/v1/collections.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("collections.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().codec_path("crate::proto::codec::Codec").compile_fds(descriptors)?;
    Ok(())
}
