//! The headings that group the flags in help texts and in `deploy/CONFIGURATION.md`.

pub const DATABASE: &str = "Database";
pub const LISTENERS: &str = "Listeners";
pub const TLS: &str = "TLS";
pub const GRPC_CALLERS: &str = "gRPC callers";
pub const BEARER_TOKENS: &str = "Bearer tokens";
pub const REST_CLIENTS: &str = "REST clients";
pub const UPSTREAM: &str = "Upstream";
pub const LIMITS: &str = "Limits";
pub const PURGE: &str = "Purge";
pub const PROCESS: &str = "Process";
pub const LOG: &str = "Log";
pub const TRACES: &str = "Traces";
