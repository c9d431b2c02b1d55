//! An operator who changes the key that seals secrets.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio, sync::Arc};

use collections_service::{
    domain::{CredentialDirectory, Entropy},
    store::{CredentialCache, Credentials, KeyRing},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sea_orm::{ConnectionTrait, Statement};
use tokio::process::Child;

use super::{
    Backend, CONSUMER, OWNER, TOKEN, TestDatabase,
    program::{command, path, run},
    user, write_private,
};

/// A database with secrets under the key `test`, and the files of an operator who changes it for `second`.
pub struct Operator {
    pub database: TestDatabase,
    pub old: String,
    pub new: String,
    /// The secret of every token.
    pub secrets: BTreeMap<String, String>,
}

impl Operator {
    pub async fn new(backend: Backend, tokens: usize) -> Self {
        let database = TestDatabase::new(backend).await;
        let old = std::fs::read_to_string(database.folder.path().join("key")).unwrap();
        let new = KeyRing::generate_line("second", &Entropy::default()).to_string();
        let mut secrets = BTreeMap::from([(TOKEN.0.to_owned(), TOKEN.1.to_owned())]);
        for number in 0..tokens {
            let issued =
                database.credentials.issue_token(CONSUMER.0, user(OWNER), number % 2 == 0).await.unwrap();
            secrets.insert(issued.token, issued.secret.expose().to_owned());
        }
        let operator = Self { database, old, new, secrets };
        write_private(&operator.file("both"), &format!("{}{}", operator.new, operator.old));
        write_private(&operator.file("new"), &operator.new);
        operator
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.database.folder.path().join(name)
    }

    pub fn ring(&self, file: &str) -> Arc<KeyRing> {
        Arc::new(KeyRing::read(&self.file(file), Entropy::default()).unwrap())
    }

    pub fn credentials(&self, file: &str) -> Credentials {
        Credentials::new(self.database.store.clone(), self.ring(file))
    }

    /// `rotate-key` with the new key first, to its end.
    pub async fn rotate(&self) -> (i32, String, String) {
        let file = self.file("both");
        let arguments = ["credentials", "rotate-key", "--credentials-key-file", path(&file)];
        run(&arguments, &[("COLLECTIONS_DATABASE_URL", &self.database.url)]).await
    }

    pub fn rotating(&self) -> Child {
        let file = self.file("both");
        let mut command = command(&["credentials", "rotate-key", "--credentials-key-file", path(&file)]);
        command.env("COLLECTIONS_DATABASE_URL", &self.database.url);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Every secret opens with these keys alone, and is what it was.
    pub async fn assert_all_open(&self, file: &str) {
        let directory = CredentialCache::new(self.credentials(file));
        for (token, secret) in &self.secrets {
            let found = directory.find(CONSUMER.0, Some(token)).await.unwrap();
            assert_eq!(found.application.unwrap().secret.expose(), CONSUMER.1);
            assert_eq!(found.token.unwrap().secret.expose(), secret, "{token}");
        }
    }

    pub async fn under(&self, key_id: &str) -> usize {
        count(&self.database.connection().await, key_id).await
    }
}

pub async fn count(connection: &impl ConnectionTrait, key_id: &str) -> usize {
    let query = format!("SELECT token FROM oauth_access_tokens WHERE key_id = '{key_id}'");
    let query = Statement::from_string(connection.get_database_backend(), query);
    connection.query_all_raw(query).await.unwrap().len()
}

pub fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().unwrap().cast_signed()), signal).unwrap();
}
