"""The loop on a random tiny Llama: plan, rate, budget, checks, resume, two workers."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest

from tasks.contexts import Rows
from tasks.training import Training, rate, steps, train_loop_per_worker
from tests.conftest import ROOT
from tests.doors import small_rows


def test_each_row_is_in_exactly_one_stretch_and_no_stretch_of_several_is_over_its_budget():
    lengths = np.random.default_rng(0).integers(50, 700, 333)
    for world in (1, 2, 3):
        plan = steps(lengths, Training(row_tokens=512, rows_per_step=4), world)
        stretches = [stretch for step in plan for worker in step for stretch in worker]
        assert sorted(number for stretch in stretches for number in stretch) == list(range(333))
        assert all(len(stretch) == 1 or lengths[stretch].sum() <= 512 for stretch in stretches)
        assert all(len(step) == world for step in plan)


def test_workers_of_a_step_get_about_equally_long_shares():
    plan = steps(np.random.default_rng(0).integers(300, 700, 640), Training(row_tokens=1), 2)
    counts = [[len(worker) for worker in step] for step in plan]
    assert all(one == other for one, other in counts)


def test_the_rate_warms_up_then_falls_to_zero_at_the_end_of_the_budget():
    assert rate(0.0) == 0 and rate(0.03) == pytest.approx(0.5)
    assert rate(0.06) == pytest.approx(1.0) and rate(0.53) == pytest.approx(0.5)
    assert rate(1.0) == 0 == rate(1.2)


def config(work, base, **changes):
    small = Training(**({"rank": 4, "learning_rate": 0.01, "minutes": None, "row_tokens": 400} | changes))
    return {"work": str(work), "base": str(base), "training": asdict(small), "gpu": False}


@pytest.fixture
def work(tmp_path):
    small_rows(passes=12).save(tmp_path / "rows.npz")
    return tmp_path


def figures(work):
    return json.loads((work / "training.json").read_text())


def test_training_lowers_the_loss_and_leaves_an_adapter(work, base):
    train_loop_per_worker(config(work, base))
    done = figures(work)
    assert done["steps"] == done["planned"] and done["tokens"] == Rows.load(work / "rows.npz").lengths.sum()
    assert (work / "adapter" / "adapter_model.safetensors").exists()
    first = figures_of_one_step(work, base)
    assert np.mean(done["losses"][-20:]) < 0.8 * first


def figures_of_one_step(work, base):
    train_loop_per_worker(config(work, base, minutes=1e-6))
    return figures(work)["losses"][0]


def test_training_ends_with_its_time_budget(work, base):
    train_loop_per_worker(config(work, base, minutes=1e-6))
    assert figures(work)["steps"] == 1


def test_training_goes_on_from_the_last_whole_checkpoint(work, base):
    given = config(work, base, checkpoint_s=0.0)
    train_loop_per_worker(given)
    whole = figures(work)
    adapter = (work / "adapter" / "adapter_model.safetensors").read_bytes()
    kept = sorted(path.name for path in (work / "checkpoints").iterdir())
    assert kept == [f"{whole['planned'] - back:08d}" for back in (2, 1)]
    torn = work / "checkpoints" / f"{whole['planned']:08d}"  # a later one that was being written
    torn.mkdir()
    (torn / "state.safetensors").write_bytes(b"torn")
    train_loop_per_worker(given)
    again = figures(work)
    assert again["losses"] == whole["losses"] and again["tokens"] == whole["tokens"]
    assert (work / "adapter" / "adapter_model.safetensors").read_bytes() == adapter


def test_a_checkpoint_that_does_not_match_its_hash_is_not_used(work, base, capsys):
    given = config(work, base, checkpoint_s=0.0)
    train_loop_per_worker(given)
    before, kept = sorted((work / "checkpoints").iterdir())
    state = bytearray((kept / "state.safetensors").read_bytes())
    state[-1] ^= 1
    (kept / "state.safetensors").write_bytes(state)
    train_loop_per_worker(given)
    told = capsys.readouterr().out
    assert f"{kept} does not match its hash" in told and str(before) not in told


def test_training_that_diverges_says_so(work, base):
    with pytest.raises(ValueError, match=r"lower Training\.learning_rate"):
        train_loop_per_worker(config(work, base, learning_rate=float("inf")))


def one_of_two(rank, given, port):
    import os

    import torch

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    train_loop_per_worker(given)
    torch.distributed.destroy_process_group()


def test_two_workers_train_what_one_does(work, base):
    import socket

    import torch
    from safetensors.torch import load_file

    given = config(work, base, seed=3)
    train_loop_per_worker(given)
    alone, adapter = figures(work), load_file(work / "adapter" / "adapter_model.safetensors")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, args=(given, port), nprocs=2)
    together, shared = figures(work), load_file(work / "adapter" / "adapter_model.safetensors")
    assert together["workers"] == 2 and together["tokens"] == alone["tokens"]
    assert together["losses"] == pytest.approx(alone["losses"], rel=0.15)
    moved = torch.cat([weights.flatten() for name, weights in adapter.items() if "lora_B" in name])
    same = torch.cat([weights.flatten() for name, weights in shared.items() if "lora_B" in name])
    assert torch.nn.functional.cosine_similarity(moved, same, dim=0) > 0.9


def test_a_step_reads_the_same_rows_however_many_workers_share_it():
    lengths = np.random.default_rng(0).integers(50, 700, 333)
    plans = [steps(lengths, Training(), world) for world in (1, 2, 4)]
    read = [[sorted(n for worker in step for part in worker for n in part) for step in plan] for plan in plans]
    assert read[0] == read[1] == read[2]


def test_without_a_time_budget_a_run_is_repeatable_to_the_byte(work, base):
    weights = []
    for _ in range(2):
        train_loop_per_worker(config(work, base, seed=5))
        weights.append((work / "adapter" / "adapter_model.safetensors").read_bytes())
        shutil.rmtree(work / "adapter")
    assert weights[0] == weights[1]


def test_training_ends_when_held_out_examples_get_no_better_and_the_best_adapter_is_kept(work, base):
    held = small_rows(passes=1, tokens=2000)
    held.ids[held.learn == 1] = 200  # a byte that no answer has: the better the codes are known, the less likely it is
    held.save(work / "held.npz")
    train_loop_per_worker(config(work, base, learning_rate=0.05, patience=2))
    done = figures(work)
    losses = [loss for _, loss in done["held_out"]]
    assert done["ended"] == "no better on held-out examples" and done["steps"] < done["planned"]
    assert done["best"] == pytest.approx(min(losses), abs=1e-4) and min(losses[-2:]) > min(losses)
    early = replace(Training.of(config(work, base)["training"]), learning_rate=0.05, patience=9)
    check = held_out_loss(work, base, early)
    assert check == pytest.approx(min(losses), abs=0.01)  # what is left is the adapter of that check, not the last one


def held_out_loss(work, base, training):
    import torch

    from tasks import adapter, losses

    held = Rows.load(work / "held.npz")
    model, _ = adapter.adapted_model(str(base), training, "cpu", torch.float32, str(work / "adapter"))
    with torch.inference_mode():
        total, terms, _ = losses.supervised(model, held, range(len(held.lengths)), "cpu")
    return total.item() / terms


def test_a_full_disk_costs_a_checkpoint_and_not_the_training(work, base, monkeypatch, capsys):
    import safetensors.torch

    write, full = safetensors.torch.save_file, OSError(28, "No space left on device")

    def fails_at_third(tensors, path):
        if path.parent.name == "00000003":
            path.write_bytes(b"half")
            raise full
        write(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", fails_at_third)
    train_loop_per_worker(config(work, base, checkpoint_s=0.0))
    assert "no room for a checkpoint" in capsys.readouterr().out
    done = figures(work)
    assert done["steps"] == done["planned"] and not (work / "checkpoints" / "00000003").exists()


def test_preferences_make_the_chosen_answers_likelier_than_the_rejected(work, base):
    import torch

    from tasks import adapter, losses
    from tests.test_losses import liked_rows

    train_loop_per_worker(config(work, base))
    second = work / "preferred"
    second.mkdir()
    liked_rows().save(second / "rows.npz")
    given = config(second, base, learning_rate=0.003)
    train_loop_per_worker(given | {"start": str(work / "adapter"), "passes": 10, "flips": 0.1})
    assert figures(second)["steps"] == 10
    margins = []
    for folder in (work, second):
        model, _ = adapter.adapted_model(str(base), Training(rank=4), "cpu", torch.float32, str(folder / "adapter"))
        with torch.inference_mode():
            found, _, _ = losses.answers(model, liked_rows(), range(6), "cpu")
        margins.append((found[:, 0] - found[:, 1]).mean().item())
    assert margins[1] > margins[0] + 1


# --- killed while it works --------------------------------------------------------------------

ALONE = """
import json, sys
from tasks.training import train_loop_per_worker
train_loop_per_worker(json.loads(sys.argv[1]))
"""
KILLS = int(os.environ.get("PERENNIAL_CHAOS", 1))


def test_killed_at_any_moment_training_goes_on_and_ends_where_it_would_have(work, base):
    given = config(work, base, checkpoint_s=0.0)
    train_loop_per_worker(given)
    wanted = (work / "adapter" / "adapter_model.safetensors").read_bytes()
    draw = random.Random(1)
    for _ in range(KILLS):
        for name in ("adapter", "checkpoints"):
            shutil.rmtree(work / name)
        while not (work / "adapter" / "COMPLETE").exists():
            process = subprocess.Popen([sys.executable, "-c", ALONE, json.dumps(given)], cwd=ROOT)
            reached = len(list((work / "checkpoints").glob("*")))
            while process.poll() is None and len(list((work / "checkpoints").glob("*"))) <= reached:
                time.sleep(0.01)  # until it writes something new
            try:
                process.wait(draw.uniform(0, 1.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert (work / "adapter" / "adapter_model.safetensors").read_bytes() == wanted
