"""Checks what compose.yaml and the systemd unit say against the program and against each other.

Usage: relations.py compose RENDERED_JSON SECRETS_FOLDER SERVE_HELP MIGRATE_HELP IMAGE_CONFIG
       relations.py unit UNIT SERVE_HELP
"""

import json
import pathlib
import re
import sys

import yaml

wrong = []


def must(holds, what):
    if not holds:
        wrong.append(what)


def variables(help_file):
    return set(re.findall(r"\[env:\s+(COLLECTIONS_[A-Z_]+)=?", pathlib.Path(help_file).read_text()))


def seconds(duration):
    return int(duration.removesuffix("s"))


def compose(rendered, secrets, serve_help, migrate_help, image_config):
    project = json.loads(pathlib.Path(rendered).read_text())
    services, made = project["services"], {file.name for file in pathlib.Path(secrets).iterdir()}
    known = {"collections-service": variables(serve_help), "migration": variables(migrate_help)}
    must(services["collections-service"]["image"] == services["migration"]["image"], "two images of the service")
    for name, service in services.items():
        must(service.get("read_only"), f"{name}: the root file system is writable")
        must(service.get("cap_drop") == ["ALL"], f"{name}: capabilities")
        must("no-new-privileges:true" in service["security_opt"], f"{name}: new privileges")
        must(int(service.get("mem_limit", 0)) > 0, f"{name}: no limit of memory")
        must("healthcheck" in service, f"{name}: no health check")
        for port in service.get("ports", []):
            must(port.get("host_ip") == "127.0.0.1", f"{name}: port {port['target']} is on every interface")
        if "build" not in service:
            must(re.search(r":[^:@]*\d[^:@]*@sha256:[0-9a-f]{64}$", service["image"]), f"{name}: version and digest")
        environment = service.get("environment", {})
        for variable, value in environment.items():
            if variable.startswith("COLLECTIONS_"):
                must(variable in known[name], f"{name}: its command does not know {variable}")
            must("PASSWORD" not in variable or value.startswith("/run/secrets/"), f"{name}: a password in {variable}")
        granted = {secret["target"].removeprefix("/run/secrets/") for secret in service.get("secrets", [])}
        used = set(re.findall(r"/run/secrets/(\S+)", " ".join(map(str, environment.values()))))
        must(used == granted, f"{name}: it reads the secrets {sorted(used)} and is granted {sorted(granted)}")
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                must(pathlib.Path(volume["source"]).is_file(), f"{name}: {volume['source']} is missing")
    for secret in project["secrets"].values():
        must(pathlib.Path(secret["file"]).name in made, f"compose-secrets does not make {secret['file']}")

    server = services["collections-service"]
    drain = int(server["environment"]["COLLECTIONS_DRAIN_SECONDS"])
    must(seconds(server["stop_grace_period"]) > drain, f"a drain of {drain} s is cut off")
    exposed = json.loads(pathlib.Path(image_config).read_text())["config"]["ExposedPorts"]
    published = {f"{port['target']}/tcp" for port in server["ports"]}
    must(published == set(exposed), f"the image exposes {sorted(exposed)}, compose publishes {sorted(published)}")

    def source(name, target):
        found = [volume["source"] for volume in services[name]["volumes"] if volume["target"] == target]
        must(len(found) == 1, f"{name}: nothing is mounted on {target}")
        return pathlib.Path(found[0]) if found else pathlib.Path("/dev/null")

    scrape = yaml.safe_load(source("prometheus", "/etc/prometheus/prometheus.yml").read_text()) or {}
    targets = [
        target
        for job in scrape.get("scrape_configs", [])
        for static in job.get("static_configs", [])
        for target in static["targets"]
    ]
    must("collections-service:9090" in targets, f"Prometheus scrapes {targets}")
    for rules in scrape.get("rule_files", []):
        source("prometheus", str(pathlib.PurePosixPath("/etc/prometheus", rules)))
    data_source = source("grafana", "/etc/grafana/provisioning/datasources/datasource.yaml")
    [grafana] = yaml.safe_load(data_source.read_text())["datasources"]
    must(grafana["url"] == "http://prometheus:9090", "Grafana's data source is elsewhere")
    providers = source("grafana", "/etc/grafana/provisioning/dashboards/dashboards.yaml")
    [provider] = yaml.safe_load(providers.read_text())["providers"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    source("grafana", home)
    must(str(pathlib.PurePosixPath(home).parent) == provider["options"]["path"], "Grafana looks for dashboards elsewhere")


def unit(file, serve_help):
    text = pathlib.Path(file).read_text()
    settings = {}
    for name, value in re.findall(r"^([A-Za-z]+)=(.*)$", text, re.MULTILINE):
        settings.setdefault(name, []).append(value)
    environment = dict(pair.split("=", 1) for line in settings["Environment"] for pair in line.split())
    named = set(re.findall(r"COLLECTIONS_[A-Z_]+", text))
    must(named <= variables(serve_help), f"serve does not know {sorted(named - variables(serve_help))}")
    drain = int(environment["COLLECTIONS_DRAIN_SECONDS"])
    must(seconds(settings["TimeoutStopSec"][0]) > drain, f"a drain of {drain} s is cut off")
    loaded = {credential.split(":")[0] for credential in settings["LoadCredential"]}
    used = set(re.findall(r"%d/(\S+)", " ".join(settings["Environment"] + settings["ExecStartPre"])))
    must(loaded == used, f"it loads {sorted(loaded)} and uses {sorted(used)}")
    for each in loaded:
        must(re.search(rf"^# +.*\b{re.escape(each)}\b", text, re.MULTILINE), f"its comment does not name {each}")


{"compose": compose, "unit": unit}[sys.argv[1]](*sys.argv[2:])
sys.exit("\n".join(wrong) or 0)
