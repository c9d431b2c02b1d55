//! `inspect` of an id in each of its states.

use serde_json::{Value, json};

use super::{database_with_findings, execute, operate, purge, verify};
use crate::{
    batches::{UUIDS, destroy_with_request_id},
    destroy::on_both,
    support::{Backend, OWNER, TestDatabase},
};

on_both!(each_state_is_shown, contradictions_are_shown);

async fn inspect(database: &TestDatabase, id: &str) -> (i32, Value) {
    let (code, output, errors) = operate(database, &["inspect", id, "--json"]).await;
    let parsed = serde_json::from_str(&output);
    (code, parsed.unwrap_or_else(|error| panic!("{error}: {output}{errors}")))
}

mod cases {
    use super::*;

    pub async fn each_state_is_shown(backend: Backend) {
        let database = TestDatabase::new(backend).await;
        database.put(1, OWNER).await;
        let owner = OWNER.to_string();
        let then = "2026-11-23T19:18:20+00:00";
        let (code, live) = inspect(&database, "custom-1").await;
        let expected = json!({
            "id": "custom-1", "state": "live", "consistent": true, "destroyed": null,
            "live": { "owner_id": owner, "created_at": then },
            "purge_queued_since": null, "event_pending_since": null,
        });
        assert_eq!((code, live), (0, expected));
        let (code, text, _) = operate(&database, &["inspect", "custom-1"]).await;
        let expected = format!("custom-1\nstate         live\nowner         {owner}\ncreated at    {then}\n");
        assert_eq!((code, text), (0, expected));

        database.store.destroy(destroy_with_request_id(1, 0)).await.unwrap();
        let (code, destroyed) = inspect(&database, "custom-1").await;
        let tombstone = |purged: bool| {
            json!({
                "owner_id": owner, "destroyed_at": then, "request_id": UUIDS[0], "caller": "mtls:orders", "purged": purged
            })
        };
        let expected = json!({
            "id": "custom-1", "state": "destroyed", "consistent": true, "live": null, "destroyed": tombstone(false),
            "purge_queued_since": then, "event_pending_since": null,
        });
        assert_eq!((code, destroyed), (0, expected));
        purge(&database).await;
        let admin = database.connection().await;
        execute(&admin, &[&format!("INSERT INTO event_outbox (id, since) VALUES (1, '{then}')")]).await;
        let (code, purged) = inspect(&database, "custom-1").await;
        assert_eq!((code, &purged["destroyed"]), (0, &tombstone(true)));
        assert_eq!(
            (&purged["purge_queued_since"], &purged["event_pending_since"]),
            (&json!(null), &json!(then))
        );
        let (code, text, _) = operate(&database, &["inspect", "custom-1"]).await;
        let expected = format!(
            "custom-1\nstate         destroyed\nowner         {owner}\ndestroyed at  {then}\n\
             caller        mtls:orders\nrequest id    {}\npurged        yes\nevent         pending since {then}\n",
            UUIDS[0]
        );
        assert_eq!((code, text), (0, expected));

        let (code, unknown) = inspect(&database, "custom-2").await;
        assert_eq!((code, &unknown["state"]), (1, &json!("unknown")));
        let (code, text, errors) = operate(&database, &["inspect", "custom-2"]).await;
        assert_eq!((code, text.as_str()), (1, "custom-2\nstate         unknown\n"));
        assert_eq!(errors, "error: custom-2 is neither live nor destroyed in this database\n");
        for malformed in ["2", "custom-0", "custom-x", ""] {
            let (code, text, errors) = operate(&database, &["inspect", malformed]).await;
            assert_eq!((code, text.as_str()), (2, ""), "{malformed}: {errors}");
        }
    }

    /// Of each id that `verify` names, and of no other.
    pub async fn contradictions_are_shown(backend: Backend) {
        let database = database_with_findings(backend).await;
        let (_, found) = verify(&database, &[]).await;
        for number in 1..=9 {
            let id = format!("custom-{number}");
            let is_found = found["findings"]
                .as_array()
                .unwrap()
                .iter()
                .any(|finding| finding["ids"].as_array().unwrap().contains(&json!(id)));
            let (code, inspected) = inspect(&database, &id).await;
            assert_eq!(inspected["consistent"], json!(!is_found), "{inspected}");
            assert_eq!(code, i32::from(is_found || number == 9), "{inspected}");
            let (_, text, errors) = operate(&database, &["inspect", &id]).await;
            let advice =
                format!("error: the rows of {id} contradict each other: run `collections-service verify`\n");
            assert_eq!(errors == advice, is_found, "{text}{errors}");
            assert!(!text.contains("a name"), "{text}");
        }
        assert_eq!(inspect(&database, "custom-4").await.1["state"], "live_and_destroyed");
        let (_, text, _) = operate(&database, &["inspect", "custom-2"]).await;
        assert!(text.contains("\npurged        no, and not queued\n"), "{text}");
        let (_, text, _) = operate(&database, &["inspect", "custom-3"]).await;
        assert_eq!(text, "custom-3\nstate         unknown\nentries       orphaned\n");
    }
}
