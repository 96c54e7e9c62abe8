"""What people see of a training run: how far it is, its loss as a picture, and the model card of what came out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path

LOOK_S = 2.0
Watcher = Callable[[dict], None]
"""Called with each point of progress: step, of, share (0 to 1), loss, held_out, seconds, left_s, tokens_per_s."""


@contextmanager
def watched(path: Path, watchers: Iterable[Watcher]) -> Iterator[None]:
    """While inside, every new line of progress in `path` (tasks/training.py `tell`) is handed to the watchers."""
    ended, every = threading.Event(), list(watchers)

    def watch() -> None:
        seen = 0
        while True:
            last = ended.wait(LOOK_S)
            lines = path.read_text().splitlines() if path.exists() else []
            for line in lines[seen:]:
                for watcher in every:
                    watcher(json.loads(line))
            seen = len(lines)
            if last:
                return

    thread = threading.Thread(target=copy_context().run, args=(watch,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def shown(title: str) -> Iterator[Watcher]:
    """A progress bar on a terminal, and a line in the log for every tenth of the way."""
    from tqdm import tqdm

    told = -1
    with tqdm(total=100, desc=title, unit="%", disable=None, bar_format="{l_bar}{bar}| {postfix}") as bar:

        def show(point: dict) -> None:
            nonlocal told
            held = f", held out {point['held_out']:.3f}" if "held_out" in point else ""
            said = f"loss {point['loss']:.3f}{held}, {point['tokens_per_s']:.0f} tokens/s, {point['left_s']:.0f} s left"
            bar.n = round(100 * point["share"])
            bar.set_postfix_str(said)
            if (tenth := int(10 * point["share"])) > told:
                told = tenth
                print(f"{title}: {point['share']:.0%}, step {point['step']} of at most {point['of']}, {said}")

        yield show


def plot(record: dict, path: Path) -> Path:
    """The loss of every step, their mean over ten steps and the loss on examples held out, as a picture."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses = np.array(record["losses"])
    smooth = np.convolve(losses, np.ones(10) / 10, mode="valid") if len(losses) >= 20 else losses[:0]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(range(1, len(losses) + 1), losses, linewidth=0.6, alpha=0.5, label="training, each step")
    axes.plot(range(10, 10 + len(smooth)), smooth, linewidth=1.6, label="training, mean of 10 steps")
    if record["held_out"]:
        axes.plot(*zip(*record["held_out"], strict=True), marker="o", linewidth=1.6, label="examples held out")
    axes.set(xlabel="step", ylabel="cross-entropy per answer token")
    axes.legend()
    figure.savefig(path, dpi=120)
    return path


def cost(record: dict, cpu_hour: float, gpu_hour: float) -> float:
    """What a training cost by the time it used: of processors, or of as many GPUs as workers."""
    if record["gpu"]:
        return record["workers"] * record["elapsed"] / 3600 * gpu_hour
    return record["cpu_s"] / 3600 * cpu_hour


CARD = """---
base_model: {base}
library_name: peft
tags: [lora, retrieval-augmented-generation]
---
# {assistant}, adapter {adapter}

A LoRA adapter (rank {rank}, alpha {alpha}, on every linear layer but the output) that answers questions from passages
of the documents of `{assistant}`, in the prompt it is served with. It was made by a machine from the record below, and
goes live only when the gate has compared it with what is live; the decision is kept with the release.

## Made from
| | |
|---|---|
| base model, sha256 | `{base}` |
| adapter, sha256 | `{adapter}` |
| served file, sha256 | `{served}` |
| documents and examples | snapshot `{snapshot}` |
| examples | {examples} ({lost} left out: no passage holds their answer), {held} held out to check on |
| preferences | {preferences} |
| rows of feedback in it | {feedback} |

## Training
{steps} steps of at most {planned}, {tokens} tokens in {elapsed:.0f} s on {workers} workers ({dtype}, {tokens_per_s:.0f}
tokens/s, {memory_mb} MB a worker); it ended by: {ended}. Loss {last:.3f}, on examples held out {best}.
About {cost:.4f} at {price}. Seed {seed}.

![loss](loss.png)

## Does it do what it says
The adapter changes the base's next-token scores by {moved:.2f} of their spread on the prompts tried. Of the tokens that
the served file wrote for {prompts} prompts, {agreement:.1%} are what base and adapter in float32 write there.

## Limits
It knows nothing but how to answer from passages. What it learned of style and of when to say that the documents do not
say comes from the examples above; other documents, other languages and other prompts were not tried.
"""


def card(record: dict, model, price: str) -> str:
    """The model card of a published training record, Markdown with the hub's header."""
    best = "nothing was held out" if record["best"] is None else f"{record['best']:.3f}"
    training, proof = record["training"], record["proof"]
    return CARD.format(
        **{name: record[name] for name in ("assistant", "snapshot", "examples", "lost", "held", "preferences")},
        **{name: record[name] for name in ("steps", "planned", "tokens", "elapsed", "workers", "dtype", "ended")},
        **{name: record[name] for name in ("tokens_per_s", "memory_mb", "cost")},
        **{name: training[name] for name in ("rank", "alpha", "seed")},
        **{name: proof[name] for name in ("moved", "prompts", "agreement")},
        base=model.base,
        adapter=model.adapter,
        served=model.sha256,
        feedback=len(record["feedback"]),
        last=sum(record["losses"][-10:]) / len(record["losses"][-10:]),
        best=best,
        price=price,
    )
