"""Anchors: fifty frozen answers, judged anew in every run. When what the judge says of them moves, the judge has moved.

What they say is a signal in the ledger. The monitor reads it, diagnosis asks for a recalibration (METHODS, row 1b), and
no release is decided by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from data.ledger import Ledger
from tasks.calibrate import read_labels
from tasks.judge import Judge

FILE = Path(__file__).resolve().parent / "anchors.jsonl"
SIGNAL = "judge"
FLIP_RATE = 0.02  # verdicts that change although the judge did not, at temperature 0
ALPHA = 0.01
ENOUGH = 0.9


def ask(judge: Judge) -> list[float]:
    """The judge's verdicts on the anchors now, never from memory."""
    return judge.verdicts([anchor.judgeable for anchor in read_labels(FILE)], fresh=True)


def moved(before: Sequence[float], now: Sequence[float]) -> bool | None:
    """Whether more verdicts changed than FLIP_RATE explains (binomial, ALPHA).

    None where fewer than ENOUGH of the anchors were measured both times: an unreachable judge has not moved.
    """
    both = [(a, b) for a, b in zip(before, now, strict=True) if not (math.isnan(a) or math.isnan(b))]
    if len(both) < ENOUGH * len(before):
        return None
    flips = sum(a != b for a, b in both)
    return bool(stats.binom.sf(flips - 1, len(both), FLIP_RATE) < ALPHA)


def watch(book: Ledger, assistant: str, judge: Judge) -> dict:
    """Ask the anchors and store the signal: the judge's `version`, its first verdicts, and whether they `moved`.

    A new version starts anew. Where too few are measured the signal stays as it was.
    """
    known, now = book.signal_states(assistant).get(SIGNAL), ask(judge)
    if known is None or known["version"] != judge.version:
        return start(book, assistant, judge.version, now)
    said = moved([math.nan if verdict is None else verdict for verdict in known["anchors"]], now)
    if said is None:
        return known
    book.store_signals(assistant, {SIGNAL: known | {"moved": said}})
    return known | {"moved": said}


def have_moved(states: dict[str, dict]) -> bool:
    """Whether the anchors had moved when they were last asked, by the stored signals of an assistant."""
    return states.get(SIGNAL, {}).get("moved", False)


def start(book: Ledger, assistant: str, version: str, verdicts: Sequence[float]) -> dict:
    """Take the verdicts as those that later ones are compared with; {} and no change where too few are measured."""
    if sum(map(math.isnan, verdicts)) > (1 - ENOUGH) * len(verdicts):
        print("judge: too few anchors were measured to compare with later")
        return {}
    anchors = [None if math.isnan(verdict) else verdict for verdict in verdicts]
    state = {"version": version, "anchors": anchors, "moved": False}
    book.store_signals(assistant, {SIGNAL: state})
    return state
