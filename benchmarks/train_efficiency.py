"""FLOP/s of the training loop on one core, against the FLOP/s of matrix products of its layers' shapes on that core.

Counted is what the mathematics needs, not what is done: per token read, 4 x the parameters of the frozen layers (2
forward, 2 for the gradient of the activations) and 6 x those of the adapter; per answer token, 4 x the output layer;
for attention, 12 x heads x head size per layer and pair of tokens of which one sees the other (4 forward, 8 back).
Padding, masked pairs, weights computed twice, the optimizer and everything else that takes time counts as nothing.
"""

import time
from pathlib import Path

from benchmarks.machine import home

AIM = "at least 0.5 of measured GEMM FLOP/s"
EXAMPLES, SEED = 300, 0
GEMM_ROWS, GEMM_S = 512, 10.0


def met(value: dict) -> bool:
    return value["efficiency"] >= 0.5


def measure() -> dict:
    """One pass in one process of one thread; the products are timed just before and after it, in the same type."""
    with home() as folder:
        from benchmarks import tuning
        from serving.engine.models import base_folder
        from tasks.training import Training

        training = Training(minutes=None, passes=1, seed=SEED)
        learned = tuning.some(tuning.questions(tuning.WIKI), EXAMPLES, SEED)
        trained = tuning.made(learned, 1, SEED)
        done, limits = around(folder / "ours", trained, training, base_folder())
        counted = flop(trained, shapes(base_folder()), training.rank)
    rate, limit = sum(counted.values()) / done["elapsed"], sum(limits) / len(limits)
    value = {
        "efficiency": round(rate / limit, 3),
        "gflop_per_s": round(rate / 1e9, 2),
        "gemm_gflop_per_s": [round(one / 1e9, 2) for one in limits],
        "share_of_flop": {part: round(one / sum(counted.values()), 3) for part, one in counted.items()},
        "tokens_per_s": round(done["tokens_per_s"], 1),
        "dtype": done["dtype"],
    }
    n = {"examples": len(learned), "tokens": done["tokens"], "steps": done["steps"]}
    return {"value": value, "n": n, "against": "torch matrix products of the layers' shapes, one thread", "limit": 1.0}


def around(work: Path, trained, training, base: Path) -> tuple[dict, list[float]]:
    """What the loop left on one worker, and the GEMM FLOP/s before and after in the type it chose."""
    import torch

    from benchmarks import tuning
    from tasks.training import fastest

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    guessed, layer = fastest("cpu"), shapes(base)["layer"]
    before = gemm(layer, guessed)
    done = tuning.train(work, trained, None, training, 1)
    chosen = getattr(torch, done["dtype"])
    after = gemm(layer, chosen)
    torch.set_num_threads(threads)
    return done, [before, after] if chosen == guessed else [after]


def shapes(base: Path) -> dict:
    """`layer`: (outputs, inputs) of the matrices of one layer; `layers`; `output`: parameters of the output layer;
    `attention`: heads x head size."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = {name: tuple(m.weight.shape) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    layer = [shape for name, shape in linear.items() if ".layers.0." in name]
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "layer": layer,
        "layers": config.num_hidden_layers,
        "output": config.vocab_size * config.hidden_size,
        "attention": config.num_attention_heads * head,
    }


def flop(trained, shape: dict, rank: int) -> dict[str, float]:
    """FLOP that training on these rows needs, by part."""
    import numpy as np

    pairs = 0
    for number in range(len(trained.lengths)):
        counts = np.bincount(trained.row(number)[2]).astype(float)
        pairs += counts[0] * counts[1:].sum() + (counts * (counts + 1) / 2).sum()
    tokens, layers = float(trained.lengths.sum()), shape["layers"]
    frozen = layers * sum(rows * columns for rows, columns in shape["layer"])
    adapter = layers * sum(rank * (rows + columns) for rows, columns in shape["layer"])
    return {
        "layers": 4 * frozen * tokens,
        "adapter": 6 * adapter * tokens,
        "output": 4 * shape["output"] * float(trained.learn.sum()),
        "attention": 12 * layers * shape["attention"] * pairs,
    }


def gemm(layer: list[tuple[int, int]], dtype, device: str = "cpu", rows: int = GEMM_ROWS) -> float:
    """FLOP/s of the products of one layer with `rows` rows of activations, over and over for GEMM_S seconds."""
    import torch

    weights = [torch.randn(shape, dtype=dtype, device=device) for shape in layer]
    states = [torch.randn(rows, shape[1], dtype=dtype, device=device) for shape in layer]

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def once() -> None:
        for state, weight in zip(states, weights, strict=True):
            torch.nn.functional.linear(state, weight)

    with torch.inference_mode():
        once()
        wait()
        rounds, start = 0, time.monotonic()
        while time.monotonic() - start < GEMM_S:
            for _ in range(10):
                once()
            wait()
            rounds += 10
    return 2 * rounds * rows * sum(a * b for a, b in layer) / (time.monotonic() - start)
