"""Fine-tune: a LoRA adapter on the base model in Ray Train, merged and exported to the file that is served.

The adapter learns to answer from passages as they are served: prompts by serving.rag.build_prompt, passages by the
release's own retrieval, loss on the completion tokens alone. Rows are explained in tasks/contexts.py.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.records import IndexVersion, Model, Prompt, Record, Retrieval, Snapshot, digest, file_sha256
from settings import settings
from tasks.contexts import END, Mixture, Rows, bind, contexts, rows

CODE = "1"  # raise when this module or contexts.py changes what is trained
COMPLETE = "COMPLETE"
TOKENS_PER_S = 1500  # more than a CPU worker ever trained: bounds how many rows are prepared for a time budget
WARM_UP = 0.06
CLIP = 1.0
PROGRESS_S = 5.0


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


def finetune(
    snapshot: Snapshot,
    index: IndexVersion,
    prompt: Prompt = Prompt(),
    retrieval: Retrieval = Retrieval(),
    training: Training = Training(),
    release_tag: str = "",
) -> Model:
    """The tuned model for these inputs, under settings().models/tuned/<key>; a second call reads its record.

    Needs Ray: initialised, or reachable at settings().ray. Interrupted training goes on from its last complete
    checkpoint. Raises ValueError when there is nothing to train on, or training diverged or changed nothing.
    """
    from serving.engine.models import base_model

    base = base_model()
    workers = training.workers or settings().training_workers
    key = digest("finetune", CODE, snapshot.id, index.checksum, prompt, retrieval, training, workers, base.sha256)[:24]
    target = settings().models / "tuned" / key
    if (target / COMPLETE).exists():
        return read(target)
    work = target.with_name(f".{key}.work")
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "rows.npz").exists():
        prepared = training_rows(snapshot, index, prompt, retrieval, training, workers)
        prepared.save(work / "rows.partial.npz")
        os.replace(work / "rows.partial.npz", work / "rows.npz")
    train(work, training, workers, f"{release_tag or snapshot.assistant}-{key}")
    return publish(work, target, base)


def training_rows(
    snapshot: Snapshot, index: IndexVersion, prompt: Prompt, retrieval: Retrieval, training: Training, workers: int
) -> Rows:
    """The rows for a run: as many as `workers` could train on in the time budget."""
    from tokenizers import Tokenizer

    from data.embedding import load
    from data.store import open_index
    from serving.engine.models import base_folder, embedder_folder
    from serving.rag import build_prompt, retrieve
    from tasks.prepare import examples

    searched, embedder = open_index(index), load(embedder_folder())
    encoder = Tokenizer.from_file(str(base_folder() / "tokenizer.json"))

    def search(question: str):
        return [hit.chunk for hit in retrieve(searched, embedder, question, retrieval)]

    def encode(text: str) -> list[int]:
        return encoder.encode(text, add_special_tokens=False).ids

    chosen = sorted(examples(snapshot), key=lambda e: digest(e.document, e.section, training.seed))
    bound, lost = bind(chosen[: training.most_examples], searched.chunks(), search)
    planned = contexts(bound, search, retrieval.top_k, training.mixture, training.passes, training.seed)
    bound_tokens = 1 << 40 if settings().training_gpu else int(training.minutes * 60 * TOKENS_PER_S * workers)
    made = rows(
        planned,
        lambda question, chunks: build_prompt(prompt, question, chunks),
        encode,
        prompt.abstain,
        training.mixture,
        bound_tokens,
    )
    print(
        f"finetune: {len(bound)} examples in {len(made.lengths)} contexts of {made.lengths.mean():.0f} tokens"
        + (f"; {lost} left out, their answers are in no passage" if lost else ""),
        flush=True,
    )
    return made


def train(work: Path, training: Training, workers: int, name: str) -> None:
    """Run `train_loop_per_worker` on `workers` Ray Train workers; leaves `work`/adapter and `work`/training.json."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from serving.engine.models import base_folder

    if (work / "adapter" / COMPLETE).exists():
        return
    if not ray.is_initialized():
        ray.init(address=settings().ray, log_to_driver=True)
    gpu = settings().training_gpu
    config = {"work": str(work), "base": str(base_folder()), "training": asdict(training), "gpu": gpu, "nice": 10}
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": 1}),
        # A run name used before would silently resume that run: ours resumes from our own checkpoints
        run_config=RunConfig(
            name=f"{name}-{uuid.uuid4().hex[:8]}",
            storage_path=str(settings().home / "training"),
            failure_config=FailureConfig(max_failures=2),
        ),
    )
    trainer.fit()


def train_loop_per_worker(config: dict) -> None:
    """Train on this worker's share of every step; runs alone too, without torch.distributed.

    Adapter gradients are summed by one all_reduce of a flat vector, not by DDP: a worker may have several stretches
    or none in a step, the mean is over answer tokens of all workers, and the loss, the counts and rank 0's clock ride
    in the same message, so that all workers agree on rate and end without a second one.
    """
    import torch

    rank, world = _place()
    os.nice(config.get("nice", 0))
    if not config["gpu"]:
        torch.set_num_threads(1)  # one per worker: the endpoint needs the cores too
    training = Training.of(config["training"])
    work, device = Path(config["work"]), "cuda" if config["gpu"] else "cpu"
    data = Rows.load(work / "rows.npz")
    plan = steps(data.lengths, training, world)
    model, adapted = adapted_model(config["base"], training, device)
    master = torch.nn.Parameter(torch.cat([p.detach().float().reshape(-1) for p in adapted]))
    optimizer = torch.optim.AdamW([master], lr=training.learning_rate, weight_decay=0.0, betas=(0.9, 0.99))
    master.grad = torch.zeros_like(master)
    sums = torch.zeros(master.numel() + 4, device=device)  # gradient, loss, learned tokens, tokens read, rank 0's clock
    step, before = restore(work / "checkpoints", master, optimizer)
    started, told, saved, read_tokens, history = time.monotonic(), 0.0, 0.0, 0, []
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
        step, read_tokens = step + 1, read_tokens + int(tokens)
        master.grad.copy_(sums[:-4] / max(learned, 1.0))
        torch.nn.utils.clip_grad_norm_([master], CLIP)
        share = max(elapsed / (training.minutes * 60), step / len(plan))
        optimizer.param_groups[0]["lr"] = training.learning_rate * rate(share)
        optimizer.step()
        history.append(loss / max(learned, 1.0))
        spent = elapsed - before
        last = share >= 1.0
        if rank == 0 and (last or spent - told >= PROGRESS_S):
            told = spent
            progress(step, len(plan), float(np.mean(history[-10:])), read_tokens / max(spent, 1e-9))
        if rank == 0 and not last and spent - saved >= training.checkpoint_s:
            saved = spent
            checkpoint(work / "checkpoints", step, elapsed, master, optimizer)
        if last:
            break
    if rank == 0:
        _spread(master, adapted)
        save_adapter(model, adapted, master, work / "adapter")
        figures = {"steps": step, "planned": len(plan), "tokens": read_tokens, "loss": history[-10:], "workers": world}
        (work / "training.json").write_text(json.dumps(figures | {"seconds": time.monotonic() - started}))
    if world > 1:
        torch.distributed.barrier()


def progress(step: int, steps: int, loss: float, tokens_per_s: float) -> None:
    print(f"finetune: step {step}/{steps} loss {loss:.3f} {tokens_per_s:.0f} tokens/s", flush=True)


def rate(share: float) -> float:
    """Learning rate as a share of its peak, at `share` (0 to 1) of the budget: linear warm-up, linear decay to 0."""
    return min(share / WARM_UP, 1.0) * min(1.0, max(0.0, (1 - share) / (1 - WARM_UP)))


def steps(lengths: np.ndarray, training: Training, world: int) -> list[list[list[list[int]]]]:
    """For each step, for each worker, its stretches, each a list of row numbers laid end to end.

    Within windows of 16 steps rows are sorted by length, so that the workers of a step wait little for each other;
    then the steps of a window are shuffled. All workers compute the same plan.
    """
    rng = np.random.default_rng(training.seed)
    per_worker = max(1, training.rows_per_step // world)
    window = 16 * per_worker * world
    plan = []
    for first in range(0, len(lengths), window):
        numbers = range(first, min(first + window, len(lengths)))
        stretches: list[list[int]] = []
        room = 0
        for number in sorted(numbers, key=lambda row: (lengths[row], row)):
            if not stretches or lengths[number] > room:
                stretches.append([])
                room = training.row_tokens
            stretches[-1].append(number)
            room -= lengths[number]
        chunks = [stretches[at : at + per_worker * world] for at in range(0, len(stretches), per_worker * world)]
        plan += [[chunk[worker::world] for worker in range(world)] for chunk in rng.permutation(len(chunks)).tolist() and
                 [chunks[at] for at in rng.permutation(len(chunks))]]
    return plan
