//! What runs in the background after a destroy: each job a loop over one bounded step of the store.

pub mod backlog;
pub mod purge;
