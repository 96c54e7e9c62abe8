"""The e-detector: when has a stream of values got worse for sure? No assumption on how its events depend on each other.

One family of S detectors watched for H events each raises any false alarm with probability at most alpha when all share
the threshold c = S H / alpha (`threshold`): that is the whole false-alarm budget of an assistant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from data.records import Record

LAMBDAS = (0.25, 0.5, 1.0, 2.0, 3.0)


@dataclass(frozen=True)
class EDetector(Record):
    """Shiryaev-Roberts e-detector of a stream of values in [0, 1], 1 being bad (Shin et al., arXiv 2203.03532).

    `runs` holds R_t = (R_{t-1} + 1)(1 + lambda (x_t - p0)) for each lambda, `level` their mean; alarm at
    level >= threshold, which stays on. On a quiet stream the average time to an alarm is at least the threshold,
    and P(alarm within H events) <= H / threshold, with no independence assumed. `since` estimates at which event
    the trouble began (the last time the evidence for the middle lambda stood at nothing).
    """

    p0: float
    threshold: float
    lambdas: tuple[float, ...]
    runs: tuple[float, ...]
    events: int = 0
    alarm: bool = False
    since: int = 0
    rise: float = 0.0

    @property
    def level(self) -> float:
        return sum(self.runs) / len(self.runs)

    @property
    def value(self) -> float:
        """How far towards the threshold, 0 to 1, on a log scale."""
        return 1.0 if self.alarm else min(1.0, math.log1p(self.level) / math.log1p(self.threshold))


def threshold(signals: int, events: int, alpha: float = 0.05) -> float:
    """c = S H / alpha: a family of S signals of H events each gives any false alarm with probability at most alpha."""
    return signals * events / alpha


def upper_rate(reference: Sequence[float], alpha: float = 0.05) -> float:
    """Upper 1 - alpha bound of the mean of a reference: Clopper-Pearson for 0/1 values, else a t bound, at most 1."""
    values = np.asarray(reference, dtype=float)
    n, total = len(values), float(values.sum())
    if n < 2:
        return 1.0
    if set(np.unique(values)) <= {0.0, 1.0}:
        return float(stats.beta.ppf(1 - alpha, total + 1, n - total)) if total < n else 1.0
    return min(1.0, float(values.mean() + stats.t.ppf(1 - alpha, n - 1) * values.std(ddof=1) / math.sqrt(n)))


def watch(p0: float, threshold: float, slack: float = 0.0) -> EDetector:
    """A fresh detector against the rate p0 + slack; lambdas that could make a factor negative are left out."""
    rate = min(p0 + slack, 0.999)
    lambdas = tuple(step for step in LAMBDAS if step * rate < 1)
    return EDetector(rate, threshold, lambdas, (0.0,) * len(lambdas))


def update(state: EDetector, x: float) -> EDetector:
    """The detector after one more value in [0, 1].

    Raises:
        ValueError: for a value outside [0, 1] or NaN; what was not measured is not an event.
    """
    if not 0 <= x <= 1:
        raise ValueError(f"the stream has {x}; give a value from 0 to 1 (1 is bad), and leave out what is unmeasured")
    return _step(state, tuple(1 + step * (x - state.p0) for step in state.lambdas))


def watch_p(threshold: float) -> EDetector:
    """A fresh detector of p-values, one for each disjoint window, fed with `update_p`."""
    return EDetector(0.0, threshold, (1.0,), (0.0,))


def update_p(state: EDetector, p: float) -> EDetector:
    """The detector after one more window's p-value, turned into the e-value p ** -0.5 / 2 (mean 1 if p is uniform)."""
    if not 0 < p <= 1:
        raise ValueError(f"p-value {p}; a permutation p-value is above 0 and at most 1")
    return _step(state, (p**-0.5 / 2,))


def restart(state: EDetector) -> EDetector:
    """The detector as it was before its first event, its reference rate kept: somebody acted on what it saw."""
    return EDetector(state.p0, state.threshold, state.lambdas, (0.0,) * len(state.lambdas))


def advance(run, factor):
    """One step of the recursion, of numbers or, for many detectors at once, of arrays."""
    return (run + 1) * factor


def _step(state: EDetector, factors: tuple[float, ...]) -> EDetector:
    runs = tuple(advance(run, factor) for run, factor in zip(state.runs, factors, strict=True))
    events, middle = state.events + 1, math.log(max(factors[len(factors) // 2], 1e-12))
    rise = max(0.0, state.rise + middle)
    after = replace(state, runs=runs, events=events, rise=rise, since=events if rise == 0 else state.since)
    return replace(after, alarm=state.alarm or after.level >= state.threshold)
