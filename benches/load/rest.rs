//! REST requests, signed beforehand, over HTTP/1.1 as 1.1 clients send them, and over HTTP/2.

use std::{collections::VecDeque, rc::Rc};

use collections_service::{
    domain::Clock,
    identity::oauth1::{Origin, Parameters, sign},
    rest::PATH,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::Instant,
};

use crate::{
    Result, Window,
    closed::{CALLERS, Call, Calls},
    http2::{Answered, Answers, Head, unique_header},
    ids::{Row, Rows, Spread},
    measure::{Answer, Gauge, Measured},
    service::Signer,
    usage::Processes,
};

const FORM: &str = "application/x-www-form-urlencoded";
const DESTROYED: &[u8] = b"{\"destroyed\":true}";
/// Connections that are opened at one time. The service closes some of those that have not made a call yet where there
/// are very many of them.
const OPENED_AT_ONCE: usize = 64;

/// Signs requests, each with an id and a nonce of its own, by a token of the id's owner.
struct Signing<'a> {
    signer: &'a Signer,
    origin: Origin,
    now: i64,
}

impl<'a> Signing<'a> {
    fn of(address: &str, signer: &'a Signer) -> Result<Self> {
        let origin = Origin::of_request("http", address).ok_or("no origin")?;
        Ok(Self { signer, origin, now: Clock::System.now().timestamp() })
    }

    /// The form, and the `Authorization` that signs it.
    fn request(&self, Row { id, owner }: Row) -> Result<(String, String)> {
        let form = format!("id=custom-{id}");
        let (consumer, token) = (&self.signer.consumer, self.signer.token(owner));
        let nonce = format!("{id:032x}");
        let authorization = sign(
            ("POST", &self.origin, PATH),
            (&consumer.0, &token.0),
            (&consumer.1, &token.1),
            (self.now, &nonce),
            &Parameters::decode(form.as_bytes()),
        );
        Ok((form, authorization.ok_or("it cannot be signed")?))
    }
}

/// All callers over HTTP/1.1, each on a connection of its own, for the window. Also tells how many good answers there
/// were in all.
pub async fn measure(
    (address, signer): (&str, &Signer),
    spread: Spread,
    window: Window,
    processes: &Processes,
) -> Result<(Measured, u64)> {
    let signing = Signing::of(address, signer)?;
    let requests = spread.all().into_iter().map(|rows| http1_requests(&signing, address, rows));
    let mut requests: Vec<Requests> = requests.collect::<Result<_>>()?;
    let gauge = Rc::new(Gauge::new());
    let mut callers = Vec::new();
    while !requests.is_empty() {
        let mut opening = JoinSet::new();
        for requests in requests.drain(..requests.len().min(OPENED_AT_ONCE)) {
            let (address, gauge) = (address.to_owned(), gauge.clone());
            opening.spawn_local(async move {
                Caller::open(&address, requests, gauge).await.map_err(|error| error.to_string())
            });
        }
        while let Some(opened) = opening.join_next().await {
            callers.push(opened??);
        }
    }
    gauge.start(window);
    let mut tasks = JoinSet::new();
    for caller in callers {
        tasks.spawn_local(async move { caller.converse().await.map_err(|error| error.to_string()) });
    }
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    };
    let (cpu, ()) = tokio::try_join!(gauge.watch(processes), all)?;
    Ok((gauge.measured(cpu)?, gauge.totals()?.0))
}

/// A caller's requests one behind the other, and where each of them ends.
struct Requests {
    bytes: Vec<u8>,
    ends: VecDeque<usize>,
    at: usize,
}

fn http1_requests(signing: &Signing<'_>, host: &str, rows: Rows) -> Result<Requests> {
    let mut requests = Requests { bytes: Vec::new(), ends: VecDeque::new(), at: 0 };
    for row in rows {
        let (form, authorization) = signing.request(row)?;
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {authorization}\r\n\
             Content-Type: {FORM}\r\nContent-Length: {}\r\n\r\n",
            form.len()
        );
        requests.bytes.extend_from_slice(head.as_bytes());
        requests.bytes.extend_from_slice(form.as_bytes());
        requests.ends.push_back(requests.bytes.len());
    }
    Ok(requests)
}

impl Requests {
    fn next(&mut self) -> Option<&[u8]> {
        let (from, end) = (self.at, self.ends.pop_front()?);
        self.at = end;
        Some(&self.bytes[from..end])
    }
}

struct Caller {
    stream: TcpStream,
    requests: Requests,
    input: Vec<u8>,
    gauge: Rc<Gauge>,
}

impl Caller {
    /// With its first answer, so that the connection is one that has made a call.
    async fn open(address: &str, requests: Requests, gauge: Rc<Gauge>) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut caller = Self { stream, requests, input: Vec::new(), gauge };
        caller.call(Instant::now()).await?;
        Ok(caller)
    }

    async fn converse(mut self) -> Result<()> {
        let mut now = Instant::now();
        while !self.gauge.is_over(now) {
            match self.call(now).await? {
                Some(later) => now = later,
                None => {
                    self.gauge.end(now);
                    break;
                }
            }
        }
        Ok(())
    }

    /// One call, and the time when it was answered; nothing where there are no requests any more.
    async fn call(&mut self, now: Instant) -> Result<Option<Instant>> {
        let Some(request) = self.requests.next() else { return Ok(None) };
        self.stream.write_all(request).await?;
        self.input.clear();
        loop {
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err("the server closed the connection".into());
            }
            if let Some(answer) = read(&self.input)? {
                let answered = Instant::now();
                self.gauge.count(answer, now, answered);
                return Ok(Some(answered));
            }
        }
    }
}

/// The answer, once it is whole.
fn read(input: &[u8]) -> Result<Option<Answer>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(input)? else { return Ok(None) };
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length: usize = std::str::from_utf8(length.ok_or("an answer without a length")?.value)?.parse()?;
    let body = &input[head..];
    match response.code {
        _ if body.len() < length => Ok(None),
        Some(200) if body == DESTROYED => Ok(Some(Answer::Good)),
        code => Ok(Some(Answer::Other(format!("{code:?} {}", String::from_utf8_lossy(body))))),
    }
}

/// The same requests over HTTP/2: what the callers of one connection ask for.
pub struct Signed {
    head: Head,
    /// Each caller's calls.
    calls: Vec<VecDeque<Call>>,
}

impl Signed {
    pub fn over((address, signer): (&str, &Signer), spread: Spread) -> Result<Vec<Self>> {
        let signing = Signing::of(address, signer)?;
        let call = |row| {
            let (form, authorization) = signing.request(row)?;
            let mut more = Vec::new();
            unique_header("authorization", &authorization, &mut more);
            Ok(Call { more, body: form.into_bytes() })
        };
        let head = || Head::post(&[(":path", PATH), (":authority", address), ("content-type", FORM)]);
        let callers = spread.all();
        let signed = callers.chunks(CALLERS).map(|callers| {
            let calls = callers.iter().map(|rows| rows.clone().map(call).collect::<Result<_>>());
            Ok(Self { head: head(), calls: calls.collect::<Result<_>>()? })
        });
        signed.collect()
    }
}

impl Calls for Signed {
    const ANSWERS: Answers = Answers::Unique;

    fn callers(&self) -> usize {
        self.calls.len()
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn next(&mut self, caller: usize, call: &mut Call) -> bool {
        match self.calls[caller].pop_front() {
            Some(next) => {
                *call = next;
                true
            }
            None => false,
        }
    }

    fn read(&mut self, answer: &Answered) -> Answer {
        if answer.head.is_200() && answer.body == DESTROYED {
            return Answer::Good;
        }
        Answer::Other(format!("{} {}", answer.head.status(), String::from_utf8_lossy(&answer.body)))
    }
}
