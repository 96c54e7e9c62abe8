"""Planted regressions and harmless changes through the gate, answered by the code and the engine that serve.

A tuned release of the sample, or of SQuADShifts new-wiki, is the champion. Every kind of change answers the same golden
questions once; its runs draw documents from them with replacement, as other golden sets of the same subject would be.
A kind counts as a regression only where it is really worse by twice the margin, on all its questions.
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.machine import SAMPLE, data, machine
from data.golden_sets import sealed
from data.records import GoldenQuestion, Model, Release, Sources

AIM = "0 of 30 regressions promoted, at most 2 of 30 harmless changes rejected, on both sets"
MARGIN, RUNS, QUESTIONS = 0.10, 30, 160
MINUTES, SPOILED_MINUTES = 6.0, 2.0
HANDBOOK = ("documents", "examples.jsonl", "golden.jsonl")


def met(value: dict) -> bool:
    return all(
        found["regressions"].get("promote", 0) == 0 and found["harmless"].get("reject", 0) <= 2
        for found in value.values()
    )


@dataclass(frozen=True)
class Change:
    """What a candidate has instead of the champion's: a part of the release, or other passages than retrieval found."""

    name: str
    release: Callable = lambda release: release
    hits: Callable = lambda hits: hits


def measure() -> dict:
    """Verdicts of 30 regressions and 30 harmless changes on each set, and every kind's true difference."""
    wiki = data("squadshifts_new_wiki.json.gz")
    with machine():
        value = {
            name: planted(sources)
            for name, sources in (
                ("handbook", Sources("handbook", *(str(SAMPLE / file) for file in HANDBOOK))),
                ("wiki", Sources("wiki", wiki, wiki)),
            )
        }
    n = {"runs of each": RUNS, "questions": QUESTIONS}
    return {"value": value, "n": n, "against": None, "limit": None}


def planted(sources: Sources) -> dict:
    """A tuned release of these sources against all changes. No gate has to accept it: it is only what is changed."""
    from data import snapshots
    from tasks import finetune, prepare
    from tasks.index import build_index
    from tasks.training import Training

    snapshot = prepare.prepare(sources)
    index = build_index(snapshot)
    model = finetune.finetune(snapshot, index, training=Training(minutes=MINUTES))
    champion = Release(sources.assistant, model, index)
    bad = spoiled(champion, sources)
    regressions = [*REGRESSIONS, Change("bad adapter", lambda release: replace(release, model=bad))]
    golden = sorted((q for q in snapshots.golden(snapshot) if q.votes), key=lambda q: q.id)[:QUESTIONS]
    scores = answered(champion, golden, [*regressions, *HARMLESS])
    return judged(scores, [change.name for change in regressions], sealed(golden))


def spoiled(champion: Release, sources: Sources) -> Model:
    """A model trained on the same questions with the answers of others."""
    from data import snapshots
    from settings import settings
    from tasks import finetune, prepare
    from tasks.training import Training

    read = prepare.prepare(replace(sources, assistant=f"{sources.assistant}-read"))
    rows = [example for example in snapshots.examples(read) if example.answers]
    answers = [example.answers for example in rows]
    random.Random(7).shuffle(answers)
    place = Path(settings().home) / f"{sources.assistant}-spoiled.jsonl"
    lines = [
        {"question": row.question, "answers": list(wrong), "document": row.document, "section": row.section}
        for row, wrong in zip(rows, answers, strict=True)
    ]
    place.write_text("\n".join(map(json.dumps, lines)))
    snapshot = prepare.prepare(Sources(f"{sources.assistant}-spoiled", sources.documents, str(place)))
    training = Training(minutes=SPOILED_MINUTES, learning_rate=0.005)
    return finetune.finetune(snapshot, champion.index, training=training)


# --- what is planted --------------------------------------------------------------------------


def prompted(**texts: str) -> Callable:
    """The release with other texts in its prompt."""
    return lambda release: replace(release, prompt=replace(release.prompt, **texts))


def shuffled(hits: Sequence) -> list:
    """Every question is shown the passages of another: rows of the index that lost their vectors' order."""
    order = list(range(len(hits)))
    random.Random(3).shuffle(order)
    return [hits[at] for at in order]


def cut(hits: Sequence) -> list:
    """Only the first 60 characters of each passage."""
    return [tuple(replace(hit, chunk=replace(hit.chunk, text=hit.chunk.text[:60])) for hit in found) for found in hits]


def reworded(release):
    return replace(release, prompt=replace(release.prompt, system=release.prompt.system + " Be exact."))


REGRESSIONS = [
    Change("shuffled index", hits=shuffled),
    Change("truncated context", hits=cut),
    Change("wrong chat template", prompted(chat="llama3")),
    Change("prompt regression", prompted(system="Tell a short story. Never answer a question.", user="{question}")),
    Change("other embedder", lambda r: replace(r, retrieval=replace(r.retrieval, vector_weight=1.0))),
]
HARMLESS = [
    Change("reworded prompt", reworded),
    Change("passages without titles", prompted(passage="[{number}] {section}\n{text}\n")),
    Change("wider search", lambda r: replace(r, retrieval=replace(r.retrieval, candidates=50))),
    Change("words count a little more", lambda r: replace(r, retrieval=replace(r.retrieval, vector_weight=0.45))),
    Change("shorter limit", lambda r: replace(r, decoding=replace(r.decoding, max_new_tokens=48))),
    Change("question first", prompted(user="Question: {question}\n\n{passages}\nQuestion: {question}")),
]


class Mirrored:
    """An embedder that is not the index's: the same vectors with their dimensions in reverse."""

    def __init__(self, embedder):
        self.embedder = embedder

    def embed(self, texts: Sequence[str]):
        return self.embedder.embed(texts)[:, ::-1].copy()


def answered(live: Release, golden: Sequence[GoldenQuestion], changes: Sequence[Change]) -> dict:
    """Scores of the champion ("") and of every change, on the same questions.

    Through the answer cache, as in an evaluation: where a change leaves a prompt as it was, nothing is asked again.
    """
    from contextlib import ExitStack

    from serving import rag
    from tasks.arm import Arm

    asked, scores = [question.question for question in golden], {}
    with ExitStack() as opened:
        engines: dict[str, object] = {}
        for change in (Change(""), *changes):
            release = change.release(live)
            arm = Arm.open(release, opened, engines.get(release.model.sha256))
            engines[release.model.sha256] = arm.engine
            embedder = Mirrored(arm.embedder) if change.name == "other embedder" else arm.embedder
            found = change.hits(rag.retrieve_many(asked, arm.index, embedder, release.retrieval))
            scores[change.name], _ = arm.score(golden, rag.answer_given(asked, found, release, arm.engine), False)
            print(f"gate-planted: {change.name or 'champion'} answered", file=sys.stderr)
    return scores


# --- the verdicts -----------------------------------------------------------------------------


def judged(scores: dict, regressions: Sequence[str], apart: Collection[str]) -> dict:
    """Verdicts by kind, of kinds that are really regressions and of harmless ones; what is neither is listed."""
    from tasks.gate import GateSettings
    from tasks.intervals import pair

    champion, kinds = scores[""], {name: mine for name, mine in scores.items() if name}
    settings = GateSettings(margin=MARGIN, guardrails=("grounding", "abstention"), min_guardrail_items=30)
    truth = {
        name: pair("correct", mine, champion).interval("correct", MARGIN, 0.05, 0.02) for name, mine in kinds.items()
    }
    worse = [name for name in regressions if truth[name].mean <= -2 * MARGIN]
    harmless = [name for name in kinds if name not in regressions and truth[name].mean > -MARGIN]
    counted = {
        "regressions": verdicts(worse, kinds, champion, apart, settings),
        "harmless": verdicts(harmless, kinds, champion, apart, settings),
    }
    shown = {
        name: {"points": round(100 * i.mean, 1), "p_d": round(i.discordance, 3), "power": round(i.power, 2)}
        for name, i in truth.items()
    }
    return counted | {"truth": shown, "left out": sorted(set(kinds) - set(worse) - set(harmless))}


def verdicts(names: Sequence[str], kinds: dict, champion, apart: Collection[str], settings) -> dict[str, int]:
    """How often each verdict was given in RUNS runs, kind after kind; `apart`: the sealed questions."""
    from tasks.gate import decide

    said: dict[str, int] = defaultdict(int)
    for run in range(RUNS if names else 0):
        drawn = draw(champion, random.Random(run))
        mine, theirs = taken(kinds[names[run % len(names)]], drawn), taken(champion, drawn)
        kept = {new for new, (at, _) in zip(theirs.questions, drawn, strict=True) if champion.questions[at] in apart}
        said[decide(mine, theirs, {"answered": None}, settings, sealed=kept).verdict] += 1
    return dict(said)


def draw(scores, chance: random.Random) -> list[tuple[int, str]]:
    """Places of questions, and their cluster's new name, of as many documents drawn with replacement."""
    members = defaultdict(list)
    for at, cluster in enumerate(scores.clusters):
        members[cluster].append(at)
    chosen = chance.choices(sorted(members), k=len(members))
    return [(at, f"{turn}-{cluster}") for turn, cluster in enumerate(chosen) for at in members[cluster]]


def taken(scores, drawn: Sequence[tuple[int, str]]):
    """The scores at these places."""
    from tasks.gate import Scores

    ids = tuple(f"{place}-{scores.questions[at]}" for place, (at, _) in enumerate(drawn))
    metrics = {name: [values[at] for at, _ in drawn] for name, values in scores.metrics.items()}
    return Scores(ids, tuple(cluster for _, cluster in drawn), metrics, unit=scores.unit)
