"""The Dockerfile and the .proto files, by their linters."""

import subprocess
import unittest


class Sources(unittest.TestCase):
    def run_tool(self, *command):
        result = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_buf_lint(self):
        self.run_tool("buf", "lint")

    def test_buf_format(self):
        self.run_tool("buf", "format", "--diff", "--exit-code")

    def test_hadolint(self):
        self.run_tool("hadolint", "deploy/Dockerfile")
