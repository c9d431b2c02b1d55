//! What a batch leaves behind of each destroy.

use collections_service::{
    domain::{DestroyError, Destroyed},
    store::Destroy,
};
use sea_orm::{ConnectionTrait, Statement};

use super::{
    batches::{UUIDS, destroy_by_other, destroy_concurrently, destroy_with_request_id, tombstones},
    destroy::on_both,
    support::{Backend, OTHER, OWNER, TestDatabase},
};

on_both!(a_restored_collection_is_destroyed_by_a_new_request, each_destroy_has_its_own_tombstone);

mod cases {
    use super::*;

    /// Collections that were put back by hand, whose tombstones still stand. The retry of an old request is answered as the
    /// first call was, and the row stays. A new request destroys it again, and its tombstone is written over.
    pub async fn a_restored_collection_is_destroyed_by_a_new_request(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        let all = |request| {
            destroy_concurrently(
                &database.store,
                (1..=40).map(move |id| destroy_with_request_id(id, request)),
            )
        };
        for id in 1..=40 {
            database.put(id, OWNER).await;
        }
        assert_eq!(all(0).await, [Ok(Destroyed::Now); 40]);
        let admin = database.connection().await;
        let back = [3, 17, 18, 40];
        for id in back {
            let columns = "id, owner_id, name, timeline_order, created_at";
            let put_back = format!(
                "INSERT INTO collections ({columns}) VALUES ({id}, {OWNER}, '', '', CURRENT_TIMESTAMP)"
            );
            admin.execute_unprepared(&put_back).await.unwrap();
        }
        assert_eq!(all(0).await, [Ok(Destroyed::Before); 40]);
        assert_eq!(database.store.destroy(destroy_with_request_id(40, 0)).await, Ok(Destroyed::Before));
        assert_eq!(database.owned_by(OWNER).await, back);
        // Old and new requests in one batch: each is answered by what it asks for.
        let mixed =
            back.iter().flat_map(|id| [destroy_with_request_id(*id, 0), destroy_with_request_id(*id, 1)]);
        let outcomes = destroy_concurrently(&database.store, mixed).await;
        assert_eq!(outcomes, [Ok(Destroyed::Before), Ok(Destroyed::Now)].repeat(back.len()));
        for (id, outcome) in (1..).zip(all(1).await) {
            let expected =
                if back.contains(&id) { Ok(Destroyed::Before) } else { Err(DestroyError::NotFound) };
            assert_eq!(outcome, expected, "custom-{id}");
        }
        assert_eq!(database.owned_by(OWNER).await, [] as [i64; 0]);
        assert_eq!(tombstones(&database).await, 40);
        for (id, outcome) in (1..).zip(all(1).await) {
            let expected =
                if back.contains(&id) { Ok(Destroyed::Before) } else { Err(DestroyError::NotFound) };
            assert_eq!(outcome, expected, "custom-{id}");
        }
    }

    /// Each tombstone has the values of its own destroy, and not of its neighbour's.
    pub async fn each_destroy_has_its_own_tombstone(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        for id in 1..=3 {
            database.put(id, if id == 2 { OTHER } else { OWNER }).await;
        }
        let unnamed = Destroy { caller: None, ..destroy_with_request_id(3, 1) };
        let outcomes = destroy_concurrently(
            &database.store,
            [unnamed, destroy_with_request_id(1, 0), destroy_by_other(2)],
        )
        .await;
        assert_eq!(outcomes, [Ok(Destroyed::Now); 3]);
        let admin = database.connection().await;
        let all = "SELECT id, owner_id, request_id, caller FROM destroyed_collections ORDER BY id";
        let rows =
            admin.query_all_raw(Statement::from_string(admin.get_database_backend(), all)).await.unwrap();
        type Row = (i64, i64, Option<uuid::Uuid>, Option<String>);
        let row = |row: &sea_orm::QueryResult| -> Row {
            let of = |name| row.try_get("", name).unwrap();
            (
                of("id"),
                of("owner_id"),
                row.try_get("", "request_id").unwrap(),
                row.try_get("", "caller").unwrap(),
            )
        };
        let orders = Some("mtls:orders".to_owned());
        // The service made one for the destroy that had none.
        let made = row(&rows[1]).2;
        assert!(made.is_some_and(|made| made.get_version_num() == 4), "{made:?}");
        let uuid = |index: usize| Some(UUIDS[index].parse().unwrap());
        assert_eq!(
            rows.iter().map(row).collect::<Vec<_>>(),
            [(1, OWNER, uuid(0), orders.clone()), (2, OTHER, made, orders), (3, OWNER, uuid(1), None)]
        );
    }
}
