"""What one detector saw, and the detectors that only count: no reference is learnt and no chance is involved, or an
exact test settles it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from scipy import stats

from data.records import Record, digest

JUMP = 5.0
"""How many times the busiest run before it a run's rate of requests must be to be told."""
FLIP_RATE = 0.02
"""Share of a judge's verdicts on the same answers that change although the judge did not, at temperature 0."""


@dataclass(frozen=True)
class Signal(Record):
    """What one detector saw: `value` 0 to 1, higher is worse; `sentence` for a person; `evidence` as plain JSON."""

    name: str
    value: float
    alarm: bool
    sentence: str
    evidence: dict = field(default_factory=dict)


def staleness(
    changed: int, added: int, deleted: int, sections: int = 0, retrieved_share: float | None = None
) -> Signal:
    """Sections whose source changed, is new, or is gone since they were indexed: arithmetic, so any one is an alarm.

    `sections` is how many are indexed and `retrieved_share` the share of recent hits that are stale: they rank
    urgency only.
    """
    stale = changed + added + deleted
    share = min(1.0, stale / sections) if sections else float(stale > 0)
    sentence = f"{changed} sections changed, {added} are new and {deleted} are gone since the index was built."
    if not stale:
        sentence = "The index is current: no section changed, is new or is gone."
    counts = {"changed": changed, "added": added, "deleted": deleted, "sections": sections}
    value = max(share, retrieved_share or 0.0)
    return Signal("staleness", value, stale > 0, sentence, counts | {"retrieved_share": retrieved_share})


def deleted_cited(cited: int, answers: int) -> Signal:
    """Answers that cite text the documents no longer hold: none may, so any one is an alarm."""
    share = cited / answers if answers else 0.0
    sentence = f"{cited} of the last {answers} answers cite text that is gone from the documents."
    return Signal("deleted text cited", share, cited > 0, sentence, {"cited": cited, "answers": answers})


def embedder_mismatch(indexed: str, serving: str) -> Signal:
    """The index was embedded by one model and questions are embedded by another: nothing found means anything."""
    apart = indexed != serving
    sentence = f"The index was embedded by {indexed[:12]}, questions are embedded by {serving[:12]}."
    return Signal("embedder", float(apart), apart, sentence, {"indexed": indexed, "serving": serving})


def probe_hits(hits: Sequence[float], reference: float | None) -> Signal:
    """Probe questions (made from the indexed sections) that no longer find their section, against the share before.

    Nothing is drawn at random but the probes, so the alarm is an exact one-sided binomial test at .001.
    """
    found, n = sum(hits), len(hits)
    rate = found / n
    p = float(stats.binom.cdf(found, n, min(reference, 1 - 1 / n))) if reference is not None else 1.0
    before = f"{reference:.1%} before" if reference is not None else "the first look"
    sentence = f"{rate:.1%} of {n} probe questions find their section ({before})."
    return Signal("probes", 1 - rate, p < 0.001, sentence, {"rate": rate, "n": n, "reference": reference, "p": p})


def volume(requests: int, hours: float, before: Sequence[float]) -> Signal:
    """Requests an hour against the runs before: JUMP times the busiest of at least ten is told."""
    rate, most = requests / max(hours, 1e-9), max(before, default=0.0)
    jump = len(before) >= 10 and requests >= 100 and rate > JUMP * most
    value = min(1.0, rate / (JUMP * most)) if most else 0.0
    sentence = f"{rate:.0f} requests an hour; the busiest of {len(before)} runs before had {most:.0f}."
    return Signal("volume", value, jump, sentence, {"rate": rate, "most": most})


def clock(times: Sequence[float], now: float, tolerance_s: float = 120.0) -> Signal:
    """Logged times against the order they were logged in, and against now: a clock that steps or runs ahead."""
    back = max((before - after for before, after in pairwise(times)), default=0.0)
    off = max(back, max(times, default=now) - now, 0.0)
    sentence = f"The clock of the request log is up to {off:.0f} s off (steps back, or ahead of now)."
    return Signal("clock", min(1.0, off / 3600), off > tolerance_s, sentence, {"seconds": off})


def anchors(first: Sequence[float | None], now: Sequence[float | None]) -> Signal:
    """A judge's verdicts on frozen answers, first and now: they never change, so a change is the judge's.

    Moved is more changed verdicts than FLIP_RATE explains (binomial); None is a verdict that was not measured.
    Raises ValueError when the two are not verdicts on the same answers.
    """
    if len(first) != len(now):
        raise ValueError(f"{len(first)} verdicts on anchors at first and {len(now)} now; judge the same answers")
    both = [(a, b) for a, b in zip(first, now, strict=True) if a is not None and b is not None]
    stricter, changed = sum(a > b for a, b in both), sum(a != b for a, b in both)
    p = float(stats.binom.sf(changed - 1, len(both), FLIP_RATE))
    share = changed / len(both) if both else 0.0
    sentence = f"The judge says otherwise on {changed} of {len(both)} frozen answers ({stricter} stricter)."
    said = {"changed": changed, "stricter": stricter, "p": p, "said": digest(list(now))[:16]}
    return Signal("anchors", share, p < 0.01, sentence, said)
