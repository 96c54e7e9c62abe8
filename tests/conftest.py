"""One temporary home for the whole run; `stack` starts Prefect, MLflow, Ray and the endpoint once, on free ports."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(tempfile.mkdtemp(prefix="pt", dir="/tmp"))  # short: Unix socket paths are limited to 107 characters
os.environ["PERENNIAL_HOME"] = str(HOME)


from benchmarks.machine import free_ports, link_models  # noqa: E402

os.environ.update(free_ports())

from settings import apply_environment  # noqa: E402

apply_environment()


def pytest_unconfigure(config):
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def models():
    """The fetched base model and embedder."""
    link_models(HOME)
    return HOME / "models"


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A random tiny Llama as a Hugging Face folder, its GGUF template beside it."""
    from tests import tiny

    return tiny.folder(tmp_path_factory.mktemp("base"), template=tiny.CHATML)


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
