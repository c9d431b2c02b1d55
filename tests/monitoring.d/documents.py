"""Reads the runbook, the rules and the dashboard, and finds where they disagree with one another."""

import json
import re
import subprocess
from pathlib import Path

import yaml

DASHBOARD = "deploy/monitoring/dashboard.json"
RULES = "deploy/monitoring/rules.yaml"
RULES_TEST = "deploy/monitoring/rules_test.yaml"
RUNBOOK = "deploy/RUNBOOK.md"
PARTS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
# A metric of the service or of its process. Names of recorded series have a colon, and are not scraped.
METRIC = r"(?<![\w:./-])(?:collections|process|rpc_server|http_server|db_client)_[a-z0-9_]+(?![\w:(])"
# Several at one time, in a pattern for grep: `collections_(ready|queue_depth)`.
METRIC_PATTERN = r"\b((?:collections|process)_[a-z0-9_]*)\(([a-z0-9_|]+)\)([a-z0-9_]*)"
# Other names of this form: the crate in log lines, a database, and roles of one.
NO_METRICS = {"collections_service", "collections_damaged", "collections_gateway", "collections_migrator"}


def alerts():
    """The alert rules, by name and severity."""
    rules = [rule for group in yaml.safe_load(Path(RULES).read_text())["groups"] for rule in group["rules"]]
    return {(rule["alert"], rule["labels"]["severity"]): rule for rule in rules if "alert" in rule}


def sections():
    """The runbook's sections, by their headings."""
    found = re.split(r"^## (.+)$", Path(RUNBOOK).read_text(), flags=re.M)[1:]
    return dict(zip(found[::2], found[1::2]))


def commands(alert):
    """The shell commands of an alert's section."""
    return re.findall(r"^```sh\n(.*?)^```$", sections()[alert], flags=re.M | re.S)


def check_runbook():
    """Each alert has a section with all parts, and each section an alert, which links to it."""
    names = {name for name, _ in alerts()}
    assert names == set(sections()), f"alert or section alone: {sorted(names ^ set(sections()))}"
    for name, text in sections().items():
        parts = re.findall(r"^\*\*(\w+)\.\*\*", text, flags=re.M)
        assert parts == PARTS, f"{name} has the parts {parts}"
        assert commands(name), f"{name} has no commands"
        for anchor in re.findall(r"\]\(#([^)]+)\)", text):
            assert anchor in map(str.lower, names), f"{name} refers to {anchor}"
    for (name, severity), rule in alerts().items():
        notes = rule["annotations"]
        assert notes["runbook_url"] == f"{RUNBOOK}#{name.lower()}", f"{name}: {notes['runbook_url']}"
        assert severity in ("critical", "warning"), f"{name}: {severity}"
        assert notes["summary"] and "$value" in notes["description"], f"{name}: no value in the description"


def check_rule_tests():
    """Each alert of each severity has a test in which it fires, and one in which it does not."""
    fires, silent = set(), set()
    for test in yaml.safe_load(Path(RULES_TEST).read_text())["tests"]:
        for case in test["alert_rule_test"]:
            severities = {expected["exp_labels"]["severity"] for expected in case["exp_alerts"]}
            for severity in ("critical", "warning"):
                (fires if severity in severities else silent).add((case["alertname"], severity))
    for rule in alerts():
        assert rule in fires, f"no test in which {rule} fires"
        assert rule in silent, f"no test in which {rule} does not fire"


def panels():
    """The dashboard's panels, those in rows too, without the rows."""
    dashboard = json.loads(Path(DASHBOARD).read_text())
    found = []
    for panel in dashboard["panels"]:
        found += panel.get("panels", []) if panel["type"] == "row" else [panel]
    return found


def check_dashboard():
    """Panels do not overlap, have different ids, a unit and a description, and take their data from the variable."""
    dashboard = json.loads(Path(DASHBOARD).read_text())
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)), "two panels have one id"
    taken = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, f"{panel['title']} is too wide"
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    for panel in panels():
        title = panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, f"{title}: data source"
        assert panel["description"] and panel["targets"], f"{title}: no description, or no query"
        assert panel["type"] == "table" or panel["fieldConfig"]["defaults"].get("unit"), f"{title}: no unit"
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)), f"{title}: two queries have one name"
        for target in panel["targets"]:
            used = set(re.findall(r"\$\{?(\w+)", target["expr"])) - {"__rate_interval", "__range"}
            assert used <= variables, f"{title}: unknown variables {used - variables}"


def queries():
    """The dashboard's queries, `(panel, query, legend)`, with Grafana's variables replaced."""
    found = []
    for panel in panels():
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "10s")
            found.append((panel["title"], re.sub(r"\$(job|instance)\b", ".+", query), target.get("legendFormat", "")))
    return found


def named_metrics():
    """The names of metrics in all files for operators, each with a file that has it."""
    # Both tracked files and new ones.
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "README.md", "deploy", "docs", "*.md"],
        capture_output=True, text=True, check=True,
    )
    names = {}
    for path in listed.stdout.split():
        if Path(path).suffix in {".md", ".yaml", ".yml", ".json"} and Path(path).exists():
            text = Path(path).read_text()
            for begin, middle, end in re.findall(METRIC_PATTERN, text):
                text += "".join(f" {begin}{each}{end}" for each in middle.split("|"))
            for name in re.findall(METRIC, text):
                names.setdefault(name, path)
    return {name: path for name, path in names.items() if name not in NO_METRICS}


def check_metric_names(exposed):
    """Every metric that a file names exists. `exposed` are the names of all samples and families."""
    # The name of a family stands for its samples.
    families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in exposed}
    unknown = {name: path for name, path in named_metrics().items() if name not in exposed | families}
    assert not unknown, f"metrics that do not exist: {unknown}"


def labels(legend):
    """The labels in a legend's format."""
    return re.findall(r"\{\{\s*(\w+)\s*\}\}", legend)
