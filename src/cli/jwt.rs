//! Flags for bearer tokens.

use std::path::PathBuf;

use super::{Exit, heading::BEARER_TOKENS};
use crate::jwks::{JwksSource, Jwt};

#[derive(Debug, clap::Args)]
pub struct JwtArgs {
    /// The keys that sign bearer tokens, as a JWKS: a file, or an https URL; enables bearer tokens
    ///
    /// A URL is fetched every five minutes, and a file is read when it changes.
    #[arg(long, value_name = "FILE|URL", env = "COLLECTIONS_JWKS", help_heading = BEARER_TOKENS)]
    jwks: Option<String>,
    /// PEM file of the authorities that sign the certificate of the JWKS URL [default: the authorities that browsers trust]
    ///
    /// It is read at the start.
    #[arg(long, value_name = "FILE", env = "COLLECTIONS_JWKS_CA", help_heading = BEARER_TOKENS)]
    jwks_ca: Option<PathBuf>,
    /// The issuer of bearer tokens: the exact text of the claim `iss`; required with `--jwks`
    #[arg(long, value_name = "ISSUER", env = "COLLECTIONS_JWT_ISSUER", help_heading = BEARER_TOKENS)]
    jwt_issuer: Option<String>,
    /// An audience of bearer tokens; required with `--jwks`
    ///
    /// The claim `aud` must be, or hold, one of these texts.
    #[arg(long, value_name = "AUDIENCE", env = "COLLECTIONS_JWT_AUDIENCE", value_delimiter = ',', help_heading = BEARER_TOKENS)]
    jwt_audience: Vec<String>,
}

impl JwtArgs {
    /// Reads the settings of bearer tokens; none without `--jwks`.
    ///
    /// # Errors
    /// A part is missing, the issuer or an audience has white space, or the JWKS is neither a file nor an allowed URL.
    pub fn settings(&self) -> Result<Option<Jwt>, Exit> {
        let refuse = |message: &str| Err(Exit::Usage(message.to_owned()));
        let Some(jwks) = &self.jwks else {
            let stray = [
                ("--jwks-ca", self.jwks_ca.is_some()),
                ("--jwt-issuer", self.jwt_issuer.is_some()),
                ("--jwt-audience", !self.jwt_audience.is_empty()),
            ];
            return match stray.into_iter().find(|(_, given)| *given) {
                Some((flag, _)) => refuse(&format!("{flag}: is for bearer tokens, which need --jwks")),
                None => Ok(None),
            };
        };
        let Some(issuer) = self.jwt_issuer.clone().filter(|issuer| !issuer.is_empty()) else {
            return refuse("--jwt-issuer: is needed with --jwks");
        };
        if self.jwt_audience.is_empty() || self.jwt_audience.iter().any(String::is_empty) {
            return refuse("--jwt-audience: is needed with --jwks");
        }
        // No issuer writes such a claim, so no token would match: it is a slip, such as a space after a comma.
        let has_space = |text: &String| text.contains(char::is_whitespace);
        if has_space(&issuer) {
            return refuse("--jwt-issuer: contains white space; expected the exact text of the claim iss");
        }
        if self.jwt_audience.iter().any(has_space) {
            return refuse("--jwt-audience: contains white space; expected the exact text of the claim aud");
        }
        let jwks = JwksSource::new(jwks, self.jwks_ca.as_deref()).map_err(Exit::usage)?;
        Ok(Some(Jwt { jwks, issuer, audiences: self.jwt_audience.clone() }))
    }
}
