//! The RPCs as bytes, and what their answers say.

use std::rc::Rc;

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};

use crate::{
    closed::{CALLERS, Call, Calls},
    http2::{Answered, Answers, Fields, Head, unique_header},
    ids::{Row, Rows, Spread},
    measure::Answer,
};

/// `DestroyResponse { destroyed: true }`, and as it happens `HealthCheckResponse { status: SERVING }` too.
const TRUE: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];

/// Callers who each destroy one collection after the other.
pub struct Destroys {
    head: Head,
    rows: Vec<Rows>,
    reader: Reader,
}

/// Callers of Health/Check, which does nothing.
pub struct Checks {
    head: Head,
    callers: usize,
    reader: Reader,
}

/// Which answers are refusals that a scenario expects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refusal {
    #[default]
    None,
    NotFound,
    /// With RetryInfo: without it a client would not know that it may try again.
    Unavailable,
}

/// Reads answers.
#[derive(Default)]
pub struct Reader {
    refusal: Refusal,
    /// The last refusal with RetryInfo: the next is the same.
    refused: Option<Rc<Fields>>,
}

impl Destroys {
    /// The callers, divided among connections.
    pub fn over(address: &str, spread: Spread) -> Vec<Self> {
        let of = |rows: &[Rows]| Self {
            head: destroy_head(address),
            rows: rows.to_vec(),
            reader: Reader::default(),
        };
        spread.all().chunks(CALLERS).map(of).collect()
    }
}

impl Calls for Destroys {
    const ANSWERS: Answers = Answers::Alike;

    fn callers(&self) -> usize {
        self.rows.len()
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn next(&mut self, caller: usize, call: &mut Call) -> bool {
        let Some(row) = self.rows[caller].next() else { return false };
        destroy(row, call);
        true
    }

    fn read(&mut self, answer: &Answered) -> Answer {
        self.reader.read(answer)
    }
}

impl Checks {
    pub fn over(address: &str, callers: usize) -> Vec<Self> {
        let callers: Vec<usize> = (0..callers).collect();
        let of = |callers: &[usize]| Self {
            head: head(address, "/grpc.health.v1.Health/Check"),
            callers: callers.len(),
            reader: Reader::default(),
        };
        callers.chunks(CALLERS).map(of).collect()
    }
}

impl Calls for Checks {
    const ANSWERS: Answers = Answers::Alike;

    fn callers(&self) -> usize {
        self.callers
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn next(&mut self, _caller: usize, call: &mut Call) -> bool {
        call.body.extend_from_slice(&[0; 5]);
        true
    }

    fn read(&mut self, answer: &Answered) -> Answer {
        self.reader.read(answer)
    }
}

/// The headers that all calls of Destroy have.
pub fn destroy_head(address: &str) -> Head {
    head(address, "/collections.v1.CollectionsService/Destroy")
}

fn head(address: &str, path: &str) -> Head {
    Head::post(&[
        (":path", path),
        (":authority", address),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

/// Writes a Destroy of this row by its owner into the buffers, which are empty: the owner as a header, and
/// `DestroyRequest { id }` behind gRPC's prefix (not compressed, and its length).
pub fn destroy(row: Row, Call { more, body }: &mut Call) {
    unique_header("x-user-id", &row.owner.to_string(), more);
    let id = format!("custom-{}", row.id);
    let length = u8::try_from(id.len()).expect("an id is short");
    body.extend_from_slice(&[0, 0, 0, 0, length + 2]);
    // Protobuf's first field, as bytes with a length.
    body.extend_from_slice(&[0x0a, length]);
    body.extend_from_slice(id.as_bytes());
}

impl Reader {
    pub fn expecting(refusal: Refusal) -> Self {
        Self { refusal, ..Self::default() }
    }

    pub fn read(&mut self, answer: &Answered) -> Answer {
        let Answered { head, trailers, body, .. } = answer;
        let status = trailers.get("grpc-status");
        match (status, self.refusal) {
            (Some("0"), _) if head.is_200() && *body == TRUE => Answer::Good,
            (Some("5"), Refusal::NotFound) => Answer::Refused,
            (Some("14"), Refusal::Unavailable) if self.says_when(trailers) => Answer::Refused,
            _ => Answer::Other(format!(
                "grpc-status {status:?}, grpc-message {:?}",
                trailers.get("grpc-message")
            )),
        }
    }

    fn says_when(&mut self, trailers: &Rc<Fields>) -> bool {
        let known = self.refused.as_ref().is_some_and(|refused| Rc::ptr_eq(refused, trailers));
        if !known && has_retry_info(trailers.get("grpc-status-details-bin")) {
            self.refused = Some(trailers.clone());
            return true;
        }
        known
    }
}

fn has_retry_info(details: Option<&str>) -> bool {
    let details =
        details.and_then(|details| BASE64_STANDARD_NO_PAD.decode(details.trim_end_matches('=')).ok());
    let name = b"google.rpc.RetryInfo";
    details.is_some_and(|details| details.windows(name.len()).any(|window| window == name))
}
