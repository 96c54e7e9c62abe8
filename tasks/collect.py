"""Which answers a person should label: the uncertain and the new ones, no two alike, the most informative first.

What comes back is learnt from, shown in prompts and replayed. It is no sample of what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data import reviews, snapshots
from data.ledger import Ledger
from data.records import Answer, Chunk, Record, Release, Snapshot
from data.requests import RequestLog
from settings import settings
from tasks.behaviour import reworded
from tasks.golden import leaks
from tasks.replay import answers
from tasks.streams import relevant

ALIKE = 0.85
"""Cosine from which on two questions are about the same, so that one of them is enough."""
SHORTLIST = 3
"""Answers asked for again in other words, for each that is listed."""

Again = Callable[[Sequence[str]], Sequence[Answer]]
"""Questions -> what the live release answers."""
Embed = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Collecting(Record):
    """How many answers are listed at a time, the `most` that may wait for a label, and the requests looked at."""

    items: int = 20
    most: int = 60
    requests: int = 2000


def list_answers(book: Ledger, live: Release, snapshot: Snapshot, chosen: Collecting = Collecting()) -> str:
    """Put the most informative recent answers of a release into the review queue; the sentence for the record."""
    from data.embedding import load
    from data.store import open_index
    from serving.engine.models import embedder_folder

    name, log, tombstones = live.assistant, RequestLog(settings().requests), book.tombstones(live.assistant)
    waiting = len(reviews.items(book, name, reviews.LABEL))
    room = min(chosen.items, chosen.most - waiting)
    if room <= 0:
        return f"{waiting} answers wait for a label already"
    recent = log.window(name, max(0, log.last_id(name) - chosen.requests), chosen.requests)
    known = [*reviews.asked_before(book, name), *(question.question for question in snapshots.golden(snapshot))]
    known += [row["question"] for row in book.feedback(name) if row["question"]]
    rows = askable(recent, live, known)
    if not rows:
        return "no recent answer of the live release is left to ask about"
    best = informative(rows, room, load(embedder_folder()).embed, known, lambda asked: answers(live, asked, tombstones))
    held = open_index(live.index)
    listed = [shown(row, [chunk for one in row["chunks"] or () if (chunk := held.chunk(one))]) for row in best]
    return f"{reviews.ask_answers(book, name, listed)} answers listed to be labelled: python -m flows.review"


def askable(recent: Sequence[dict], live: Release, known: Sequence[str]) -> list[dict]:
    """The rows of the request log that a person may be asked about, each question once: answers of the live release to
    users without a tenant, whose text everyone's model may learn, and nothing that is golden, said or asked before.
    """
    fresh = {
        row["question"].casefold(): row
        for row in recent
        if row["source"] == "user" and row["status"] == 200 and row["release"] == live.id
        and row["embedding"] and row["question"] and not row["tenant"]
    }  # fmt: skip
    rows = list(fresh.values())
    near = leaks([row["question"] for row in rows], known)
    return [row for at, row in enumerate(rows) if at not in near]


def informative(rows: Sequence[dict], most: int, embed: Embed, known: Sequence[str], again: Again) -> list[dict]:
    """At most `most` of the rows, the best first: by how uncertain their answers are, how new their questions are, and,
    of a shortlist, how far an answer changes when its question is asked in other words."""
    from tasks.metrics.answers import f1

    vectors = np.stack([np.frombuffer(row["embedding"], np.float16).astype(np.float32) for row in rows])
    new = 1 - np.clip((vectors @ embed(list(known)).T).max(axis=1), 0, 1) if known else np.ones(len(rows))
    worth = (np.array([uncertainty(row) for row in rows]) + rank(gaps(rows)) + new) / 3
    short = apart(vectors, worth, SHORTLIST * most)
    for at, answer in zip(short, again([reworded(rows[at]["question"]) for at in short]), strict=True):
        declined = bool(rows[at]["abstained"])
        same = float(declined == answer.abstained)
        if not declined and not answer.abstained:
            same = f1(rows[at]["answer"], answer.text)
        worth[at] += 1 - same
    return [rows[at] for at in sorted(short, key=lambda at: -worth[at])[:most]]


def uncertainty(row: dict) -> float:
    """0 to 1: the words of an answer that no passage holds; 1 for a question declined although a passage was near."""
    if row["abstained"]:
        return float(relevant(row))
    return 1 - row["grounding"] if row["grounding"] is not None else 0.5


def gaps(rows: Sequence[dict]) -> np.ndarray:
    """How little the best passage stands out before the second, higher is worse; 0 where there is but one."""
    scores = [row["scores"] or () for row in rows]
    return np.array([one[1] - one[0] if len(one) > 1 else 0.0 for one in scores])


def rank(values: np.ndarray) -> np.ndarray:
    """The share of the others that each value is above, 0 to 1; equal values rank the same."""
    return np.array([(values < value).sum() for value in values]) / max(1, len(values) - 1)


def apart(vectors: np.ndarray, worth: np.ndarray, most: int) -> list[int]:
    """At most `most` positions, the worthiest first, no two of them ALIKE."""
    taken: list[int] = []
    for at in np.argsort(-worth, kind="stable"):
        if len(taken) < most and all(vectors[at] @ vectors[other] < ALIKE for other in taken):
            taken.append(int(at))
    return taken


def shown(row: dict, chunks: Sequence[Chunk]) -> dict:
    """An answer as it is listed, with the passages it was given from, as far as they are still there."""
    passages = [f"{chunk.title} > {chunk.section}: {chunk.text}" for chunk in chunks]
    places = [{"document": chunk.document, "section": chunk.section} for chunk in chunks]
    about = {name: row[name] for name in ("response", "question", "answer", "user")}
    return about | {"arm": row["release"], "passages": passages, "places": places}
