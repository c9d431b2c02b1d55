//! Which flag an unusable file of a TLS configuration belongs to.

use super::StartError;
use crate::net::{TlsError, TlsInput};

/// The flags that name the files of a TLS configuration.
#[derive(Clone, Copy)]
pub struct TlsFlags {
    pub certificate: &'static str,
    key: &'static str,
    authorities: &'static str,
}

pub const GRPC_TLS: TlsFlags =
    TlsFlags { certificate: "--tls-cert", key: "--tls-key", authorities: "--client-ca" };
/// This listener has no authorities of clients.
pub const REST_TLS: TlsFlags =
    TlsFlags { certificate: "--rest-tls-cert", key: "--rest-tls-key", authorities: "--rest-tls-cert" };
pub const UPSTREAM_TLS: TlsFlags =
    TlsFlags { certificate: "--upstream-cert", key: "--upstream-key", authorities: "--upstream-ca" };

impl TlsFlags {
    /// Returns the start-up error with the flag of the file that cannot be used.
    pub fn error_for_flag(self, error: TlsError) -> StartError {
        let flag = match error.input {
            TlsInput::Certificate => self.certificate,
            TlsInput::Key => self.key,
            TlsInput::Authorities => self.authorities,
        };
        StartError::Tls { flag, error }
    }
}
