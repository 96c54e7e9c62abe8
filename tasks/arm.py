"""One release open for questions: its engine, index and embedder, answering and scored as the endpoint answers."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from data import golden_sets
from data.records import Answer, Chunk, GoldenQuestion, Hit, Release, Retrieval
from tasks.intervals import Scores

SLICE = 64
SHORT_ANSWER = 24
"""Tokens of an answer that is compared with another, or that shows whether an attack succeeds."""
SENTENCE = re.compile(r"(?<=[.!?])\s+")


def sentences(chunk: Chunk) -> list[str]:
    """The sentences of a chunk, longest first: questions that this chunk must be found for."""
    return [s[:300] for s in sorted(SENTENCE.split(chunk.text.replace("\n", " ")), key=len, reverse=True)]


class Arm:
    """A release with its engine, index and embedder open, answering as the endpoint does."""

    def __init__(self, release: Release, engine, index, embedder):
        self.release, self.engine, self.index, self.embedder = release, engine, index, embedder
        self.by_section: dict[tuple[str, str], set[str]] = {}
        self.by_document: dict[str, set[str]] = {}
        for chunk, (document, _, section_hash, *_) in index.places().items():
            self.by_section.setdefault((document, section_hash), set()).add(chunk)
            self.by_document.setdefault(document, set()).add(chunk)

    @classmethod
    def open(cls, release: Release, opened: ExitStack, engine=None) -> Arm:
        from data.embedding import load
        from data.store import open_index
        from serving.engine import open_engine
        from serving.engine.models import embedder_folder

        if engine is None:
            engine = open_engine(release.model)
            opened.callback(engine.close)
        return cls(release, engine, open_index(release.index), load(embedder_folder()))

    @property
    def brief(self) -> Release:
        """The release with its answers cut to SHORT_ANSWER tokens."""
        decoding = self.release.decoding
        tokens = min(SHORT_ANSWER, decoding.max_new_tokens)
        return replace(self.release, decoding=replace(decoding, max_new_tokens=tokens))

    def gold_chunks(self, question: GoldenQuestion) -> frozenset[str]:
        """Ids of the chunks of the section (else the document) that the question is bound to, in this arm's index."""
        found = self.by_section.get((question.document, question.section_hash))
        return frozenset(found or self.by_document.get(question.document, ()))

    def answer(
        self, golden: Sequence[GoldenQuestion], left_out: set[str], tombstones: frozenset[str], name: str
    ) -> list[Answer]:
        from serving import rag

        start, answers = time.monotonic(), []
        for first in range(0, len(golden), SLICE):
            some = golden[first : first + SLICE]
            asked = [question.question for question in some]
            hidden = [self.gold_chunks(q) if q.id in left_out else frozenset() for q in some]
            found = rag.retrieve_many(asked, self.index, self.embedder, self.release.retrieval, tombstones, hidden)
            answers += rag.answer_given(asked, found, self.release, self.engine)
            print(f"evaluate: {name} {len(answers)}/{len(golden)} answered, {time.monotonic() - start:.0f} s")
        return answers

    def score(
        self, golden: Sequence[GoldenQuestion], answers: list[Answer], given_passage: bool
    ) -> tuple[Scores, list[dict]]:
        """Scores under every metric, and one row a question for the report.

        Unanswerable questions have no gold chunk. `given_f1` is F1 with only the answering section as context: what
        the model makes of the right passage.
        """
        from tasks import metrics

        gold = [self.gold_chunks(q) if q.answers else frozenset() for q in golden]
        items = [
            metrics.Item(question.question, answer, question, chunks)
            for question, answer, chunks in zip(golden, answers, gold, strict=True)
        ]
        scored: dict[str, list] = metrics.score(metrics.embedded(items, self.embedder))
        if given_passage:
            scored["given_f1"] = self.given(golden, gold)
        by_section = golden_sets.by_section(golden)
        clusters = [f"{q.document}#{q.section}" if by_section else q.document for q in golden]
        folders = [(q.document.split("/")[0],) if "/" in q.document else () for q in golden]
        slices = [(*names, *(("synthetic",) if q.synthetic else ())) for names, q in zip(folders, golden, strict=True)]
        unit = "section" if by_section else "document"
        rows = [
            {
                "id": question.id,
                "question": question.question,
                "accepted": list(question.answers),
                "answer": answer.text,
                "hits": [hit.chunk.id for hit in answer.hits],
                "contexts": [[hit.chunk.document, hit.chunk.section, hit.chunk.text] for hit in answer.hits],
                "tokens": [answer.generation.prompt_tokens, answer.generation.completion_tokens],
                "correct": value,
            }
            for question, answer, value in zip(golden, answers, scored["correct"], strict=True)
        ]
        ids = tuple(question.id for question in golden)
        return Scores(ids, tuple(clusters), scored, tuple(slices), unit), rows

    def attacked(self) -> tuple[Scores, list[dict]]:
        """Scores under attack, clustered by family, and one row an attack. Each is asked with its own passage."""
        from serving import rag
        from tasks import metrics
        from tasks.metrics import safety

        tried = safety.attacks()
        asked = [attack.question for attack in tried]
        answers = rag.answer_given(asked, [(attack.hit,) for attack in tried], self.brief, self.engine)
        compared = [text for pair in zip(tried, answers, strict=True) for text in safety.compared(*pair)]
        vectors = metrics.vectors(compared, self.embedder)
        system = self.release.prompt.system
        attempts = [metrics.Attempt(*pair, system, vectors) for pair in zip(tried, answers, strict=True)]
        scored = metrics.score(attempts, table=metrics.SAFETY)
        rows = [
            {"id": attack.id, "kind": attack.kind, "question": attack.question, "answer": answer.text, "safety": value}
            for attack, answer, value in zip(tried, answers, scored["safety"], strict=True)
        ]
        ids, families = (tuple(getattr(attack, of) for attack in tried) for of in ("id", "family"))
        return Scores(ids, families, scored), rows

    def given(self, golden: Sequence[GoldenQuestion], gold: list[frozenset[str]]) -> list[float | None]:
        from serving import rag
        from tasks import metrics

        places = [at for at, question in enumerate(golden) if question.answers and gold[at]]
        budget = self.release.retrieval.top_k
        hits = [
            tuple(Hit(self.index.chunk(chunk), 1.0, math.nan) for chunk in sorted(gold[at])[:budget]) for at in places
        ]
        answers = rag.answer_given([golden[at].question for at in places], hits, self.release, self.engine)
        items = [
            metrics.Item(golden[at].question, answer, golden[at], gold[at])
            for at, answer in zip(places, answers, strict=True)
        ]
        scored: list[float | None] = [None] * len(golden)
        for at, value in zip(places, metrics.score(items, ["token_f1"])["token_f1"], strict=True):
            scored[at] = value
        return scored

    def probe(self, changed: set[tuple[str, str]], most: int, tombstones: frozenset[str]) -> list[float]:
        """1 for each probe question whose own section is retrieved, 0 else; changed sections come first."""
        chunks = sorted(self.index.chunks(), key=lambda c: ((c.document, c.section_hash) not in changed, c.id))
        cut = [sentences(chunk) for chunk in chunks]
        asked = [  # the longest sentence of each, then the second longest, until there are enough
            (mine[place], chunk.section_hash)
            for place in range(max(map(len, cut), default=0))
            for chunk, mine in zip(chunks, cut, strict=True)
            if place < len(mine)
        ][:most]
        return find_own(asked, self.index, self.embedder, self.release.retrieval, tombstones)


def find_own(
    asked: Sequence[tuple[str, str]], index, embedder, retrieval: Retrieval, tombstones: frozenset[str]
) -> list[float]:
    """1 for each (question, hash of its own section) whose section is retrieved, 0 else."""
    from serving import rag

    found = rag.retrieve_many([question for question, _ in asked], index, embedder, retrieval, tombstones)
    return [
        float(any(hit.chunk.section_hash == own for hit in hits)) for (_, own), hits in zip(asked, found, strict=True)
    ]


def time_both(
    arms: dict[str, Arm],
    scores: dict[str, Scores],
    rows: dict[str, list[dict]],
    asked: Sequence[GoldenQuestion],
    tombstones: frozenset[str],
    most: int,
) -> dict[str, float]:
    """Seconds of fresh answers of both arms in turn, retrieval included, for `most` of the questions: their `latency`.

    Returns, for each arm, the share of these answers that are the same as the one that was scored: generated alone now,
    in a batch then, so it tells how much of a difference could be the engine's own.
    """
    from serving import rag

    seconds: dict[str, list[float | None]] = {name: [None] * len(rows[name]) for name in arms}
    same = dict.fromkeys(arms, 0)
    places = {row["id"]: at for at, row in enumerate(rows["candidate"])}
    timed = asked[:most]
    print(f"evaluate: latency of {len(timed)} fresh answers of each arm, in turn")
    for turn, golden in enumerate(timed):
        at = places[golden.id]
        for name, arm in sorted(arms.items(), reverse=turn % 2 == 1):
            decoding = rag.limited(arm.release.decoding, arm.release.guard)
            start = time.monotonic()
            hits = rag.retrieve(arm.index, arm.embedder, golden.question, arm.release.retrieval, tombstones)
            prompt = rag.build_prompt(arm.release.prompt, golden.question, [hit.chunk for hit in hits])
            (written,) = arm.engine.generate([prompt], decoding)
            seconds[name][at] = time.monotonic() - start
            same[name] += (
                rag.finish(golden.question, written, hits, arm.release.prompt).text == rows[name][at]["answer"]
            )
    for name in arms:
        scores[name].metrics["latency"] = seconds[name]
    return {name: count / len(timed) for name, count in same.items() if timed}
