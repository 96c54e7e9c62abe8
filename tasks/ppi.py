"""Prediction-powered paired intervals: a few human labels, made sharper by a judge's verdicts on many other items.

The judge may be as biased as it likes: labels correct it, so it buys precision and never the answer. Paired: a label
and a verdict of an item are differences, the candidate's minus the champion's. Angelopoulos, Duchi and Zrnic, "PPI++",
arXiv 2311.01453, with the weight estimated from the same items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from data.records import Interval, Record
from tasks.intervals import POWER, settled


@dataclass(frozen=True)
class Estimate:
    """Means with their standard errors; `weight` is how much the judge counted, 0 (not at all) to 1."""

    mean: np.ndarray
    error: np.ndarray
    weight: np.ndarray

    def bounds(self, alpha: float, labels: int) -> tuple[np.ndarray, np.ndarray]:
        """One-sided 1 - alpha bounds, t with as many degrees of freedom as labels allow."""
        half = stats.t.ppf(1 - alpha, labels - 1) * self.error
        return self.mean - half, self.mean + half


def estimate(labels: np.ndarray, verdicts: np.ndarray, others: np.ndarray) -> Estimate:
    """The mean label over all items of a kind, from n labelled items and the verdicts on N other ones.

    `labels` and `verdicts` are of the same n items, in one order, `others` verdicts on items without a label; items
    run along the last axis, so many draws are estimated at once.

        mean = mean(Y) + L (mean(f_N) - mean(f_n)),  L = clip(Cov(Y, f) / ((1 + n/N) Var(f)), 0, 1)
        error^2 = Var(Y - L f)/n + L^2 Var(f)/N

    Raises ValueError for fewer than two labels, or labels and verdicts that are not of the same items.
    """
    labels, verdicts, others = (np.asarray(values, dtype=float) for values in (labels, verdicts, others))
    n, rest = labels.shape[-1], others.shape[-1]
    if n < 2 or labels.shape != verdicts.shape:
        raise ValueError(f"{n} labels and {verdicts.shape[-1]} verdicts on them; give at least two, one for each")
    if rest < 2:
        return Estimate(labels.mean(-1), labels.std(-1, ddof=1) / np.sqrt(n), np.zeros(labels.shape[:-1]))
    spread = others.var(-1, ddof=1)
    seen, said = labels.mean(-1, keepdims=True), verdicts.mean(-1, keepdims=True)
    covariance = ((labels - seen) * (verdicts - said)).sum(-1) / (n - 1)
    pooled = ((n - 1) * verdicts.var(-1, ddof=1) + (rest - 1) * spread) / (n + rest - 2)
    useful = pooled > 0
    weight = np.where(useful, covariance / np.where(useful, (1 + n / rest) * pooled, 1.0), 0.0).clip(0.0, 1.0)
    mean = seen[..., 0] + weight * (others.mean(-1) - said[..., 0])
    residual = (labels - weight[..., None] * verdicts).var(-1, ddof=1)
    return Estimate(mean, np.sqrt(residual / n + weight**2 * spread / rest), weight)


@dataclass(frozen=True)
class Judged(Record):
    """One question's two answers as a judge and, where there is one, a person saw them: candidate minus champion.

    `cluster`: the document of the question, as in `tasks.intervals`; `label` is None where no person judged both.
    `same`: the two answers are one text, so that the difference is 0 without anybody's label.
    """

    verdict: float
    cluster: str
    label: float | None = None
    same: bool = False


def parts(items: Sequence[Judged]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and verdicts of the labelled ones among the answers that differ, and verdicts of the others."""
    labelled = [item for item in items if item.label is not None and not item.same]
    others = [item.verdict for item in items if item.label is None and not item.same]
    return np.array([i.label for i in labelled]), np.array([i.verdict for i in labelled]), np.array(others)


def judged_interval(items: Sequence[Judged], margin: float, alpha: float = 0.05, metric: str = "judged") -> Interval:
    """The mean paired difference as people would see it, its one-sided 1 - alpha bounds and the verdict at `margin`.

    What is estimated is the mean over answers that differ; it counts for their share of the questions. The error is
    `estimate`'s with the questions of a document moving together, that of the share included: each question's part in
    the result is summed by document (t with C - 1 degrees of freedom, C documents with a label). `n` and `clusters`
    count labelled questions. Raises ValueError for labels from fewer than two documents.
    """
    labelled = [item.cluster for item in items if item.label is not None and not item.same]
    others = [item.cluster for item in items if item.label is None and not item.same]
    same = [item.cluster for item in items if item.same]
    clusters = set(labelled)
    if len(clusters) < 2:
        raise ValueError(f"labels on {len(clusters)} documents; label answers from at least two")
    labels, verdicts, rest = parts(items)
    found = estimate(labels, verdicts, rest)
    inside, weight, n = float(found.mean), float(found.weight), len(labels)
    share = 1 - len(same) / len(items)
    mean = share * inside
    moved = [(labels - weight * verdicts) / n, weight * rest / max(1, len(rest))]
    moved = np.concatenate([part - part.mean() if len(part) else part for part in moved])
    moved = np.concatenate([share * moved + (inside - mean) / len(items), np.full(len(same), -mean / len(items))])
    _, at = np.unique([*labelled, *others, *same], return_inverse=True)
    error = np.sqrt(len(clusters) / (len(clusters) - 1) * np.sum(np.bincount(at, weights=moved) ** 2))
    half = float(stats.t.ppf(1 - alpha, len(clusters) - 1) * error)
    z = stats.norm.ppf(1 - alpha)
    detectable, power = half * (1 + stats.norm.ppf(POWER) / z), stats.norm.cdf(margin * z / half - z) if half else 1.0
    bounds, differing = (mean - half, mean + half), share * float(np.mean(labels != 0))
    verdict = settled(*bounds, margin)
    return Interval(
        metric, mean, *bounds, n, len(clusters), margin, differing, float(detectable), verdict, float(power)
    )
