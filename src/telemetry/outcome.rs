//! How a call ended, by the names of the log and of metrics.

use crate::domain::{DestroyError, EdgeError, GrpcCode};

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallOutcome {
    Ok,
    Failed(DestroyError),
    /// Refused by the REST edge.
    Refused(EdgeError),
    /// A gRPC status that no [`DestroyError`] has: tonic made it, or an auxiliary service.
    Status(GrpcCode),
    /// The caller disconnected, or the call was aborted.
    Cancelled,
    /// The description of the REST API was sent.
    Described,
}

impl CallOutcome {
    /// `OK`, `CANCELLED`, the reason of the error table, the name of the edge's error or of the status.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Ok => GrpcCode::Ok.name(),
            Self::Failed(error) => error.row().reason,
            Self::Refused(error) => error.name(),
            Self::Status(code) => code.name(),
            Self::Cancelled => GrpcCode::Cancelled.name(),
            Self::Described => "DESCRIBED",
        }
    }

    /// The name in the log.
    pub(super) const fn log_name(self) -> &'static str {
        match self {
            Self::Ok => "Ok",
            Self::Cancelled => "Cancelled",
            Self::Described => "Described",
            other => other.reason(),
        }
    }

    /// The gRPC status of the call.
    #[must_use]
    pub const fn code(self) -> GrpcCode {
        match self {
            Self::Ok => GrpcCode::Ok,
            Self::Failed(error) => error.row().grpc,
            Self::Status(code) => code,
            // REST's own outcomes: no gRPC call ends with one.
            Self::Refused(_) | Self::Described => GrpcCode::Unknown,
            Self::Cancelled => GrpcCode::Cancelled,
        }
    }
}
