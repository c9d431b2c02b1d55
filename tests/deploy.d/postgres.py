"""A PostgreSQL for tests: that of tests/run, or a cluster of their own."""

import contextlib
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import tempfile
import time


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def programs():
    """Returns the folder of the newest PostgreSQL that is installed."""
    if "TEST_POSTGRES_BIN" in os.environ:
        return pathlib.Path(os.environ["TEST_POSTGRES_BIN"])
    found = pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return max(found, key=lambda path: int(path.parts[4])).parent


@contextlib.contextmanager
def cluster():
    """Yields the URL of a server, without a database, of a role that is a superuser."""
    if "TEST_POSTGRES" in os.environ:
        yield os.environ["TEST_POSTGRES"]
        return
    folder, port = tempfile.mkdtemp(), free_port()
    owner = {}
    if os.getuid() == 0:
        # PostgreSQL refuses to run as root.
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        owner = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    initdb = [programs() / "initdb", "-D", f"{folder}/cluster", "-U", "tests", "--auth=trust", "--no-sync"]
    subprocess.run(initdb, check=True, **quiet, **owner)
    command = [programs() / "postgres", "-D", f"{folder}/cluster", "-h", "127.0.0.1", "-p", str(port), "-k", folder]
    server = subprocess.Popen(command, **quiet, **owner)
    try:
        for _ in range(300):
            ready = [programs() / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            if subprocess.run(ready).returncode == 0:
                break
            time.sleep(0.1)
        yield f"postgres://tests@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


def psql(url, *arguments):
    """Runs psql, and returns its result whether or not it succeeded."""
    command = [programs() / "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *arguments, url]
    return subprocess.run(command, capture_output=True, text=True)
