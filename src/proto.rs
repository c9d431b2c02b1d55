//! The generated contract: messages, client, server, and the descriptors that reflection serves.

mod codec;

tonic::include_proto!("collections.v1");

/// The encoded `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/collections.bin"));
