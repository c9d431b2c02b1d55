"""What the manifests say of each other and of the program."""

import functools
import os
import re
import subprocess
import unittest

import yaml

import manifests
from manifests import container_of, labels_of, named, objects, pod_of, selects, variables, workloads

# Seconds between the end of the drain and the kill: connections are closed, and spans and log lines are written.
MARGIN = 5
# The names of the listeners' ports, by the variable of the address.
LISTENERS = {"COLLECTIONS_GRPC_ADDR": "grpc", "COLLECTIONS_REST_ADDR": "http", "COLLECTIONS_ADMIN_ADDR": "admin"}
# The ports of what the program connects to, by the variable that names it.
OUTSIDE = {
    "COLLECTIONS_DATABASE_URL": 5432,
    "COLLECTIONS_JWKS": 443,
    "COLLECTIONS_OTLP_ENDPOINT": 4317,
    "COLLECTIONS_REDIS_URL": 6379,
}


@functools.cache
def help_of(*command):
    """Returns the variables that a command of the program has, and its defaults by variable."""
    text = subprocess.run(
        [os.environ["BINARY"], *command, "--help"], capture_output=True, text=True, check=True, env={"COLUMNS": "1000"}
    ).stdout
    text = " ".join(text.split())
    known = set(re.findall(r"\[env: (COLLECTIONS_[A-Z_]+)", text))
    defaults = dict(re.findall(r"\[env: (COLLECTIONS_[A-Z_]+)[^\]]*\] \[default: ([^\]]+)\]", text))
    return known, defaults


def for_each_render(test):
    """Runs a test with every render, each as a test of its own."""

    @functools.wraps(test)
    def run(self):
        for name, rendered in manifests.renders().items():
            with self.subTest(name):
                test(self, rendered)

    return run


def for_each_workload(test):
    """Runs a test with every workload of every render."""

    @functools.wraps(test)
    def run(self):
        for name, rendered in manifests.renders().items():
            for workload in workloads(rendered):
                with self.subTest(f"{name}: {workload['kind']}/{workload['metadata']['name']}"):
                    test(self, rendered, workload)

    return run


class Relations(unittest.TestCase):
    @for_each_workload
    def test_pods_are_restricted(self, _, workload):
        """The Pod Security Standard `restricted`, and more."""
        pod, container = pod_of(workload), container_of(workload)
        self.assertTrue(pod["securityContext"]["runAsNonRoot"])
        self.assertEqual(pod["securityContext"]["runAsUser"], 65532)
        self.assertEqual(pod["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
        self.assertFalse(container["securityContext"]["allowPrivilegeEscalation"])
        self.assertEqual(container["securityContext"]["capabilities"], {"drop": ["ALL"]})
        self.assertTrue(container["securityContext"]["readOnlyRootFilesystem"])
        self.assertFalse(pod["automountServiceAccountToken"])
        self.assertFalse(pod["enableServiceLinks"], "the program rejects variables of service links")
        self.assertIn("memory", container["resources"]["limits"])

    def test_namespaces_enforce_the_restricted_standard(self):
        for overlay in manifests.OVERLAYS:
            with self.subTest(overlay):
                [namespace] = objects(manifests.renders()[f"overlays/{overlay}"], "Namespace")
                self.assertEqual(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted")

    @for_each_workload
    def test_service_accounts_exist(self, rendered, workload):
        named(rendered, "ServiceAccount", pod_of(workload)["serviceAccountName"])

    @for_each_workload
    def test_commands_have_the_variables(self, rendered, workload):
        known, _ = help_of(*container_of(workload)["args"])
        unknown = set(variables(rendered, workload)) - known
        self.assertFalse(unknown, f"{container_of(workload)['args']} has no such flag")

    @for_each_render
    def test_all_workloads_have_one_image(self, rendered):
        images = {container_of(each)["image"] for each in workloads(rendered)}
        self.assertEqual(len(images), 1, images)

    @for_each_workload
    def test_ports_are_those_of_the_listeners(self, rendered, workload):
        _, defaults = help_of(*container_of(workload)["args"])
        env = variables(rendered, workload)
        ports = {each["name"]: each["containerPort"] for each in container_of(workload).get("ports", [])}
        expected = {}
        for variable in LISTENERS.keys() & defaults.keys():
            if env[variable] == "off":
                continue
            host, port = env[variable].rsplit(":", 1)
            # A listener that is not on all addresses of IPv6 and IPv4 is for port-forward alone.
            if host != "[::]":
                self.assertEqual((host, env["COLLECTIONS_INSECURE_IDENTITY"]), ("127.0.0.1", "true"))
            self.assertEqual(port, defaults[variable].rsplit(":", 1)[1], "another port than by default")
            expected[LISTENERS[variable]] = int(port)
        self.assertEqual(ports, expected)

    @for_each_workload
    def test_probes_ask_the_admin_listener(self, _, workload):
        if workload["kind"] != "Deployment":
            return
        container = container_of(workload)
        for probe, service in (("startup", ""), ("liveness", ""), ("readiness", "collections.v1.CollectionsService")):
            self.assertEqual(container[f"{probe}Probe"]["grpc"], {"port": 9090, "service": service})

    @for_each_workload
    def test_endpoints_stay_while_the_database_is_away_for_seconds(self, _, workload):
        if workload["kind"] != "Deployment":
            return
        probe = container_of(workload)["readinessProbe"]
        # Calls wait for the database for 10 s at most.
        self.assertGreater((probe["failureThreshold"] - 1) * probe["periodSeconds"], 2 * 10)

    @for_each_workload
    def test_the_grace_period_covers_the_drain(self, rendered, workload):
        if workload["kind"] != "Deployment":
            return
        pause = container_of(workload)["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = int(variables(rendered, workload)["COLLECTIONS_DRAIN_SECONDS"])
        self.assertGreaterEqual(pod_of(workload)["terminationGracePeriodSeconds"], pause + drain + MARGIN)

    @for_each_workload
    def test_variables_name_mounted_files(self, rendered, workload):
        folders = manifests.files(workload)
        used = set()
        for name, value in variables(rendered, workload).items():
            for path in re.findall(r"(?:^|[=,])(/[^,]+)", value or ""):
                folder, file = path.rsplit("/", 1)
                self.assertIn(folder, folders, f"{name}: nothing is mounted there")
                self.assertIn(file, folders[folder] or {"tls.crt", "tls.key", "ca.crt"}, name)
                used.add(folder)
        self.assertEqual(used, set(folders), "a folder is mounted that no variable names")

    @for_each_workload
    def test_secrets_are_readable_by_the_group(self, _, workload):
        pod = pod_of(workload)
        for volume in pod.get("volumes", []):
            self.assertEqual(volume["secret"]["defaultMode"], 0o440)
            self.assertEqual(pod["securityContext"]["fsGroup"], pod["securityContext"]["runAsGroup"])

    def test_the_production_overlay_changes_what_it_names(self):
        """A setting that has no effect would go unnoticed, because the overlay has the components' own values."""
        text = (manifests.DEPLOY / "overlays/prod/kustomization.yaml").read_text()
        rendered = manifests.render_text(text.replace("example", "changed"), options=True)
        left = [
            (each["kind"], each["metadata"]["name"], line)
            for each in rendered
            if each["kind"] in ("ConfigMap", "HTTPRoute", "GRPCRoute", "NetworkPolicy", "Deployment", "Job")
            for line in yaml.safe_dump(each).splitlines()
            if "example" in line
        ]
        self.assertEqual(left, [])

    def test_the_production_overlay_lists_every_secret(self):
        text = (manifests.DEPLOY / "overlays/prod/kustomization.yaml").read_text()
        for workload in workloads(manifests.everything()):
            for name, key in manifests.secrets(workload):
                self.assertRegex(text, rf"#   .*\b{name}\b", "a Secret is not listed")
                if key:
                    self.assertRegex(text, rf"#      {name} +{re.escape(key)}: ", "its key is another one")

    def test_migration_and_service_have_different_secrets(self):
        urls = [
            reference
            for workload in workloads(manifests.everything())
            for reference in manifests.secrets(workload)
            if reference[0].endswith("-database")
        ]
        self.assertEqual(len(urls), 3)
        self.assertEqual(len(set(urls)), 3)

    def test_the_development_overlay_has_its_secrets(self):
        rendered = manifests.renders()["overlays/dev"]
        for workload in workloads(rendered):
            for name, key in manifests.secrets(workload):
                self.assertIn(key, named(rendered, "Secret", name)["data"])

    @for_each_render
    def test_selectors_match_their_pods_alone(self, rendered):
        for deployment in [each for each in workloads(rendered) if each["kind"] == "Deployment"]:
            name = deployment["metadata"]["name"]
            selectors = [deployment["spec"]["selector"]]
            selectors += [each["spec"]["selector"] for each in objects(rendered, "PodDisruptionBudget") if each["metadata"]["name"] == name]
            selectors += [each["labelSelector"] for each in pod_of(deployment)["topologySpreadConstraints"]]
            # The Deployment's own, the budget, zones and hosts.
            self.assertEqual(len(selectors), 4)
            for selector in selectors:
                matched = [each["metadata"]["name"] for each in workloads(rendered) if selects(selector, labels_of(each))]
                self.assertEqual(matched, [name])

    @for_each_render
    def test_services_lead_to_ports_of_pods(self, rendered):
        services = [each for each in objects(rendered, "Service") if each["metadata"]["name"].startswith("collections-")]
        self.assertEqual(len(services), 3)
        for service in services:
            selector = {"matchLabels": service["spec"]["selector"]}
            [target] = [each for each in workloads(rendered) if selects(selector, labels_of(each))]
            ports = {each["name"] for each in container_of(target)["ports"]}
            for port in service["spec"]["ports"]:
                self.assertIn(port["targetPort"], ports, service["metadata"]["name"])
        self.assertEqual(named(rendered, "Service", "collections-service-headless")["spec"]["clusterIP"], "None")

    @for_each_render
    def test_prometheus_scrapes_every_pod_once(self, rendered):
        for monitor in objects(rendered, "ServiceMonitor"):
            [endpoint] = monitor["spec"]["endpoints"]
            scraped = []
            for service in objects(rendered, "Service"):
                ports = {each["name"] for each in service["spec"]["ports"]}
                if selects(monitor["spec"]["selector"], service["metadata"]["labels"]) and endpoint["port"] in ports:
                    scraped.append(service["spec"]["selector"]["app.kubernetes.io/component"])
            expected = [
                labels_of(each)["app.kubernetes.io/component"] for each in workloads(rendered) if each["kind"] == "Deployment"
            ]
            self.assertEqual(sorted(scraped), sorted(expected))

    @for_each_render
    def test_the_autoscaler_has_a_deployment_without_replicas(self, rendered):
        for scaler in objects(rendered, "HorizontalPodAutoscaler"):
            target = named(rendered, "Deployment", scaler["spec"]["scaleTargetRef"]["name"])
            self.assertNotIn("replicas", target["spec"])
            [metric] = [each["pods"]["metric"]["name"] for each in scaler["spec"]["metrics"] if each["type"] == "Pods"]
            rule = (manifests.COMPONENTS / "autoscaling/prometheus-adapter.yaml").read_text()
            self.assertIn(f"as: {metric}\n", rule)
            connections = int(help_of("serve")[1]["COLLECTIONS_DATABASE_CONNECTIONS"])
            self.assertLess((scaler["spec"]["maxReplicas"] + 1) * connections, 100, "more than PostgreSQL's max_connections")

    @for_each_render
    def test_routes_lead_to_services(self, rendered):
        for route in objects(rendered, "HTTPRoute") + objects(rendered, "GRPCRoute"):
            for rule in route["spec"]["rules"]:
                for backend in rule["backendRefs"]:
                    service = named(rendered, "Service", backend["name"])
                    self.assertIn(backend["port"], {each["port"] for each in service["spec"]["ports"]})
        for policy in objects(rendered, "BackendTLSPolicy"):
            [target] = policy["spec"]["targetRefs"]
            service = named(rendered, "Service", target["name"])
            self.assertIn(target["sectionName"], {each["name"] for each in service["spec"]["ports"]})

    @for_each_render
    def test_callers_from_outside_can_authenticate(self, rendered):
        """A Gateway does not pass a caller's certificate on."""
        if objects(rendered, "GRPCRoute"):
            self.assertIn("COLLECTIONS_JWKS", variables(rendered, named(rendered, "Deployment", "collections-service")))

    @for_each_render
    def test_the_service_identifies_its_callers(self, rendered):
        env = variables(rendered, named(rendered, "Deployment", "collections-service"))
        if env.get("COLLECTIONS_INSECURE_IDENTITY"):
            return
        for variable in ("TLS_CERT", "TLS_KEY", "CLIENT_CA", "TRUSTED_PEER"):
            self.assertTrue(env[f"COLLECTIONS_{variable}"], variable)

    @for_each_render
    def test_certificates_have_the_names_that_are_used(self, rendered):
        for certificate in objects(rendered, "Certificate"):
            users = {name for each in workloads(rendered) for name, _ in manifests.secrets(each)}
            self.assertIn(certificate["spec"]["secretName"], users)
        server = [each for each in objects(rendered, "Certificate") if each["metadata"]["name"] == "collections-service"]
        for certificate in server:
            names, namespace = certificate["spec"]["dnsNames"], certificate["metadata"]["namespace"]
            for service in ("collections-service", "collections-service-headless"):
                self.assertIn(service, names)
                self.assertIn(f"{service}.{namespace}.svc", names)
            for workload in workloads(rendered):
                upstream = variables(rendered, workload).get("COLLECTIONS_UPSTREAM")
                if upstream:
                    host, port = re.fullmatch(r"https://(.+):(\d+)", upstream).groups()
                    self.assertIn(host, names)
                    ports = named(rendered, "Service", host)["spec"]["ports"]
                    self.assertIn(int(port), {each["port"] for each in ports})
            for policy in objects(rendered, "BackendTLSPolicy"):
                self.assertIn(policy["spec"]["validation"]["hostname"], names)

    @for_each_render
    def test_certificates_are_renewed_before_the_alert_warns(self, rendered):
        rules = yaml.safe_load((manifests.DEPLOY / "monitoring/rules.yaml").read_text())
        [days] = [
            int(re.search(r"< (\d+) \* 86400$", rule["expr"])[1])
            for group in rules["groups"]
            for rule in group["rules"]
            if rule.get("alert") == "CollectionsCertificateExpiresSoon" and rule["labels"]["severity"] == "warning"
        ]
        for certificate in objects(rendered, "Certificate"):
            renew_before = int(certificate["spec"]["renewBefore"].removesuffix("h"))
            self.assertGreater(renew_before, days * 24, certificate["metadata"]["name"])
            self.assertGreater(int(certificate["spec"]["duration"].removesuffix("h")), 2 * renew_before)

    def test_the_development_database_image_is_pinned(self):
        compose = yaml.safe_load((manifests.DEPLOY / "compose.yaml").read_text())
        [image] = [
            container_of(each)["image"] for each in objects(manifests.renders()["overlays/dev"], "StatefulSet")
        ]
        self.assertRegex(image, r"@sha256:[0-9a-f]{64}$")
        self.assertEqual(image, compose["services"]["postgres"]["image"])

    @for_each_render
    def test_the_service_trusts_the_gateway(self, rendered):
        for certificate in objects(rendered, "Certificate"):
            if certificate["metadata"]["name"] == "collections-gateway":
                env = variables(rendered, named(rendered, "Deployment", "collections-service"))
                self.assertIn(*certificate["spec"]["uris"], env["COLLECTIONS_TRUSTED_PEER"].split(","))

    @for_each_render
    def test_components_apply_to_all_workloads(self, rendered):
        """A component that is listed before `gateway` would not change it."""
        common = ("COLLECTIONS_JWKS", "COLLECTIONS_OTLP_ENDPOINT")
        found = [variables(rendered, each).keys() & common for each in workloads(rendered) if each["kind"] == "Deployment"]
        self.assertEqual(found, found[:1] * len(found))

    def test_network_policies_select_pods_and_ports(self):
        rendered = manifests.everything()
        pods = [(labels_of(each), container_of(each)) for each in workloads(rendered)]
        names = {port["name"] for _, container in pods for port in container.get("ports", [])}
        for policy in objects(rendered, "NetworkPolicy"):
            with self.subTest(policy["metadata"]["name"]):
                self.assertTrue(any(selects(policy["spec"]["podSelector"], labels) for labels, _ in pods))
                for rule in policy["spec"].get("ingress", []) + policy["spec"].get("egress", []):
                    self.assertTrue(rule["ports"])
                    for port in rule["ports"]:
                        self.assertIn(port["port"], names | {53, *OUTSIDE.values()})
        denied = named(rendered, "NetworkPolicy", "collections-default-deny")["spec"]
        self.assertTrue(all(selects(denied["podSelector"], labels) for labels, _ in pods), "a pod is not denied")
        self.assertNotIn("ingress", denied)
        self.assertNotIn("egress", denied)

    def test_network_policies_admit_prometheus_alone_to_the_admin_listener(self):
        admitted = []
        for policy in objects(manifests.everything(), "NetworkPolicy"):
            for rule in policy["spec"].get("ingress", []):
                if any(each["port"] in ("admin", 9090) for each in rule["ports"]):
                    admitted += rule["from"]
        [peer] = admitted
        self.assertEqual(peer["podSelector"]["matchLabels"], {"app.kubernetes.io/name": "prometheus"})
        self.assertIn("namespaceSelector", peer)

    def test_network_policies_open_what_components_use(self):
        rendered = manifests.everything()
        for workload in workloads(rendered):
            ports = set()
            for policy in objects(rendered, "NetworkPolicy"):
                if selects(policy["spec"]["podSelector"], labels_of(workload)):
                    for rule in policy["spec"].get("egress", []):
                        ports.update(each["port"] for each in rule["ports"])
            for variable in OUTSIDE.keys() & variables(rendered, workload).keys():
                self.assertIn(OUTSIDE[variable], ports, variable)
            self.assertIn(53, ports)
