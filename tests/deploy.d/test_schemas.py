"""The manifests, by the schemas of Kubernetes and of the custom resources, and by checkov."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

import yaml

import manifests

# The oldest version that the manifests support, and the newest that kubernetes-validate knows.
VERSIONS = ["1.30", "1.37"]
CUSTOM = ("cert-manager.io", "gateway.networking.k8s.io", "monitoring.coreos.com")


def distinct():
    """Returns every different object of all renders: those of Kubernetes, and custom resources."""
    found = {json.dumps(each, sort_keys=True): each for each in sum(manifests.renders().values(), [])}
    custom = [each for each in found.values() if each["apiVersion"].split("/")[0] in CUSTOM]
    return [each for each in found.values() if each not in custom], custom


class Schemas(unittest.TestCase):
    def run_tool(self, *command, **options):
        result = subprocess.run(command, capture_output=True, text=True, **options)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result.stdout + result.stderr

    def test_kubernetes(self):
        native, _ = distinct()
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "native.yaml")
            file.write_text(yaml.safe_dump_all(native))
            for version in VERSIONS:
                with self.subTest(version):
                    output = self.run_tool("kubernetes-validate", "--strict", "--kubernetes-version", version, str(file))
                    # Objects without a schema are only warned of.
                    self.assertNotIn("WARN", output)
                    self.assertEqual(output.count(" passed for resource "), len(native), output)

    def test_custom_resources(self):
        _, custom = distinct()
        kinds = {each["kind"] for each in custom}
        self.assertEqual(
            kinds, {"BackendTLSPolicy", "Certificate", "GRPCRoute", "HTTPRoute", "PrometheusRule", "ServiceMonitor"}
        )
        script = pathlib.Path(__file__).with_name("custom_resources.mjs")
        self.run_tool("node", str(script), os.environ["DEPLOY_NODE"], input=json.dumps(custom))

    def test_checkov(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in ["overlays/prod", "base with " + ", ".join(manifests.OPTIONAL)]:
                file = pathlib.Path(folder, name.split("/")[-1].replace(", ", "-").replace("/", "-") + ".yaml")
                file.write_text(yaml.safe_dump_all(manifests.renders()[name]))
            command = [os.environ["CHECKOV"], "--directory", folder, "--config-file", "deploy/.checkov.yaml"]
            output = self.run_tool(*command)
            self.assertIn("Failed checks: 0", output)
