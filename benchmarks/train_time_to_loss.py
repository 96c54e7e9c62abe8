"""Seconds to the same held-out loss on two cores: the product's loop against PEFT and the Trainer with its defaults.

Both sides learn the same 600 questions of Wikipedia articles, whole paragraphs of them, in the prompt that is served.
The target is the loss that the Trainer reaches on other articles after one pass; it is measured at every tenth of the
way on both sides, by the product's own code and precision, and interpolated between. Loading and measuring are not
timed.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.machine import home

AIM = "at least 3x faster"
AGAINST = "PEFT + Transformers Trainer with defaults: fp32, random order, padded batches of 8, one pass"
EXAMPLES, CHECKED, HELD_ARTICLES = 600, 90, 16
WORKERS, SEED = 2, 0
LONGEST = 1600  # characters of a paragraph: of longer ones the Trainer's batches of 8 need over 20 GB
OURS = {"passes": 3}  # settings of the loop: all else is as the product has it


def met(value: dict) -> bool:
    return value["ratio"] >= 3


def measure() -> dict:
    return compare(tuned=False) | {"against": AGAINST, "limit": None}


def compare(tuned: bool) -> dict:
    """Value and n of this figure, and of train-time-tuned."""
    with home() as folder:
        from benchmarks import trainer, tuning
        from serving.engine.models import base_folder
        from tasks.training import Training

        short = {e: chunk for e, chunk in tuning.questions(tuning.WIKI).items() if len(chunk.text) <= LONGEST}
        others, held = tuning.apart(short, HELD_ARTICLES, SEED)
        learned, checked = tuning.some(others, EXAMPLES, SEED), tuning.some(held, CHECKED, SEED)
        training = Training(minutes=None, patience=99, seed=SEED, **OURS)
        single = tuning.made(learned, 1, SEED, answers=1)
        theirs = trainer.train(folder / "theirs", base_folder(), single, training, tuned, threads=WORKERS)
        trained = tuning.made(learned, training.passes, SEED)
        ours = tuning.train(folder / "ours", trained, tuning.made(checked), training, WORKERS)
        adapters = [Path(place) for _, place in theirs["checks"]] + [folder / "ours" / "adapter"]
        untuned, *losses, again = held_losses(adapters, folder / "ours", training, ours["dtype"])
        their_points = list(zip([seconds for seconds, _ in theirs["checks"]], losses, strict=True))
        our_points = tuning.checks(folder / "ours")
    seconds = {
        "ours": reached([(0.0, untuned), *our_points], losses[-1]),
        "theirs": reached([(0.0, untuned), *their_points], losses[-1]),
    }
    value = {
        "ratio": round(seconds["theirs"] / seconds["ours"], 2),
        "seconds": {side: round(s, 1) if math.isfinite(s) else None for side, s in seconds.items()},
        "loss": {"untuned": round(untuned, 4), "target": round(losses[-1], 4)},
        "ours": [[round(s, 1), round(loss, 4)] for s, loss in our_points],
        "theirs": [[round(s, 1), round(loss, 4)] for s, loss in their_points],
        "dtype": {"ours": ours["dtype"], "theirs": theirs["dtype"]},
        "our_best_measured_again": [round(ours["best"], 4), round(again, 4)],
    }
    n = {"examples": len(learned), "held_out": len(checked), "articles": tuning.articles(checked)}
    return {"value": value, "n": n}


def held_losses(adapters: list[Path], work: Path, training, dtype: str) -> list[float]:
    """Mean loss per answer token on the rows held out in `work`: of the untuned base, then with each adapter."""
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    from serving.engine.models import base_folder
    from tasks.adapter import adapted_model
    from tasks.training import checking

    torch.set_num_threads(WORKERS)
    model, _ = adapted_model(str(base_folder()), training, "cpu", getattr(torch, dtype))
    check = checking(model, work / "held.npz", training, {}, "cpu")
    losses = [check()]
    for adapter in adapters:
        set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"))
        losses.append(check())
    return losses


def reached(points: Sequence[tuple[float, float]], target: float) -> float:
    """Seconds at which (seconds, loss), in straight lines from point to point, first come down to `target`; inf: never.

    >>> reached([(0, 4.0), (10, 2.0), (20, 1.0)], 1.5)
    15.0
    """
    for (before, high), (after, low) in pairwise(points):
        if low <= target:
            return before + (after - before) * (high - target) / (high - low)
    return math.inf
