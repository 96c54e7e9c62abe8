"""What the figures of fine-tuning share: questions with the paragraph that answers each, split by article; rows of them
as the product trains on them; the product's loop in plain processes; what it made, published."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from data.records import Chunk, Example, Model, Prompt, digest
from tasks.contexts import Mixture, Rows, contexts, rows

WIKI, AMAZON = "squadshifts_new_wiki.json.gz", "squadshifts_amazon.json.gz"
Bound = dict[Example, Chunk]
"""Questions, each with the paragraph that answers it."""


# --- questions and rows -----------------------------------------------------------------------


def questions(name: str) -> Bound:
    """Every question of a SQuAD file in the folder PERENNIAL_DATA."""
    from benchmarks.machine import data
    from data import formats

    found = formats.read(data(name))
    paragraphs = {
        (document.id, section.heading): Chunk(
            digest(document.id, section.heading)[:32],
            document.id,
            document.title,
            section.heading,
            section.hash,
            section.text,
        )
        for document in found.documents
        for section in document.sections
    }
    places = {example: (example.document, example.section) for example in found.examples if example.answers}
    return {example: paragraphs[place] for example, place in places.items() if place in paragraphs}


def apart(bound: Bound, articles: int, seed: int = 0) -> tuple[Bound, Bound]:
    """The questions of all other articles, and those of `articles` articles drawn by `seed`: no article is in both."""
    names = sorted({chunk.document for chunk in bound.values()})
    drawn = set(random.Random(seed).sample(names, articles))
    sides: tuple[Bound, Bound] = {}, {}
    for example, chunk in bound.items():
        sides[chunk.document in drawn][example] = chunk
    return sides


def some(bound: Bound, number: int, seed: int = 0) -> Bound:
    """At most `number` questions: all those of one paragraph after the other, the paragraphs drawn by `seed`."""
    together = defaultdict(list)
    for example, chunk in bound.items():
        together[chunk.id].append(example)
    drawn = random.Random(seed).sample(sorted(together), len(together))
    chosen = [example for paragraph in drawn for example in together[paragraph]]
    return {example: bound[example] for example in chosen[:number]}


def articles(bound: Bound) -> int:
    return len({chunk.document for chunk in bound.values()})


def build(question: str, chunks: Sequence[Chunk]) -> str:
    """The prompt as served, with the default texts."""
    from serving.rag import build_prompt

    return build_prompt(Prompt(), question, chunks)


def encoder(base: Path) -> Callable[[str], list[int]]:
    """What turns text into the token ids of the model in the folder `base`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def made(bound: Bound, passes: int = 1, seed: int = 0, tokens: int = 1 << 40, answers: int = 8) -> Rows:
    """Training rows of up to `tokens` tokens: the paragraph is the only passage, and every question is answered.

    `answers`: most questions behind one paragraph; with 1 a row is a question, and each is there once in a pass.
    """
    from serving.engine.models import base_folder

    mixture = Mixture(abstain=0.0, narrow=0.0, answers=answers)
    planned = contexts(bound, lambda asked: [()] * len(asked), 1, mixture, passes, seed)
    return rows(planned, build, encoder(base_folder()), Prompt().abstain, mixture, tokens)


# --- training ---------------------------------------------------------------------------------


def train(work: Path, trained: Rows, held: Rows | None, training, workers: int, **more) -> dict:
    """The product's loop in `workers` plain processes of one thread, without Ray; what it left in training.json.

    `more` joins the loop's config. Each process notes its checks in checks-<rank>.jsonl: the seconds trained before it
    (those of earlier checks left out), and the loss.
    """
    import torch

    from serving.engine.models import base_folder

    work.mkdir(parents=True, exist_ok=True)
    for name, part in (("rows", trained), ("held", held)):
        if part is not None:
            part.save(work / f"{name}.npz")
    config = {"work": str(work), "base": str(base_folder()), "training": asdict(training), "gpu": False} | more
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, (workers, port, config), nprocs=workers)
    return figures(work)


def figures(work: Path) -> dict:
    """What the loop left about itself in `work`."""
    return json.loads((work / "training.json").read_text())


def worker(rank: int, world: int, port: int, config: dict) -> None:
    """One process of `train`."""
    import torch

    from tasks import training

    if world > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    training.checking = clocked(training.checking, Path(config["work"]) / f"checks-{rank}.jsonl")
    training.train_loop_per_worker(config)
    if world > 1:
        torch.distributed.destroy_process_group()


def clocked(checking: Callable, path: Path) -> Callable:
    """The loop's `checking`, whose checks also note in `path` when they were: training is timed without them."""

    def making(*given):
        check = checking(*given)
        begun = time.monotonic()

        def timed() -> float:
            nonlocal begun
            start = time.monotonic()
            loss = check()
            with open(path, "a") as file:
                file.write(json.dumps([start - begun, loss]) + "\n")
            begun += time.monotonic() - start
            return loss

        return timed if check else None

    return making


def published(work: Path, training, examples: int) -> Model:
    """The adapter that `train` left in `work`, merged, exported, proved and written as the product does it."""
    from serving.engine.models import base_folder, base_model
    from tasks.publish import publish

    about = {"assistant": work.name, "snapshot": "", "examples": examples, "held": 0, "lost": 0, "preferences": 0}
    about |= {"flips": 0.0, "feedback": [], "gpu": False, "cost": 0.0, "training": asdict(training)}
    (work / "record.json").write_text(json.dumps(figures(work) | about))
    return publish(work / "adapter", base_folder(), base_model(), work / "published", work)


def checks(work: Path) -> list[tuple[float, float]]:
    """(seconds trained, held-out loss) of the checks that `train` made in `work`."""
    return [tuple(json.loads(line)) for line in (work / "checks-0.jsonl").read_text().splitlines()]
