"""A Prometheus that scrapes the programs under test by the shipped configuration, at short intervals."""

import json
import re
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import yaml

from processes import free_port, wait_for

MONITORING = "deploy/monitoring"


class Prometheus:
    """The server. Its rules are the shipped ones without their `for`, so that an alert fires when its condition holds."""

    def __init__(self, folder, waiting=False):
        self.folder, self.port = folder / "prometheus", free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.targets = self.folder / "targets.json"
        self.folder.mkdir()
        with open(f"{MONITORING}/prometheus.yml", encoding="utf-8") as file:
            configuration = yaml.safe_load(file)
        configuration["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        [scrape] = configuration["scrape_configs"]
        del scrape["static_configs"]
        scrape["file_sd_configs"] = [{"files": [str(self.targets)], "refresh_interval": "1s"}]
        self.scrape([])
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        with open(f"{MONITORING}/rules.yaml", encoding="utf-8") as file:
            rules = yaml.safe_load(file)
        self.groups = rules["groups"]
        for rule in self.rules():
            rule.pop("for", None)
        (self.folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        self.process = None

    def rules(self):
        return [rule for group in self.groups for rule in group["rules"]]

    def scrape(self, targets):
        """Scrapes these `(job, address)` from now on."""
        groups = [{"labels": {"job": job}, "targets": [address]} for job, address in targets]
        next_file = self.targets.with_suffix(".next")
        next_file.write_text(json.dumps(groups))
        next_file.replace(self.targets)

    def start(self):
        command = [
            "prometheus",
            f"--config.file={self.folder}/prometheus.yml",
            f"--storage.tsdb.path={self.folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--enable-feature=exemplar-storage",
            "--log.level=warn",
        ]
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for("Prometheus", self.ready)

    def ready(self):
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
            self.process = None

    def get(self, path, **parameters):
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {json.load(error)['error']}") from error

    def query(self, expression):
        """The series of an instant query."""
        return self.get("query", query=expression)["result"]

    def value(self, expression):
        """The value of the only series, or `None`."""
        result = self.query(expression)
        return float(result[0]["value"][1]) if result else None

    def firing(self):
        """The alerts that fire, as `(name, severity)`."""
        alerts = self.get("alerts")["alerts"]
        return {(alert["labels"]["alertname"], alert["labels"]["severity"]) for alert in alerts}

    def fires(self, name, severity=None):
        return any(alert == name and severity in (None, level) for alert, level in self.firing())

    def names(self):
        """The names of all series that were ever scraped or recorded."""
        return set(self.get("label/__name__/values"))


def selectors(expression):
    """The series selectors in an expression, without their ranges."""
    expression = re.sub(r'"(?:[^"\\]|\\.)*"', lambda text: text[0].replace("(", "\x00"), expression)
    # Grouping labels are names too.
    expression = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", expression)
    found = re.findall(r"[a-zA-Z_][\w:]*(?:\{[^}]*\})?(?![\w:]*\s*\()", expression)
    words = {"and", "or", "unless", "offset", "bool", "group_left", "group_right", "on", "by"}
    return [text.replace("\x00", "(") for text in found if text not in words and not re.fullmatch(r"\d*[smhdwy]", text)]
