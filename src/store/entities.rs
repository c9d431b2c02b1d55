//! The tables.

pub mod collection;
pub mod collection_entry;
pub mod destroyed_collection;
pub mod import;
pub mod oauth_access_token;
pub mod oauth_application;
