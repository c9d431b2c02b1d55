//! The one table that pairs each failure with its gRPC status, its reason, its HTTP status and its 1.1 code and message.

use std::{fmt, sync::Arc};

use super::grpc_code::GrpcCode;

/// Every way in which a destroy can fail, on both protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestroyError {
    IdRequired,
    /// Malformed, or two different ids in one request: a destroy never guesses.
    IdInvalid,
    RequestIdInvalid,
    CredentialsMissing,
    CredentialsInvalid,
    /// The token is unknown, revoked or expired.
    TokenInvalid,
    TimestampOutOfBounds,
    /// The application is unknown or suspended.
    ApplicationInvalid,
    /// The credentials name an application but no user.
    UserContextRequired,
    WriteAccessRequired,
    CallerNotAllowed,
    NotOwner,
    /// Unknown or already destroyed.
    NotFound,
    RateLimited,
    Overloaded,
    /// The store did not answer in time. The outcome may be unknown: retry with the same request id.
    StoreUnavailable,
    /// The outcome may be unknown: retry with the same request id.
    DeadlineExceeded,
    Internal,
}

/// How a destroy succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destroyed {
    Now,
    /// An earlier call with the same request id had already done it.
    Before,
}

/// A failed destroy: the error for the client, and its cause for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestroyFailure {
    pub error: DestroyError,
    /// What an operator can act on. Never shown to a client; holds no secret.
    pub cause: Option<Arc<str>>,
}

/// Failures that only the REST edge knows, which never reach the RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EdgeError {
    WrongMethod,
    UnknownPath,
    TlsRequired,
    BodyTooLarge,
    /// Another method than GET and HEAD on a document.
    MethodNotAllowed,
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorRow {
    pub grpc: GrpcCode,
    /// `google.rpc.ErrorInfo.reason`.
    pub reason: &'static str,
    /// The HTTP status.
    pub http: u16,
    /// The 1.1 error code.
    pub code: u16,
    /// The 1.1 error message.
    pub message: &'static str,
    /// The gRPC status message.
    pub grpc_message: &'static str,
}

const NO_ACCESS: &str = "Your credentials do not allow access to this resource.";
const NO_PAGE: &str = "Sorry, that page does not exist.";
const BUSY: &str = "Over capacity";

impl DestroyError {
    /// All of them, in the table's order.
    pub const ALL: [Self; 18] = [
        Self::IdRequired,
        Self::IdInvalid,
        Self::RequestIdInvalid,
        Self::CredentialsMissing,
        Self::CredentialsInvalid,
        Self::TokenInvalid,
        Self::TimestampOutOfBounds,
        Self::ApplicationInvalid,
        Self::UserContextRequired,
        Self::WriteAccessRequired,
        Self::CallerNotAllowed,
        Self::NotOwner,
        Self::NotFound,
        Self::RateLimited,
        Self::Overloaded,
        Self::StoreUnavailable,
        Self::DeadlineExceeded,
        Self::Internal,
    ];

    /// This failure's line of the table.
    #[must_use]
    pub const fn row(self) -> ErrorRow {
        use GrpcCode::{
            DeadlineExceeded, Internal, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted,
            Unauthenticated, Unavailable,
        };
        let (grpc, reason, http, code, message) = match self {
            Self::IdRequired => (InvalidArgument, "ID_REQUIRED", 403, 38, "id parameter is missing."),
            Self::IdInvalid => (InvalidArgument, "ID_INVALID", 400, 44, "id parameter is invalid."),
            Self::RequestIdInvalid => {
                (InvalidArgument, "REQUEST_ID_INVALID", 400, 44, "Idempotency-Key is invalid.")
            }
            Self::CredentialsMissing => {
                (Unauthenticated, "CREDENTIALS_MISSING", 400, 215, "Bad Authentication data.")
            }
            Self::CredentialsInvalid => {
                (Unauthenticated, "CREDENTIALS_INVALID", 401, 32, "Could not authenticate you.")
            }
            Self::TokenInvalid => (Unauthenticated, "TOKEN_INVALID", 401, 89, "Invalid or expired token."),
            Self::TimestampOutOfBounds => {
                (Unauthenticated, "TIMESTAMP_OUT_OF_BOUNDS", 401, 135, "Timestamp out of bounds.")
            }
            Self::ApplicationInvalid => {
                (Unauthenticated, "APPLICATION_INVALID", 401, 416, "Invalid / suspended application.")
            }
            Self::UserContextRequired => (PermissionDenied, "USER_CONTEXT_REQUIRED", 403, 220, NO_ACCESS),
            Self::WriteAccessRequired => (
                PermissionDenied,
                "WRITE_ACCESS_REQUIRED",
                403,
                261,
                "Application cannot perform write actions.",
            ),
            Self::CallerNotAllowed => (
                PermissionDenied,
                "CALLER_NOT_ALLOWED",
                403,
                87,
                "Client is not permitted to perform this action.",
            ),
            Self::NotOwner => (PermissionDenied, "NOT_OWNER", 403, 220, NO_ACCESS),
            Self::NotFound => (NotFound, "COLLECTION_NOT_FOUND", 404, 34, NO_PAGE),
            Self::RateLimited => (ResourceExhausted, "RATE_LIMITED", 429, 88, "Rate limit exceeded"),
            Self::Overloaded => (Unavailable, "OVERLOADED", 503, 130, BUSY),
            Self::StoreUnavailable => (Unavailable, "STORE_UNAVAILABLE", 503, 130, BUSY),
            Self::DeadlineExceeded => (DeadlineExceeded, "DEADLINE_EXCEEDED", 503, 130, BUSY),
            Self::Internal => (Internal, "INTERNAL", 500, 131, "Internal error"),
        };
        let grpc_message = match self {
            Self::IdRequired => "id is required",
            Self::IdInvalid => "id is not \"custom-\" and a decimal in 1..=9223372036854775807",
            Self::RequestIdInvalid => "request_id is not a UUID",
            Self::CredentialsMissing => "credentials are missing",
            Self::CredentialsInvalid => "credentials are invalid",
            Self::TokenInvalid => "token is invalid or expired",
            Self::TimestampOutOfBounds => "timestamp is out of bounds",
            Self::ApplicationInvalid => "application is unknown or suspended",
            Self::UserContextRequired => "credentials name no user",
            Self::WriteAccessRequired => "credentials do not allow write access",
            Self::CallerNotAllowed => "calling service is not on the allow-list",
            Self::NotOwner => "collection is owned by another user",
            Self::NotFound => "collection not found",
            Self::RateLimited => "rate limit exceeded",
            Self::Overloaded => "service is overloaded",
            Self::StoreUnavailable => "store is unavailable",
            Self::DeadlineExceeded => "deadline exceeded",
            Self::Internal => "internal error",
        };
        ErrorRow { grpc, reason, http, code, message, grpc_message }
    }

    /// Whether an operator has to act.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        matches!(self, Self::StoreUnavailable | Self::Internal)
    }

    /// The failure with this `ErrorInfo.reason`.
    #[must_use]
    pub fn from_reason(reason: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|error| error.row().reason == reason)
    }
}

impl DestroyFailure {
    /// With a cause for the log.
    pub fn new(error: DestroyError, cause: impl fmt::Display) -> Self {
        Self { error, cause: Some(cause.to_string().into()) }
    }
}

impl From<DestroyError> for DestroyFailure {
    fn from(error: DestroyError) -> Self {
        Self { error, cause: None }
    }
}

impl EdgeError {
    /// All of them, in the table's order.
    pub const ALL: [Self; 5] =
        [Self::WrongMethod, Self::UnknownPath, Self::TlsRequired, Self::BodyTooLarge, Self::MethodNotAllowed];

    /// HTTP status, 1.1 code and message: these failures have no gRPC side.
    #[must_use]
    pub const fn row(self) -> (u16, u16, &'static str) {
        match self {
            Self::WrongMethod => (400, 86, "This method requires a POST."),
            Self::UnknownPath => (404, 34, NO_PAGE),
            Self::TlsRequired => (403, 92, "SSL is required"),
            Self::BodyTooLarge => (413, 44, "Request body is too large."),
            Self::MethodNotAllowed => (405, 86, "This method requires a GET."),
        }
    }

    /// The name in the log and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WrongMethod => "WRONG_METHOD",
            Self::UnknownPath => "UNKNOWN_PATH",
            Self::TlsRequired => "TLS_REQUIRED",
            Self::BodyTooLarge => "BODY_TOO_LARGE",
            Self::MethodNotAllowed => "METHOD_NOT_ALLOWED",
        }
    }
}
