"""Fine-tune: a LoRA adapter on the base model in Ray Train, merged and exported to the file that is served.

The adapter learns to answer from passages as they are served: prompts by serving.rag.build_prompt, passages by the
release's own retrieval, loss on the completions alone. Rows are explained in tasks/contexts.py, the loop is in
tasks/training.py.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from data.records import IndexVersion, Model, Prompt, Retrieval, Snapshot, as_json, digest
from settings import settings
from tasks import registry, report, runs
from tasks.checkpoints import COMPLETE
from tasks.cluster import connect
from tasks.contexts import Rows, bind, contexts, pairs, rows
from tasks.publish import card, publish, read
from tasks.training import Training, train_loop_per_worker

CODE = "2"  # raise when this module, contexts.py, losses.py or training.py changes what is trained
TOKENS_PER_S = 700  # about twice what one CPU worker trains: bounds how many rows are prepared for a time budget
FEWEST_TO_HOLD_OUT = 40
CHECKED = 50  # of so many tokens one is spent on examples held out, at each check


@dataclass(frozen=True)
class Prepared:
    """What a run trains on, and where it came from."""

    trained: Rows
    held: Rows | None
    pairs: Rows | None
    about: dict


def finetune(
    snapshot: Snapshot,
    index: IndexVersion,
    prompt: Prompt = Prompt(),
    retrieval: Retrieval = Retrieval(),
    training: Training = Training(),
    base: str | None = None,
) -> Model:
    """The tuned model for these inputs, under settings().models/tuned/<key>; a second call reads its record.

    `base`: as in serving.engine.bases.find, None for the embedded one; the prompt has to be in its chat format. Needs
    Ray: initialised, or reachable at settings().ray. Interrupted training goes on from its last complete checkpoint.
    Raises ValueError when there is nothing to train on, or training diverged or changed nothing.
    """
    import ray

    from serving.engine.bases import find

    of = find(base)
    if not of.tunable:
        raise ValueError(f"{of.why}: release it untuned, or name a base model by its folder or hub id")
    workers = training.workers or settings().training_workers
    if training.rows_per_step < workers:
        raise ValueError(f"{workers} workers share {training.rows_per_step} stretches; raise Training.rows_per_step")
    made_of = (snapshot.id, index.checksum, prompt, retrieval, training, workers, of.model.sha256)
    key = digest("finetune", CODE, *made_of)[:24]
    target = settings().models / "tuned" / key
    if (target / COMPLETE).exists():
        return read(target)
    work = target.with_name(f".{key}.work")
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "about.json").exists():
        prepared = training_rows(snapshot, index, prompt, retrieval, training, workers, of.folder)
        save(work, prepared.trained, prepared.held)
        if prepared.pairs is not None:
            save(work / "preferred", prepared.pairs, None)
        (work / "about.json").write_text(json.dumps(prepared.about))
    about = json.loads((work / "about.json").read_text())
    about |= {"assistant": snapshot.assistant, "snapshot": snapshot.id, "key": key, "training": as_json(training)}
    about["gpu"] = settings().training_gpu
    connect()
    name = f"{snapshot.assistant}-{key}"
    with registry.training_run(about) as log, runs.shown("finetune") as show, report.progress("finetune") as draw:
        adapter = train(work, training, workers, name, of.folder, (log, show, draw))
        figures = json.loads((work / "training.json").read_text())
        if (work / "preferred" / "rows.npz").exists():
            how = training.preferring
            second = replace(training, minutes=how.minutes, learning_rate=how.learning_rate)
            more = {"start": str(adapter), "passes": how.passes, "flips": about["flips"]}
            adapter = train(work / "preferred", second, workers, f"{name}-preferred", of.folder, (show, draw), more)
            figures["preferred"] = json.loads((work / "preferred" / "training.json").read_text())
        record = figures | about
        record["cost"] = runs.cost(record, settings().price_cpu_hour, settings().price_gpu_hour)
        (work / "record.json").write_text(json.dumps(record))
        # In a process of its own: merging holds the base in float32 twice, which would stay with the flow to its end
        publishing = ray.remote(num_cpus=0, max_calls=1)(publish)
        made = ray.get(publishing.remote(adapter, Path(of.folder), of.model, target, work))
    report.training(snapshot.assistant, (target / "README.md").read_text())
    shutil.rmtree(work)
    return made


def trained_with(model: Model) -> Training:
    """How a tuned model was trained; the defaults for one that is not tuned, or that came without a record of it."""
    folder = card(model)
    return Training.of(json.loads((folder / "training.json").read_text())["training"]) if folder else Training()


def save(work: Path, trained: Rows, held: Rows | None) -> None:
    """Leave rows where the loop looks for them."""
    work.mkdir(parents=True, exist_ok=True)
    for name, part in (("held", held), ("rows", trained)):
        if part is not None:
            part.save(work / "partial.npz")
            os.replace(work / "partial.npz", work / f"{name}.npz")


def training_rows(
    snapshot: Snapshot,
    index: IndexVersion,
    prompt: Prompt,
    retrieval: Retrieval,
    training: Training,
    workers: int,
    base: str,
) -> Prepared:
    """The rows for a run, in tokens of the model in the folder `base`: as many as could be trained on in the budget."""
    from tokenizers import Tokenizer

    from data import snapshots
    from data.embedding import load
    from data.store import open_index
    from serving.chat import chat_format
    from serving.engine.models import embedder_folder
    from serving.rag import build_prompt, retrieve_many

    searched, embedder = open_index(index), load(embedder_folder())
    encoder, chat = Tokenizer.from_file(str(Path(base) / "tokenizer.json")), chat_format(prompt.chat)
    mixture, seed, how = training.mixture, training.seed, training.preferring

    def search(questions):
        return [[hit.chunk for hit in hits] for hits in retrieve_many(questions, searched, embedder, retrieval)]

    def encode(text):
        return encoder.encode(text, add_special_tokens=False).ids

    def build(question, chunks):
        return build_prompt(prompt, question, chunks)

    def made_of(bound, passes, tokens):
        planned = contexts(bound, search, retrieval.top_k, mixture, passes, seed)
        return rows(planned, build, encode, prompt.abstain, mixture, tokens, chat)

    # By section, so that the examples of a chosen section come together and share their context
    chosen = sorted(snapshots.examples(snapshot), key=lambda e: (digest(e.document, e.section, seed), e.question))
    trained, held = hold_out(chosen[: training.most_examples], training.held_out)
    bound, lost = bind(trained, searched.chunks(), search)
    limited = training.minutes is not None and not settings().training_gpu
    budget = int(training.minutes * 60 * TOKENS_PER_S * workers) if limited else 1 << 40
    made = made_of(bound, training.passes, budget)
    checked = None
    if held and (held_bound := bind(held, searched.chunks(), search)[0]):
        checked = made_of(held_bound, 1, max(2000, int(made.lengths.sum()) // CHECKED))
    wanted = snapshots.preferences(snapshot)
    liked = (
        pairs(wanted, search, build, encode, retrieval.top_k, mixture.most_tokens, chat)
        if len(wanted) >= how.fewest
        else None
    )
    about = {"examples": len(bound), "held": len(held), "lost": lost, "contexts": len(made.lengths)}
    about |= {"preferences": len(wanted) if liked else 0, "flips": snapshot.flip_rate}
    about["feedback"] = snapshots.feedback_numbers(snapshot)
    left = f"; {lost} left out, no passage holds their answers" if lost else ""
    print(f"finetune: {len(bound)} examples, {len(made.lengths)} contexts of {made.lengths.mean():.0f} tokens{left}")
    return Prepared(made, checked, liked, about)


def hold_out(examples: list, share: float) -> tuple[list, list]:
    """The examples to train on and those to check on: whole sections of about `share` of them, from the front."""
    held: list = []
    if len(examples) >= FEWEST_TO_HOLD_OUT:
        for _, together in groupby(examples, key=lambda example: (example.document, example.section)):
            if len(held) >= share * len(examples):
                break
            held += together
    return examples[len(held) :], held


def train(
    work: Path, training: Training, workers: int, name: str, base: str, watchers=(), more: dict | None = None
) -> Path:
    """Run `train_loop_per_worker` on `workers` Ray Train workers; the adapter's folder, with training.json beside it.

    `work` has to be in reach of every worker. `watchers`: see runs.watched; `more`: joins the loop's config.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    if (work / "adapter" / COMPLETE).exists():
        return work / "adapter"
    gpu = settings().training_gpu
    config = {"work": str(work), "base": base, "training": asdict(training)} | (more or {})
    config |= {"gpu": gpu, "yields": not gpu}
    with runs.watched(work / "progress.jsonl", watchers):
        TorchTrainer(
            train_loop_per_worker,
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(
                # Ray Train silently resumes a run whose name it knows: names are new, resuming is by our checkpoints
                name=f"{name}-{uuid.uuid4().hex[:8]}",
                storage_path=str(settings().home / "training"),
                failure_config=FailureConfig(max_failures=2),
            ),
        ).fit()
    return work / "adapter"
