import asyncio
import os
import subprocess
import threading
import time

import pytest
import yaml

from data.records import Decoding, Generation, Model, as_json
from serving import replica
from serving.engine import Piece
from serving.replica import ModelReplica
from settings import ROOT

MODEL = as_json(Model("a" * 64, "m.gguf", "openvino", "b"))
DECODING = as_json(Decoding(max_new_tokens=4))


class Engine:
    """Writes one letter every `pause` seconds; `error` is raised after the second."""

    version = "fake"

    def __init__(self, letters="abcdefgh", pause=0.0, error=None):
        self.letters, self.pause, self.error = letters, pause, error
        self.closed, self.generated = threading.Event(), 0

    def stream(self, prompt, decoding):
        try:
            for n, letter in enumerate(self.letters, start=1):
                if self.error and n == 3:
                    raise self.error
                time.sleep(self.pause)
                yield Piece(letter, n, "stop" if n == len(self.letters) else "", 7)
        finally:
            self.closed.set()

    def generate(self, prompts, decoding):
        self.generated += 1
        if self.error:
            raise self.error
        return [Generation("x", 1, decoding.max_new_tokens, "length", 0.0, 0.0)]

    def check(self):
        self.generate(["anything"], Decoding(max_new_tokens=1))


@pytest.fixture
def opened(monkeypatch):
    def opened(engine: Engine) -> ModelReplica:
        monkeypatch.setattr("serving.engine.open_engine", lambda model: engine)
        return ModelReplica(MODEL)

    return opened


async def collect(pieces) -> list[dict]:
    return [piece async for piece in pieces]


def test_the_first_piece_comes_at_once_and_the_others_are_gathered(opened):
    pieces = asyncio.run(collect(opened(Engine(letters="abcdefgh" * 5, pause=0.005)).stream("p", DECODING)))
    assert "".join(piece["text"] for piece in pieces) == "abcdefgh" * 5
    assert pieces[0]["text"] == "a" and 3 <= len(pieces) <= 12
    assert pieces[-1] == {"text": pieces[-1]["text"], "tokens": 40, "finish_reason": "stop", "prompt_tokens": 7}


def test_closing_the_stream_cancels_the_generation(opened):
    engine = Engine(letters="a" * 10_000, pause=0.005)

    async def leave_after_one():
        pieces = opened(engine).stream("p", DECODING)
        await anext(pieces)
        await pieces.aclose()
        return await asyncio.to_thread(engine.closed.wait, 1.0)

    assert asyncio.run(leave_after_one())


def test_before_the_first_text_nothing_is_sent_and_the_generation_can_be_cancelled(opened):
    engine = Engine(letters=[""] * 100 + ["a"] * 10_000, pause=0.001)
    silent = Engine(letters=[""] * 10_000, pause=0.005)

    async def leave_before_any():
        pieces = opened(silent).stream("p", DECODING)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(pieces), 0.1)
        return await asyncio.to_thread(silent.closed.wait, 1.0)

    async def first():
        pieces = opened(engine).stream("p", DECODING)
        piece = await anext(pieces)
        await pieces.aclose()
        return piece["text"]

    assert asyncio.run(first()) == "a" and asyncio.run(leave_before_any())


def test_what_the_engine_raises_reaches_the_caller_after_what_it_wrote(opened):
    seen = []

    async def read():
        async for piece in opened(Engine(error=RuntimeError("out of memory"))).stream("p", DECODING):
            seen.append(piece["text"])

    with pytest.raises(RuntimeError, match="out of memory"):
        asyncio.run(read())
    assert seen == ["a"]


def test_many_streams_run_at_once(opened):
    async def crowd():
        held = opened(Engine(pause=0.02))
        return await asyncio.gather(*(collect(held.stream("p", DECODING)) for _ in range(32)))

    start = time.monotonic()
    assert all("".join(p["text"] for p in pieces) == "abcdefgh" for pieces in asyncio.run(crowd()))
    assert time.monotonic() - start < 2.0


def test_health_is_the_engines_own_check_unless_tokens_were_just_written(opened):
    engine = Engine()

    async def check():
        held = opened(engine)
        await held.check_health()
        await collect(held.stream("p", DECODING))
        await held.check_health()

    asyncio.run(check())
    assert engine.generated == 1
    with pytest.raises(RuntimeError, match="broken graph"):
        asyncio.run(opened(Engine(error=RuntimeError("broken graph"))).check_health())


def test_deploying_what_runs_asks_for_nothing_and_what_fails_is_deleted_with_serves_message(monkeypatch):
    asked, deleted, status = [], [], {}
    monkeypatch.setattr(replica, "connect", lambda: None)
    monkeypatch.setattr(replica, "statuses", lambda: status)
    monkeypatch.setattr(replica, "message", lambda name: "sha256 differs")
    monkeypatch.setattr(replica, "delete", deleted.append)
    model = Model.of(MODEL)
    name = replica.app_name(model.sha256)

    def run(model):
        asked.append(model)
        status[name] = "DEPLOY_FAILED"

    monkeypatch.setattr(replica, "run", run)
    status[name] = "RUNNING"
    replica.deploy(model)
    assert asked == []
    status[name] = None
    with pytest.raises(RuntimeError, match="sha256 differs"):
        replica.deploy(model)
    assert asked == [model] and deleted == [model.sha256]
    status[name] = "DEPLOYING"
    with pytest.raises(TimeoutError, match="was not ready"):
        replica.deploy(model, timeout_s=0.0)


def test_running_names_artifacts_not_other_applications_nor_those_that_end(monkeypatch):
    status = {"endpoint": "RUNNING", "model-aaa": "RUNNING", "model-bbb": "DEPLOYING", "model-ccc": "DELETING"}
    monkeypatch.setattr(replica, "statuses", lambda: status)
    assert replica.running() == {"aaa", "bbb"}


def test_a_replica_gets_our_settings_and_its_threads(monkeypatch):
    monkeypatch.setenv("PERENNIAL_STORE_URI", "s3://somewhere")
    variables = replica.worker_environment(2)["env_vars"]
    assert variables["OMP_NUM_THREADS"] == "2" and variables["PERENNIAL_STORE_URI"] == "s3://somewhere"
    assert "RAY_ADDRESS" not in variables and variables["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("name", ["PERENNIAL_UPSTREAM_KEY", "PERENNIAL_JUDGE_KEY", "PERENNIAL_ALERTS"])
def test_a_secret_that_ray_would_log_is_not_part_of_a_replicas_environment(monkeypatch, name):
    monkeypatch.setenv(name, "sk-secret")
    monkeypatch.setenv("PERENNIAL_RETENTION_DAYS", "7")
    given = replica.worker_environment(2)["env_vars"]
    assert given["PERENNIAL_RETENTION_DAYS"] == "7" and "sk-secret" not in given.values()


def test_ray_has_the_upstreams_key_on_every_node_of_a_cluster(tmp_path):
    told = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    ray = tmp_path / "perennial" / ".venv" / "bin" / "ray"
    ray.parent.mkdir(parents=True)
    ray.write_text('#!/bin/sh\necho "$PERENNIAL_UPSTREAM_KEY"\n')
    ray.chmod(0o700)
    (tmp_path / "perennial.env").write_text("PERENNIAL_UPSTREAM_KEY=sk-of-the-upstream\n")
    assert "~/perennial.env" in told["file_mounts"]
    for node in ("head", "worker"):
        command = told[f"{node}_start_ray_commands"][-1]
        there = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        started = subprocess.run(["bash", "-c", command], env=there, capture_output=True, text=True, check=True)
        assert started.stdout == "sk-of-the-upstream\n"
