"""Anchors: fifty frozen answers, judged anew in every run. When what the judge says of them moves, the judge has moved.

What they say is a signal in the ledger. The monitor reads it, diagnosis asks for a recalibration (METHODS, row 1b), and
no release is decided by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from data.ledger import Ledger
from tasks.calibrate import read_labels
from tasks.judge import Judge

FILE = Path(__file__).resolve().parent / "anchors.jsonl"
SIGNAL = "judge"
ENOUGH = 0.9


def ask(judge: Judge) -> list[float]:
    """The judge's verdicts on the anchors now, never from memory."""
    return judge.verdicts([anchor.judgeable for anchor in read_labels(FILE)], fresh=True)


def watch(book: Ledger, assistant: str, judge: Judge) -> dict:
    """Ask the anchors and store the signal: the judge's `version`, its `first` verdicts and those of `now`.

    A new version starts anew. Where too few are measured the signal stays: an unreachable judge has not moved,
    and one that had moved has not come back.
    """
    known, verdicts = book.signal_states(assistant).get(SIGNAL), stored(ask(judge))
    if known is None or known["version"] != judge.version:
        return start(book, assistant, judge.version, verdicts)
    if too_few(verdicts):
        return known
    book.store_signals(assistant, {SIGNAL: known | {"now": verdicts}})
    return known | {"now": verdicts}


def asked_twice(states: dict[str, dict]) -> dict | None:
    """The first and the newest verdicts, of the stored signals of an assistant; None before there are two."""
    state = states.get(SIGNAL, {})
    return {name: state[name] for name in ("first", "now")} if "now" in state else None


def start(book: Ledger, assistant: str, version: str, verdicts: Sequence[float | None]) -> dict:
    """Take the verdicts as those that later ones are compared with; {} and no change where too few are measured."""
    if too_few(verdicts):
        print("judge: too few anchors were measured to compare with later")
        return {}
    state = {"version": version, "first": list(verdicts)}
    book.store_signals(assistant, {SIGNAL: state})
    return state


def stored(verdicts: Sequence[float]) -> list[float | None]:
    """Verdicts as JSON has them: None is not measured."""
    return [None if math.isnan(verdict) else verdict for verdict in verdicts]


def too_few(verdicts: Sequence[float | None]) -> bool:
    return sum(verdict is None for verdict in verdicts) > (1 - ENOUGH) * len(verdicts)
