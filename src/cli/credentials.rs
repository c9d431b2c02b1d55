//! `credentials create-app|issue-token|revoke-token|list|rotate-key`. A secret is printed once, when it is made.

mod rotate;

use std::{path::PathBuf, sync::Arc};

use clap::Subcommand;

use super::{Exit, database::DatabaseArgs, print};
use crate::{
    config,
    domain::{Entropy, UserId},
    store::{CredentialError, Credentials, KeyRing, Store},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  collections-service credentials create-app --name 'a client'
  collections-service credentials issue-token --consumer-key <KEY> --user 119476949
  collections-service credentials list

Every example takes the database from COLLECTIONS_DATABASE_URL and the key file from COLLECTIONS_CREDENTIALS_KEY_FILE.")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

/// What is needed to make secrets.
#[derive(Debug, clap::Args)]
struct Sealing {
    #[command(flatten)]
    database: DatabaseArgs,
    /// The file with the keys that seal OAuth secrets
    ///
    /// Each line is `<key id>:<base64 of 32 bytes>`, and the first key seals. The file must not be readable by all users.
    #[arg(long, value_name = "FILE", env = "COLLECTIONS_CREDENTIALS_KEY_FILE")]
    credentials_key_file: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create an application, and print its consumer key and secret
    ///
    /// The secret is printed once, and cannot be shown again.
    #[command(after_help = "Example:
  collections-service credentials create-app --name 'a client'

The example takes the database from COLLECTIONS_DATABASE_URL and the key file from COLLECTIONS_CREDENTIALS_KEY_FILE.")]
    CreateApp {
        #[command(flatten)]
        sealing: Sealing,
        /// The application's name, for people
        #[arg(long, value_parser = parse_name)]
        name: String,
    },
    /// Issue an access token, and print it with its secret
    ///
    /// The secret is printed once, and cannot be shown again.
    #[command(after_help = "Examples:
  collections-service credentials issue-token --consumer-key <KEY> --user 119476949
  collections-service credentials issue-token --consumer-key <KEY> --user 119476949 --read-only

Every example takes the database from COLLECTIONS_DATABASE_URL and the key file from COLLECTIONS_CREDENTIALS_KEY_FILE.")]
    IssueToken {
        #[command(flatten)]
        sealing: Sealing,
        /// The consumer key of the application that uses the token
        #[arg(long, value_name = "KEY")]
        consumer_key: String,
        /// The id of the user on whose behalf the token acts
        #[arg(long, value_name = "ID")]
        user: UserId,
        /// Issue a token that may not write: each destroy is refused with code 261
        #[arg(long)]
        read_only: bool,
    },
    /// Revoke an access token
    ///
    /// It cannot be undone. Every replica refuses the token within 30 seconds.
    #[command(after_help = "Example:
  collections-service credentials revoke-token --token <TOKEN>

The example takes the database from COLLECTIONS_DATABASE_URL.")]
    RevokeToken {
        #[command(flatten)]
        database: DatabaseArgs,
        /// The token, as `credentials list` shows it
        #[arg(long)]
        token: String,
    },
    /// List applications and tokens, without secrets
    #[command(after_help = "Example:
  collections-service credentials list

The example takes the database from COLLECTIONS_DATABASE_URL.")]
    List {
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Seal every stored secret with the first key of the key file
    ///
    /// It can run while the service runs. Run it again when it was interrupted.
    #[command(after_help = "Example:
  collections-service credentials rotate-key --credentials-key-file credentials.key

The example takes the database from COLLECTIONS_DATABASE_URL.")]
    RotateKey {
        #[command(flatten)]
        sealing: Sealing,
    },
}

pub async fn run(args: Args) -> Result<(), Exit> {
    match args.command {
        Command::CreateApp { sealing, name } => {
            let app = sealing.open().await?.create_app(&name).await.map_err(Exit::failed)?;
            let (key, secret) = (&app.consumer_key, app.secret.expose());
            print(format_args!("consumer_key     {key}\nconsumer_secret  {secret}")).map_err(lost(key))?;
        }
        Command::IssueToken { sealing, consumer_key, user, read_only } => {
            let credentials = sealing.open().await?;
            let issued =
                credentials.issue_token(&consumer_key, user, !read_only).await.map_err(unknown_is_usage)?;
            let (token, secret) = (&issued.token, issued.secret.expose());
            print(format_args!("token         {token}\ntoken_secret  {secret}")).map_err(lost(token))?;
        }
        Command::RevokeToken { database, token } => {
            database.open_migrated().await?.revoke_token(&token).await.map_err(unknown_is_usage)?;
            print(format_args!("revoked  {token}"))?;
        }
        Command::List { database } => list(&database.open_migrated().await?).await?,
        Command::RotateKey { sealing } => {
            let keys = sealing.keys()?;
            let credentials = Credentials::new(sealing.database.open_migrated().await?, keys.clone());
            rotate::run(&credentials, &keys.current()).await?;
        }
    }
    Ok(())
}

impl Sealing {
    fn keys(&self) -> Result<Arc<KeyRing>, Exit> {
        read_keys(&self.credentials_key_file, Entropy::default())
    }

    async fn open(&self) -> Result<Credentials, Exit> {
        let keys = self.keys()?;
        let credentials = Credentials::new(self.database.open_migrated().await?, keys);
        // What other keys sealed would keep the service from starting.
        credentials.check().await.map_err(|error| match error {
            CredentialError::Sealed(_) => Exit::Usage(format!("--credentials-key-file: {error}")),
            other => Exit::failed(other),
        })?;
        Ok(credentials)
    }
}

async fn list(store: &Store) -> Result<(), Exit> {
    let (apps, tokens) = store.credentials().await.map_err(Exit::failed)?;
    for app in apps {
        let state = if app.suspended { "suspended" } else { "active" };
        print(format_args!(
            "application  {}  {state}  {}  key {}  {}",
            on_one_line(&app.consumer_key),
            app.created_at.format("%FT%TZ"),
            on_one_line(&app.key_id),
            on_one_line(&app.name)
        ))?;
    }
    for token in tokens {
        let state = if token.revoked { "revoked" } else { "active" };
        let access = if token.write { "read-write" } else { "read" };
        print(format_args!(
            "token  {}  {state}  {access}  user {}  application {}  key {}",
            on_one_line(&token.token),
            token.user,
            on_one_line(&token.consumer_key),
            on_one_line(&token.key_id)
        ))?;
    }
    Ok(())
}

/// What SQL of one's own may have put into a row must not look like another line, nor move the cursor.
fn on_one_line(text: &str) -> String {
    let shown =
        |letter: char| if letter.is_control() { letter.escape_default().to_string() } else { letter.into() };
    text.chars().map(shown).collect()
}

/// The key file, or a usage error that names the flag.
pub fn read_keys(path: &std::path::Path, entropy: Entropy) -> Result<Arc<KeyRing>, Exit> {
    let flag = |error| Exit::Usage(format!("--credentials-key-file {}: {error}", path.display()));
    KeyRing::read(path, entropy).map(Arc::new).map_err(flag)
}

/// The secret cannot be shown a second time.
fn lost(key: &str) -> impl FnOnce(Exit) -> Exit {
    move |exit| match exit {
        Exit::Failed(why) => Exit::Failed(format!("{key} was made, and its secret is lost: {why}")),
        other => other,
    }
}

/// What people call an application, on one line of a terminal.
fn parse_name(name: &str) -> Result<String, String> {
    let fits = (1..=config::credentials::APPLICATION_NAME_LIMIT).contains(&name.len())
        && !name.contains(char::is_control);
    let expected = format!(
        "expected 1 to {} bytes without control characters",
        config::credentials::APPLICATION_NAME_LIMIT
    );
    if fits { Ok(name.to_owned()) } else { Err(expected) }
}

fn unknown_is_usage(error: CredentialError) -> Exit {
    match error {
        CredentialError::UnknownApplication(_) | CredentialError::UnknownToken(_) => Exit::usage(error),
        CredentialError::Sealed(_) | CredentialError::Database(_) => Exit::failed(error),
    }
}
