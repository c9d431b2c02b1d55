"""deploy/admin-pod.json, with which `kubectl run` makes a pod for the commands of an administrator."""

import http.server
import json
import os
import subprocess
import tempfile
import threading
import unittest

import yaml

import manifests
from manifests import container_of, named, objects

ANSWERS = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [{"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": ["create"]}],
    },
}


class Api(http.server.BaseHTTPRequestHandler):
    """As much of an API server as `kubectl run` needs to find out what a pod is."""

    def do_GET(self):
        answer = ANSWERS.get(self.path.split("?")[0])
        body = json.dumps(answer or {}).encode()
        self.send_response(200 if answer else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class AdminPod(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
        cls.addClassCleanup(server.server_close)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cls.addClassCleanup(server.shutdown)
        home = cls.enterClassContext(tempfile.TemporaryDirectory())
        command = [
            "kubectl", "run", "collections-admin", "--restart=Never", "--image=registry.example.com/collections-service:0.2.0",
            "--labels=app.kubernetes.io/name=collections-service", "--override-type=strategic",
            "--overrides=" + (manifests.DEPLOY / "admin-pod.json").read_text(), "--dry-run=client", "--output=yaml",
            f"--server=http://127.0.0.1:{server.server_port}", "--", "credentials", "create-app", "--name", "a client",
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HOME": home})
        assert result.returncode == 0, result.stderr
        cls.text = result.stdout
        cls.pod = yaml.safe_load(result.stdout)
        # As a template, which is what the helpers take.
        cls.workload = {"kind": "Pod", "spec": {"template": cls.pod}}
        [cls.job] = objects(manifests.everything(), "Job")

    def test_it_is_a_valid_pod_that_runs_the_command(self):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(self.text)
            file.flush()
            result = subprocess.run(["kubernetes-validate", "--strict", file.name], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        container = container_of(self.workload)
        self.assertEqual(container["args"], ["credentials", "create-app", "--name", "a client"])
        self.assertEqual(container["image"], "registry.example.com/collections-service:0.2.0")

    def test_it_has_the_secrets_of_the_manifests(self):
        gateway = named(manifests.everything(), "Deployment", "collections-gateway")
        key = {each for each in manifests.secrets(gateway) if each[0] == "collections-credentials"}
        self.assertEqual(manifests.secrets(self.workload), manifests.secrets(self.job) | key)
        [folder] = manifests.files(self.workload)
        self.assertEqual(manifests.variables([], self.workload)["COLLECTIONS_CREDENTIALS_KEY_FILE"], f"{folder}/credentials.key")

    def test_it_is_restricted_as_the_migration_is(self):
        pod, job = manifests.pod_of(self.workload), manifests.pod_of(self.job)
        for field in ("serviceAccountName", "enableServiceLinks", "automountServiceAccountToken"):
            self.assertEqual(pod[field], job[field], field)
        self.assertEqual(pod["securityContext"], {**job["securityContext"], "fsGroup": 65532})
        for field in ("securityContext", "resources"):
            self.assertEqual(container_of(self.workload)[field], container_of(self.job)[field], field)
