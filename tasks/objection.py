"""What people and a judge together hold against a candidate (METHODS section 2).

A judge alone blocks nothing and promotes nothing. One that agrees with people, as it is now, is heard by the gate where
people labelled enough of this very candidate's answers and of the champion's to the same questions: there `tasks.ppi`
corrects whatever bias it has. Only answers to open questions are judged so, and labelled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data import reviews
from data.ledger import Ledger
from data.records import Interval, Record, digest
from tasks import anchors, signals
from tasks.calibrate import KIND, Calibration, Rules
from tasks.intervals import Scores, pair, paired_interval
from tasks.metrics.judged import VERDICT
from tasks.ppi import Judged, estimate, judged_interval, parts

if TYPE_CHECKING:
    from tasks.evaluate import Evaluation
    from tasks.gate import GateSettings

METRIC = "people and judge"
UNKNOWN = -1
LABELS = {"accepted": 1, "corrected": 0, "discarded": UNKNOWN}


@dataclass(frozen=True)
class Objection(Record):
    """`says`: a sentence for the decision, '' where no judge was asked. `interval`: only where it keeps the candidate
    back, its verdict 'reject' or 'hold'. `unlabelled`: answers for people to label where the gate holds the candidate,
    see data.reviews.ask_labels; one that it promotes or rejects needs no label any more.
    """

    says: str = ""
    interval: Interval | None = None
    unlabelled: tuple[dict, ...] = ()


@dataclass(frozen=True)
class Answered(Record):
    """One question's two answers with what judge and people say of them; `rows`: what a person would label."""

    pair: Judged
    rows: tuple[dict, ...]


def heard(book: Ledger, evaluation: Evaluation, gates: GateSettings) -> Objection:
    """What is held against the candidate of a stored evaluation, by the judge it was scored with and by labels."""
    body = json.loads(Path(evaluation.uri).read_text())
    version = body["about"].get("judge")
    if version is None or not (body["candidate"] and body["champion"]):
        return Objection()
    name, rules = book.release_row(evaluation.release)["assistant"], Rules(margin=gates.margin, alpha=gates.look_alpha)
    recorded = book.decisions(name, KIND, limit=1)
    found = Calibration.of(recorded[0]["body"]) if recorded else None
    moved = anchors.asked_twice(book.signal_states(name))
    if refusal := may_block(found, version, moved is not None and signals.anchors(**moved).alarm):
        return Objection(f"The judge advises and does not vote: {refusal}.")
    settled = reviews.items(book, name, reviews.LABEL, "settled")
    return weigh(answered(body, settled), version, rules)


def may_block(found: Calibration | None, version: str, moved: bool) -> str:
    """'' if judge `version` may block a candidate together with labels of its answers, else why it may not.

    Its bias is not asked about: the labels correct it.
    """
    again = "python -m flows.calibrate"
    if found is None:
        return f"it was never calibrated ({again})"
    if found.version != version:
        return f"it is {version}, and {found.version} was calibrated ({again})"
    if moved:
        return f"it has moved since it was calibrated ({again})"
    return f"it did not show that it agrees with people: {found.lacking[0]}" if found.lacking else ""


def answered(body: dict, settled: Sequence[reviews.Item]) -> list[Answered]:
    """The judged questions of a stored evaluation whose answers are stored, in an order that no answer decides.

    A label is of one release's answer to one question; where either changes it counts no more. What a person cannot
    judge is left out with its question.
    """
    releases = [body["evaluation"][arm] for arm in ("release", "champion")]
    held = [one for one in settled if one.body]  # one whose user was forgotten is empty
    said = {tuple(one.body[of] for of in ("question", "arm", "answer")): LABELS[one.verdict] for one in held}
    rows = [{row["id"]: row for row in body["rows"][arm]} for arm in ("candidate", "champion")]
    verdicts = pair(VERDICT, *(Scores.of(body[arm]) for arm in ("candidate", "champion")))
    found = {}
    for question, cluster, *both in zip(*vars(verdicts).values(), strict=True):
        if math.isnan(sum(both)) or not all(question in arm for arm in rows):
            continue
        shown = [
            {name: arm[question][of] for name, of in (("question", "question"), ("references", "accepted"))}
            | {"answer": arm[question]["answer"], "arm": release}
            for arm, release in zip(rows, releases, strict=True)
        ]
        given = [said.get((row["question"], row["arm"], row["answer"])) for row in shown]
        if UNKNOWN in given:
            continue
        label = None if None in given else float(given[0] - given[1])
        same = shown[0]["answer"] == shown[1]["answer"]
        unlabelled = tuple(row for row, known in zip(shown, given, strict=True) if known is None)
        found[question] = Answered(Judged(both[0] - both[1], cluster, label, same), unlabelled)
    return [found[question] for question in sorted(found, key=lambda question: digest(releases[0], question))]


def weigh(found: Sequence[Answered], version: str, rules: Rules = Rules()) -> Objection:
    """The objection of a calibrated judge and of people, or what keeps them from one.

    Answers that are the same need no label. Of the others a random part does, as many as `rules` ask for, and they
    are asked for where the judge alone finds the candidate worse.
    """
    pairs, differ = [one.pair for one in found], [one for one in found if not one.pair.same]
    labelled = [one.pair.cluster for one in differ if one.pair.label is not None]
    documents = {one.pair.cluster for one in differ}
    wanted, apart = min(rules.labelled, len(differ)), max(2, min(rules.documents, len(documents)))
    if len(labelled) < max(2, wanted) or len(set(labelled)) < apart:
        alone = paired_interval(
            METRIC,
            [p.verdict for p in pairs],
            [0.0] * len(pairs),
            [p.cluster for p in pairs],
            rules.margin,
            rules.alpha,
        )
        need = f"people labelled {len(labelled)} of the {len(differ)} pairs of answers that differ, on "
        need += f"{len(set(labelled))} documents; {wanted} on {apart} are needed"
        if alone.upper >= 0:
            return Objection(f"The judge {version} does not find it worse, and does not vote: {need}.")
        asked = unlabelled(differ, rules)
        waits = f"Where the candidate is held, {len(asked)} answers wait for a label in the review queue"
        return Objection(
            f"The judge {version} finds it worse ({_points(alone)}) and does not vote: {need}. {waits}.", None, asked
        )
    interval = judged_interval(pairs, rules.margin, rules.alpha, METRIC)
    weight = float(estimate(*parts(pairs)).weight)
    said = f"People and judge {version}: {_points(interval)} on {interval.n} labelled pairs of answers"
    said += f" and {len(pairs) - interval.n} judged or equal ones, the judge counting {weight:.2f}"
    if interval.verdict == "reject":
        return Objection(f"{said}: worse than the margin of {100 * rules.margin:.1f}.", interval)
    if interval.verdict == "hold" and interval.upper < 0:
        return Objection(f"{said}: worse, and not proven to be within the margin.", interval)
    return Objection(f"{said}: no objection.")


def unlabelled(differ: Sequence[Answered], rules: Rules) -> tuple[dict, ...]:
    """The answers to label: of the first questions until they are as many, on as many documents, as is asked for."""
    rows, documents = [], set()
    for number, one in enumerate(differ):
        if number >= rules.labelled and len(documents) >= rules.documents:
            break
        documents.add(one.pair.cluster)
        rows += one.rows
    return tuple(rows)


def _points(interval: Interval) -> str:
    return f"{100 * interval.mean:+.1f} points ({100 * interval.lower:+.1f} to {100 * interval.upper:+.1f})"
