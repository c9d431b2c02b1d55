//! `credentials create-app|issue-token|revoke-token|list|rotate-key`. A secret is printed once, when it is made.

mod rotate;

use std::{path::PathBuf, sync::Arc};

use clap::Subcommand;

use super::{Exit, print};
use crate::{
    config::{self, DatabaseUrl},
    domain::{Clock, Entropy, UserId},
    store::{CredentialError, Credentials, KeyRing, Store},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Target {
    /// sqlite:<path> or postgres://<user>@<host>/<database>
    #[arg(long, env = "COLLECTIONS_DATABASE_URL", hide_env_values = true)]
    database_url: DatabaseUrl,
}

/// What is needed to make secrets.
#[derive(Debug, clap::Args)]
struct Sealing {
    #[command(flatten)]
    target: Target,
    /// The keys that seal secrets: a line a key, `<key id>:<base64 of 32 bytes>`, the one to seal with first
    #[arg(long, env = "COLLECTIONS_CREDENTIALS_KEY_FILE")]
    credentials_key_file: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an application; prints its consumer key and secret
    CreateApp {
        #[command(flatten)]
        sealing: Sealing,
        /// What people call it
        #[arg(long, value_parser = parse_name)]
        name: String,
    },
    /// Issue an access token; prints it with its secret
    IssueToken {
        #[command(flatten)]
        sealing: Sealing,
        /// The application it is for
        #[arg(long)]
        consumer_key: String,
        /// The user it acts for
        #[arg(long)]
        user: UserId,
        /// Let it read only, as 1.1 applications without write permission
        #[arg(long)]
        read_only: bool,
    },
    /// Revoke an access token for good; every replica refuses it within 30 s
    RevokeToken {
        #[command(flatten)]
        target: Target,
        /// The token itself, as `list` shows it
        #[arg(long)]
        token: String,
    },
    /// List applications and tokens, without secrets
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Seal every secret under the first key of the key file; beside a running service, and again where interrupted
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
        Command::RevokeToken { target, token } => {
            target.open().await?.revoke_token(&token).await.map_err(unknown_is_usage)?;
            print(format_args!("revoked  {token}"))?;
        }
        Command::List { target } => list(&target.open().await?).await?,
        Command::RotateKey { sealing } => {
            let keys = sealing.keys()?;
            let credentials = Credentials::new(sealing.target.open().await?, keys.clone());
            rotate::run(&credentials, &keys.current()).await?;
        }
    }
    Ok(())
}

impl Target {
    async fn open(&self) -> Result<Store, Exit> {
        let store = Store::open(&self.database_url, Clock::System, Entropy::default()).await;
        let store = store.map_err(Exit::database_url)?;
        store.check_schema().await.map_err(Exit::failed)?;
        Ok(store)
    }
}

impl Sealing {
    fn keys(&self) -> Result<Arc<KeyRing>, Exit> {
        read_keys(&self.credentials_key_file, Entropy::default())
    }

    async fn open(&self) -> Result<Credentials, Exit> {
        let keys = self.keys()?;
        let credentials = Credentials::new(self.target.open().await?, keys);
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
