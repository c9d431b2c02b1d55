"""Makes the PrometheusRule of deploy/components/monitoring from deploy/monitoring/rules.yaml; kustomize cannot include one
in the other. Usage: python3 tests/deploy.d/prometheus_rule.py"""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/monitoring/rules.yaml"
TARGET = ROOT / "deploy/components/monitoring/prometheus-rule.yaml"
HEAD = """\
# Generated from deploy/monitoring/rules.yaml by tests/deploy.d/prometheus_rule.py.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: collections-service
spec:
"""


def generate():
    lines = RULES.read_text().splitlines()
    # The file's own comment stands before `groups`.
    body = lines[lines.index("groups:") :]
    return HEAD + "".join(f"  {line}\n" if line else "\n" for line in body)


if __name__ == "__main__":
    TARGET.write_text(generate())
