"""Parts of the golden questions: harm in a slice, and a sealed part that nothing could be chosen or trained by."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from data.records import Interval
from tasks.intervals import Pairs, clustered_error, tango_z, worst_case

if TYPE_CHECKING:
    from tasks.gate import GateSettings

SEALED = "the sealed part"
GAP_ALPHA = 0.01
"""How often a candidate that does as well on the sealed questions as on the others is held for a gap between them."""
DRAWS = 1999


def harm(
    pairs: Pairs, slices: Mapping[str, Collection[str]], sealed: Collection[str], settings: GateSettings
) -> tuple[list[Interval], list[Interval]]:
    """Slices where a loss beyond the margin is proven (Holm over those large enough), and those that only look so.

    The sealed part is one of them, but a loss of it that is not proven is not told.
    """
    tested, alpha = [], settings.look_alpha
    for name, questions in {**slices, SEALED: sealed}.items():
        part = pairs.only(set(questions))
        interval = part.interval(f"{settings.primary} in {name}", settings.margin, alpha, settings.max_missing)
        if interval.n >= settings.min_slice_items and interval.clusters > 1:
            tested.append((_p(part, interval, settings.margin), interval, name))
    tested.sort(key=lambda row: row[0])
    harmed, warned, proving = [], [], True
    for place, (p, interval, name) in enumerate(tested):
        proving = proving and p <= alpha / (len(tested) - place)
        if proving:
            harmed.append(interval)
        elif interval.mean < -settings.margin and name != SEALED:
            warned.append(interval)
    return harmed, warned


def _p(pairs: Pairs, interval: Interval, margin: float) -> float:
    """One-sided p-value of a loss larger than the margin; the larger of the clustered t and Tango's."""
    a, b, _ = worst_case(pairs.candidate, pairs.champion)
    d = a - b
    error = clustered_error(d, pairs.clusters)
    p = float(stats.t.cdf((interval.mean + margin) / error, interval.clusters - 1)) if error else 0.0
    return max(p, float(stats.norm.cdf(tango_z(d[d > 0].sum(), -d[d < 0].sum(), len(d), -margin))))


def sealed_gap(pairs: Pairs, sealed: Collection[str]) -> str:
    """A sentence where the candidate does better on the open questions than on the sealed ones beyond chance, else ''.

    Then it learnt, or was chosen by, the questions rather than their subject. Until then no figure of the sealed part
    by itself is told, so that it can be asked again (the reusable holdout, Dwork et al., Science 349, 2015).
    """
    if (p := apart_by_chance(pairs, sealed)) > GAP_ALPHA:
        return ""
    a, b, _ = worst_case(pairs.candidate, pairs.champion)
    inside = np.isin(pairs.questions, list(sealed))
    shown, kept = (f"{100 * float((a - b)[part].mean()):+.1f}" for part in (~inside, inside))
    return (
        f"It does better on the questions that could be looked at ({shown} points) than on the sealed ones ({kept}), "
        f"by chance in {p:.1%} of cases: was it chosen or trained by them?"
    )


def apart_by_chance(pairs: Pairs, apart: Collection[str]) -> float:
    """How often as many clusters, drawn at random in place of those of `apart`, would fall as far behind the rest.

    A randomisation test of the mean difference outside `apart` minus that inside, one-sided: a p-value that needs no
    assumption about the scores where chance (a hash) chose `apart`. 1 where there is nothing to compare.
    """
    a, b, _ = worst_case(pairs.candidate, pairs.champion)
    names, at = np.unique(pairs.clusters, return_inverse=True)
    sums, sizes = np.bincount(at, weights=a - b), np.bincount(at)
    inside = np.unique([where for where, question in zip(at, pairs.questions, strict=True) if question in apart])
    if not 0 < len(inside) < len(names):
        return 1.0

    def gap(chosen: np.ndarray) -> np.ndarray:
        total, count = sums[chosen].sum(-1), sizes[chosen].sum(-1)
        return (sums.sum() - total) / (sizes.sum() - count) - total / count

    orders = np.random.default_rng(0).permuted(np.tile(np.arange(len(names)), (DRAWS, 1)), axis=1)
    as_far = gap(orders[:, : len(inside)]) >= gap(inside) - 1e-9
    return (1 + int(as_far.sum())) / (DRAWS + 1)
