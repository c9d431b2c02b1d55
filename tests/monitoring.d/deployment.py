"""What the test runs: a database with collections, two replicas and a gateway, their callers, and Prometheus."""

import base64
import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

from callers import ORIGIN, Forwarder, GrpcCaller, RestCaller, together
from certificates import Certificates
from processes import Cluster, Program, free_port, wait_for
from prometheus import Prometheus

COLLECTIONS = 4000
ENTRIES = 3
USERS = 8
MAX_IN_FLIGHT = 64
# Public key of RFC 8037, appendix A.
JWKS = '{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"one","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPgHURo"}]}'


def owner(number):
    return 1000 + number % USERS


class Deployment:
    """All of it, in one folder. `binary` is in the PATH of commands as `collections-service`."""

    def __init__(self, binary, folder):
        self.folder, self.programs = folder, []
        self.cluster = Cluster(folder)
        self.prometheus = Prometheus(folder)
        self.certificates = Certificates(folder / "authority")
        self.outsiders = Certificates(folder / "outsiders")
        self.key_file, self.jwks = folder / "credentials.key", folder / "jwks.json"
        # The collections that are not destroyed yet, by owner.
        self.free = {owner(user): list(range(user or USERS, COLLECTIONS + 1, USERS)) for user in range(USERS)}
        self.turn = 0
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        (bin_folder / "collections-service").symlink_to(binary)
        self.binary = str(bin_folder / "collections-service")
        os.environ["PATH"] = f"{bin_folder}:{os.environ['PATH']}"
        # That of an operator.
        self.environment = self.environment_of("collections_migrator")

    def environment_of(self, role):
        return {
            "COLLECTIONS_DATABASE_URL": self.cluster.url(role),
            "COLLECTIONS_CREDENTIALS_KEY_FILE": str(self.key_file),
        }

    def run(self, *arguments, **options):
        """Runs a command of the program, and returns what it prints."""
        environment = {**os.environ, **self.environment}
        command = [self.binary, *arguments]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)
        if run.returncode != 0:
            raise AssertionError(f"{arguments}: {run.stdout}{run.stderr}")
        return run.stdout

    def prepare(self):
        """Makes everything that has to exist before the replicas start."""
        self.cluster.start()
        self.cluster.sql("CREATE DATABASE collections", "postgres")
        self.write_key()
        self.jwks.write_text(JWKS)
        self.cluster.create_roles()
        # As the runbook says.
        self.cluster.sql("GRANT pg_read_all_stats, pg_signal_backend TO collections_migrator")
        self.run("migrate", "up")
        self.cluster.create_roles()
        lines = (
            {"id": f"custom-{n}", "owner_id": owner(n), "name": "a", "entries": list(range(1, ENTRIES + 1))}
            for n in range(1, COLLECTIONS + 1)
        )
        self.run("import", "--name", "test", "-", input="\n".join(map(json.dumps, lines)), cwd=self.folder)
        application = dict(line.split() for line in self.run("credentials", "create-app", "--name", "test").splitlines())
        self.consumer = application["consumer_key"], application["consumer_secret"]
        issued = self.run("credentials", "issue-token", "--consumer-key", self.consumer[0], "--user", str(owner(0)))
        token = dict(line.split() for line in issued.splitlines())
        self.token = token["token"], token["token_secret"]
        for caller in ("orders", "billing", "batch", "gateway", "stranger"):
            self.certificates.issue_caller(caller)
        self.outsiders.issue_caller("orders")
        self.certificates.issue_server("server")
        self.one = self.serve("one", ["--jwks", str(self.jwks)])
        # A replica whose configuration is wrong in several ways.
        nothing = f"127.0.0.1:{free_port()}"
        self.two = self.serve(
            "two",
            ["--jwks", f"https://{nothing}/jwks.json", "--redis-url", f"redis://{nothing}"],
            origin="https://api.example.net",
            certificate="expiring",
        )
        self.three = self.serve("three", ["--log", "trace", "--jwks", str(self.jwks)])
        authority, certificate, key = self.certificates.files("gateway")
        gateway = ["gateway", "--upstream", f"https://localhost:{self.one.ports['grpc']}"]
        gateway += ["--upstream-ca", authority, "--upstream-cert", certificate, "--upstream-key", key]
        gateway += ["--rest-addr", f"127.0.0.1:{free_port()}", "--admin-addr", f"127.0.0.1:{free_port()}"]
        gateway += ["--public-origin", ORIGIN, "--rate-limit", "0"]
        self.gateway = self.program("gateway", gateway, "collections_gateway")

    def program(self, name, arguments, role="collections"):
        environment = self.environment_of(role)
        self.programs.append(Program(self.binary, self.folder, name, list(map(str, arguments)), environment))
        return self.programs[-1]

    def serve(self, name, arguments, origin=ORIGIN, certificate="server"):
        """A replica that is not started yet, on ports that it keeps."""
        ports = {listener: free_port() for listener in ("grpc", "rest", "admin")}
        authority, certificate, key = self.certificates.files(certificate)
        peers = ",".join(f"spiffe://example.org/{caller}" for caller in ("orders", "billing", "batch", "gateway"))
        command = ["serve", "--client-ca", authority, "--tls-cert", certificate, "--tls-key", key]
        command += ["--trusted-peer", peers, "--public-origin", origin, "--rate-limit", "100000/1h"]
        command += ["--jwt-issuer", "https://issuer.example", "--jwt-audience", "https://collections.example"]
        command += ["--max-in-flight", MAX_IN_FLIGHT, "--drain-seconds", 2]
        for listener, port in ports.items():
            command += [f"--{listener}-addr", f"127.0.0.1:{port}"]
        program = self.program(name, command + arguments)
        program.ports = ports
        return program

    def write_key(self):
        if not self.key_file.exists():
            self.key_file.touch(0o600)
            self.key_file.write_text(f"first:{base64.b64encode(os.urandom(32)).decode()}\n")

    def start(self):
        self.one.start()
        self.gateway.start()
        self.set_targets(self.one, self.gateway)
        self.prometheus.start()
        self.scrape(self.one, self.gateway)
        self.orders = self.caller("orders")
        self.billing = self.caller("billing")
        self.rest = RestCaller(self.one.addresses["rest"], self.consumer, self.token)
        self.through_gateway = RestCaller(self.gateway.addresses["rest"], self.consumer, self.token)

    def scrape(self, *programs):
        """Scrapes these programs from now on, and waits until each was scraped."""
        self.set_targets(*programs)
        for each in programs:
            wait_for(f"{each.name} is scraped", partial(self.is_up, each))

    def set_targets(self, *programs):
        # The second replica is a deployment of its own, so that the calls of others do not lessen its share of failures.
        others = {self.gateway: "collections-gateway", self.two: "collections-service-two"}
        jobs = {each: others.get(each, "collections-service") for each in programs}
        self.prometheus.scrape([(job, each.addresses["admin"]) for each, job in jobs.items()])

    def is_up(self, program):
        return self.prometheus.value(f'up{{instance="{program.addresses["admin"]}"}}') == 1

    def caller(self, name, address=None):
        return GrpcCaller(address or self.one.addresses["grpc"], self.certificates, name)

    def take(self, count, user=None):
        """Ids that nothing has destroyed yet, with their owners: all of one user's, if it is given."""
        taken = []
        while len(taken) < count:
            self.turn += 1
            owned_by = owner(self.turn) if user is None else user
            taken.append((f"custom-{self.free[owned_by].pop()}", owned_by))
        return taken

    def load(self, count):
        """Calls of every usual kind, over both protocols."""
        calls = [partial(self.orders.call, id, user) for id, user in self.take(count)]
        calls += [partial(self.billing.call, id, user) for id, user in self.take(count)]
        calls += [partial(self.rest.call, id) for id, _ in self.take(count, owner(0))]
        calls += [partial(self.through_gateway.call, id) for id, _ in self.take(count, owner(0))]
        # Unknown, malformed, and another user's.
        calls += [partial(self.orders.call, "custom-999999999", 1), partial(self.orders.call, "5", 1)]
        calls += [partial(self.orders.call, id, 1) for id, _ in self.take(1)]
        calls += [partial(self.rest.call, "custom-999999999")]
        return together(calls)

    def forward(self, source):
        return Forwarder(self.one.addresses["grpc"], source)

    def stop(self):
        for program in self.programs:
            program.stop()
        self.prometheus.stop()
        self.cluster.stop()

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def show_logs(self):
        """The last lines of each log, for a failure that has to be understood."""
        for program in self.programs:
            if program.log.exists():
                print(f"--- {program.name}", *program.log.read_text(errors="replace").splitlines()[-8:], sep="\n")
        for name in ("prometheus", "postgresql"):
            log = Path(self.folder / name / "log")
            if log.exists():
                print(f"--- {name}", *log.read_text(errors="replace").splitlines()[-5:], sep="\n")
