"""`python -m serving.up`: deploy the endpoint and every live release, watch them, exit when they can not be kept up.

Whoever started it starts it again (supervisord). It is the only process that redeploys what is recorded as live.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from data.ledger import Ledger
from data.records import Model
from serving import endpoint, replica
from serving.router import UNREADABLE
from settings import apply_environment, settings

WATCH_S = 2.0
UNHEALTHY_S = 20.0
RETRY_S = 30.0
START_S = 240.0


class PortTaken(RuntimeError):
    """Something else listens where the endpoint should."""


def check_port(host: str, port: int) -> None:
    """Raises PortTaken when `host:port` can not be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(
                f"the endpoint can not listen on {host}:{port} ({error.strerror}); "
                f"stop what uses it or set PERENNIAL_ENDPOINT_PORT"
            ) from None


def reachable(address: str) -> bool:
    """Whether Ray's head at `address` (host:port) accepts a connection."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def live_models(ledger: Ledger) -> dict[str, Model]:
    """Application name -> artifact, for every release that answers users, canaries and split tests included."""
    releases = [r for routing in ledger.live().values() for r in (routing.live, routing.canary, routing.b) if r]
    return {replica.app_name(release.model.sha256): release.model for release in releases}


class Watch:
    """What is remembered between two looks: since when the endpoint is unhealthy, when each model was asked for."""

    def __init__(self, ledger: Ledger):
        self.ledger = ledger
        self.unhealthy_since: float | None = None
        self.asked: dict[str, float] = {}

    def deploy_missing(self, statuses: dict[str, str], now: float) -> list[str]:
        """Ask Serve for live artifacts that have no application or a failed one, each at most every `RETRY_S`.

        Returns the live applications that are not running yet. An unreadable ledger is left for the next look.
        """
        try:
            wanted = live_models(self.ledger)
        except UNREADABLE as error:
            say(f"the ledger can not be read: {error}")
            return []
        waiting = [name for name in wanted if statuses.get(name) != "RUNNING"]
        for name in waiting:
            gone = statuses.get(name) in replica.STARTABLE
            if gone and now - self.asked.get(name, -RETRY_S) >= RETRY_S:
                say(f"starting {name}")
                self.asked[name] = now
                replica.run(wanted[name])
        return waiting

    def given_up(self, status: str | None, now: float) -> bool:
        """Whether the endpoint has been anything but RUNNING for `UNHEALTHY_S`."""
        if status == "RUNNING":
            self.unhealthy_since = None
            return False
        self.unhealthy_since = self.unhealthy_since or now
        return now - self.unhealthy_since >= UNHEALTHY_S


def start(watch: Watch) -> None:
    """Deploy everything and wait until it answers. Raises PortTaken, or TimeoutError naming what is not up."""
    import ray
    from ray import serve

    chosen = settings()
    ray.init(address=chosen.ray, namespace="perennial", log_to_driver=False, logging_level="warning")
    if not serve.status().proxies:
        check_port(chosen.host, chosen.endpoint_port)
    replica.connect()
    endpoint.run()
    deadline = time.monotonic() + START_S
    while True:
        statuses = replica.statuses()
        waiting = watch.deploy_missing(statuses, time.monotonic())
        if statuses.get(endpoint.NAME) == "DEPLOY_FAILED":
            raise RuntimeError(f"the endpoint can not start: {replica.message(endpoint.NAME)}")
        waiting += [endpoint.NAME] if statuses.get(endpoint.NAME) != "RUNNING" else []
        failed = [name for name in waiting if statuses.get(name) == "DEPLOY_FAILED"]
        if not [name for name in waiting if name not in failed]:
            for name in failed:  # other assistants answer meanwhile
                say(f"{name} can not start: {replica.message(name)}")
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{', '.join(waiting)} not ready after {START_S:.0f} s")
        time.sleep(0.25)


def ready_file() -> Path:
    """Exists while the endpoint is up: JSON with its address and our process id."""
    return settings().home / "serving.ready"


def main() -> int:
    apply_environment()
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    chosen = settings()
    if not chosen.loopback and not chosen.api_key:
        say(f"refusing to listen on {chosen.host} without a key; set PERENNIAL_API_KEY or listen on 127.0.0.1")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ready_file().unlink(missing_ok=True)
    if not reachable(chosen.ray):
        say(f"Ray's head at {chosen.ray} does not answer; start it first (make run)")
        return 1
    watch = Watch(Ledger(chosen.ledger))
    try:
        start(watch)
        ready_file().write_text(json.dumps({"endpoint": chosen.endpoint, "pid": os.getpid()}))
        say(f"answering on {chosen.endpoint}")
        return keep(watch)
    except (RuntimeError, OSError, RayError, RayServeException) as error:
        say(f"{type(error).__name__}: {error}")
        return 1
    finally:
        ready_file().unlink(missing_ok=True)


def keep(watch: Watch) -> int:
    """Look every `WATCH_S`, start what is missing, and return 1 when Ray or the endpoint is gone."""
    silent = 0
    while True:
        time.sleep(WATCH_S)
        silent = 0 if reachable(settings().ray) else silent + 1
        if silent:
            if silent >= 3:
                say(f"Ray's head at {settings().ray} is gone")
                ready_file().unlink(missing_ok=True)
                os._exit(1)  # a clean exit would wait for the cluster that is gone
            continue
        statuses = replica.statuses()
        watch.deploy_missing(statuses, time.monotonic())
        if watch.given_up(statuses.get(endpoint.NAME), time.monotonic()):
            say(f"the endpoint has been {statuses.get(endpoint.NAME, 'missing')} for {UNHEALTHY_S:.0f} s")
            return 1


def say(text: str) -> None:
    print(f"serving: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
