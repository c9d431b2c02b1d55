//! The checks behind `/readyz`, in the form of Kubernetes.

use std::{
    fmt::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::not_ready::NotReady;

/// The results of the checks that readiness requires. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Checks(Arc<Mutex<Required>>);

/// The checks without which no call can be served.
#[derive(Debug)]
struct Required {
    database: Result<(), String>,
    /// Of the stored credentials, where there is a gateway.
    credentials: Option<Result<(), String>>,
    is_draining: bool,
}

/// A check whose failure leaves calls that can be served.
pub struct Optional {
    name: String,
    check: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

const PENDING: &str = "not checked yet";

impl Checks {
    /// Nothing is checked yet.
    pub fn new(has_credentials: bool) -> Self {
        let pending = || Err(PENDING.to_owned());
        let required =
            Required { database: pending(), credentials: has_credentials.then(pending), is_draining: false };
        Self(Arc::new(Mutex::new(required)))
    }

    /// Records the result of a check of readiness.
    pub fn record(&self, checked: &Result<(), NotReady>) {
        let mut required = self.required();
        let credentials = match checked {
            Ok(()) => Ok(()),
            Err(error @ NotReady::Credentials(_)) => Err(error.to_string()),
            // The credentials are not checked before the database.
            Err(error @ NotReady::Database(_)) => {
                required.database = Err(error.to_string());
                return;
            }
        };
        required.database = Ok(());
        required.credentials = required.credentials.is_some().then_some(credentials);
    }

    /// Records that the drain has begun.
    pub fn set_draining(&self) {
        self.required().is_draining = true;
    }

    /// Whether calls can be served.
    pub fn is_ready(&self) -> bool {
        self.required().results().all(|(_, result)| result.is_ok())
    }

    /// A line for each check, with the optional ones, and one for all of them.
    pub fn report(&self, optional: &[Optional]) -> String {
        let mut report = String::new();
        // Writing to a string does not fail.
        let _written = self.write(&mut report, optional);
        report
    }

    fn write(&self, report: &mut String, optional: &[Optional]) -> fmt::Result {
        for (name, result) in self.required().results() {
            match result {
                Ok(()) => writeln!(report, "[+]{name} ok")?,
                Err(cause) => writeln!(report, "[-]{name} failed: {cause}")?,
            }
        }
        for Optional { name, check } in optional {
            match check() {
                Ok(()) => writeln!(report, "[+]{name} ok")?,
                Err(cause) => writeln!(report, "[-]{name} failed, not required: {cause}")?,
            }
        }
        let all = if self.is_ready() { "passed" } else { "failed" };
        writeln!(report, "readyz check {all}")
    }

    /// Nothing panics while it is held, so it is never left half-changed.
    fn required(&self) -> MutexGuard<'_, Required> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Required {
    fn results(&self) -> impl Iterator<Item = (&'static str, Result<(), &str>)> {
        let shutdown = if self.is_draining { Err("draining") } else { Ok(()) };
        let credentials = self.credentials.as_ref().map(|checked| ("credentials", borrowed(checked)));
        let database = ("database", borrowed(&self.database));
        [database].into_iter().chain(credentials).chain([("shutdown", shutdown)])
    }
}

fn borrowed(result: &Result<(), String>) -> Result<(), &str> {
    result.as_ref().copied().map_err(String::as_str)
}

impl Optional {
    /// A check that fails with a cause while there is one.
    pub fn new(name: String, failure: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        Self { name, check: Box::new(move || failure().map_or(Ok(()), Err)) }
    }
}

impl fmt::Debug for Optional {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Optional").field("name", &self.name).finish_non_exhaustive()
    }
}
