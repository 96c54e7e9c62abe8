"""Paired intervals: how much better or worse one release is on the same questions, and how sure that is.

The gate compares candidate and champion with them, diagnosis compares a swapped component with the live release.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from data.records import Interval, Record

POWER = 0.80
FEW_PAIRS = 25
SWAPS = 400


@cache
def quantile(level: float, freedom: int | None = None) -> float:
    """Quantile of Student's t with `freedom` degrees of freedom, of the normal distribution without."""
    return float(stats.norm.ppf(level) if freedom is None else stats.t.ppf(level, freedom))


def tango_z(gains: float, losses: float, n: int, delta: float) -> float:
    """Tango's score statistic for a difference `delta` of paired proportions (Statistics in Medicine 17, 1998).

    `gains`: pairs only the candidate got right, `losses`: pairs only the champion did. Positive: above `delta`.
    """
    a = 2 * n
    b = -gains - losses + (2 * n - gains + losses) * delta
    c = -losses * delta * (1 - delta)
    q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * q + delta * (1 - delta))
    excess = gains - losses - n * delta
    return excess / math.sqrt(variance) if variance > 1e-12 else math.copysign(math.inf, excess) if excess else 0.0


def tango_bounds(gains: float, losses: float, n: int, alpha: float) -> tuple[float, float]:
    """One-sided lower and upper 1 - alpha score bounds of the paired difference of proportions."""
    z, mean, edge = quantile(1 - alpha), (gains - losses) / n, 1 - 1e-9
    low = high = mean
    if mean > -edge:
        low = brentq(lambda d: tango_z(gains, losses, n, d) - z, -edge, mean) if _crosses(gains, losses, n, z) else -1.0
    if mean < edge:
        high = -brentq(lambda d: tango_z(losses, gains, n, d) - z, -edge, -mean) if _crosses(losses, gains, n, z) else 1
    return low, high


def _crosses(gains: float, losses: float, n: int, z: float) -> bool:
    return tango_z(gains, losses, n, -(1 - 1e-9)) > z


def clustered_error(differences: np.ndarray, clusters: Sequence[str]) -> float:
    """Standard error of the mean difference when questions of one cluster move together; NaN under two clusters."""
    _, at = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    count = int(at.max()) + 1 if len(at) else 0
    if count < 2:
        return math.nan
    sums = np.bincount(at, weights=differences - differences.mean())
    return math.sqrt(count / (count - 1) * float(np.sum(sums**2))) / len(differences)


def worst_case(candidate: Sequence[float], champion: Sequence[float]) -> tuple[np.ndarray, np.ndarray, float]:
    """Both arms with NaN filled in against the candidate, and the larger missing share of the two.

    The worst is 0 for the candidate and 1 for the champion, or the extremes seen where scores leave that range.
    """
    candidate, champion = np.asarray(candidate, dtype=float), np.asarray(champion, dtype=float)
    missing = max(np.isnan(candidate).mean(), np.isnan(champion).mean()) if len(candidate) else 0.0
    seen = np.concatenate([candidate, champion])
    seen = seen[~np.isnan(seen)]
    low, high = (min(0.0, seen.min()), max(1.0, seen.max())) if len(seen) else (0.0, 1.0)
    if low < 0 or high > 1:
        low, high = seen.min(), seen.max()
    return np.where(np.isnan(candidate), low, candidate), np.where(np.isnan(champion), high, champion), float(missing)


def paired_interval(
    metric: str,
    candidate: Sequence[float],
    champion: Sequence[float],
    clusters: Sequence[str],
    margin: float,
    alpha: float = 0.05,
    binary: bool = False,
    max_missing: float = 0.02,
) -> Interval:
    """The mean difference candidate - champion, with one-sided 1 - alpha bounds and the verdict at `margin`.

    The clustered t bound (C - 1 degrees of freedom) and, for 0/1 scores, Tango's score bound: the smaller lower one
    counts for promoting, the larger upper one for rejecting, because the clustered error collapses when few pairs
    differ. Graded scores in [0, 1] collapse the same way, so while fewer than FEW_PAIRS pairs differ they take the
    score bound too, with summed gains and losses for its counts: the widest 0/1 outcome with those sums.
    NaN counts at the worst case for the candidate; a larger share of it than `max_missing` holds.
    `detectable` is the smallest true difference found with 80% power, `power` the chance to promote an equal candidate.
    """
    a, b = candidate, champion
    if not len(a) == len(b) == len(clusters):
        raise ValueError(f"{metric}: {len(a)} candidate, {len(b)} champion scores, {len(clusters)} clusters; pair them")
    a, b, missing = worst_case(a, b)
    n, groups = len(a), len(set(clusters))
    if groups < 2:
        mean = float((a - b).mean()) if n else 0.0
        return Interval(metric, mean, -1.0, 1.0, n, groups, margin, 0.0, 1.0, "hold")
    d = a - b
    mean, differing = float(d.mean()), int(np.count_nonzero(d))
    half, z = quantile(1 - alpha, groups - 1) * clustered_error(d, clusters), quantile(1 - alpha)
    lower, upper = mean - half, mean + half
    bounded = min(a.min(), b.min()) >= 0 and max(a.max(), b.max()) <= 1
    if bounded and (binary or differing < FEW_PAIRS):
        low, high = tango_bounds(float(d[d > 0].sum()), float(-d[d < 0].sum()), n, alpha)
        lower, upper = min(lower, low), max(upper, high)
    spread = 1 + quantile(POWER) / z
    power = float(stats.norm.cdf(margin * z / (mean - lower) - z)) if mean > lower else 1.0
    verdict = settled(lower, upper, margin) if missing <= max_missing else "hold"
    return Interval(
        metric,
        mean,
        float(lower),
        float(upper),
        n,
        groups,
        margin,
        differing / n,
        float((mean - lower) * spread),
        verdict,
        power,
    )


def settled(lower: float, upper: float, margin: float) -> str:
    """The rule of the gate: promote above -margin, reject below it, hold in between."""
    return "promote" if lower > -margin else "reject" if upper < -margin else "hold"


def better(lower: float, gains: int, losses: int, alpha: float) -> bool:
    """Whether 0/1 scores are better beyond chance: a lower bound above 0, and McNemar's exact one-sided test agrees.

    The bounds alone are a little narrow at 0: of equal systems they called up to 5.1% better where 5% were allowed.
    """
    return lower > 0 and float(stats.binom.sf(gains - 1, gains + losses, 0.5)) <= alpha


def items_needed(interval: Interval, margin: float | None = None) -> int | None:
    """How many items would settle a hold with 80% power if the difference stays as seen; None: over 100,000.

    Where the difference sits almost on the margin, as many as would settle a tie (without a margin, one point).
    """
    margin = interval.margin if margin is None else margin
    gap = abs(interval.mean + margin)
    if gap < max(0.2 * abs(margin), 0.01):
        gap = max(abs(margin), 0.01)
    if not interval.n or interval.detectable <= 0:
        return None
    # An extrapolation from the same data: never fewer than a few more than there are.
    needed = max(math.ceil(interval.n * (interval.detectable / gap) ** 2), interval.n + 10)
    return needed if needed <= 100_000 else None


def probe_interval(probes: Sequence[float], floor: float, alpha: float = 0.05) -> Interval:
    """Share of probe questions that pass, as a difference from `floor`, with exact (Clopper-Pearson) bounds.

    NaN is a probe that failed.
    """
    n = len(probes)
    passed = sum(value == 1.0 for value in probes)
    low = stats.beta.ppf(alpha, passed, n - passed + 1) if passed else 0.0
    high = stats.beta.ppf(1 - alpha, passed + 1, n - passed) if passed < n else 1.0
    mean = (passed / n if n else 0.0) - floor
    lower, upper = float(low) - floor, float(high) - floor
    verdict = settled(lower, upper, 0.0)
    spread = 1 + quantile(POWER) / quantile(1 - alpha)
    return Interval(
        "probes", mean, lower, upper, n, n, 0.0, 1 - passed / n if n else 0.0, float((mean - lower) * spread), verdict
    )


# --- two arms, paired by question -------------------------------------------------------------


@dataclass(frozen=True)
class Scores(Record):
    """One release's scores, one entry per voting question in every sequence.

    `metrics`: name -> score, None where the metric does not apply to the question, NaN where it could not be
    measured. `latency` there is seconds of a fresh answer, interleaved with the other release's, None where not
    timed. `clusters` is the document of each question (the section, with `unit` "section", under 75 documents).
    `slices` names the slices each question belongs to.
    """

    questions: tuple[str, ...]
    clusters: tuple[str, ...]
    metrics: dict = field(default_factory=dict)
    slices: tuple = ()
    unit: str = "document"

    def __post_init__(self):
        n = len(self.questions)
        parts = {"clusters": self.clusters, **self.metrics} | ({"slices": self.slices} if self.slices else {})
        for name, values in parts.items():
            if len(values) != n:
                raise ValueError(f"{name} has {len(values)} entries for {n} questions; give one for each")
        if any(seconds is not None and seconds <= 0 for seconds in self.metrics.get("latency", ())):
            raise ValueError("latency of 0 s or less; give seconds of a fresh answer, None where not timed")
        if len(set(self.questions)) != n:
            raise ValueError(f"{n - len(set(self.questions))} questions are repeated; score each one once")

    @property
    def by_slice(self) -> dict[str, set[str]]:
        """Slice -> the questions that belong to it, by name of the slice."""
        members: dict[str, set[str]] = {}
        for question, names in zip(self.questions, self.slices or ((),) * len(self.questions), strict=True):
            for name in names:
                members.setdefault(name, set()).add(question)
        return dict(sorted(members.items()))

    def without(self, questions: Collection[str]) -> Scores:
        """These scores without those of `questions`."""
        keep = [at for at, question in enumerate(self.questions) if question not in questions]
        metrics = {name: [values[at] for at in keep] for name, values in self.metrics.items()}
        parts = (tuple(values[at] for at in keep) for values in (self.questions, self.clusters))
        return Scores(*parts, metrics, tuple(self.slices[at] for at in keep) if self.slices else (), self.unit)

    def beside(self, other: Scores) -> Scores:
        """These scores and those of other questions under other metrics: neither's metrics apply to the other's."""
        if shared := set(self.metrics) & set(other.metrics):
            raise ValueError(f"{sorted(shared)[0]!r} is scored on both; only questions of another kind stand beside")
        ours, theirs = len(self.questions), len(other.questions)
        metrics = {name: [*values, *[None] * theirs] for name, values in self.metrics.items()}
        metrics |= {name: [*[None] * ours, *values] for name, values in other.metrics.items()}
        slices = (*(self.slices or ((),) * ours), *(other.slices or ((),) * theirs))
        return Scores(self.questions + other.questions, self.clusters + other.clusters, metrics, slices, unit=self.unit)


@dataclass(frozen=True)
class Pairs:
    """Two arms of one metric on the questions where it applies, in one order; NaN where a score is missing."""

    questions: list[str]
    clusters: list[str]
    candidate: list[float]
    champion: list[float]

    def only(self, questions: set[str]) -> Pairs:
        keep = [i for i, question in enumerate(self.questions) if question in questions]
        return Pairs(*([values[i] for i in keep] for values in vars(self).values()))

    def interval(self, metric: str, margin: float, alpha: float, max_missing: float) -> Interval:
        arms = (self.candidate, self.champion, self.clusters)
        return paired_interval(metric, *arms, margin, alpha, self.binary, max_missing)

    @property
    def binary(self) -> bool:
        """Whether every measured score is 0 or 1."""
        return {value for value in self.candidate + self.champion if not math.isnan(value)} <= {0.0, 1.0}

    def superior(self, interval: Interval, alpha: float) -> bool:
        """Whether the candidate is better than the champion beyond chance, by this interval of theirs."""
        if not self.binary:
            return interval.lower > 0
        a, b, _ = worst_case(self.candidate, self.champion)
        return better(interval.lower, int((a > b).sum()), int((b > a).sum()), alpha)

    def swapped(self, coins: Sequence[bool]) -> Pairs:
        """The arms exchanged at the questions where the coin says so."""
        rows = zip(self.candidate, self.champion, coins, strict=True)
        candidate, champion = zip(*((b, a) if coin else (a, b) for a, b, coin in rows), strict=True)
        return Pairs(self.questions, self.clusters, list(candidate), list(champion))

    @property
    def missing(self) -> tuple[float, float]:
        """Share of missing scores in the candidate's and in the champion's arm."""
        n = len(self.questions) or 1
        return sum(map(math.isnan, self.candidate)) / n, sum(map(math.isnan, self.champion)) / n


def pair(metric: str, candidate: Scores, champion: Scores) -> Pairs:
    """The scores of both arms by question id. A question only one arm has is missing in the other."""
    arms = []
    for scores in (candidate, champion):
        values = scores.metrics.get(metric, (None,) * len(scores.questions))
        arms.append(dict(zip(scores.questions, values, strict=True)))
    clusters = dict(zip(champion.questions, champion.clusters, strict=True))
    clusters |= dict(zip(candidate.questions, candidate.clusters, strict=True))
    rows = []
    for question, cluster in clusters.items():
        pair = [arm.get(question, math.nan) for arm in arms]
        # Applies only if some arm has a number: not measured here and not applicable there is not applicable.
        if all(value is None or math.isnan(value) for value in pair) and None in pair:
            continue
        rows.append((question, cluster, *(math.nan if value is None else float(value) for value in pair)))
    return Pairs(*(list(column) for column in zip(*rows, strict=True))) if rows else Pairs([], [], [], [])


def better_by_chance(pairs: Pairs, alpha: float, max_missing: float = 0.02) -> float:
    """How often the candidate is called better where each question's two scores change arms by a coin: an A/A check.

    Neither arm is better then, so the share, of SWAPS, may exceed alpha by no more than chance. It is run on the very
    scores that are decided on, so also whenever the questions or the metrics have changed.
    """
    coins, said = np.random.default_rng(0), 0
    for _ in range(SWAPS if len(set(pairs.clusters)) > 1 else 0):
        swapped = pairs.swapped(coins.random(len(pairs.questions)) < 0.5)
        said += swapped.superior(swapped.interval("A/A", 0.0, alpha, max_missing), alpha)
    return said / SWAPS
