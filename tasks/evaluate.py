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
from functools import cache
from pathlib import Path

from data import golden_sets, snapshots
from data.ledger import Ledger
from data.records import (
    Answer,
    Decision,
    GoldenQuestion,
    IndexVersion,
    Record,
    Release,
    Snapshot,
    as_json,
    digest,
)
from serving import rag
from settings import settings
from tasks import anchors, gate, judge
from tasks.arm import Arm, sentences, time_both
from tasks.behaviour import behaviour
from tasks.gate import GateSettings, Scores
from tasks.golden import leaks
from tasks.intervals import better_by_chance, pair
from tasks.metrics import safety
from tasks.objection import Objection

WRITING = {"latency", "attacks"}
TOUCHES = {
    "model": {"given", *WRITING},
    "index": {"probes"},
    "prompt": {"given", *WRITING},
    "retrieval": {"probes", "latency"},
    "decoding": WRITING,
    "guard": WRITING,
}
"""What is measured beside the answers for each part of a release that changed. Answers are always asked for; those
whose prompt, model and settings are the same are read from the cache. What is written to given passages is asked in
other forms, and attacked, where the change can alter it."""


@dataclass(frozen=True)
class Suite(Record):
    """What is asked. Unanswerable questions are made by leaving out the answering section where the set has too few.

    Where there is a judge it gives a verdict on `judged` answers of each arm and scores `judged_deeply` of them under
    the metrics of DeepEval and Ragas, about thirty requests each.
    """

    bootstrap_questions: int = 60
    rollback_questions: int = 100
    unanswerable: int = 60
    latency_questions: int = 60
    probes: int = 60
    behaviour_questions: int = 20
    given_passage: bool = True
    judged: int = 400
    judged_deeply: int = 20


@dataclass(frozen=True)
class Evaluation(Record):
    """Where the scores of one evaluation lie (JSON), and what they are of.

    `golden`: content hash of the questions that could vote; `synthetic`: how many of them the documents gave.
    """

    uri: str
    release: str
    champion: str | None
    kind: str
    questions: int
    aged: int
    seconds: float
    golden: str = ""
    synthetic: int = 0


def evaluate(candidate: Release, champion: Release | None, kind: str, snapshot: Snapshot, suite: Suite = Suite()):
    """Scores of `candidate` and `champion` on the golden questions that vote (see `voting`); returns an Evaluation.

    `kind`: bootstrap (hard constraints on a few questions), tuned, reindex, reprompt, rollback. Both arms are scored in
    this run, and what else is measured follows from what changed between them (`TOUCHES`). The same releases on the
    same snapshot are evaluated once, and again when a worked example of theirs is shown no more. Answers to sealed
    questions are scored and not stored.
    """
    grader = judge.configured()
    judged_by = {"judge": grader.version} if grader else {}
    advised = (grader.version, settings().judge_rubric) if grader else ()
    book = Ledger(settings().ledger)
    tombstones = book.tombstones(candidate.assistant)
    shown = (rag.standing(arm, tombstones).id if arm else None for arm in (candidate, champion))
    arms_asked = (*shown, kind, snapshot.id)
    key = digest(*arms_asked, *advised, as_json(suite), metrics_hash())
    path = settings().home / "reports" / candidate.id / f"{key[:16]}.json"
    if path.exists() and (body := json.loads(path.read_text()))["candidate"]:
        # Without scores its files were broken then: they may be whole now. The home may be another one by now.
        return replace(Evaluation.of(body["evaluation"]), uri=str(path))
    start = time.monotonic()
    votes = voting(snapshot, candidate, champion)
    golden, left_out = questions_for(snapshot, kind, suite, candidate, champion)
    apart = golden_sets.sealed([*snapshots.golden(snapshot), *golden])
    hard = sound_files(candidate)
    scores: dict[str, Scores] = {}
    rows: dict[str, list[dict]] = {}
    attacks: dict[str, list[dict]] = {}
    probes: list[float] | None = None
    repeated: dict[str, float] = {}
    versions: dict[str, str] = {}
    changed = changed_parts(candidate, champion)
    measured = set() if kind == "rollback" else {what for part in changed for what in TOUCHES[part]}
    if grader:
        anchors.watch(book, candidate.assistant, grader)
    if not any(hard.values()):
        with ExitStack() as opened:
            arms = {"candidate": Arm.open(rag.standing(candidate, tombstones), opened)}
            if champion:
                same = arms["candidate"].engine if champion.model == candidate.model else None
                arms["champion"] = Arm.open(rag.standing(champion, tombstones), opened, same)
            versions = {f"{name} engine": arm.engine.version for name, arm in arms.items()}
            for name, arm in arms.items():
                answers = arm.answer(golden, left_out, tombstones, name)
                given_passage = champion is not None and "given" in measured and suite.given_passage
                scores[name], rows[name] = arm.score(golden, answers, given_passage)
                if grader:
                    scores[name].metrics.update(advice(grader, golden, answers, suite))
                if name == "candidate":
                    hard |= sound_answers(answers, arm, tombstones)
            if champion and "latency" in measured:
                asked = [question for question in golden if question.id not in left_out]
                repeated = time_both(arms, scores, rows, asked, tombstones, suite.latency_questions)
            if champion and "attacks" in measured:
                for name, arm in arms.items():
                    print(f"evaluate: {name} asked in other forms, and attacked")
                    scores[name].metrics.update(behaviour(arm, golden, suite.behaviour_questions))
                    under_attack, attacks[name] = arm.attacked()
                    scores[name] = scores[name].beside(under_attack)
            if "probes" in measured:
                sections = changed_sections(candidate.index, champion.index) if champion else set()
                probes = arms["candidate"].probe(sections, suite.probes, tombstones)
    evaluation = Evaluation(
        str(path),
        candidate.id,
        champion.id if champion else None,
        kind,
        len(golden),
        snapshot.aged,
        time.monotonic() - start,
        golden_sets.record(book, candidate.assistant, votes),
        sum(question.synthetic for question in votes),
    )
    tuned_first = bool(candidate.model.adapter and champion and not champion.model.adapter)
    body = {
        "evaluation": as_json(evaluation),
        "candidate": as_json(scores["candidate"]) if "candidate" in scores else None,
        "champion": as_json(scores["champion"]) if "champion" in scores else None,
        "hard": hard,
        "probes": probes,
        "first_tuned": tuned_first,
        "changed": sorted(changed),
        "repeated": repeated,
        "about": about(candidate, champion, snapshot, golden, suite) | versions | judged_by,
        "sealed": [question.id for question in golden if question.id in apart],
        "shown": len(voting(snapshot)) - len(votes),
        "rows": {name: [row for row in told if row["id"] not in apart] for name, told in rows.items()},
        "attacks": attacks,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(body))
    partial.replace(path)
    print(f"evaluate: {len(golden)} questions, {len(scores)} arms, {evaluation.seconds:.0f} s")
    return evaluation


def advice(grader: judge.Judge, golden: Sequence[GoldenQuestion], answers: list[Answer], suite: Suite) -> dict:
    """What a judge says of one arm's answers: scores that are shown and never decide by themselves."""
    from tasks.metrics import judged

    scored = judged.score(golden, answers, grader, suite.judged, suite.judged_deeply, settings().judge_rubric)
    print(grader.bill.says())
    return scored


def decide(
    evaluation: Evaluation,
    kind: str,
    gates: GateSettings,
    tuned_decisions: int = 0,
    looks_before: Sequence[float] = (),
    objection: Objection = Objection(),
) -> Decision:
    """The gate's decision on stored scores, and on what people and a judge said of the answers."""
    body = json.loads(Path(evaluation.uri).read_text())
    if kind == "bootstrap":
        judged = "bootstrap"
    elif kind == "tuned" and body["first_tuned"]:
        judged = "first-tuned"
    else:  # by what differs, whatever it is called
        judged = "index-only" if body["changed"] == ["index"] else "change"
    read = {arm: Scores.of(body[arm]) if body[arm] else None for arm in ("candidate", "champion")}
    if read["candidate"] is None:  # a hard constraint broke before anything could be asked
        read = dict.fromkeys(read, Scores((), ()))
    both = pair(gates.primary, *read.values()) if read["champion"] else None
    by_chance = better_by_chance(both, gates.look_alpha) if both else None
    decision = gate.decide(
        read["candidate"],
        read["champion"],
        body["hard"],
        gates,
        judged,
        body["probes"],
        evaluation.release,
        evaluation.champion,
        tuned_decisions,
        looks_before,
        by_chance,
        objection.interval,
        body.get("sealed", ()),
    )
    notes = [f"{share:.0%} of the {arm}'s answers came out the same again." for arm, share in body["repeated"].items()]
    if evaluation.synthetic:
        notes.append(
            f"{evaluation.synthetic} voting questions are synthetic: made from the documents, not asked by people."
        )
    if shown := body.get("shown"):
        notes.append(f"{shown} of the golden questions do not vote: a worked example in a prompt asks nearly the same.")
    if objection.says:
        notes.append(objection.says)
    if apart := body.get("sealed"):
        asked = f"{len(apart)} of {evaluation.questions} questions are sealed"
        notes.append(f"{asked}: they count in the intervals of the verdict, and no other figure or answer is of them.")
    if evaluation.golden:
        notes.append(f"Golden set: {evaluation.golden}.")
    told, suite = (*decision.notes, *notes), body["about"]["suite"]
    return replace(decision, golden=evaluation.golden, evaluation=evaluation.uri, suite=suite, notes=told)


def changed_parts(candidate: Release, champion: Release | None) -> set[str]:
    """Which parts of a release differ from the champion's, by what is served; of a first release all."""
    if champion is None:
        return set(TOUCHES)
    before = champion.parts
    return {part for part, held in candidate.parts.items() if held != before[part]}


def kind_of(candidate: Release, champion: Release | None) -> str:
    """What kind of candidate a release is against what is live, whatever it was made as."""
    if champion is None:
        return "bootstrap"
    changed = changed_parts(candidate, champion)
    return "tuned" if "model" in changed else "reindex" if changed <= {"index"} else "reprompt"


def about(
    candidate: Release, champion: Release | None, snapshot: Snapshot, golden: Sequence[GoldenQuestion], suite: Suite
) -> dict:
    """Hashes and seeds: with them the same scores can be made again."""
    served = {
        arm: {
            "release": release.id,
            "model": release.model.sha256,
            "adapter": release.model.adapter,
            "engine": release.model.engine,
            "index": release.index.checksum,
            "embedder": release.index.embedder,
            "prompt": release.prompt.sha256,
            "settings": digest(release.retrieval, release.decoding, release.guard),
        }
        for arm, release in (("candidate", candidate), ("champion", champion))
        if release
    }
    suites = {"suite": suite_hash(golden, suite), "metrics": metrics_hash(), "asked": as_json(suite)}
    return served | suites | {"snapshot": snapshot.id, "seed": candidate.decoding.seed}


@cache
def metrics_hash() -> str:
    """Changes with any metric or attack: scores of a suite that has changed are never read again, of neither arm."""
    sources = sorted((Path(__file__).parent / "metrics").glob("*.py"))
    return digest(safety.payloads(), *(file.read_text() for file in sources))


def suite_hash(golden: Sequence[GoldenQuestion], suite: Suite) -> str:
    """What is asked and how it is scored."""
    return digest(sorted(digest(question) for question in golden), suite, metrics_hash())


# --- the questions ----------------------------------------------------------------------------


def voting(snapshot: Snapshot, *arms: Release | None) -> list[GoldenQuestion]:
    """The golden questions of a snapshot without those that were set aside, or that a worked example of a release in
    `arms` nearly asks: no example is chosen that does, but a golden question may come after it.
    """
    votes = [question for question in snapshots.golden(snapshot) if question.votes]
    examples = [shot.question for arm in arms if arm for shot in arm.prompt.shots]
    shown = leaks([question.question for question in votes], examples)
    return [question for at, question in enumerate(votes) if at not in shown]


def questions_for(
    snapshot: Snapshot, kind: str, suite: Suite, *arms: Release | None
) -> tuple[list[GoldenQuestion], set[str]]:
    """The questions that vote, and the ids of those asked with their answering section left out of retrieval."""
    votes = voting(snapshot, *arms)
    few = {"bootstrap": suite.bootstrap_questions, "rollback": suite.rollback_questions}
    if kind in few:
        return sorted(votes, key=lambda q: digest(q.id))[: few[kind]], set()
    missing = suite.unanswerable - sum(not question.answers for question in votes)
    answerable = sorted((q for q in votes if q.answers), key=lambda q: digest(q.id))
    made = [replace(q, id=f"{q.id}-left-out", answers=(), origin="left out") for q in answerable[: max(0, missing)]]
    return votes + made, {question.id for question in made}


def smoke_questions(snapshot: Snapshot, release: Release, most: int = 50) -> list[str]:
    """Questions for the smoke query and the canary: golden ones and probes of the documents in turn."""
    from data.store import open_index

    shown = golden_sets.open_part(snapshots.golden(snapshot))
    golden = [question.question for question in shown if question.votes][: most // 2]
    chunks = sorted(open_index(release.index).chunks(), key=lambda chunk: chunk.id)
    probes = [sentences(chunk)[0] for chunk in chunks[: most - len(golden)]]
    mixed = [question for pair in zip(golden, probes, strict=False) for question in pair]
    return mixed + golden[len(probes) :] + probes[len(golden) :]


def changed_sections(new: IndexVersion, old: IndexVersion) -> set[tuple[str, str]]:
    """(document, section hash) of sections that are new or edited in `new`."""
    from data.store import open_index

    now, before = ({(p[0], p[2]) for p in open_index(version).places().values()} for version in (new, old))
    return now - before


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
    """What every answer must satisfy whatever the model says: how many do not. To which question is not told, since it
    may be a sealed one."""
    known = arm.index.ids()
    wrong = {
        "answers are text": ("are empty", lambda answer: not answer.text.strip()),
        "citations resolve": (
            "cite a chunk that is not in the index",
            lambda answer: any(citation.chunk not in known for citation in answer.citations),
        ),
        "no deleted text": (
            "were given from deleted text",
            lambda answer: any(hit.chunk.id in tombstones for hit in answer.hits),
        ),
    }
    found = {name: (sum(map(breaks, answers)), what) for name, (what, breaks) in wrong.items()}
    return {name: f"{n} of {len(answers)} answers {what}" if n else None for name, (n, what) in found.items()}
