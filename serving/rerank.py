"""Which of the found chunks are shown: ordered anew, told apart, shared among sources, widened by their section."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from data.chunking import passage
from data.cleaning import words
from data.records import Chunk, Filter, Hit, Retrieval

if TYPE_CHECKING:
    from data.store import Index

MOST_TOKENS = 512
BATCH = 16
# A sentence or two that two neighbours both hold is an overlap of theirs; less may be chance, and is kept.
OVERLAP = 12
# Two texts that differ in one of these say opposite things, however alike they are.
NEGATIONS = frozenset({"no", "not", "never", "none", "without", "cannot", "except", "unless", "only"})


def choose(
    index: Index,
    question: str,
    found: Sequence[Hit],
    retrieval: Retrieval,
    tombstones: frozenset[str] = frozenset(),
    allowed: Filter = Filter(),
) -> tuple[Hit, ...]:
    """The hits that are shown, best first, of `found`, best first.

    In this order: the reranker's order of the best `rerank`, no near-duplicates, at most `per_source` of a document,
    `top_k`, and texts widened within `section_characters`. A hit keeps the id and the score it was found with.
    """
    if retrieval.reranker:
        found = reordered(question, found, retrieval)
    shown: list[Hit] = []
    sources: Counter[str] = Counter()
    for hit in found:
        if len(shown) == retrieval.top_k:
            break
        document = hit.chunk.document
        if retrieval.per_source and sources[document] == retrieval.per_source:
            continue
        if any(alike(question, hit.chunk, better.chunk, retrieval.distinct) for better in shown):
            continue
        sources[document] += 1
        shown.append(hit)
    return tuple(widened(index, shown, retrieval.section_characters, tombstones, allowed))


def permitted(chunk: Chunk, tombstones: frozenset[str], allowed: Filter) -> bool:
    """Whether a chunk may be shown: not deleted, and seen by who asks, as data.store filters it."""
    return (
        chunk.id not in tombstones
        and chunk.tenant in ("", allowed.tenant)
        and chunk.access in ("", *allowed.labels)
        and (not allowed.documents or chunk.document in allowed.documents)
        and (not allowed.languages or chunk.language in allowed.languages)
        and (not allowed.modified_after or chunk.modified > allowed.modified_after)
    )


# --- told apart -------------------------------------------------------------------------------


def alike(question: str, one: Chunk, other: Chunk, distinct: float) -> bool:
    """Whether one chunk says nothing that the other does not: texts at least `distinct` similar, with equal figures.

    Texts of one pattern ("the value is no `date`", "... no `time`") are as similar as copies are, so two chunks are
    kept when a word in which they or their headings differ is a negation or stands in the question.
    """
    from rapidfuzz import fuzz

    if not fuzz.ratio(one.text, other.text, score_cutoff=100 * distinct) or _figures(one) != _figures(other):
        return False
    differing = _words(_whole(one)) ^ _words(_whole(other))
    return not differing & (_words(question) | NEGATIONS)


def _figures(chunk: Chunk) -> list[str]:
    return [word for word in chunk.text.split() if any(map(str.isdigit, word))]


def _words(text: str) -> set[str]:
    return set(words(text.lower()))


def _whole(chunk: Chunk) -> str:
    return passage(chunk.title, chunk.section, chunk.text)


# --- widened ----------------------------------------------------------------------------------


def widened(
    index: Index, hits: Sequence[Hit], characters: int, tombstones: frozenset[str], allowed: Filter
) -> Iterator[Hit]:
    """The hits with their neighbours in the section joined to their texts, while all texts together fit `characters`.

    In turns, best hit first, the chunk before and the chunk after, until a gap: a chunk that is shown already, or that
    is deleted, may not be seen, or does not fit. What is cited stays the hit's own chunk.
    """
    room = characters - sum(len(hit.chunk.text) for hit in hits)
    if room <= 0:
        yield from hits
        return
    texts = [hit.chunk.text for hit in hits]
    shown = {_place(hit.chunk) for hit in hits}
    named = {(hit.chunk.document, hit.chunk.section): hit.chunk for hit in hits}
    parts = (part for chunk in named.values() for part in index.section(chunk))
    there = {_place(part): part.text for part in parts if permitted(part, tombstones, allowed)}
    ends = deque((at, hit.chunk.part + step, step) for step in (-1, 1) for at, hit in enumerate(hits))
    while ends:
        at, part, step = ends.popleft()
        place = (*_place(hits[at].chunk)[:-1], part)
        if place in shown or place not in there:
            continue
        text = joined(there[place], texts[at]) if step < 0 else joined(texts[at], there[place])
        if len(text) - len(texts[at]) > room:
            continue
        room -= len(text) - len(texts[at])
        texts[at] = text
        shown.add(place)
        ends.append((at, part + step, step))
    for hit, text in zip(hits, texts, strict=True):
        yield replace(hit, chunk=replace(hit.chunk, text=text))


def _place(chunk: Chunk) -> tuple[str, str, int]:
    """Where a chunk stands; two sections under one heading are told apart by their hash."""
    return chunk.document, chunk.section_hash, chunk.part


def joined(before: str, after: str) -> str:
    """Two neighbouring texts as one; what both hold where they overlap stands there once."""
    most = min(len(before), len(after))
    same = next((size for size in range(most, OVERLAP - 1, -1) if before.endswith(after[:size])), 0)
    return before + after[same:] if same else f"{before}\n{after}"


# --- ordered anew -----------------------------------------------------------------------------


def reordered(question: str, found: Sequence[Hit], retrieval: Retrieval) -> list[Hit]:
    """The best `rerank` in the reranker's order, the others behind them as they came."""
    best = found[: retrieval.rerank]
    scores = load(retrieval.reranker).scores(question, [_whole(hit.chunk) for hit in best])
    order = sorted(range(len(best)), key=lambda at: (-scores[at], at))
    return [*(best[at] for at in order), *found[retrieval.rerank :]]


class Reranker:
    """A cross-encoder that reads question and passage together (Nogueira & Cho 2019, arXiv 1901.04085).

    `name`: a folder, or a model id of a hub. Thread safe. Raises ValueError when there is no such model, and when it
    has no safetensors, needs code of its own, or does not give one score.
    """

    def __init__(self, name: str):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            self._model, loaded = AutoModelForSequenceClassification.from_pretrained(
                name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no reranker at {name!r}: {error}; give a folder with config.json, a tokenizer and model.safetensors, "
                "or with HF_HUB_OFFLINE=0 the id of a model on a hub that can be reached"
            ) from error
        if (scores := self._model.config.num_labels) != 1 or loaded["missing_keys"]:
            lacks = f", and no weights for {min(loaded['missing_keys'])}" if loaded["missing_keys"] else ""
            raise ValueError(f"{name!r} gives {scores} scores{lacks}; a reranker is a trained cross-encoder with one")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = self._model.eval().requires_grad_(False).to(self.device)
        self._lock = threading.Lock()

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers the question, as logits: higher is better. Only the first 512 tokens are read."""
        import torch

        scores: list[float] = []
        for start in range(0, len(texts), BATCH):
            some = list(texts[start : start + BATCH])
            with self._lock:  # setting truncation while another thread encodes fails in the Rust code
                encoded = self._tokenizer(
                    [question] * len(some),
                    some,
                    truncation=True,
                    max_length=MOST_TOKENS,
                    padding=True,
                    return_tensors="pt",
                )
            with torch.inference_mode():
                scores += self._model(**encoded.to(self.device)).logits[:, 0].float().tolist()
        return scores


@lru_cache(maxsize=2)
def load(name: str) -> Reranker:
    """The reranker of a folder or model id, loaded once per process."""
    return Reranker(name)
