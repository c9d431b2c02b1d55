"""Renders the overlays, and the base with each component, with each pair of those that patch others' objects, and with all."""

import concurrent.futures
import functools
import itertools
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPONENTS = DEPLOY / "components"
OVERLAYS = sorted(path.parent.name for path in DEPLOY.glob("overlays/*/kustomization.yaml"))
# In the order in which an overlay lists them: `gateway` before those that change its pods.
OPTIONAL = ["gateway"] + sorted(
    str(path.parent.relative_to(COMPONENTS))
    for path in COMPONENTS.rglob("kustomization.yaml")
    if path.parent.name not in ("mtls",) and path.parent != COMPONENTS / "gateway"
)
# What a component does not work without.
NEEDS = {"cert-manager/gateway": ["gateway", "cert-manager"], "grpc-route": ["jwt"]}
IMAGE = "collections-service"


def kustomize(folder):
    """Returns the objects that `kubectl kustomize` renders."""
    result = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    if result.returncode != 0:
        raise AssertionError(f"kubectl kustomize {folder}: {result.stderr}")
    return [each for each in yaml.safe_load_all(result.stdout) if each]


def render(components=(), **settings):
    """Returns the objects of an overlay on the base that names the image and the namespace, as every overlay does."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder).resolve()
        settings = {
            "namespace": "collections",
            "images": [{"name": IMAGE, "newName": f"registry.example.com/{IMAGE}", "newTag": "0.2.0"}],
        } | settings | {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(DEPLOY / "base", folder)],
            "components": [os.path.relpath(COMPONENTS / name, folder) for name in components],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(settings))
        return kustomize(folder)


def render_text(text, options):
    """Returns the objects of a production overlay's text, with every line that is commented out where `options` is set."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder).resolve()
        text = text.replace("../..", os.path.relpath(DEPLOY, folder))
        if options:
            text, count = re.subn(r"^( +)# - ", r"\1- ", text, flags=re.MULTILINE)
            assert count > 0, "no option was found"
        (folder / "kustomization.yaml").write_text(text)
        shutil.copy(DEPLOY / "overlays/prod/namespace.yaml", folder)
        return kustomize(folder)


def production_with_all_options():
    return render_text((DEPLOY / "overlays/prod/kustomization.yaml").read_text(), options=True)


def with_needs(names):
    wanted = set(names)
    for name in names:
        wanted.update(NEEDS.get(name, []))
    return tuple(name for name in OPTIONAL if name in wanted)


@functools.cache
def renders():
    """Returns the objects by the name of what was rendered."""
    patching = [name for name in OPTIONAL if "\npatches:" in (COMPONENTS / name / "kustomization.yaml").read_text()]
    combinations = [(name,) for name in OPTIONAL] + list(itertools.combinations(patching, 2)) + [tuple(OPTIONAL)]
    jobs = {"base": functools.partial(kustomize, DEPLOY / "base")}
    for overlay in OVERLAYS:
        jobs[f"overlays/{overlay}"] = functools.partial(kustomize, DEPLOY / "overlays" / overlay)
    jobs["overlays/prod with all options"] = production_with_all_options
    for names in map(with_needs, combinations):
        jobs["base with " + ", ".join(names)] = functools.partial(render, names)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return dict(zip(jobs, pool.map(lambda job: job(), jobs.values())))


@functools.cache
def everything():
    """Returns the base with all components."""
    return render(OPTIONAL)


def objects(rendered, kind):
    return [each for each in rendered if each["kind"] == kind]


def named(rendered, kind, name):
    """Returns the one object of this kind and name."""
    found = [each for each in objects(rendered, kind) if each["metadata"]["name"] == name]
    if len(found) != 1:
        raise AssertionError(f"{len(found)} objects {kind}/{name}")
    return found[0]


def workloads(rendered):
    """Returns the objects that make pods of our image."""
    return [
        each
        for each in rendered
        if each["kind"] in ("Deployment", "Job") and IMAGE in container_of(each)["image"]
    ]


def pod_of(workload):
    return workload["spec"]["template"]["spec"]


def labels_of(workload):
    return workload["spec"]["template"]["metadata"]["labels"]


def container_of(workload):
    [container] = pod_of(workload)["containers"]
    return container


def variables(rendered, workload):
    """Returns the program's variables of a container: those of ConfigMaps with their values, those of Secrets with None."""
    container, result = container_of(workload), {}
    for source in container.get("envFrom", []):
        result |= named(rendered, "ConfigMap", source["configMapRef"]["name"])["data"]
    for each in container.get("env", []):
        result[each["name"]] = each.get("value")
    return {name: value for name, value in result.items() if name.startswith("COLLECTIONS_")}


def secrets(workload):
    """Returns the Secrets that a workload needs, as pairs of name and key; the key of a whole Secret is None."""
    result = set()
    for each in container_of(workload).get("env", []):
        reference = each.get("valueFrom", {}).get("secretKeyRef")
        if reference:
            result.add((reference["name"], reference["key"]))
    for volume in pod_of(workload).get("volumes", []):
        if "secret" in volume:
            items = volume["secret"].get("items")
            keys = [item["key"] for item in items] if items else [None]
            result.update((volume["secret"]["secretName"], key) for key in keys)
    return result


def files(workload):
    """Returns the folders that are mounted from Secrets, each with its files, or None for all of the Secret."""
    volumes = {each["name"]: each for each in pod_of(workload).get("volumes", [])}
    result = {}
    for mount in container_of(workload).get("volumeMounts", []):
        items = volumes[mount["name"]]["secret"].get("items")
        result[mount["mountPath"]] = {item["path"] for item in items} if items else None
    return result


def selects(selector, labels):
    """Whether a label selector matches labels."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for each in selector.get("matchExpressions", []):
        assert each["operator"] == "In", "only In is used"
        if labels.get(each["key"]) not in each["values"]:
            return False
    return True
