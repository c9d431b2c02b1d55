//! `x-user-id` believed from anyone: for a developer's machine. Start-up refuses it beyond loopback.

use http::HeaderMap;

use super::AuthenticatedUser;
use crate::domain::{DestroyError, UserId};

/// The user that the metadata `x-user-id` names.
///
/// # Errors
/// [`DestroyError::CredentialsMissing`] without it, [`DestroyError::CredentialsInvalid`] when it stands there twice or
/// is no user id. Two are refused even if equal: something on the way added one.
pub fn believed_user(metadata: &HeaderMap) -> Result<AuthenticatedUser, DestroyError> {
    let mut values = metadata.get_all("x-user-id").iter();
    let value = values.next().ok_or(DestroyError::CredentialsMissing)?;
    if values.next().is_some() {
        return Err(DestroyError::CredentialsInvalid);
    }
    let user: UserId =
        value.to_str().ok().and_then(|text| text.parse().ok()).ok_or(DestroyError::CredentialsInvalid)?;
    Ok(AuthenticatedUser { user, caller: None })
}
