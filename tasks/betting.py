"""Which of two arms scores better, looked at as often as one likes: bets on the difference of their means.

Users come to two arms one by one, each with one score from 0 to 1. They are taken in blocks as they come: one user of
the smaller arm, and about as many of the other as the split gives it. Both arms of a block are of the same time: what
moves both alike, such as a change of the documents, is no difference. So no arm runs ahead: of its waiting users the
latest are taken and the oldest dropped, by their place in the order alone. Whoever bets a share lambda of a capital on
each block's difference d (b's mean minus a's) keeps, on average, what was put in, if neither arm is better: this
capital, the product of 1 + lambda d, is a test martingale, and it ever reaches 1/alpha with probability alpha at most
(Ville; Waudby-Smith and Ramdas, arXiv 2010.09686; two samples: Shekhar and Ramdas, arXiv 2112.09162). Half of the error
is for either side, and several lambdas share the stake, because nobody knows the best one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from data.records import Record

LAMBDAS = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Shares of the capital that are bet on a block; below 1/2, so that no bet on d - delta can lose all of it."""
WAITING = 4
"""Blocks' worth of users of an arm that wait for the other one; more wastes fewer of them, fewer are nearer in time."""


@dataclass(frozen=True)
class Difference(Record):
    """b's mean score minus a's, with bounds that hold at all times together with the confidence 1 - alpha.

    `ahead`: the arm that is better beyond doubt, '' for neither. From the block that proved it nothing is added, so
    bounds and verdict agree. `users` of each arm are those in the blocks used.
    """

    estimate: float
    lower: float
    upper: float
    ahead: str
    blocks: int
    users: dict


def block(share: float) -> tuple[int, int]:
    """Users of a and of b in one block where b gets `share` of all; ValueError unless that is between 0 and 1."""
    if not 0 < share < 1:
        raise ValueError(f"the share of b is {share:g}; give a number between 0 and 1, such as 0.5")
    return (max(1, round((1 - share) / share)), 1) if share <= 0.5 else (1, max(1, round(share / (1 - share))))


def differences(scores: Sequence[tuple[str, float]], share: float) -> np.ndarray:
    """d of every whole block, -1 to 1, of each user's arm and score in the order they came.

    Raises ValueError for a score outside [0, 1]: what was not measured is no score.
    """
    sizes = dict(zip("ab", block(share), strict=True))
    waiting: dict[str, deque[float]] = {arm: deque(maxlen=WAITING * size) for arm, size in sizes.items()}
    found = []
    for arm, score in scores:
        if not 0 <= score <= 1:
            raise ValueError("scores are from 0 to 1; leave out what was not measured")
        waiting[arm].append(score)
        if all(len(waiting[one]) >= size for one, size in sizes.items()):
            mean = {one: sum(waiting[one].pop() for _ in range(size)) / size for one, size in sizes.items()}
            found.append(mean["b"] - mean["a"])
    return np.array(found)


def capital(d: np.ndarray, delta: float = 0.0) -> np.ndarray:
    """Logarithm of the capital after each block for bets that the mean of `d` is above `delta`, 1 put in."""
    grown = np.log1p(np.outer(LAMBDAS, d - delta)).cumsum(1)
    return np.logaddexp.reduce(grown, axis=0) - math.log(len(LAMBDAS))


def compare(scores: Sequence[tuple[str, float]], share: float = 0.5, alpha: float = 0.05) -> Difference:
    """What each user's arm and score, in the order they came, say about b - a by now."""
    d, wanted = differences(scores, share), math.log(2 / alpha)
    proofs = {arm: np.flatnonzero(capital(side) >= wanted) for arm, side in (("a", -d), ("b", d))}
    first, ahead = min(((int(at[0]), arm) for arm, at in proofs.items() if len(at)), default=(len(d), ""))
    d = d[: first + 1]
    of_a, of_b = block(share)
    used = {"a": of_a * len(d), "b": of_b * len(d)}
    estimate = float(d.mean()) if len(d) else 0.0
    return Difference(estimate, _lower(d, wanted), -_lower(-d, wanted), ahead, len(d), used)


def _lower(d: np.ndarray, wanted: float) -> float:
    """The smallest difference that the bets above it have not refuted."""

    def short(delta: float) -> float:
        return (capital(d, delta)[-1] if len(d) else 0.0) - wanted

    return -1.0 if short(-1.0) < 0 else float(brentq(short, -1.0, 1.0))


def planned(p0: float, difference: float, share: float = 0.5, power: float = 0.80, alpha: float = 0.05) -> int:
    """Blocks within which b is proven better with `power` where a is right with p0 and b with p0 + difference.

    With the best of the lambdas the log capital grows by g a block with standard deviation s; it has passed
    log(2/alpha), and log(number of lambdas) for the shared stake, after n blocks where
    n g - z s sqrt(n) = log(2/alpha) + log(number), z the power's normal quantile (Wald's approximation).
    """
    if not 0 <= p0 < p0 + difference <= 1:
        raise ValueError(f"a at {p0:g} and a difference of {difference:g}: give shares of right answers within 0 to 1")
    (of_a, of_b), z = block(share), float(stats.norm.ppf(power))
    right_a, right_b = np.arange(of_a + 1), np.arange(of_b + 1)
    chance = np.outer(stats.binom.pmf(right_b, of_b, p0 + difference), stats.binom.pmf(right_a, of_a, p0))
    d = np.subtract.outer(right_b / of_b, right_a / of_a)
    wanted, needed = math.log(2 / alpha) + math.log(len(LAMBDAS)), []
    for bet in LAMBDAS:
        growth = np.log1p(bet * d)
        g = float((chance * growth).sum())
        s = math.sqrt(float((chance * (growth - g) ** 2).sum()))
        if g > 0:
            needed.append(((z * s + math.sqrt((z * s) ** 2 + 4 * g * wanted)) / (2 * g)) ** 2)
    if not needed:
        raise ValueError(f"a difference of {difference:g} is too small to be proven; plan for a larger one")
    return math.ceil(min(needed))
