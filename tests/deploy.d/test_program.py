"""The program with what the manifests give it: the roles of deploy/roles.sql, the variables of every overlay, and
certificates of the names that cert-manager would issue."""

import contextlib
import os
import pathlib
import re
import subprocess
import tempfile
import time
import unittest
import uuid

import manifests
import postgres
from manifests import container_of, objects, variables, workloads

BINARY = os.environ["BINARY"]
ROLES = ["collections_migrator", "collections", "collections_gateway"]
FUNCTIONS = ["destroy_collections_v1", "purge_collections_v1"]
KEY = "test:dGhpcyBrZXkgaXMgZm9yIGRldmVsb3BtZW50IG9ubHk="


def run(*command, **env):
    return subprocess.run([BINARY, *command], capture_output=True, text=True, env=env)


class Program(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(postgres.cluster())
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.folder = pathlib.Path(folder)
        pathlib.Path(folder, "credentials.key").write_text(KEY)
        pathlib.Path(folder, "credentials.key").chmod(0o440)

    def url(self, role, database):
        return re.sub("//[^@]*@", f"//{role}@", self.server) + f"/{database}"

    def psql(self, url, *arguments):
        result = postgres.psql(url, *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def denied(self, role, database, statement):
        result = postgres.psql(self.url(role, database), "-c", statement)
        self.assertIn("permission denied", result.stderr, statement)

    @contextlib.contextmanager
    def database(self, owner="tests"):
        """Yields the name of a new database. Its end removes the roles too."""
        name = f"deploy_{uuid.uuid4().hex}"
        self.psql(f"{self.server}/postgres", "-c", f"CREATE DATABASE {name} OWNER {owner}")
        try:
            yield name
        finally:
            self.psql(f"{self.server}/postgres", "-c", f"DROP DATABASE {name} WITH (FORCE)")
            for role in ROLES:
                self.psql(f"{self.server}/postgres", "-c", f"DROP ROLE IF EXISTS {role}")

    def migrate(self, database):
        result = run("migrate", "up", COLLECTIONS_DATABASE_URL=self.url("collections_migrator", database))
        self.assertEqual(result.returncode, 0, result.stderr)

    @contextlib.contextmanager
    def running(self, command, env):
        """Runs the program until the end, and checks that it is ready, over IPv4 and IPv6, and that SIGTERM ends it."""
        port = postgres.free_port()
        env = {**env, "COLLECTIONS_ADMIN_ADDR": f"[::]:{port}"}
        log = self.folder / f"{uuid.uuid4().hex}.log"
        with open(log, "w") as output:
            process = subprocess.Popen([BINARY, *command], env=env, stdout=output, stderr=output)
        try:
            for address in (f"127.0.0.1:{port}", f"[::1]:{port}"):
                for _ in range(300):
                    ready = run("healthcheck", "--addr", address)
                    if ready.returncode == 0 or process.poll() is not None:
                        break
                    time.sleep(0.1)
                self.assertEqual(ready.returncode, 0, f"{address}: {ready.stderr}\n{log.read_text()}")
            yield log
        finally:
            process.terminate()
            code = process.wait()
        self.assertEqual(code, 0, log.read_text())

    def test_roles_have_the_rights_that_they_need(self):
        administrator = f"admin_{uuid.uuid4().hex}"
        self.psql(f"{self.server}/postgres", "-c", f"CREATE ROLE {administrator} LOGIN CREATEROLE")
        self.addCleanup(self.psql, f"{self.server}/postgres", "-c", f"DROP ROLE {administrator}")
        with self.database(owner=administrator) as database:
            roles = ["-f", str(manifests.DEPLOY / "roles.sql")]
            self.psql(self.url(administrator, database), *roles)
            self.migrate(database)
            self.psql(self.url(administrator, database), *roles)
            # Any number of times.
            self.psql(self.url(administrator, database), *roles)

            self.denied("collections", database, "CREATE TABLE ours ()")
            for table in ("collections", "collection_entries", "destroyed_collections", "event_outbox", "imports"):
                self.denied("collections", database, f"SELECT FROM {table}")
                self.denied("collections_gateway", database, f"SELECT FROM {table}")
            self.denied("collections", database, "DELETE FROM oauth_applications")
            self.denied("collections_gateway", database, "SELECT FROM purge_queue")
            self.assertEqual(self.functions("collections", database), FUNCTIONS)
            self.assertEqual(self.functions("collections_gateway", database), [])

            key = {"COLLECTIONS_CREDENTIALS_KEY_FILE": str(self.folder / "credentials.key")}
            created = run(
                "credentials", "create-app", "--name", "a client",
                COLLECTIONS_DATABASE_URL=self.url("collections_migrator", database), **key,
            )  # fmt: skip
            self.assertEqual(created.returncode, 0, created.stderr)
            listeners = {"COLLECTIONS_REST_ADDR": "[::]:0", "COLLECTIONS_GRPC_ADDR": "127.0.0.1:0"}
            listeners |= {"COLLECTIONS_INSECURE_IDENTITY": "true"} | key
            # Ready means that a destroy was rehearsed.
            with self.running(["serve"], listeners | {"COLLECTIONS_DATABASE_URL": self.url("collections", database)}):
                pass

    def test_a_database_that_was_migrated_before_gets_its_grants(self):
        with self.database() as database:
            self.psql(f"{self.server}/{database}", "-c", "CREATE ROLE collections_migrator LOGIN")
            self.psql(f"{self.server}/{database}", "-c", "GRANT CREATE ON SCHEMA public TO collections_migrator")
            self.migrate(database)
            self.psql(f"{self.server}/{database}", "-f", str(manifests.DEPLOY / "roles.sql"))
            self.assertEqual(self.functions("collections", database), FUNCTIONS)

    def functions(self, role, database):
        """Returns the names of our functions that a role may run."""
        query = "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND has_function_privilege"
        return self.psql(self.url(role, database), "-c", f"{query}(oid, 'EXECUTE') ORDER BY 1").split()

    def issue(self, folder, certificate):
        """Writes what cert-manager would write for a Certificate: tls.crt, tls.key and ca.crt."""
        folder.mkdir()
        names = [f"URI:{each}" for each in certificate["spec"].get("uris", [])]
        names += [f"DNS:{each}" for each in certificate["spec"].get("dnsNames", [])]
        usages = {"server auth": "serverAuth", "client auth": "clientAuth", "digital signature": None}
        purposes = filter(None, (usages[each] for each in certificate["spec"]["usages"]))
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]

        def openssl(*arguments):
            result = subprocess.run(["openssl", "req", "-x509", *key, *arguments], cwd=folder, capture_output=True, text=True)
            self.assertEqual(result.returncode, 0, result.stderr)

        authority = ["-addext", "keyUsage=critical,keyCertSign", "-keyout", "ca.key", "-out", "ca.crt"]
        openssl("-subj", "/CN=authority", *authority)
        openssl(
            "-subj", "/CN=leaf", "-CA", "ca.crt", "-CAkey", "ca.key", "-keyout", "tls.key", "-out", "tls.crt",
            "-addext", "subjectAltName=" + ",".join(names), "-addext", "extendedKeyUsage=" + ",".join(purposes),
            "-addext", "basicConstraints=critical,CA:FALSE",
        )  # fmt: skip
        (folder / "tls.key").chmod(0o440)

    def environment(self, rendered, workload, database):
        """Returns a workload's variables, with files and addresses of this machine."""
        result = {}
        certificates = {each["metadata"]["name"]: each for each in objects(rendered, "Certificate")}
        tls = self.folder / uuid.uuid4().hex
        if workload["metadata"]["name"] in certificates:
            self.issue(tls, certificates[workload["metadata"]["name"]])
        role = {"server": "collections", "gateway": "collections_gateway"}[container_of(workload)["name"]]
        secrets = {"COLLECTIONS_DATABASE_URL": self.url(role, database), "COLLECTIONS_REDIS_URL": "redis://127.0.0.1:1"}
        for name, value in variables(rendered, workload).items():
            value = secrets[name] if value is None else value
            value = value.replace("/credentials/", f"{self.folder}/").replace("/tls/", f"{tls}/")
            if re.fullmatch(r"COLLECTIONS_(GRPC|REST)_ADDR", name):
                value = re.sub(r":\d+$", ":0", value)
            result[name] = value
        return result

    def test_it_runs_with_the_variables_of_the_manifests(self):
        renders = {name: manifests.renders()[f"overlays/{name}"] for name in [*manifests.OVERLAYS, "prod with all options"]}
        renders["all components"] = manifests.everything()
        for name, rendered in renders.items():
            with self.database() as database:
                roles = manifests.DEPLOY / ("overlays/dev/roles.sql" if name == "dev" else "roles.sql")
                self.psql(f"{self.server}/{database}", "-f", str(roles))
                self.migrate(database)
                if name != "dev":
                    self.psql(f"{self.server}/{database}", "-f", str(roles))
                for workload in workloads(rendered):
                    if workload["kind"] == "Deployment":
                        with self.subTest(f"{name}: {workload['metadata']['name']}"):
                            env = self.environment(rendered, workload, database)
                            with self.running(container_of(workload)["args"], env):
                                pass
