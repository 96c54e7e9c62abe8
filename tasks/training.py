"""The training loop of one worker: LoRA on packed rows (tasks/contexts.py), under a time budget, resumable."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.embedding import has_bf16
from data.records import Record, file_sha256
from tasks.contexts import Mixture, Rows

COMPLETE = "COMPLETE"
WARM_UP = 0.06
CLIP = 1.0
PROGRESS_S = 5.0
WINDOW = 16
PAD = 64


@dataclass(frozen=True)
class Training(Record):
    """How to train. Ends after `minutes` of training or `passes` over the examples, whichever is first.

    `row_tokens`: short rows are laid end to end up to this many tokens; a step is `rows_per_step` such stretches over
    all workers. `workers` None: settings().training_workers. The rate warms up and falls linearly over the budget.
    """

    minutes: float = 4.0
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
    mixture: Mixture = Mixture()


def train_loop_per_worker(config: dict) -> None:
    """Train on this worker's share of every step; runs alone too, without torch.distributed.

    config: work (folder with rows.npz; adapter/ and training.json are left there), base (Hugging Face folder), training
    (a Training as JSON), gpu, yields (train on processor time that nobody else wants). Adapter gradients are summed
    by one all_reduce of a flat vector, not by DDP: a worker may have several stretches or none in a step, the mean is
    over the answer tokens of all workers, and the loss, the counts and rank 0's clock ride in the same message, so all
    agree on rate and end without a second.
    """
    import torch

    rank, world = _place()
    if config.get("yields"):  # a low priority is not enough: with nice 10 the endpoint answered 5 times slower
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if not config["gpu"]:
        torch.set_num_threads(1)  # one per worker: the endpoint needs the cores too
    training = Training.of(config["training"])
    work, device = Path(config["work"]), "cuda" if config["gpu"] else "cpu"
    data = Rows.load(work / "rows.npz")
    plan = steps(data.lengths, training, world)
    model, adapted = adapted_model(config["base"], training, device)
    # The adapter computes in the base's type but is kept and updated in float32: small updates would round away
    master = torch.nn.Parameter(torch.cat([p.detach().float().reshape(-1) for p in adapted]))
    master.grad = torch.zeros_like(master)
    optimizer = torch.optim.AdamW([master], lr=training.learning_rate, weight_decay=0.0, betas=(0.9, 0.99))
    step, before, read_before = restore(work / "checkpoints", master, optimizer)
    sums = torch.zeros(master.numel() + 4, device=device)  # gradient, loss, learned tokens, tokens read, rank 0's clock
    started, told, saved, read, history = time.monotonic(), 0.0, 0.0, 0, []
    while step < len(plan):
        _spread(master, adapted)
        sums.zero_()
        for stretch in plan[step][rank]:
            loss, learned, count = stretch_loss(model, data, stretch, device)
            loss.backward()
            sums[-4:-1] += torch.tensor([loss.item(), learned, count], device=device)
        _gather(adapted, sums[:-4])
        if rank == 0:
            sums[-1] = before + time.monotonic() - started
        if world > 1:
            torch.distributed.all_reduce(sums)
        loss, learned, tokens, elapsed = sums[-4:].tolist()
        if not np.isfinite(loss):
            raise ValueError(f"training diverged at step {step} (loss {loss}); lower Training.learning_rate")
        step, read, spent = step + 1, read + int(tokens), elapsed - before
        share = max(elapsed / (training.minutes * 60), step / len(plan))
        master.grad.copy_(sums[:-4] / max(learned, 1.0))
        torch.nn.utils.clip_grad_norm_([master], CLIP)
        optimizer.param_groups[0]["lr"] = training.learning_rate * rate(share)
        optimizer.step()
        history.append(loss / max(learned, 1.0))
        if rank == 0 and (share >= 1 or spent - told >= PROGRESS_S):
            told = spent
            progress(step, len(plan), float(np.mean(history[-10:])), read / max(spent, 1e-9))
        if share >= 1:
            break
        if rank == 0 and spent - saved >= training.checkpoint_s:
            saved = spent
            checkpoint(work / "checkpoints", step, elapsed, read_before + read, master, optimizer)
    if rank == 0:
        save_adapter(model, adapted, master, work / "adapter")
        figures = {"steps": step, "planned": len(plan), "tokens": read_before + read, "workers": world}
        figures |= {"seconds": before + time.monotonic() - started, "loss": [round(loss, 4) for loss in history[-20:]]}
        (work / "training.json").write_text(json.dumps(figures))
    if world > 1:
        torch.distributed.barrier()


def progress(step: int, steps: int, loss: float, tokens_per_s: float) -> None:
    """Tell how far training is. Not with `print`, which Ray Train replaces and then shows every line twice."""
    sys.stdout.write(f"finetune: step {step}/{steps} loss {loss:.3f} {tokens_per_s:.0f} tokens/s\n")
    sys.stdout.flush()


def rate(share: float) -> float:
    """Learning rate as a share of its peak, at `share` (0 to 1) of the budget: linear warm-up, linear decay to 0."""
    return max(0.0, min(share / WARM_UP, (1 - share) / (1 - WARM_UP)))


def steps(lengths: np.ndarray, training: Training, world: int) -> list[list[list[list[int]]]]:
    """For each step, for each worker, its stretches, each a list of row numbers laid end to end.

    Within windows of 16 steps rows are sorted by length, so that the workers of a step wait little for each other;
    then the steps of a window are shuffled. All workers compute the same plan.
    """
    rng = np.random.default_rng(training.seed)
    each = max(training.rows_per_step, world)
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


def adapted_model(base: str, training: Training, device: str):
    """The frozen base with a new LoRA adapter on each linear layer but the output, and the adapter's parameters.

    In bfloat16 where the processor computes in it.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AttentionInterface, AutoModelForCausalLM

    AttentionInterface.register("branches", attend)
    torch.manual_seed(training.seed)  # every worker starts from the same adapter
    # A processor without bf16 emulates it, far slower than it computes in float32
    dtype = torch.bfloat16 if has_bf16(device) else torch.float32
    loaded = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, attn_implementation="branches", use_safetensors=True, trust_remote_code=False
    )
    lora = LoraConfig(r=training.rank, lora_alpha=training.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(loaded, lora, autocast_adapter_dtype=False).to(device)
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


def attend(module, query, key, value, mask, scaling=None, **_):
    """Attention with an additive mask [1, 1, n, n], as plain batched products over grouped heads.

    torch's fused kernel took 1.0 of 3.2 s of a step on a CPU in bfloat16; this takes 0.35 s (Zen 5, rows of 448). The
    weights are computed again on the way back: a quarter less memory for 3% of the time.
    """
    from torch.utils.checkpoint import checkpoint

    mixed = checkpoint(mix, query, key, value, mask, scaling, use_reentrant=False, preserve_rng_state=False)
    return mixed.transpose(1, 2).contiguous(), None


def mix(query, key, value, mask, scaling):
    """Values mixed by attention weights, [batch, heads, n, size]."""
    import torch

    batch, heads, n, size = query.shape
    groups = key.shape[1]
    rows = (query * scaling).reshape(batch * groups, heads // groups * n, size)
    scores = torch.bmm(rows, key.reshape(batch * groups, n, size).transpose(1, 2))
    scores = scores.view(batch * groups, heads // groups, n, n) + mask.view(1, 1, n, n)
    weights = torch.softmax(scores, dim=-1).view(batch * groups, -1, n)
    return torch.bmm(weights, value.reshape(batch * groups, n, size)).view(batch, heads, n, size)


def stretch_loss(model, data: Rows, stretch: Sequence[int], device: str):
    """Summed cross-entropy over the learned tokens of some rows laid end to end, how many, and how many were read.

    A token sees the earlier tokens of its own row that are shared or of its own branch. The output layer, the largest
    matrix of a small model, is computed for the learned positions only. Stretches are padded to a multiple of PAD:
    torch keeps compiled kernels for every length it meets, 0.6 GB of them within a minute.
    """
    import torch

    lengths = data.lengths[list(stretch)]
    columns = [*zip(*map(data.row, stretch), strict=True), [np.full(n, at) for at, n in enumerate(lengths, start=1)]]
    padding = np.zeros(-lengths.sum() % PAD, int)
    ids, positions, branches, learn, row = (
        torch.from_numpy(np.concatenate([*column, padding])).to(device).long() for column in columns
    )
    seen = (row[:, None] == row[None]) & ((branches[None] == 0) | (branches[:, None] == branches[None]))
    mask = torch.zeros(len(ids), len(ids), dtype=model.dtype, device=device)
    mask.masked_fill_(~seen.tril(), torch.finfo(model.dtype).min)
    inner = model.get_base_model()
    states = inner.model(
        input_ids=ids[None], position_ids=positions[None], attention_mask=mask[None, None], use_cache=False
    ).last_hidden_state[0]
    targets = learn.nonzero().squeeze(1)
    logits = inner.lm_head(states[targets - 1]).float()
    return torch.nn.functional.cross_entropy(logits, ids[targets], reduction="sum"), len(targets), int(lengths.sum())


def checkpoint(folder: Path, step: int, elapsed: float, read: int, master, optimizer) -> None:
    """Write state.safetensors, then COMPLETE with its sha256; then drop older checkpoints."""
    from safetensors.torch import save_file

    place = folder / f"{step:08d}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    state = {"master": master.detach()} | {n: optimizer.state[master][n] for n in ("exp_avg", "exp_avg_sq", "step")}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, place / "state.safetensors")
    marker = {"sha256": file_sha256(place / "state.safetensors"), "step": step, "elapsed": elapsed, "read": read}
    (place / "COMPLETE.partial").write_text(json.dumps(marker))
    os.replace(place / "COMPLETE.partial", place / COMPLETE)
    for older in folder.iterdir():
        if older.name < place.name:
            shutil.rmtree(older, ignore_errors=True)


def restore(folder: Path, master, optimizer) -> tuple[int, float, int]:
    """Load the newest whole checkpoint; (steps done, seconds spent, tokens read), zeros where there is none."""
    from safetensors.torch import load_file

    for place in sorted(folder.glob("*"), reverse=True):
        if not (place / COMPLETE).exists():
            continue
        marker = json.loads((place / COMPLETE).read_text())
        if file_sha256(place / "state.safetensors") != marker["sha256"]:
            print(f"finetune: {place} does not match its hash, going back to an earlier checkpoint", flush=True)
            continue
        state = load_file(place / "state.safetensors", device=str(master.device))
        master.data.copy_(state.pop("master"))
        optimizer.state[master] = state
        return marker["step"], marker["elapsed"], marker["read"]
    return 0, 0.0, 0


def save_adapter(model, adapted, master, folder: Path) -> None:
    """The adapter in float32 as a PEFT folder; COMPLETE last."""
    shutil.rmtree(folder, ignore_errors=True)
    for parameter in adapted:
        parameter.data = parameter.data.float()
    _spread(master, adapted)
    model.save_pretrained(folder, safe_serialization=True)
    (folder / COMPLETE).write_text(file_sha256(folder / "adapter_model.safetensors"))


def _place() -> tuple[int, int]:
    """Rank and number of workers."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _spread(master, adapted) -> None:
    """Copy the flat float32 parameters into the model's own."""
    at = 0
    for parameter in adapted:
        parameter.data.copy_(master.data[at : at + parameter.numel()].view_as(parameter))
        at += parameter.numel()


def _gather(adapted, flat) -> None:
    """Move the gradients of the adapter into `flat` (float32)."""
    at = 0
    for parameter in adapted:
        if parameter.grad is not None:
            flat[at : at + parameter.numel()] += parameter.grad.reshape(-1)
            parameter.grad = None
        at += parameter.numel()
