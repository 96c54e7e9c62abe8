"""One temporary home for the whole run; `stack` starts Prefect, MLflow, Ray and the endpoint once, on free ports."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(tempfile.mkdtemp(prefix="pt", dir="/tmp"))  # short: Unix socket paths are limited to 107 characters
os.environ["PERENNIAL_HOME"] = str(HOME)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def free_ports(count: int) -> list[int]:
    """Free ports, each with the two after it free as well (Ray takes three in a row)."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port < 65000 and all(abs(port - other) > 4 for other in found) and all(map(is_free, (port + 1, port + 2))):
            found.append(port)
    return found


NAMES = ("ENDPOINT_PORT", "PREFECT_PORT", "MLFLOW_PORT", "DASHBOARD_PORT", "RAY_PORT")
for name, port in zip(NAMES, free_ports(len(NAMES)), strict=True):
    os.environ[f"PERENNIAL_{name}"] = str(port)

from settings import apply_environment  # noqa: E402

apply_environment()


def pytest_unconfigure(config):
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def models():
    """The fetched base model and embedder. Fetched once into the checkout's home: they are immutable and verified."""
    kept = ROOT / ".perennial" / "models"
    fetch = os.environ | {"PERENNIAL_HOME": str(ROOT / ".perennial")}
    subprocess.run([sys.executable, "-m", "serving.engine.models"], env=fetch, cwd=ROOT, check=True)
    (HOME / "models").mkdir(exist_ok=True)
    for folder in kept.iterdir():
        if folder.name != "tuned" and not (HOME / "models" / folder.name).exists():
            (HOME / "models" / folder.name).symlink_to(folder)
    return HOME / "models"


def command(*words: str, timeout: float = 600) -> subprocess.CompletedProcess:
    """Run a Python module of the project as a user would, in the tests' home."""
    run = [sys.executable, "-m", *words]
    return subprocess.run(run, cwd=ROOT, env=os.environ | {}, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def stack(models):
    """The running processes of one machine; everything is stopped and deleted at the end."""
    started = command("flows.stack", "start")
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        yield HOME
    finally:
        command("flows.stack", "stop")
