"""Fine-tuning whole."""

import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from data.records import Prompt
from tasks import finetune
from tasks.contexts import Mixture, contexts, rows
from tasks.finetune import Prepared, save
from tasks.training import Training
from tests.doors import BOUND, CHUNKS, EXAMPLES, search, small_rows

ABOUT = {"examples": 32, "held": 0, "lost": 0, "contexts": 20, "preferences": 0, "flips": 0.0, "feedback": []}


@pytest.mark.stack
def test_finetuning_the_real_base_in_ray_changes_its_answers_and_the_second_call_is_a_read(stack, monkeypatch):
    import ray

    from data.records import Decoding
    from serving.engine import open_engine
    from serving.engine.models import base_model

    monkeypatch.setattr(finetune, "training_rows", lambda *given: Prepared(real_rows(), None, None, ABOUT))
    snapshot, index = SimpleNamespace(id="s", assistant="doors"), SimpleNamespace(checksum="i")
    try:
        made = finetune.finetune(snapshot, index, training=Training(minutes=5))
    finally:
        ray.shutdown()
    assert finetune.finetune(snapshot, index, training=Training(minutes=5)) == made  # Ray is gone: a read
    prompt = build_chat(EXAMPLES[0].question, CHUNKS[:3])
    answers = []
    for model in (base_model(), made):
        engine = open_engine(model)
        answers.append(engine.generate([prompt], Decoding(max_new_tokens=12))[0].text)
        engine.close()
    assert answers[0] != answers[1] and len(answers[1]) < len(answers[0])


def build_chat(question, chunks):
    from serving.rag import build_prompt

    return build_prompt(Prompt(), question, chunks)


def real_rows():
    from tokenizers import Tokenizer

    from serving.engine.models import base_folder

    encoder = Tokenizer.from_file(str(base_folder() / "tokenizer.json"))
    planned = contexts(BOUND, search, 3, Mixture(), 2, seed=1)
    return rows(
        planned,
        build_chat,
        lambda t: encoder.encode(t, add_special_tokens=False).ids,
        Prompt().abstain,
        Mixture(),
        10**6,
    )


# --- several nodes ----------------------------------------------------------------------------


def workers() -> list[int]:
    """Process ids of the Ray Train workers of the cluster this process has started."""
    return [p.pid for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]


@pytest.mark.stack
def test_a_killed_worker_and_a_lost_node_cost_only_the_steps_since_the_last_checkpoint(base, tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    training = Training(minutes=None, rank=4, learning_rate=0.01, row_tokens=400, checkpoint_s=0.0)
    for name in ("quiet", "harmed"):
        save(tmp_path / name, small_rows(passes=60), None)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        quiet = finetune.train(tmp_path / "quiet", training, 2, "quiet", str(base))
        seen = tmp_path / "harmed" / "checkpoints"
        running = threading.Thread(target=finetune.train, args=(tmp_path / "harmed", training, 2, "harmed", str(base)))
        running.start()
        reached(seen, 8)
        os.kill(workers()[0], signal.SIGKILL)
        reached(seen, 30)
        cluster.remove_node(nodes[1], allow_graceful=False)
        cluster.add_node(num_cpus=1)
        running.join(timeout=300)
        assert not running.is_alive()
    finally:
        ray.shutdown()
        cluster.shutdown()
    told = [json.loads((folder / "training.json").read_text()) for folder in (quiet.parent, tmp_path / "harmed")]
    assert told[0]["steps"] == told[1]["steps"] == told[1]["planned"] and told[1]["workers"] == 2
    assert told[0]["losses"] == pytest.approx(told[1]["losses"], abs=1e-3)


def reached(checkpoints, step: int) -> None:
    """Wait until training has left a whole checkpoint at or after `step`."""
    deadline = time.monotonic() + 200
    while not any(int(made.parent.name) >= step for made in checkpoints.glob("*/COMPLETE")):
        assert time.monotonic() < deadline, f"no checkpoint of step {step} within 200 s"
        time.sleep(0.05)
