//! `inspect`: what the database holds about one id.

use serde_json::json;

use super::{Exit, database::DatabaseArgs, print};
use crate::{domain::CollectionId, store::Inspected};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  collections-service inspect custom-388061495298244609
  collections-service inspect --json custom-388061495298244609

Every example takes the database from COLLECTIONS_DATABASE_URL.")]
pub struct Args {
    #[command(flatten)]
    database: DatabaseArgs,
    /// The collection's id, such as `custom-388061495298244609`
    id: CollectionId,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Result<(), Exit> {
    let store = args.database.open_migrated().await?;
    let inspected = store.inspect(args.id).await.map_err(Exit::failed)?;
    print(if args.json { in_json(args.id, &inspected) } else { in_text(args.id, &inspected) })?;
    if inspected.is_inconsistent() {
        let id = args.id;
        return Err(Exit::Failed(format!(
            "the rows of {id} contradict each other: run `collections-service verify`"
        )));
    }
    if inspected.live.is_none() && inspected.destroyed.is_none() {
        return Err(Exit::Failed(format!("{} is neither live nor destroyed in this database", args.id)));
    }
    Ok(())
}

const fn state(inspected: &Inspected) -> &'static str {
    match (&inspected.live, &inspected.destroyed) {
        (Some(_), None) => "live",
        (None, Some(_)) => "destroyed",
        (Some(_), Some(_)) => "live and destroyed",
        (None, None) => "unknown",
    }
}

/// A line for each fact.
fn in_text(id: CollectionId, inspected: &Inspected) -> String {
    let mut lines = vec![id.to_string(), format!("state         {}", state(inspected))];
    if let Some(live) = &inspected.live {
        lines.push(format!("owner         {}", live.owner));
        lines.push(format!("created at    {}", live.created_at.to_rfc3339()));
    }
    if let Some(tombstone) = &inspected.destroyed {
        let none = || "not recorded".to_owned();
        lines.push(format!("owner         {}", tombstone.owner));
        lines.push(format!("destroyed at  {}", tombstone.destroyed_at.to_rfc3339()));
        lines.push(format!(
            "caller        {}",
            tombstone.caller.as_ref().map_or_else(none, |caller| caller.escape_debug().to_string())
        ));
        lines.push(format!(
            "request id    {}",
            tombstone.request_id.map_or_else(none, |request_id| request_id.to_string())
        ));
    }
    let has_tombstone = inspected.destroyed.is_some();
    match inspected.purge_since {
        Some(since) => lines.push(format!("purged        no, queued since {}", since.to_rfc3339())),
        None if has_tombstone && inspected.has_entries => {
            lines.push("purged        no, and not queued".to_owned());
        }
        None if has_tombstone => lines.push("purged        yes".to_owned()),
        None => {}
    }
    match inspected.event_since {
        Some(since) => lines.push(format!("event         pending since {}", since.to_rfc3339())),
        None if has_tombstone => lines.push("event         none pending".to_owned()),
        None => {}
    }
    if inspected.live.is_none() && !has_tombstone && inspected.has_entries {
        lines.push("entries       orphaned".to_owned());
    }
    lines.join("\n")
}

/// Ids are texts: a reader whose numbers are doubles would round them.
fn in_json(id: CollectionId, inspected: &Inspected) -> String {
    let live = inspected.live.as_ref().map(
        |live| json!({ "owner_id": live.owner.to_string(), "created_at": live.created_at.to_rfc3339() }),
    );
    let destroyed = inspected.destroyed.as_ref().map(|tombstone| {
        json!({
            "owner_id": tombstone.owner.to_string(),
            "destroyed_at": tombstone.destroyed_at.to_rfc3339(),
            "request_id": tombstone.request_id.map(|request_id| request_id.to_string()),
            "caller": tombstone.caller,
            "purged": inspected.purge_since.is_none() && !inspected.has_entries,
        })
    });
    json!({
        "id": id.to_string(),
        "state": state(inspected).replace(' ', "_"),
        "live": live,
        "destroyed": destroyed,
        "purge_queued_since": inspected.purge_since.map(|since| since.to_rfc3339()),
        "event_pending_since": inspected.event_since.map(|since| since.to_rfc3339()),
        "consistent": !inspected.is_inconsistent(),
    })
    .to_string()
}
