//! `credentials rotate-key`: every stored secret under the first key of the key file. It can be stopped at any moment and
//! run again: what is re-sealed stays so.

use crate::{
    cli::{Exit, print, progress::Progress, signal::Stop},
    config,
    store::{Credentials, Place, RotationError, UnopenedSecret},
};

/// What one pass over all secrets found.
#[derive(Default)]
struct Pass {
    /// Under the key already, before this pass came to them.
    current: u64,
    /// Not under it when this pass reached them.
    changed: u64,
    unopened: u64,
    /// The first of those.
    named: Vec<UnopenedSecret>,
}

/// Why a pass ended early.
enum Cut {
    Asked,
    Failed(RotationError),
}

/// Passes until one finds nothing to do: only that one has seen that nothing needs another key.
pub async fn run(credentials: &Credentials, key_id: &str) -> Result<(), Exit> {
    let mut stop = Stop::listen()?;
    let mut progress = Progress::begin(None);
    let mut resealed = 0;
    for number in 1..=config::credentials::ROTATION_PASSES {
        let passed = pass(number, credentials, &mut resealed, &mut stop, &mut progress).await;
        let pass = passed.map_err(|cut| {
            let done = format!("{resealed} secrets were re-sealed and stay so; run rotate-key again");
            match cut {
                Cut::Asked => Exit::Failed(format!("stopped: {done} for the others")),
                Cut::Failed(error) => Exit::Failed(format!("{error}; {done}")),
            }
        })?;
        if pass.changed == 0 {
            drop(progress);
            return report(&pass, resealed, key_id);
        }
    }
    Err(Exit::Failed(format!(
        "{resealed} secrets were re-sealed, and others keep being sealed under another key: is an older key file in use?"
    )))
}

/// Counts what it re-seals as it goes, because that holds even where it ends early.
async fn pass(
    number: u32,
    credentials: &Credentials,
    resealed: &mut u64,
    stop: &mut Stop,
    progress: &mut Progress,
) -> Result<Pass, Cut> {
    let mut pass = Pass::default();
    let mut place = Some(Place::default());
    while let Some(here) = place {
        let rotated = credentials.rotate(&here).await.map_err(Cut::Failed)?;
        *resealed += rotated.resealed;
        pass.current += rotated.current;
        pass.changed += rotated.resealed + rotated.overtaken;
        pass.unopened += rotated.unopened.len() as u64;
        let more = config::credentials::ROTATION_NAMED.saturating_sub(pass.named.len());
        pass.named.extend(rotated.unopened.into_iter().take(more));
        place = rotated.next;
        let seen = pass.current + pass.changed + pass.unopened;
        progress.report(seen, format_args!("pass {number}: {seen} secrets checked, {resealed} re-sealed"));
        if place.is_some() && stop.is_requested().await {
            return Err(Cut::Asked);
        }
    }
    Ok(pass)
}

fn report(pass: &Pass, resealed: u64, key_id: &str) -> Result<(), Exit> {
    // Those that a concurrent rotation has re-sealed are among them.
    let before = pass.current.saturating_sub(resealed);
    let counts = format!("re-sealed {resealed} secrets under key {key_id}, {before} were under it already");
    if pass.unopened == 0 {
        return print(format_args!("{counts}; no stored secret needs a key other than {key_id}"));
    }
    print(counts)?;
    let mut message = format!("{} secrets do not open and stay as they are:", pass.unopened);
    for secret in &pass.named {
        message.push_str(&format!("\n  {secret}"));
    }
    let unnamed = pass.unopened.saturating_sub(pass.named.len() as u64);
    if unnamed > 0 {
        message.push_str(&format!("\n  and {unnamed} more"));
    }
    Err(Exit::Failed(message))
}
