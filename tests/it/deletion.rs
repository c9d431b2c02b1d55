//! Every table and column of both databases has a deletion rule, and the rules hold.

use std::collections::{BTreeMap, BTreeSet};

use collections_service::store::{DELETION_RULES, DeletionRule, PurgeLimits};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};

use super::{
    batches::{destroy_concurrently, destroy_with_request_id},
    destroy::on_both,
    purge::{count, put_with_entries},
    support::{Backend, TestDatabase},
};

on_both!(every_column_has_a_rule, the_rules_hold);

/// Every table with its columns.
async fn schema(connection: &DatabaseConnection) -> BTreeMap<String, BTreeSet<String>> {
    let query = match connection.get_database_backend() {
        DbBackend::Sqlite => {
            "SELECT schema.name AS table_name, columns.name AS column_name
             FROM sqlite_schema AS schema JOIN pragma_table_info(schema.name) AS columns WHERE schema.type = 'table'"
        }
        _ => {
            "SELECT table_name::text, column_name::text FROM information_schema.columns
             WHERE table_schema = current_schema()"
        }
    };
    let query = Statement::from_string(connection.get_database_backend(), query);
    let mut tables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in connection.query_all_raw(query).await.unwrap() {
        let table = row.try_get("", "table_name").unwrap();
        tables.entry(table).or_default().insert(row.try_get("", "column_name").unwrap());
    }
    tables
}

mod cases {
    use super::*;

    pub async fn every_column_has_a_rule(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        let listed = DELETION_RULES.iter().map(|rule| {
            let columns = rule.columns.iter().map(|column| (*column).to_owned()).collect();
            (rule.table.to_owned(), columns)
        });
        assert_eq!(schema(&database.connection().await).await, listed.collect());
    }

    /// The rows of two collections, before and after the destroy and the purge of one.
    pub async fn the_rules_hold(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        put_with_entries(&database, 1, 3).await;
        put_with_entries(&database, 2, 3).await;
        let connection = database.connection().await;
        let rows = async |table: &str, id: i64| {
            let column = if table == "collection_entries" { "collection_id" } else { "id" };
            count(&connection, &format!("{table} WHERE {column} = {id}")).await
        };
        let of =
            |rule| DELETION_RULES.iter().filter(move |table| table.rule == rule).map(|table| table.table);
        destroy_concurrently(&database.store, [destroy_with_request_id(1, 0)]).await;
        for table in of(DeletionRule::Destroyed) {
            assert_eq!((rows(table, 1).await, rows(table, 2).await), (0, 1), "{table}");
        }
        for table in of(DeletionRule::Purged) {
            assert_eq!((rows(table, 1).await, rows(table, 2).await), (3, 3), "{table}");
        }
        let mut purger = database.store.purger(PurgeLimits::once(100));
        while !purger.step().await.unwrap().is_pass_complete {}
        for table in of(DeletionRule::Purged) {
            assert_eq!((rows(table, 1).await, rows(table, 2).await), (0, 3), "{table}");
        }
        for table in of(DeletionRule::Queue) {
            assert_eq!(count(&connection, table).await, 0, "{table}");
        }
        for table in of(DeletionRule::Kept) {
            assert_eq!((rows(table, 1).await, rows(table, 2).await), (1, 0), "{table}");
        }
    }
}
