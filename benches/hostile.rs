//! The latency of a well-behaved caller during attacks, and the memory of the service: `cargo bench --bench hostile`.
//!
//! Each attack runs against the real binary in turns with nothing (A B A B), from another address than the caller's. Where
//! control groups can be made, the service has the memory of its pod. The calls ask for a collection that there is not,
//! once over a connection that stays and once over a new one each time. The table has medians over the rounds. An argument
//! selects the attacks whose names contain it: `cargo bench --bench hostile -- PING`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark"
)]

#[path = "../tests/it/support/attack.rs"]
mod attack;

use std::{
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use attack::Attack;
use collections_service::{
    domain::Entropy,
    proto::{DestroyRequest, collections_service_client::CollectionsServiceClient},
    store::KeyRing,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{runtime::Builder, time::Instant};
use tonic::{Code, body::Body};

type Rpc = CollectionsServiceClient<Client<HttpConnector, Body>>;

const ROUNDS: usize = 5;
const CALLS: usize = 400;
const NEW_CALLS: usize = 200;
/// Connections that an attack holds open.
const HELD: usize = 10_000;
/// The longest that an attack has before the calls begin, to open what it holds.
const LEAD: Duration = Duration::from_secs(6);

/// Floods that an attacker runs at one time.
const FLOODS: usize = 4;
/// The memory limit of the service, in bytes: that of the pod in `deploy/`.
const MEMORY: &str = "268435456";

/// The listeners that an attack connects to.
#[derive(Clone, Copy)]
enum Target {
    Grpc,
    Rest,
    All,
}

const ATTACKS: [(&str, Attack, Target); 18] = [
    ("silent connections", Attack::Silence, Target::Grpc),
    ("half a preface", Attack::HalfPreface, Target::Grpc),
    ("idle HTTP/2 connections", Attack::Idle, Target::Grpc),
    ("idle HTTP/2 connections, three listeners", Attack::Idle, Target::All),
    ("slow HTTP/1.1 headers", Attack::SlowHeaders, Target::Rest),
    ("slow HTTP/1.1 headers, three listeners", Attack::SlowHeaders, Target::All),
    ("slow bodies", Attack::SlowBody, Target::Rest),
    ("unfinished health checks", Attack::UnfinishedCheck, Target::Grpc),
    ("unfinished health checks, large headers", Attack::LargeHeaders, Target::Grpc),
    ("rapid resets", Attack::RapidReset, Target::Grpc),
    ("CONTINUATION floods", Attack::Continuation, Target::Grpc),
    ("PING floods", Attack::Pings, Target::Grpc),
    ("WINDOW_UPDATE floods", Attack::WindowUpdates, Target::Grpc),
    ("SETTINGS floods", Attack::Settings, Target::Grpc),
    ("PRIORITY floods", Attack::Priorities, Target::Grpc),
    ("malformed requests", Attack::TwoPorts, Target::Grpc),
    ("DATA of one byte", Attack::TinyData, Target::Rest),
    ("HTTP/1.1 chunks of one byte", Attack::TinyChunks, Target::Rest),
];

/// A control group with the memory limit of a pod, where this process may make one.
struct MemoryGroup(Option<std::path::PathBuf>);

impl MemoryGroup {
    fn new() -> Self {
        let name = format!("hostile-{}", std::process::id());
        let versions = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        Self(versions.into_iter().find_map(|(mount, file)| {
            let group = Path::new(mount).join(&name);
            std::fs::create_dir(&group).ok()?;
            let limited = std::fs::write(group.join(file), MEMORY);
            limited.is_ok().then_some(group)
        }))
    }

    /// A command of the shell that moves it into the group.
    fn enter(&self) -> String {
        let group = self.0.as_ref();
        group.map_or_else(|| ":".to_owned(), |group| format!("echo $$ > {}/cgroup.procs", group.display()))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _removed = self.0.as_ref().map(std::fs::remove_dir);
    }
}

struct Service {
    child: Child,
    grpc: String,
    rest: String,
    admin: String,
}

impl Service {
    fn start(folder: &Path, group: &MemoryGroup) -> Self {
        let (database, key) = (folder.join("db"), folder.join("key"));
        let url = format!("sqlite:{}?mode=rwc", database.display());
        std::fs::write(&key, KeyRing::generate_line("bench", &Entropy::default()).as_bytes()).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let program = |arguments: &[&str]| {
            let mut command = Command::new("sh");
            let script = format!("{}; exec \"$0\" \"$@\"", group.enter());
            command.args(["-c", &script, env!("CARGO_BIN_EXE_collections-service")]);
            command.args(arguments).env("COLLECTIONS_DATABASE_URL", &url).stderr(Stdio::piped());
            command
        };
        assert!(program(&["migrate", "up"]).stdout(Stdio::null()).status().unwrap().success());
        let free = "127.0.0.1:0";
        let listeners = ["--grpc-addr", free, "--rest-addr", free, "--admin-addr", free];
        let key = ["--insecure-identity", "--credentials-key-file", key.to_str().unwrap()];
        let mut child = program(&[&["serve"], &listeners[..], &key].concat()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let serving: serde_json::Value = loop {
            let line = lines.next().expect("serve ended").unwrap();
            if line.contains("\"serving\"") {
                break serde_json::from_str(&line).unwrap();
            }
        };
        // Its log must not fill the pipe.
        thread::spawn(move || lines.count());
        let address = |name: &str| serving[name].as_str().unwrap().to_owned();
        Self { child, grpc: address("grpc"), rest: address("rest"), admin: address("admin") }
    }

    fn memory_mb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }

    fn rpc(&self) -> Rpc {
        let mut connector = HttpConnector::new();
        // Or what is measured is how long a peer waits before it acknowledges.
        connector.set_nodelay(true);
        let http = Client::builder(TokioExecutor::new()).http2_only(true).build(connector);
        Rpc::with_origin(http, format!("http://{}", self.grpc).parse().unwrap())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// An attack in a process of its own, for as long as this lives. It runs when nobody else wants to: the attacker's work
/// would be done on another machine, and must not take the time of the service and the caller here.
struct Running {
    child: Child,
    opened: Arc<AtomicUsize>,
}

impl Running {
    fn start(number: usize, addresses: &[&str]) -> Self {
        let itself = std::env::current_exe().unwrap();
        let mut command = Command::new("chrt");
        command.args(["--idle", "0"]).arg(itself).args(["attack", &number.to_string()]).args(addresses);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let (opened, lines) = (Arc::new(AtomicUsize::new(0)), BufReader::new(child.stdout.take().unwrap()));
        let count = opened.clone();
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                count.store(line.parse().unwrap(), Ordering::Relaxed);
            }
        });
        Self { child, opened }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// What the process of an attack does until it is killed: it opens connections, a few hundred a second at most, and prints
/// how many.
async fn attack_until_killed(attack: Attack, addresses: &[String]) {
    let floods = matches!(
        attack,
        Attack::RapidReset
            | Attack::Continuation
            | Attack::Pings
            | Attack::WindowUpdates
            | Attack::Settings
            | Attack::Priorities
            | Attack::TinyData
            | Attack::TinyChunks
    );
    let open = |address| attack.open_from(attack::ATTACKER, address);
    let (mut held, mut opened) = (Vec::new(), 0);
    for address in addresses.iter().cycle() {
        if floods {
            opened += FLOODS;
            futures_util::future::join_all((0..FLOODS).map(|_| open(address))).await;
        } else if held.len() < HELD {
            opened += 1;
            held.extend(open(address).await);
        }
        if floods || held.len() == HELD || held.len() % 50 == 0 {
            println!("{opened}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn call(rpc: &mut Rpc) -> Duration {
    let mut request =
        tonic::Request::new(DestroyRequest { id: "custom-1".to_owned(), request_id: String::new() });
    request.metadata_mut().insert("x-user-id", "1".parse().unwrap());
    let begun = Instant::now();
    let status = rpc.destroy(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    begun.elapsed()
}

/// p50 and p99 over a connection that stays, and over a new one for each call.
async fn calls(service: &Service) -> [Duration; 4] {
    let mut known = service.rpc();
    call(&mut known).await;
    let (mut same, mut new) = (Vec::new(), Vec::new());
    for _ in 0..CALLS {
        same.push(call(&mut known).await);
    }
    for _ in 0..NEW_CALLS {
        new.push(call(&mut service.rpc()).await);
    }
    same.sort_unstable();
    new.sort_unstable();
    let at = |sorted: &[Duration], percent: usize| sorted[sorted.len() * percent / 100];
    [at(&same, 50), at(&same, 99), at(&new, 50), at(&new, 99)]
}

fn median<T: PartialOrd + Copy>(mut values: Vec<T>) -> T {
    values.sort_by(|one, other| one.partial_cmp(other).unwrap());
    values[values.len() / 2]
}

fn main() {
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, maximum: limits.maximum }).unwrap();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, command, number, addresses @ ..] = arguments.as_slice()
        && command == "attack"
    {
        runtime.block_on(attack_until_killed(ATTACKS[number.parse::<usize>().unwrap()].1, addresses));
    }
    let wanted = arguments.iter().skip(1).find(|argument| !argument.starts_with('-'));
    let group = MemoryGroup::new();
    if group.0.is_none() {
        eprintln!("no control group could be made: the service has the memory of the machine");
    }
    println!(
        "| attack | connections | p50 | p99 | p99, times alone | new: p50 | new: p99 | times alone | peak MB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (number, (name, _, target)) in ATTACKS.into_iter().enumerate() {
        if wanted.is_some_and(|wanted| !name.contains(wanted)) {
            continue;
        }
        let (mut ratios, mut beside) = ([const { Vec::new() }; 2], [const { Vec::new() }; 4]);
        let (mut opened, mut memory) = (0, 0);
        for round in 1..=ROUNDS {
            eprint!("\r{name}: round {round} of {ROUNDS}   ");
            let folder = tempfile::tempdir().unwrap();
            let service = Service::start(folder.path(), &group);
            let alone = runtime.block_on(calls(&service));
            let addresses: &[&str] = match target {
                Target::Grpc => &[&service.grpc],
                Target::Rest => &[&service.rest],
                Target::All => &[&service.grpc, &service.rest, &service.admin],
            };
            let running = Running::start(number, addresses);
            let begun = Instant::now();
            while begun.elapsed() < LEAD && running.opened.load(Ordering::Relaxed) < HELD {
                thread::sleep(Duration::from_millis(50));
            }
            let under = runtime.block_on(calls(&service));
            opened = opened.max(running.opened.load(Ordering::Relaxed));
            memory = memory.max(service.memory_mb());
            drop(running);
            for (ratios, at) in ratios.iter_mut().zip([1, 3]) {
                ratios.push(under[at].as_secs_f64() / alone[at].as_secs_f64());
            }
            for (beside, value) in beside.iter_mut().zip(under) {
                beside.push(value.as_secs_f64() * 1e3);
            }
        }
        eprint!("\r                                             \r");
        let [p50, p99, new_p50, new_p99] = beside.map(median);
        let [same, new] = ratios.map(median);
        println!(
            "| {name} | {opened} | {p50:.2} ms | {p99:.2} ms | {same:.2} | {new_p50:.2} ms | {new_p99:.2} ms | {new:.2} | {memory} |"
        );
    }
}
