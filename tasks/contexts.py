"""Training rows: which examples are shown with which passages, as token ids.

A row is one context with every example that it answers, not one row per example: the passages are read once, and each
question with its answer is a branch behind them that sees the passages and itself, never another branch. That is the
same computation as one sequence per example (tests compare the two) at about a quarter of the tokens.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

import numpy as np

from data.records import Chunk, Example, Preference, Record
from serving.chat import FORMATS, Format

Search = Callable[[Sequence[str]], list[Sequence[Chunk]]]
"""Questions -> for each the passages served for it, best first; eight are asked at a time, to be embedded together."""


@dataclass(frozen=True)
class Mixture(Record):
    """What contexts look like. Shares are 0 to 1 of all branches (`abstain`) or of all contexts (`narrow`).

    `narrow`: contexts with fewer passages than are served, 1 to top_k - 1, which makes training faster.
    `answers`: most examples behind one context. `most_tokens`: longer contexts lose their last passages.
    """

    abstain: float = 0.15
    narrow: float = 0.25
    answers: int = 8
    most_tokens: int = 1024


@dataclass(frozen=True)
class Context:
    """Passages in the order shown, the examples they answer, and those they do not (the completion is to abstain)."""

    chunks: tuple[Chunk, ...]
    answered: tuple[Example, ...]
    unanswered: tuple[Example, ...]


@dataclass(frozen=True)
class Rows:
    """Rows laid end to end, int32 each [tokens]: ids, positions in the branch's own sequence, branch (0 = shared),
    learn (1 where the token is predicted for the loss). Row r is `[offsets[r]:offsets[r + 1]]`."""

    ids: np.ndarray
    positions: np.ndarray
    branches: np.ndarray
    learn: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        part = slice(self.offsets[number], self.offsets[number + 1])
        return self.ids[part], self.positions[part], self.branches[part], self.learn[part]

    def save(self, path: Path) -> None:
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: str | Path) -> Rows:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**arrays)


def normal(text: str) -> str:
    """Lower case, single spaces: how answers are looked for in passages."""
    return " ".join(text.lower().split())


def holds(chunk: Chunk, example: Example) -> bool:
    """Whether the text of `chunk` contains one of the accepted answers."""
    text = normal(chunk.text)
    return any(normal(answer) in text for answer in example.answers)


def source_chunk(example: Example, chunks: Sequence[Chunk]) -> Chunk | None:
    """The chunk that answers `example`, among the `chunks` of its document; None when that cannot be told.

    Of its section's chunks the first that holds an accepted answer, else the one sharing most words with the answer.
    Without a section, a chunk must hold the answer.
    """
    inside = [
        chunk
        for chunk in chunks
        if example.section and example.section in (chunk.section, chunk.section.split(" > ")[-1])
    ]
    for chunk in inside or chunks:
        if holds(chunk, example):
            return chunk
    words = {word for answer in example.answers for word in normal(answer).split()}
    return max(inside, key=lambda chunk: len(words & set(normal(chunk.text).split())), default=None)


def bind(
    examples: Sequence[Example], chunks: Sequence[Chunk], search: Search
) -> tuple[dict[Example, Chunk | None], int]:
    """Each usable example with its source chunk (None: unanswerable), and how many have answers no chunk explains."""
    by_document = defaultdict(list)
    for chunk in chunks:
        by_document[chunk.document].append(chunk)
    loose = [example.question for example in examples if example.answers and not example.document]
    found = dict(zip(loose, search(loose), strict=True))
    bound: dict[Example, Chunk | None] = {}
    lost = 0
    for example in examples:
        if not example.answers:
            bound[example] = None
            continue
        near = by_document[example.document] if example.document else found[example.question]
        if (source := source_chunk(example, near)) is None:
            lost += 1
        else:
            bound[example] = source
    return bound, lost


def contexts(
    bound: dict[Example, Chunk | None],
    search: Search,
    top_k: int,
    mixture: Mixture,
    passes: int,
    seed: int,
) -> Iterator[Context]:
    """Contexts of `passes` passes; in each pass every example is answered (or abstained on) at least once.

    A context is what retrieval shows for one example not yet covered in this pass, with its source put in where
    retrieval missed it. All other examples from the same passages come along. The abstentions are questions on the
    same documents whose source is not shown and whose answer occurs in no passage shown: near misses, as when served.
    """
    by_chunk, by_document = defaultdict(list), defaultdict(list)
    for example, chunk in bound.items():
        if chunk:
            by_chunk[chunk.id].append(example)
            by_document[chunk.document].append(example)
    rng = random.Random(seed)
    found: dict[str, Sequence[Chunk]] = {}
    for _ in range(passes):
        waiting = dict.fromkeys(rng.sample(list(bound), len(bound)))  # an ordered set
        while waiting:
            first = next(iter(waiting))
            waiting.pop(first)
            if first.question not in found:
                asked = [first.question, *islice((e.question for e in waiting if e.question not in found), 7)]
                found |= zip(asked, search(asked), strict=True)
            shown = _shown(found[first.question][:top_k], bound[first], top_k, mixture, rng)
            if not shown:
                continue
            there = [example for chunk in shown for example in by_chunk[chunk.id] if example != first]
            rng.shuffle(there)
            there.sort(key=lambda example: example not in waiting)  # stable: uncovered first
            answered = ([first] if bound[first] else []) + there[: mixture.answers - 1]
            for example in answered:
                waiting.pop(example, None)
            unanswered = [] if bound[first] else [first]
            wanted = len(answered) * mixture.abstain / (1 - mixture.abstain) - len(unanswered)
            if (many := int(wanted) + (rng.random() < wanted % 1)) > 0:
                missed = _missed(shown, by_document, bound)
                unanswered += rng.sample(missed, min(many, len(missed)))
            yield Context(tuple(shown), tuple(answered), tuple(unanswered))


def _shown(hits: Sequence[Chunk], source: Chunk | None, top_k: int, mixture: Mixture, rng) -> list[Chunk]:
    shown = list(hits)
    if source and source not in shown:
        shown = shown[: top_k - 1]
        shown.insert(rng.randint(0, len(shown)), source)
    if top_k > 1 and rng.random() < mixture.narrow:
        others = [chunk.id for chunk in shown if chunk != source]
        room = rng.randint(1, top_k - 1) - bool(source)
        kept = set(rng.sample(others, min(room, len(others))))
        shown = [chunk for chunk in shown if chunk.id in kept or chunk == source]
    return shown


def _missed(shown: Sequence[Chunk], by_document: dict, bound: dict) -> list[Example]:
    ids = {chunk.id for chunk in shown}
    near = [example for document in dict.fromkeys(c.document for c in shown) for example in by_document[document]]
    return [e for e in near if bound[e].id not in ids and not any(holds(chunk, e) for chunk in shown)]


def rows(
    planned: Iterator[Context],
    build: Callable[[str, Sequence[Chunk]], str],
    encode: Callable[[str], list[int]],
    abstain: str,
    mixture: Mixture,
    tokens: int,
    chat: Format = FORMATS["chatml"],
) -> Rows:
    """Rows of the planned contexts, until they hold `tokens` tokens. `build` makes the prompt, as served in `chat`."""
    parts: list[tuple[list[int], list[int], list[int], list[int]]] = []
    total = 0
    for context in planned:
        chunks = list(context.chunks)
        pairs = [(e.question, e.answers[0]) for e in context.answered] + [
            (e.question, abstain) for e in context.unanswered
        ]
        prompts = [encode(build(question, chunks)) for question, _ in pairs]
        while len(chunks) > 1 and len(prompts[0]) > mixture.most_tokens:
            keep = [e for e in context.answered if any(holds(chunk, e) for chunk in chunks[:-1])]
            if not keep and context.answered:
                break
            chunks.pop()
            pairs = [(e.question, e.answers[0]) for e in keep] + [(e.question, abstain) for e in context.unanswered]
            prompts = [encode(build(question, chunks)) for question, _ in pairs]
        completions = [encode(chat.escape(answer) + chat.end) for _, answer in pairs]
        part = row(prompts, completions)
        parts.append(part)
        total += len(part[0])
        if total >= tokens:
            break
    if not parts:
        raise ValueError("no example could be bound to a passage, nothing to train on; check examples' documents")
    return joined(parts)


def joined(parts: Sequence[tuple[list, list, list, list]]) -> Rows:
    """Rows from what `row` makes."""
    columns = [np.concatenate([np.zeros(0, np.int32), *(np.asarray(p[i], np.int32) for p in parts)]) for i in range(4)]
    return Rows(*columns, offsets=np.cumsum([0] + [len(part[0]) for part in parts], dtype=np.int64))


def row(prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> tuple[list, list, list, list]:
    """One row from prompts that begin alike: (ids, positions, branches, learn).

    >>> row([[1, 2, 3], [1, 2, 4]], [[7], [8, 9]])
    ([1, 2, 3, 7, 4, 8, 9], [0, 1, 2, 3, 2, 3, 4], [0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 1, 0, 1, 1])
    """
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False)))
    shared = min(shared, min(map(len, prompts)) - 1)  # a branch needs a token of its own to predict its first from
    ids, positions = list(prompts[0][:shared]), list(range(shared))
    branches, learn = [0] * shared, [0] * shared
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), start=1):
        own = prompt[shared:] + completion
        ids += own
        positions += range(shared, shared + len(own))
        branches += [number] * len(own)
        learn += [0] * (len(prompt) - shared) + [1] * len(completion)
    return ids, positions, branches, learn


def pairs(
    preferences: Sequence[Preference],
    search: Search,
    build: Callable[[str, Sequence[Chunk]], str],
    encode: Callable[[str], list[int]],
    top_k: int,
    most_tokens: int,
    chat: Format = FORMATS["chatml"],
) -> Rows:
    """A row for each preference, as served: the prompt, behind it branch 1 the chosen answer, branch 2 the rejected."""
    parts = []
    found = search([preference.question for preference in preferences]) if preferences else []
    for preference, hits in zip(preferences, found, strict=True):
        chunks = list(hits[:top_k])
        prompt = encode(build(preference.question, chunks))
        while len(chunks) > 1 and len(prompt) > most_tokens:
            chunks.pop()
            prompt = encode(build(preference.question, chunks))
        said = [encode(chat.escape(text) + chat.end) for text in (preference.chosen, preference.rejected)]
        parts.append(row([prompt, prompt], said))
    return joined(parts)
