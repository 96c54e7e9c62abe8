"""Evaluate a candidate beside the champion: the golden questions through the code and the engine that serve.

Both arms answer the same questions in one run; what is on disk is read, not generated again. The gate's decision is
taken from the stored scores, so it can be taken again and checked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from data import snapshots
from data.ledger import Ledger
from data.records import (
    Answer,
    Decision,
    Decoding,
    GoldenQuestion,
    IndexVersion,
    Record,
    Release,
    Snapshot,
    as_json,
    digest,
)
from settings import settings
from tasks import gate
from tasks.arm import Arm, sentences
from tasks.behaviour import behaviour
from tasks.gate import GateSettings, Scores
from tasks.metrics import safety

CODE_VERSION = "2"
ANSWERING = ("tuned", "reprompt", "settings")
"""Kinds of change that can alter what is written to given passages; only these are reworded and attacked."""


@dataclass(frozen=True)
class Suite(Record):
    """What is asked. Unanswerable questions are made by leaving out the answering section where the set has too few."""

    bootstrap_questions: int = 60
    rollback_questions: int = 100
    unanswerable: int = 60
    latency_questions: int = 60
    probes: int = 60
    behaviour_questions: int = 20
    given_passage: bool = True


@dataclass(frozen=True)
class Evaluation(Record):
    """Where the scores of one evaluation lie (JSON), and what they are of."""

    uri: str
    release: str
    champion: str | None
    kind: str
    questions: int
    aged: int
    seconds: float


def evaluate(candidate: Release, champion: Release | None, kind: str, snapshot: Snapshot, suite: Suite = Suite()):
    """Scores of `candidate` and `champion` on the golden questions that vote; returns an Evaluation.

    `kind`: bootstrap (hard constraints on a few questions), tuned, reindex, reprompt, settings, rollback. The same
    releases on the same snapshot are evaluated once.
    """
    asked = (snapshot.id, as_json(suite), safety.payloads(), CODE_VERSION)
    key = digest(candidate.id, champion.id if champion else None, kind, *asked)
    path = settings().home / "reports" / candidate.id / f"{key[:16]}.json"
    if path.exists():
        return Evaluation.of(json.loads(path.read_text())["evaluation"])
    start = time.monotonic()
    tombstones = Ledger(settings().ledger).tombstones(candidate.assistant)
    golden, left_out = questions_for(snapshot, kind, suite)
    hard = sound_files(candidate)
    scores: dict[str, Scores] = {}
    rows: dict[str, list[dict]] = {}
    attacks: dict[str, list[dict]] = {}
    probes: list[float] | None = None
    if not any(hard.values()):
        with ExitStack() as opened:
            arms = {"candidate": Arm.open(candidate, opened)}
            if champion:
                same = arms["candidate"].engine if champion.model == candidate.model else None
                arms["champion"] = Arm.open(champion, opened, same)
            for name, arm in arms.items():
                answers = arm.answer(golden, left_out, tombstones, name)
                given_passage = kind == "tuned" and suite.given_passage
                scores[name], rows[name] = arm.score(golden, answers, given_passage)
                if name == "candidate":
                    hard |= sound_answers(answers, arm, tombstones)
            if kind == "tuned" and champion and champion.model != candidate.model:
                time_both(arms, scores, golden, suite)
            if kind in ANSWERING:
                for name, arm in arms.items():
                    print(f"evaluate: {name} asked in other forms, and attacked")
                    scores[name].metrics.update(behaviour(arm, golden, suite.behaviour_questions))
                    under_attack, attacks[name] = arm.attacked()
                    scores[name] = scores[name].beside(under_attack)
            if kind in ("reindex", "bootstrap"):
                changed = changed_sections(candidate.index, champion.index) if champion else set()
                probes = arms["candidate"].probe(changed, suite.probes, tombstones)
    seconds = time.monotonic() - start
    evaluation = Evaluation(
        str(path), candidate.id, champion.id if champion else None, kind, len(golden), snapshot.aged, seconds
    )
    tuned_first = bool(candidate.model.adapter and champion and not champion.model.adapter)
    body = {
        "evaluation": as_json(evaluation),
        "candidate": as_json(scores["candidate"]) if "candidate" in scores else None,
        "champion": as_json(scores["champion"]) if "champion" in scores else None,
        "hard": hard,
        "probes": probes,
        "first_tuned": tuned_first,
        "rows": rows,
        "attacks": attacks,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(body))
    partial.replace(path)
    print(f"evaluate: {len(golden)} questions, {len(scores)} arms, {seconds:.0f} s")
    return evaluation


def decide(evaluation: Evaluation, kind: str, gates: GateSettings, tuned_decisions: int = 0) -> Decision:
    """The gate's decision on stored scores."""
    body = json.loads(Path(evaluation.uri).read_text())
    kinds = {"bootstrap": "bootstrap", "reindex": "index-only"}
    judged = "first-tuned" if body["first_tuned"] and kind == "tuned" else kinds.get(kind, "change")
    read = {arm: Scores.of(body[arm]) if body[arm] else None for arm in ("candidate", "champion")}
    if read["candidate"] is None:  # a hard constraint broke before anything could be asked
        read = dict.fromkeys(read, Scores((), ()))
    return gate.decide(
        read["candidate"],
        read["champion"],
        body["hard"],
        gates,
        judged,
        body["probes"],
        evaluation.release,
        evaluation.champion,
        tuned_decisions,
    )


def decided(ledger: Ledger, candidate: Release, live: Release | None) -> Decision | None:
    """The accepting decision on record for this candidate against this champion, if there is one.

    A refusal is taken again: its evaluation is read unless the golden questions changed, and so may the settings have.
    """
    row = ledger.gate_decision(candidate.id)
    if row is None or row["body"]["champion"] != (live.id if live else None):
        return None
    decision = Decision.of(row["body"])
    return decision if decision.accepted else None


def accepted(ledger: Ledger, live: Release) -> Decision:
    """Why the live release is live: its gate decision, or for a rollback that it was one."""
    row = ledger.gate_decision(live.id)
    if row is None:
        return Decision("promote", f"{live.id} is live already, by a rollback", live.id)
    decision = Decision.of(row["body"])
    return replace(decision, reason=f"Live already, nothing it serves has changed. {decision.reason}")


def tuned_decisions(ledger: Ledger, candidate: Release) -> int:
    """How many other tuned candidates the gate has judged (index-only refreshes do not wear a golden set out)."""
    judged = {row["release"] for row in ledger.decisions(candidate.assistant, "gate", limit=10_000)} - {candidate.id}
    return sum(ledger.release_row(release)["kind"] == "tuned" for release in judged)


# --- the questions ----------------------------------------------------------------------------


def questions_for(snapshot: Snapshot, kind: str, suite: Suite) -> tuple[list[GoldenQuestion], set[str]]:
    """The questions that vote, and the ids of those asked with their answering section left out of retrieval."""
    voting = [question for question in snapshots.golden(snapshot) if question.votes]
    few = {"bootstrap": suite.bootstrap_questions, "rollback": suite.rollback_questions}
    if kind in few:
        return sorted(voting, key=lambda q: digest(q.id))[: few[kind]], set()
    missing = suite.unanswerable - sum(not question.answers for question in voting)
    answerable = sorted((q for q in voting if q.answers), key=lambda q: digest(q.id))
    made = [replace(q, id=f"{q.id}-left-out", answers=()) for q in answerable[: max(0, missing)]]
    return voting + made, {question.id for question in made}


def smoke_questions(snapshot: Snapshot, release: Release, most: int = 50) -> list[str]:
    """Questions for the smoke query and the canary: golden ones and probes of the documents in turn."""
    from data.store import open_index

    golden = [question.question for question in snapshots.golden(snapshot) if question.votes][: most // 2]
    chunks = sorted(open_index(release.index).chunks(), key=lambda chunk: chunk.id)
    probes = [sentences(chunk)[0] for chunk in chunks[: most - len(golden)]]
    mixed = [question for pair in zip(golden, probes, strict=False) for question in pair]
    return mixed + golden[len(probes) :] + probes[len(golden) :]


def changed_sections(new: IndexVersion, old: IndexVersion) -> set[tuple[str, str]]:
    """(document, section hash) of sections that are new or edited in `new`."""
    from data.store import open_index

    now, before = ({(p[0], p[2]) for p in open_index(version).places().values()} for version in (new, old))
    return now - before


# --- latency ----------------------------------------------------------------------------------


def time_both(arms: dict[str, Arm], scores: dict[str, Scores], golden: Sequence[GoldenQuestion], suite: Suite) -> None:
    """Seconds of fresh generations of both arms in turn, on the same prompts, into their `latency` scores."""
    from serving import rag

    seconds: dict[str, list[float | None]] = {name: [None] * len(golden) for name in arms}
    print(f"evaluate: latency of {min(suite.latency_questions, len(golden))} fresh answers of each arm, in turn")
    for at, question in enumerate(golden[: suite.latency_questions]):
        for name, arm in sorted(arms.items(), reverse=at % 2 == 1):
            hits = rag.retrieve(arm.index, arm.embedder, question.question, arm.release.retrieval)
            prompt = rag.build_prompt(arm.release.prompt, question.question, [hit.chunk for hit in hits])
            decoding: Decoding = rag.limited(arm.release.decoding, arm.release.guard)
            start = time.monotonic()
            arm.engine.generate([prompt], decoding)
            seconds[name][at] = time.monotonic() - start
    for name in arms:
        scores[name].metrics["latency"] = seconds[name]


# --- hard constraints -------------------------------------------------------------------------


def sound_files(candidate: Release) -> dict[str, str | None]:
    """What must hold before anything is asked: the artifact is the recorded one, the index is whole."""
    from data.store import IndexDamaged, open_index
    from serving.engine import verify_model

    checks: dict[str, str | None] = {"artifact verified": None, "index whole": None}
    try:
        verify_model(candidate.model)
    except (ValueError, OSError) as problem:
        checks["artifact verified"] = str(problem)
    try:
        open_index(candidate.index).verify()
    except IndexDamaged as problem:
        checks["index whole"] = str(problem)
    return checks


def sound_answers(answers: Sequence[Answer], arm: Arm, tombstones: frozenset[str]) -> dict[str, str | None]:
    """What every answer must satisfy whatever the model says; the first violation of each."""
    known = arm.index.ids()
    found: dict[str, str | None] = {"answers are text": None, "citations resolve": None, "no deleted text": None}
    for answer in answers:
        if not answer.text.strip():
            found["answers are text"] = found["answers are text"] or f"{answer.question!r} got an empty answer"
        if any(citation.chunk not in known for citation in answer.citations):
            found["citations resolve"] = f"{answer.question!r} cites a chunk that is not in the index"
        if any(hit.chunk.id in tombstones for hit in answer.hits):
            found["no deleted text"] = f"{answer.question!r} was shown deleted text"
    return found
