//! stub
use super::AuthenticatedUser;
use crate::domain::DestroyError;
#[derive(Clone, Debug)]
pub struct Verifier;
impl Verifier {
    pub async fn verify(&self, _token: &str) -> Result<AuthenticatedUser, DestroyError> {
        Err(DestroyError::CredentialsInvalid)
    }
}
