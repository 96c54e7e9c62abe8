"""A machine that cannot work is refused with a sentence that says what to do."""

import socket
from pathlib import Path

import pytest

from benchmarks.machine import free_ports
from flows import stack
from settings import Settings


@pytest.mark.parametrize(("name", "beyond"), [("mlflow_port", 0), ("ray_port", 0), ("ray_port", 2)])
def test_a_taken_port_is_named_with_the_variable_that_changes_it(name, beyond, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        free = {key.removeprefix("PERENNIAL_").lower(): int(number) for key, number in free_ports().items()}
        monkeypatch.setattr(stack, "settings", lambda: Settings(**free | {name: port - beyond}))
        with pytest.raises(SystemExit, match=rf"port {port} \({name}\) is taken.*PERENNIAL_{name.upper()}"):
            stack.check_machine()


def test_beyond_loopback_a_key_is_required(monkeypatch):
    monkeypatch.setattr(stack, "settings", lambda: Settings(host="0.0.0.0", api_key=None))
    with pytest.raises(SystemExit, match="PERENNIAL_API_KEY"):
        stack.check_machine()


def test_too_little_disk_is_said_in_figures(monkeypatch):
    monkeypatch.setattr(stack.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**8})())
    with pytest.raises(SystemExit, match=r"0\.1 GB of disk are free"):
        stack.check_machine()


def test_a_newer_version_brings_the_ledger_of_a_running_stack_up_to_date(monkeypatch):
    done = []
    monkeypatch.setattr("data.ledger.migrate", lambda url: done.append("migrated"))
    monkeypatch.setattr(stack, "running", lambda: True)
    monkeypatch.setattr(stack, "wait_for", done.append)
    monkeypatch.setattr(stack, "deploy_flows", lambda: done.append("deployed"))
    stack.start()
    assert done == ["migrated", "prefect", "mlflow", "ray", "endpoint", "deployed"]


def test_a_long_home_gets_a_short_socket_folder():
    long = Path("/tmp") / ("x" * 60)
    assert len(str(stack.short(long))) < 36
    assert stack.short(Path("/tmp/p")) == Path("/tmp/p")
