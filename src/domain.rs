//! What the service talks about, without protocols or databases: ids that are valid once they exist, the failures of a
//! destroy with the one table of their codes, and the sources of time and randomness.

mod ambient;
mod credential;
mod error;
mod grpc_code;
mod id;

pub use ambient::{Clock, Entropy};
pub use credential::{AccessToken, Application, CredentialDirectory, DirectoryError, Found, Secret};
pub use error::{DestroyError, DestroyFailure, Destroyed, EdgeError, ErrorRow};
pub use grpc_code::GrpcCode;
pub use id::{CollectionId, ParseCollectionIdError, ParseUserIdError, RequestId, UserId};
