"""Starts and stops the processes of the test: a PostgreSQL cluster, the program under test, Prometheus."""

import json
import os
import pwd
import random
import re
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

# How long a condition may take to hold on a busy machine, in seconds.
TIMEOUT = 30


def wait_for(what, condition, timeout=TIMEOUT):
    """Polls until the condition returns something true, and returns that."""
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(0.1)


def free_port():
    """A port that no connection takes before its listener is started: one below those that the system gives out."""
    while True:
        port = random.randrange(15000, 30000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


class Cluster:
    """A PostgreSQL cluster that can be taken away. The server refuses to run as root."""

    def __init__(self, folder):
        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
        self.bin, self.folder, self.port = binaries[-1], folder / "postgresql", free_port()
        self.folder.mkdir()
        self.user = {}
        if os.getuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self.user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self.process = None
        options = ["-D", self.folder / "data", "-U", "tests", "--auth=trust", "--no-sync"]
        subprocess.run([self.bin / "initdb", *options], check=True, stdout=subprocess.DEVNULL, **self.user)

    def start(self):
        with open(self.folder / "log", "ab") as log:
            options = ["-h", "127.0.0.1", "-p", str(self.port), "-k", self.folder]
            command = [self.bin / "postgres", "-D", self.folder / "data", *options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **self.user)
        ready = [self.bin / "pg_isready", "-q", "-U", "tests", "-h", "127.0.0.1", "-p", str(self.port)]
        wait_for("PostgreSQL", lambda: subprocess.run(ready, check=False).returncode == 0)

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
            self.process = None

    def url(self, role):
        return f"postgres://{role}@127.0.0.1:{self.port}/collections"

    def sql(self, statement, database="collections"):
        """Runs a statement as a superuser, and returns its output."""
        return self.psql("-c", statement, "-d", database)

    def create_roles(self):
        """Runs deploy/roles.sql, which has to be run before the first migration and after it."""
        self.psql("-f", "deploy/roles.sql", "-d", "collections")

    def psql(self, *arguments):
        command = ["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port), "-U", "tests"]
        run = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise AssertionError(f"{arguments}: {run.stderr}")
        return run.stdout.strip()

    def lock(self, table):
        """Locks a table; the returned function unlocks it."""
        command = ["psql", "-qAtX", "-h", "127.0.0.1", "-p", str(self.port), "-U", "tests", "-d", "collections"]
        session = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        session.stdin.write(f"BEGIN; LOCK TABLE {table}; SELECT 'locked';\n")
        session.stdin.flush()
        assert session.stdout.readline() == "locked\n"

        def unlock():
            session.stdin.close()
            session.stdout.close()
            session.wait()

        return unlock


class Program:
    """One process of the program, with its log in a file."""

    def __init__(self, binary, folder, name, arguments, environment):
        self.name, self.log = name, folder / f"{name}.log"
        self.command = [binary, *arguments]
        self.environment = {**os.environ, **environment}
        self.process = None
        self.addresses = {}

    def start(self, stderr=None):
        with open(self.log, "ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log if stderr is None else stderr, env=self.environment
            )
        if stderr is not None:
            return self

        def serving():
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended: {self.log.read_text()[begin:]}")
            return re.search('.*"message":"serving".*', self.log.read_text()[begin:])

        line = json.loads(wait_for(f"{self.name} serves", serving)[0])
        self.addresses = {listener: line.get(listener) for listener in ("grpc", "rest", "admin")}
        return self

    def stop(self, how=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def restart(self):
        self.stop()
        return self.start()

    def fail(self, *arguments):
        """Starts the program with more arguments, of which one is wrong, and returns its exit code."""
        with open(self.log, "ab") as log:
            streams = {"stdout": log, "stderr": log}
            command = [*self.command, *arguments]
            return subprocess.run(command, **streams, env=self.environment, check=False, timeout=TIMEOUT).returncode

    def metric(self, name):
        """The value of a metric without labels."""
        with urllib.request.urlopen(f"http://{self.addresses['admin']}/metrics", timeout=TIMEOUT) as answer:
            return float(re.search(f"^{name} (.+)$", answer.read().decode(), flags=re.M)[1])
