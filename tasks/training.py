"""The training loop of one worker: LoRA on packed rows (tasks/contexts.py), under a time budget, resumable."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from data.records import Record
from tasks.adapter import adapted_model, gather, save_adapter, spread
from tasks.checkpoints import Progress, checkpoint, restore
from tasks.contexts import Mixture, Rows
from tasks.losses import Preferring, answers, preferred, supervised

WARM_UP = 0.06
CLIP = 1.0
PROGRESS_S = 5.0
WINDOW = 16
CHECKS = 10
CHECKING = 0.1  # most of the time that may go into checks but the last
FASTER = 0.8


@dataclass(frozen=True)
class Training(Record):
    """How to train. Ends after `minutes` of training (None: no limit) or `passes` over the examples, whichever is
    first, or when `patience` of ten checks over the budget have not lowered the loss on examples held out.

    `row_tokens`: short rows are laid end to end up to this many tokens; a step is `rows_per_step` such stretches over
    all workers, however many there are. `workers` None: settings().training_workers. The rate warms up and falls
    linearly over the budget: with a time budget a run depends on how fast the machine is, without one it is repeatable.
    `held_out`: share of the examples to check on. `preferring`: how preferences of people are learned after that.
    """

    minutes: float | None = 4.0
    passes: int = 6
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1e-3
    row_tokens: int = 512
    rows_per_step: int = 4
    workers: int | None = None
    seed: int = 0
    most_examples: int = 20_000
    checkpoint_s: float = 60.0
    held_out: float = 0.05
    patience: int = 3
    mixture: Mixture = Mixture()
    preferring: Preferring = Preferring()


def train_loop_per_worker(config: dict) -> None:
    """Train on this worker's share of every step; runs alone too, without torch.distributed.

    config: work (folder with rows.npz and, to check on, held.npz; adapter/ and training.json are left there), base
    (Hugging Face folder), training (a Training as JSON), gpu, yields (train on processor time that nobody else wants);
    for preferences also start (the adapter to begin from), passes over the pairs and flips (see losses.preferred).
    Adapter gradients are summed by one all_reduce of a flat vector, not by DDP: a worker may have several stretches or
    none in a step, the mean is over the answer tokens of all workers, and the loss, the counts and rank 0's clock ride
    in the same message, so all agree on rate and end without a second.
    """
    import torch

    rank, world = _place()
    if config.get("yields"):  # a low priority is not enough: with nice 10 the endpoint answered 5 times slower
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if not config["gpu"]:
        torch.set_num_threads(1)  # one per worker: the endpoint needs the cores too
    training = Training.of(config["training"])
    work, device = Path(config["work"]), "cuda" if config["gpu"] else "cpu"
    model, adapted = adapted_model(config["base"], training, device, fastest(device), config.get("start"))
    # The adapter computes in the base's type but is kept and updated in float32: small updates would round away
    master = torch.nn.Parameter(torch.cat([p.detach().float().reshape(-1) for p in adapted]))
    master.grad = torch.zeros_like(master)
    optimizer = torch.optim.AdamW([master], lr=training.learning_rate, weight_decay=0.0, betas=(0.9, 0.99))
    data = Rows.load(work / "rows.npz")
    again = [replace(training, seed=training.seed + n) for n in range(config.get("passes", 1))]
    plan = [step for each in again for step in steps(data.lengths, each, world)]
    price = pricing(model, data, config, device, (part for step in plan for part in step[rank]))
    check = checking(model, work / "held.npz", training, config, device)
    progress, saved = restore(work / "checkpoints", device)
    best = saved.pop("best", master.detach().clone())
    if saved:
        master.data.copy_(saved.pop("master"))
        optimizer.state[master] = saved
    sums = torch.zeros(master.numel() + 5, device=device)  # gradient, loss, learned, tokens, rank 0's clock, cpu time
    started, before, worked, told, kept = time.monotonic(), progress.elapsed, time.process_time(), 0.0, 0.0
    why = "passes"
    while progress.step < len(plan):
        spread(master, adapted)
        sums.zero_()
        for stretch in plan[progress.step][rank]:
            loss, learned, count = price(stretch)
            loss.backward()
            sums[-5:-2] += torch.tensor([loss.item(), learned, count], device=device)
        gather(adapted, sums[:-5])
        now = time.process_time()
        sums[-1], worked = now - worked, now
        if rank == 0:
            sums[-2] = before + time.monotonic() - started
        _sum(sums)
        loss, learned, tokens, elapsed, cpu_s = sums[-5:].tolist()
        if not np.isfinite(loss):
            raise ValueError(f"training diverged at step {progress.step} (loss {loss}); lower Training.learning_rate")
        earlier = over(progress, training, len(plan))
        progress.stepped(loss / max(learned, 1.0), int(tokens), elapsed, cpu_s)
        share = over(progress, training, len(plan))
        master.grad.copy_(sums[:-5] / max(learned, 1.0))
        torch.nn.utils.clip_grad_norm_([master], CLIP)
        optimizer.param_groups[0]["lr"] = training.learning_rate * rate((earlier + min(share, 1.0)) / 2)
        optimizer.step()
        if check and (share >= 1 or due(progress, share)):
            spread(master, adapted)
            if progress.checked(*check(), int(share * CHECKS)):
                best.copy_(master.detach())
        if rank == 0 and (share >= 1 or progress.elapsed - told >= PROGRESS_S):
            told = progress.elapsed
            tell(work / "progress.jsonl", progress, len(plan), share)
        if share >= 1 or progress.stale >= training.patience:
            why = "passes" if progress.step == len(plan) else "time" if share >= 1 else "no better on held-out examples"
            break
        if rank == 0 and progress.elapsed - before - kept >= training.checkpoint_s:
            kept = progress.elapsed - before
            state = {"master": master, "best": best, **optimizer.state[master]}
            checkpoint(work / "checkpoints", progress, state)
    if progress.best is not None:
        master.data.copy_(best)
    if rank == 0:
        save_adapter(model, adapted, master, work / "adapter")
        made = {"steps": progress.step, "planned": len(plan), "workers": world, "ended": why}
        made |= {"tokens_per_s": progress.tokens / progress.elapsed, "memory_mb": memory(device)}
        made["dtype"] = str(model.dtype).removeprefix("torch.")
        made |= vars(progress)
        (work / "training.json").write_text(json.dumps(made))
    if world > 1:
        torch.distributed.barrier()


def over(progress: Progress, training: Training, of: int) -> float:
    """Share of the budget that is over: of the time, where it is limited, or of the `of` steps."""
    timed = progress.elapsed / (training.minutes * 60) if training.minutes else 0.0
    return max(timed, progress.step / of)


def due(progress: Progress, share: float) -> bool:
    """Whether to check on held-out examples: ten times over the budget, while checks took little of it."""
    return share * CHECKS >= progress.checks + 1 and progress.check_s <= CHECKING * progress.elapsed


def pricing(model, data: Rows, config: dict, device: str, mine: Iterable[Sequence[int]]) -> Callable:
    """What gives the summed loss of a stretch, its terms and its tokens; for preferences the log-probabilities before
    training are taken now, of the rows in the stretches that are `mine`."""
    import torch

    if "flips" not in config:
        return partial(supervised, model, data, device=device)
    before = torch.zeros(len(data.lengths), 2, device=device)
    with torch.inference_mode():
        for stretch in dict.fromkeys(map(tuple, mine)):
            before[list(stretch)] = answers(model, data, stretch, device)[0]
    how = Training.of(config["training"]).preferring
    return lambda stretch: preferred(model, data, stretch, device, before[list(stretch)], how, config["flips"])


def checking(model, path: Path, training: Training, config: dict, device: str) -> Callable | None:
    """What gives the mean loss on the rows held out at `path`, over all workers, and the seconds that rank 0 took for
    it; None when there are none."""
    import torch

    if not path.exists():
        return None
    rank, world = _place()
    held = Rows.load(path)
    stretches = [stretch for step in steps(held.lengths, training, world) for stretch in step[rank]]
    price = pricing(model, held, config, device, stretches)

    def check() -> tuple[float, float]:
        start, sums = time.monotonic(), torch.zeros(3, device=device)
        with torch.inference_mode():
            for stretch in stretches:
                loss, terms, _ = price(stretch)
                sums[:2] += torch.tensor([loss.item(), terms], device=device)
        if rank == 0:
            sums[2] = time.monotonic() - start
        _sum(sums)
        return (sums[0] / sums[1]).item(), sums[2].item()

    return check


def tell(path: Path, progress: Progress, of: int, share: float) -> None:
    """Append one line on how far training is to `path`, for those who watch."""
    recent = progress.losses[-10:]
    point = {"step": progress.step, "of": of, "share": round(min(share, 1.0), 4), "loss": float(np.mean(recent))}
    if progress.held_out:
        point["held_out"] = progress.held_out[-1][1]
    point |= {"seconds": progress.elapsed, "left_s": progress.elapsed * (1 / share - 1) if share < 1 else 0.0}
    point |= {"tokens": progress.tokens, "tokens_per_s": progress.tokens / (progress.elapsed - progress.check_s)}
    with open(path, "a") as file:
        file.write(json.dumps({name: round(value, 4) for name, value in point.items()}) + "\n")


def memory(device: str) -> int:
    """Most memory this worker held, in MB: of the GPU where it trains on one."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def rate(share: float) -> float:
    """Learning rate as a share of its peak, at `share` (0 to 1) of the budget: linear warm-up, linear decay to 0."""
    return max(0.0, min(share / WARM_UP, (1 - share) / (1 - WARM_UP)))


def steps(lengths: np.ndarray, training: Training, world: int) -> list[list[list[list[int]]]]:
    """For each step, for each worker, its stretches, each a list of row numbers laid end to end.

    Within windows of 16 steps rows are sorted by length, so that the workers of a step wait little for each other;
    then the steps of a window are shuffled. All workers compute the same plan.
    """
    rng = np.random.default_rng(training.seed)
    each = training.rows_per_step
    plan = []
    for first in range(0, len(lengths), WINDOW * each):
        numbers = range(first, min(first + WINDOW * each, len(lengths)))
        stretches: list[list[int]] = []
        room = 0
        for number in sorted(numbers, key=lambda row: (lengths[row], row)):
            if not stretches or lengths[number] > room:
                stretches.append([])
                room = training.row_tokens
            stretches[-1].append(number)
            room -= int(lengths[number])
        parts = [stretches[at : at + each] for at in range(0, len(stretches), each)]
        plan += [[parts[at][worker::world] for worker in range(world)] for at in rng.permutation(len(parts))]
    return plan


def fastest(device: str):
    """torch.bfloat16 where a product of matrices takes at most 0.8 of its time in float32 on every worker.

    Measured here and now: a processor without bf16 emulates it, and flags do not say how fast a library is.
    """
    import torch

    took = {}
    for dtype in (torch.float32, torch.bfloat16):
        size = 384 if device == "cpu" else 8192  # a GPU does small products faster than they are asked for
        square, times = torch.ones(size, size, dtype=dtype, device=device), []
        for _ in range(4):
            start = time.perf_counter()
            (square @ square)[0, 0].item()
            times.append(time.perf_counter() - start)
        took[dtype] = float(np.median(times[1:]))
    slower = torch.tensor([float(took[torch.bfloat16] > FASTER * took[torch.float32])], device=device)
    _sum(slower)
    return torch.float32 if slower.item() else torch.bfloat16


def _place() -> tuple[int, int]:
    """Rank and number of workers."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _sum(values) -> None:
    """Add up a tensor over all workers, in place."""
    import torch

    if _place()[1] > 1:
        torch.distributed.all_reduce(values)
