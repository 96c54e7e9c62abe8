"""One writer at a time."""

import json
import subprocess
import sys

import pytest

import settings
from data.lease import lease


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    settings.settings.cache_clear()
    yield tmp_path
    settings.settings.cache_clear()


def test_a_second_writer_waits_and_then_is_told_who_holds_it():
    with lease("t"), pytest.raises(TimeoutError, match='"pid"'), lease("t", timeout_s=0.1):
        pass
    with lease("t", timeout_s=0.1):
        pass


def test_another_lease_is_not_waited_for():
    with lease("t"), lease("u", timeout_s=0.1):
        pass


def test_each_holder_has_a_higher_fence(home):
    for expected in (1, 2, 3):
        with lease("t"):
            assert json.loads((home / "leases" / "t.json").read_text())["fence"] == expected


def test_a_holder_that_was_overtaken_may_not_commit(home):
    with lease("t") as confirm:
        confirm()
        (home / "leases" / "t.json").unlink()
        with lease("t", timeout_s=0.1), pytest.raises(RuntimeError, match="taken over"):
            confirm()


def test_a_killed_holder_blocks_nobody(home):
    code = "from data.lease import lease\nwith lease('t'):\n print('held', flush=True)\n import time; time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(TimeoutError), lease("t", timeout_s=0.1):
        pass
    holder.kill()
    holder.wait()
    with lease("t", timeout_s=2):
        pass
