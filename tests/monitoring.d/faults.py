"""Faults, injected one after the other. Each names the alerts that have to fire, and what their runbook sections have to show.

A fault is a generator: it injects, yields the replica that the operator looks at, and repairs.
"""

import datetime
import os
import re
import signal
import socket
import ssl
import time
from functools import partial

from callers import RestCaller, together
from deployment import owner
from processes import wait_for

# `(name, function, {alert: texts or patterns in the output of its runbook's commands})`, in the order in which they run.
FAULTS = []
# Longer than the 250 ms within which the service level expects a destroy, in seconds.
SLOW = 0.3
# A number as the answer to a query whose only series has no labels.
TOTAL = re.compile(r'"metric":\{\},"value":\[[0-9.]+,"[0-9]')


def fault(**evidence):
    """Registers a fault with the alerts that it causes."""

    def register(function):
        FAULTS.append((function.__doc__.strip(), function, evidence))
        return function

    return register


@fault(
    CollectionsCallerNotAllowed=["spiffe://example.org/stranger"],
    CollectionsHandshakeFailures=["UnknownIssuer"],
)
def unknown_callers(site):
    """a caller that is not on the list, and one of an unknown authority"""
    stranger = site.caller("stranger")
    for _ in range(12):
        assert stranger.call("custom-5", 1) == "PERMISSION_DENIED"
    stranger.close()
    authority, _, _ = site.certificates.files("orders")
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(*site.outsiders.files("orders")[1:])
    context.set_alpn_protocols(["h2"])
    for _ in range(60):
        try:
            with socket.create_connection(("127.0.0.1", site.one.ports["grpc"])) as plain:
                with context.wrap_socket(plain, server_hostname="localhost") as connection:
                    connection.recv(1)
        except (ssl.SSLError, ConnectionError):
            pass
    wait_for("the failures are logged", lambda: "TLS handshakes failed" in site.one.log.read_text())
    yield site.one


@fault(
    CollectionsAuthenticationFailures=["CREDENTIALS_INVALID", "https://api.example.net", '"server.address":"127.0.0.1:'],
    CollectionsRateLimitFallback=["redis unavailable", "collections_rate_limit_fallback 1"],
    CollectionsJwksStale=["jwks unavailable", "Connection refused"],
    CollectionsCertificateExpiresSoon=["collections_certificate_expiry_timestamp_seconds", "certificate in force"],
)
def wrong_configuration(site):
    """a replica with a wrong public origin, no Redis and no JWKS; its certificate and that of a gateway expire soon"""
    lifetime = datetime.timedelta(seconds=15)
    site.certificates.issue_server("expiring", lifetime)
    expiry = time.monotonic() + lifetime.total_seconds()
    site.certificates.issue_caller("gateway", datetime.timedelta(days=10))
    site.two.start()
    site.three_reader = start_unread(site)
    site.scrape(site.one, site.gateway, site.two, site.three)
    client = RestCaller(site.two.addresses["rest"], site.consumer, site.token)
    assert set(together([partial(client.call, "custom-5")] * 300)) == {401}
    yield site.two
    site.certificates.issue_caller("gateway")
    wait_for("the certificate expires", lambda: time.monotonic() > expiry)
    assert call_once(site, site.two) == "UNAVAILABLE", "a caller accepts an expired certificate"
    site.certificates.issue_server("expiring")
    wait_for("callers accept the new certificate", lambda: call_once(site, site.two) == "NOT_FOUND")


def call_once(site, program):
    """The status of a call over a new connection."""
    caller = site.caller("orders", program.addresses["grpc"])
    status = caller.call("custom-999999999", 1, timeout=5)
    caller.close()
    return status


def start_unread(site):
    """Starts a replica whose standard error is a pipe that is not read."""
    reader, writer = os.pipe()
    site.three.start(stderr=writer)
    os.close(writer)
    site.three.addresses = {name: f"127.0.0.1:{port}" for name, port in site.three.ports.items()}
    return reader


@fault(CollectionsLogLinesDropped=["collections_log_lines_dropped_total"])
def unread_log(site):
    """a replica whose standard error is not read"""
    caller = site.caller("orders", site.three.addresses["grpc"])
    dropped = f'collections_log_lines_dropped_total{{instance="{site.three.addresses["admin"]}"}}'

    def is_dropping():
        together([partial(caller.call, "custom-999999999", 1)] * 100)
        return site.prometheus.value(dropped)

    wait_for("lines are dropped", is_dropping)
    caller.close()
    yield site.three


@fault(CollectionsTargetDown=["the admin listener does not answer", "connection refused"])
def killed_replica(site):
    """a replica that was killed"""
    site.three.stop(signal.SIGKILL)
    os.close(site.three_reader)
    # Its log went into the pipe.
    site.three.log.write_text("")
    yield site.three
    site.two.stop()
    site.scrape(site.one, site.gateway)


@fault(CollectionsReloadFailing=["--credentials-key-file", "not reloaded", 'collections_reload_failing{flag="--credentials-key-file"} 1'])
def failed_reload(site):
    """a key file that cannot be used"""
    valid = site.key_file.read_text()
    site.key_file.write_text("no key\n")
    yield site.one
    site.key_file.write_text(valid)


@fault(CollectionsPurgeFailing=["purge failed", "does not exist"])
def failing_purge(site):
    """a purge whose function is gone"""
    site.cluster.sql("ALTER FUNCTION purge_collections_v1 RENAME TO purge_collections_away")
    site.load(1)
    yield site.one
    site.cluster.sql("ALTER FUNCTION purge_collections_away RENAME TO purge_collections_v1")
    wait_for("the purge recovers", lambda: "purge recovered" in site.one.log.read_text())


@fault(
    CollectionsInFlightNearLimit=["collections_calls_in_flight_limit 64", "idle in transaction"],
    CollectionsCallsRefused=["calls refused", "OVERLOADED"],
    CollectionsErrorBudgetBurnFast=['"reason":"OVERLOADED"'],
    CollectionsErrorBudgetBurnSlow=['"reason":"OVERLOADED"'],
)
def overload(site):
    """more calls than are admitted, while a table is locked"""
    unlock = site.cluster.lock("collections")
    callers = [site.orders]
    forwarders = [site.forward(f"127.0.0.{source}") for source in (2, 3, 4)]
    for name, forwarder in zip(("billing", "batch", "gateway"), forwarders):
        callers.append(site.caller(name, forwarder.address))
    calls = []
    for caller in callers:
        calls += [caller.start(id, user) for id, user in site.take(40)]
        # So that each caller takes the places that the ones before it left.
        wait_for("each call is in flight or refused", partial(are_admitted, site.one, calls))
    yield site.one
    unlock()
    outcomes = {call.code().name for call in calls}
    assert "UNAVAILABLE" in outcomes, outcomes
    for each in callers[1:] + forwarders:
        each.close()


def are_admitted(program, calls):
    """Whether every call that has not ended is in flight."""
    return sum(not call.done() for call in calls) == program.metric("collections_calls_in_flight")


@fault(
    CollectionsLatencyBudgetBurnFast=[TOTAL, '"db_operation_name":"destroy"},"value"'],
    CollectionsLatencyBudgetBurnSlow=[TOTAL, '"db_operation_name":"destroy"},"value"', "purge_queue"],
)
def slow_destroys(site):
    """destroys that wait for a lock"""
    for _ in range(4):
        unlock = site.cluster.lock("collections")
        calls = [site.orders.start(id, user) for id, user in site.take(30)]
        wait_for("all calls are in flight", partial(are_admitted, site.one, calls))
        slow = time.monotonic() + SLOW
        wait_for("all calls are slow", lambda: time.monotonic() > slow)
        unlock()
        for call in calls:
            call.code()
    yield site.one


@fault(
    CollectionsErrorBudgetBurnFast=[
        '"job":"collections-gateway","protocol":"rest","reason":"STORE_UNAVAILABLE"',
        "readyz check passed",
        "upstream address ejected",
        "the upstream did not answer",
    ],
    CollectionsErrorBudgetBurnSlow=['"reason":"STORE_UNAVAILABLE"', "the upstream did not answer"],
)
def upstream_away(site):
    """a gateway that does not reach the service"""
    site.one.stop()
    calls = [partial(site.through_gateway.call, id) for id, _ in site.take(20, owner(0))]
    assert together(calls) == {503: 20}
    alert = 'ALERTS{alertname="CollectionsErrorBudgetBurnFast",job="collections-gateway",alertstate="firing"}'
    wait_for("the gateway's alert fires", lambda: site.prometheus.query(alert))
    yield site.gateway
    site.one.start()


@fault(
    CollectionsRestarting=["draining", "stopped", "process_start_time_seconds", "unexpected argument '--no-such-flag'"]
)
def restarts(site):
    """a process that restarts again and again, once with an invalid flag, and in the end without a purge"""
    instance = site.one.addresses["admin"]
    started = f'process_start_time_seconds{{instance="{instance}"}}'
    site.one.command += ["--purge", "off"]
    for _ in range(3):
        before = site.prometheus.value(started)
        site.one.restart()
        wait_for("the restart is scraped", lambda: site.prometheus.value(started) not in (None, before))
    site.one.stop()
    assert site.one.fail("--no-such-flag") == 2
    site.one.start()
    yield site.one


@fault(
    CollectionsErasureLate=[
        "collections_purge_oldest_age_seconds",
        '"purge":"off"',
        "purge recovered",
        "nothing found",
        "purge is complete",
    ]
)
def stuck_purge(site):
    """collections that nothing erases, because no replica purges"""
    site.load(1)
    site.cluster.sql("UPDATE purge_queue SET since = since - interval '2 days'")
    yield site.one
    assert site.cluster.sql("SELECT count(*) FROM purge_queue") == "0", "the runbook has not erased them"


@fault(CollectionsDestroyRateAnomaly=["mtls:spiffe://example.org/batch", "users"])
def mass_deletion(site):
    """a caller that destroys many collections"""
    batch = site.caller("batch")
    assert together([partial(batch.call, id, user) for id, user in site.take(1000)]) == {"OK": 1000}
    batch.close()
    yield site.one


@fault(
    CollectionsNoReplicaReady=["[-]database", "the database does not answer"],
    CollectionsNotReady=["[-]database", "not ready", "the database does not answer", re.compile("database (failed|did not answer)")],
    CollectionsReadinessFlapping=["not ready"],
)
def database_away(site):
    """a database that goes away again and again"""
    ready = f'collections_ready{{instance="{site.one.addresses["admin"]}"}}'
    for attempt in range(3):
        site.cluster.stop()
        wait_for("readiness is off", lambda: site.prometheus.value(ready) == 0)
        if attempt < 2:
            site.cluster.start()
            wait_for("readiness is on", lambda: site.prometheus.value(ready) == 1)
    yield site.one
    site.cluster.start()
    wait_for("readiness is on", lambda: site.prometheus.value(ready) == 1)


@fault(CollectionsAbsent=["the admin listener does not answer", "lastError", '"message":"stopped"'])
def nothing_runs(site):
    """no process at all"""
    site.gateway.stop()
    site.one.stop()
    yield site.one


def missing(texts, output):
    """The texts that the output lacks."""
    return [
        text for text in texts if not (text.search(output) if isinstance(text, re.Pattern) else text in output)
    ]
