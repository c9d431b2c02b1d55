//! Compiles the contract without protoc, leaves its descriptors for reflection in `OUT_DIR`, and passes the commit to the
//! program as `COLLECTIONS_REVISION`.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rustc-env=COLLECTIONS_REVISION={}", revision());
    let descriptors = protox::compile(["collections/v1/collections.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("collections.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().codec_path("crate::proto::codec::Codec").compile_fds(descriptors)?;
    Ok(())
}

/// The commit that is built: the variable `COLLECTIONS_REVISION`, or else what git says where this folder is a repository of
/// its own, or else empty. The same sources have the same one in every folder.
fn revision() -> String {
    println!("cargo:rerun-if-env-changed=COLLECTIONS_REVISION");
    let given = env::var("COLLECTIONS_REVISION").unwrap_or_default();
    if !given.is_empty() || !Path::new(".git").exists() {
        return given;
    }
    watch_head();
    git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default()
}

/// Makes cargo run this again when HEAD names another commit. Only files that exist are named: cargo takes one that does not
/// for a change at every build.
fn watch_head() {
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    // The last one is of a branch whose own file git has packed: it is written at every commit.
    for name in ["HEAD", branch.as_deref().unwrap_or("HEAD"), "logs/HEAD"] {
        let file = git(&["rev-parse", "--git-path", name]).unwrap_or_default();
        if Path::new(&file).is_file() {
            println!("cargo:rerun-if-changed={file}");
        }
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
