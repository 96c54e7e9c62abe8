"""Calibration: how far a judge agrees with people, and whether it may be heard (METHODS section 2).

A judge is advisory until it was compared with enough people's verdicts. What it may do after that is in
`tasks.objection`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
from scipy import stats

from data.records import Record
from tasks.intervals import paired_interval
from tasks.judge import Judgeable

KIND = "calibration"  # of the decision that records one


@dataclass(frozen=True)
class Rules(Record):
    """What a judge must reach. `margin` is the gate's; half of it is how much a judge may inflate an arm.

    It blocks a candidate of whose answers people judged `labelled`, on questions of `documents`.
    """

    items: int = 200
    kappa: float = 0.6
    true_negatives: float = 0.6
    margin: float = 0.05
    alpha: float = 0.05
    labelled: int = 60
    documents: int = 15


@dataclass(frozen=True)
class Labelled(Record):
    """An answer of a system with the accepted ones, and what a person says of it: 1 right, 0 wrong."""

    question: str
    answers: tuple[str, ...]
    answer: str
    system: str
    label: int

    def __post_init__(self):
        if self.label not in (0, 1):
            raise ValueError(f"label is {self.label!r}; give 1 for a right answer, 0 for a wrong one")

    @property
    def judgeable(self) -> Judgeable:
        return Judgeable(self.question, self.answers, self.answer)


@dataclass(frozen=True)
class Bias(Record):
    """How much more the judge thinks of `arm` than people do, compared with `against` on the same questions.

    Bounds are one-sided. `needed` is how many questions would put a judge without bias within half the margin.
    """

    arm: str
    against: str
    mean: float
    lower: float
    upper: float
    n: int
    needed: int


@dataclass(frozen=True)
class Calibration(Record):
    """How a judge (`version`) agrees with people on `items` answers; `unmeasured` of them it gave no verdict on.

    `kappa` (Cohen 1960), true positive and true negative rate; None where nothing tells them. `lacking`: why it does
    not agree well enough to be heard at all. `biased`: what keeps its own figures from being trusted; labels of the
    answers in question correct that.
    """

    version: str
    items: int
    unmeasured: int
    kappa: float | None
    true_positives: float | None
    true_negatives: float | None
    bias: tuple[Bias, ...]
    lacking: tuple[str, ...]
    biased: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.lacking and not self.biased

    def says(self) -> str:
        """What the judge may do from here on, and why."""
        if self.lacking:
            return f"{self.version} may not block: it advises. {'; '.join(self.lacking)}."
        may = f"{self.version} agrees with people. It may block a candidate together with people who labelled some of "
        may += "its answers, and advises where nobody did."
        return f"{may} Its figures alone are not to be trusted: {'; '.join(self.biased)}." if self.biased else may


def read_labels(path: str | Path) -> list[Labelled]:
    """The labels of a file of JSON lines. Raises ValueError that names the line that is none."""
    labels = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if isinstance(row.get("answers"), str):
                raise ValueError("answers is no list")
            labels.append(Labelled.of(row))
        except (ValueError, TypeError, AttributeError) as problem:
            wanted = '{"question", "answers": [...], "answer", "system", "label": 0 or 1}'
            raise ValueError(f"{path} line {number}: {problem}; a label is {wanted}") from problem
    if not labels:
        raise ValueError(f"{path} has no labels")
    return labels


def calibrate(
    items: Sequence[Labelled], verdicts: Sequence[float], version: str, rules: Rules = Rules()
) -> Calibration:
    """What the judge's `verdicts` (1, 0, NaN unmeasured) on `items` say of it."""
    said, label = np.asarray(verdicts, dtype=float), np.array([item.label for item in items], dtype=float)
    seen = ~np.isnan(said)
    said, label = said[seen], label[seen]
    measured = [item for item, one in zip(items, seen, strict=True) if one]
    kappa = cohen(said, label)
    positives, negatives = rate(said[label == 1]), rate(1 - said[label == 0])
    bias = biases(measured, said, rules)
    lacking, biased = [], []
    if len(measured) < rules.items:
        lacking.append(f"{len(measured)} labelled answers with a verdict, {rules.items} are needed")
    if kappa is None or kappa < rules.kappa:
        lacking.append(f"kappa {shown(kappa, '.2f')}, {rules.kappa:.2f} is needed")
    if negatives is None or negatives < rules.true_negatives:
        found = shown(negatives, ".0%")
        lacking.append(f"it finds {found} of the wrong answers, {rules.true_negatives:.0%} are needed")
    if not bias:
        biased.append("no question was answered by two systems, so nobody knows whether it favours one")
    if short := [one for one in bias if one.n < one.needed]:
        worst = max(short, key=lambda one: one.needed - one.n)
        pair = f"{worst.arm} and {worst.against}"
        biased.append(f"{worst.n} questions were answered by {pair}, and its bias takes about {worst.needed} to know")
    if bias and bias[0].upper > rules.margin / 2:
        inflated, most = f"{bias[0].arm} against {bias[0].against}", f"{100 * bias[0].upper:.1f}"
        biased.append(f"it may inflate {inflated} by {most} points, {50 * rules.margin:.1f} are allowed")
    missing = int((~seen).sum())
    agreed = (kappa, positives, negatives)
    return Calibration(version, len(measured), missing, *agreed, bias, tuple(lacking), tuple(biased))


def markdown(found: Calibration, rules: Rules = Rules()) -> str:
    """A calibration as Markdown: the sentence, what was found and needed, the paired bias of systems in points."""
    lines = [found.says(), "", "| agreement with people | found | needed |", "|---|---|---|"]
    lines += [
        f"| labelled answers with a verdict ({found.unmeasured} without) | {found.items} | {rules.items} |",
        f"| kappa | {shown(found.kappa, '.2f')} | {rules.kappa:.2f} |",
        f"| right answers found | {shown(found.true_positives, '.0%')} | |",
        f"| wrong answers found | {shown(found.true_negatives, '.0%')} | {rules.true_negatives:.0%} |",
    ]
    if found.bias:
        lines += [
            "",
            "Bias: points by which the judge puts one system above another beyond what people do, 95% bounds.",
        ]
        lines += ["", "| arm | against | bias | lower | upper | questions | needed |", "|" + "---|" * 7]
    for bias in found.bias:
        points = " | ".join(f"{100 * value:+.1f}" for value in (bias.mean, bias.lower, bias.upper))
        lines.append(f"| {bias.arm} | {bias.against} | {points} | {bias.n} | {bias.needed} |")
    return "\n".join(lines)


def cohen(said: np.ndarray, label: np.ndarray) -> float | None:
    """Cohen's kappa of two series of 0 and 1; None where both say the same of everything.

    >>> round(cohen(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])), 2)
    0.5
    """
    if not len(said):
        return None
    agreed, ours, theirs = float(np.mean(said == label)), float(said.mean()), float(label.mean())
    by_chance = ours * theirs + (1 - ours) * (1 - theirs)
    return (agreed - by_chance) / (1 - by_chance) if by_chance < 1 else None


def rate(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def shown(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)


def biases(items: Sequence[Labelled], said: np.ndarray, rules: Rules) -> tuple[Bias, ...]:
    """The paired bias of every ordered pair of systems that answered the same questions, the worst first."""
    excess: dict[str, dict[str, float]] = {}
    for item, verdict in zip(items, said, strict=True):
        excess.setdefault(item.system, {})[item.question] = verdict - item.label
    found = []
    for arm, against in permutations(excess, 2):
        shared = sorted(excess[arm].keys() & excess[against].keys())
        if len(shared) < 2:
            continue
        ours, theirs = ([excess[system][question] for question in shared] for system in (arm, against))
        bias = paired_interval("bias", ours, theirs, shared, rules.margin / 2, rules.alpha)
        spread = float(np.var(np.subtract(ours, theirs), ddof=1))
        needed = math.ceil((stats.norm.ppf(1 - rules.alpha) / (rules.margin / 2)) ** 2 * spread)
        found.append(Bias(arm, against, bias.mean, bias.lower, bias.upper, len(shared), needed))
    return tuple(sorted(found, key=lambda bias: -bias.upper))
