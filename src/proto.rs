//! The generated contract: messages, client, server, and the descriptors that reflection serves.

#![allow(clippy::pedantic, clippy::nursery, missing_docs, reason = "generated from proto/")]

tonic::include_proto!("collections.v1");

/// The encoded `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/collections.bin"));
