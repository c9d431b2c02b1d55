"""Checks rules, dashboard and runbook: run.py BINARY. The last line counts the checks."""

import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import documents
from deployment import Deployment
from faults import FAULTS, missing
from processes import wait_for
from prometheus import MONITORING, selectors

started = time.monotonic()
passed, failed = [], []


def check(name, function, *arguments):
    """Runs one check and prints its result."""
    try:
        function(*arguments)
    except Exception as error:  # pylint: disable=broad-except
        failed.append(name)
        print(f"FAILED {name}: {error}", file=sys.stderr, flush=True)
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        return False
    passed.append(name)
    print(f"ok {name} ({time.monotonic() - started:.0f} s)", flush=True)
    return True


class Promtool:
    """A run of promtool in the background, because tests of rules take seconds of CPU time."""

    def __init__(self, *arguments):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(["promtool", *arguments], cwd=MONITORING, **streams)

    def succeeds(self):
        output, _ = self.process.communicate()
        assert self.process.returncode == 0, output


def check_files():
    check("promtool check rules", Promtool("check", "rules", "rules.yaml").succeeds)
    check("promtool check config", Promtool("check", "config", "prometheus.yml").succeeds)
    check("each alert has tests", documents.check_rule_tests)
    check("each alert has its section in the runbook", documents.check_runbook)
    check("the dashboard is well-formed", documents.check_dashboard)
    check("each alert has a fault", check_faults)


def check_faults():
    covered = {alert for _, _, evidence in FAULTS for alert in evidence}
    names = {name for name, _ in documents.alerts()}
    assert covered == names, f"alert or fault alone: {sorted(covered ^ names)}"


def check_rules(prometheus):
    """Every rule has data: a recorded series, and what an alert selects."""
    for rule in prometheus.rules():
        if "record" in rule:
            assert prometheus.query(rule["expr"]), f"{rule['record']} is empty: {rule['expr']}"
            assert prometheus.query(rule["record"]), f"{rule['record']} is not recorded"
        else:
            prometheus.query(rule["expr"])
            for selector in selectors(rule["expr"]):
                assert prometheus.query(selector), f"{rule['alert']}: nothing matches {selector}"


def check_queries(prometheus):
    """No panel is empty, and each legend's labels exist."""
    empty = []
    for panel, query, legend in documents.queries():
        result = prometheus.query(query)
        values = [series["value"][1] for series in result]
        if not values or all(value == "NaN" for value in values):
            empty.append(f"{panel}: {query}")
        for label in documents.labels(legend):
            if not any(label in series["metric"] for series in result):
                empty.append(f"{panel}: the legend's label {label} is on no series")
    assert not empty, "\n  ".join(["no data:", *empty])


def check_silence(prometheus):
    # How many destroys take longer than 250 ms depends on the machine.
    firing = {alert for alert in prometheus.firing() if "Latency" not in alert[0]}
    assert not firing, f"fires without a fault: {sorted(firing)}"


def run_commands(site, replica, alert):
    """Runs the commands of an alert's section as an operator would, and returns their output."""
    environment = {
        **os.environ,
        **site.environment,
        "admin": replica.addresses["admin"],
        "log": str(replica.log),
        "prometheus": site.prometheus.url,
    }
    output = ""
    for block in documents.commands(alert):
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            env=environment, cwd=site.folder, capture_output=True, text=True, check=False, timeout=60,
        )
        output += run.stdout + run.stderr
        assert run.returncode == 0, f"exit code {run.returncode} of\n{block}\n{run.stdout}{run.stderr}"
    return output


def check_section(site, replica, alert, texts):
    output = run_commands(site, replica, alert)
    absent = missing(texts, output)
    assert not absent, f"the commands do not show {absent}, but\n{output}"


def inject(site, name, function, evidence):
    """Injects a fault, waits for its alerts, follows the runbook, and repairs."""
    fault = function(site)
    replica = []
    if not check(f"injected: {name}", lambda: replica.append(next(fault))):
        return
    severities = documents.alerts()
    for alert, texts in evidence.items():
        for severity in ("warning", "critical"):
            if (alert, severity) in severities:
                fires = lambda: site.prometheus.fires(alert, severity)
                check(f"{alert} fires ({severity})", wait_for, alert, fires)
        check(f"{alert}: the runbook's commands", check_section, site, replica[0], alert, texts)
    check(f"repaired: {name}", lambda: next(fault, None))
    for alert in evidence:
        if alert in RESOLVED:
            check(f"{alert} is resolved", wait_for, alert, lambda: not site.prometheus.fires(alert))


# Alerts whose condition ends with the fault; the others look back over some minutes.
RESOLVED = {
    "CollectionsTargetDown",
    "CollectionsReloadFailing",
    "CollectionsCertificateExpiresSoon",
    "CollectionsInFlightNearLimit",
    "CollectionsNotReady",
    "CollectionsNoReplicaReady",
}


def check_site(site):
    prometheus = site.prometheus
    for _ in range(6):
        site.load(12)
        time.sleep(1)
    check("every rule has data", check_rules, prometheus)
    check("no panel of the dashboard is empty", check_queries, prometheus)
    check("no alert fires without a fault", check_silence, prometheus)
    wanted = os.environ.get("MONITORING_FAULTS", "").split(",")
    for name, function, evidence in FAULTS:
        if wanted == [""] or function.__name__ in wanted:
            inject(site, name, function, evidence)
    check("every metric that a document names exists", documents.check_metric_names, prometheus.names())


def main(binary):
    rule_tests = Promtool("test", "rules", "rules_test.yaml")
    check_files()
    folder = Path(tempfile.mkdtemp(prefix="monitoring-"))
    # PostgreSQL's own user has a folder in it.
    folder.chmod(0o755)
    site = Deployment(binary, folder)
    try:
        if check("everything starts", lambda: (site.prepare(), site.start())):
            check_site(site)
        check("promtool test rules", rule_tests.succeeds)
        if failed:
            site.show_logs()
    finally:
        site.stop()
        site.remove()
    print(f"monitoring: {len(passed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
