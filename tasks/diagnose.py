"""Diagnosis: which remedy, if any. The table of METHODS section 4, first match wins, as one table in code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from data.records import Record, as_json, digest
from tasks.evidence import (
    JUDGE,
    OUTDATED,
    QUALITY,
    RATINGS,
    REMEDY_OF,
    RETRIEVAL,
    DiagnosisSettings,
    Evidence,
    after_release,
    answers_worse,
    better,
    broken,
    cost,
    coverage_fell,
    enough_labels,
    expected_cost,
    flood,
    live_moved,
    others,
    quality_moved,
    questions_moved,
    rating_moved,
    recovers,
    rivals,
)
from tasks.streams import BROKEN

KINDS = (
    "reindex",
    "retrain",
    "reprompt",
    "rollback",
    "recalibrate",
    "alert",
    "collect",
    "freeze",
    "quarantine_ratings",
    "nothing",
)


@dataclass(frozen=True)
class Remedy(Record):
    """What to do: `row` of the table, `reason` in one sentence, `evidence` behind it, `expected_cost` in minutes.

    `alternatives`: the other rows, each with its kind, its expected cost and why it was not taken.
    """

    kind: str
    row: str
    reason: str
    evidence: dict = field(default_factory=dict)
    expected_cost: float = 0.0
    alternatives: tuple[dict, ...] = ()


# --- the table --------------------------------------------------------------------------------

Say = Callable[[Evidence, DiagnosisSettings], str]


@dataclass(frozen=True)
class Row:
    """One row: if `when` holds, do `kind` and `say` why; done, the detectors of the signals it is `about` restart."""

    name: str
    kind: str
    when: Callable[[Evidence, DiagnosisSettings], bool]
    say: Say
    about: tuple[str, ...] = ()


TABLE: tuple[Row, ...] = (
    Row(
        "0",
        "rollback",
        lambda e, s: bool(broken(e, s)) and after_release(e, s),
        lambda e, s: f"{'Stop the canary' if e.in_canary else 'Roll back now'}: {'; '.join(broken(e, s))}.",
        (*BROKEN, "probes"),
    ),
    Row(
        "1",
        "freeze",
        lambda e, s: bool(broken(e, s)) or e.version_mismatch,
        lambda e, s: (
            "Broken with no release to blame, so the instruments are suspect; a person must look: "
            f"{'; '.join([*broken(e, s), *(['version mismatch'] if e.version_mismatch else [])])}."
        ),
    ),
    Row(
        "1b",
        "recalibrate",
        lambda e, s: e.judge_moved and not live_moved(e),
        lambda e, s: "Only judge or anchor scores moved: recalibrate the judge, leave what is live.",
        JUDGE,
    ),
    Row(
        "2",
        "rollback",
        lambda e, s: quality_moved(e) and e.change_covers_deploy and better(e, "release"),
        lambda e, s: f"Quality fell with the last release, and the one before does better: {_figures(e, 'release')}.",
        (*QUALITY, *RATINGS),
    ),
    Row(
        "3",
        "reindex",
        lambda e, s: e.stale_sections > 0 or e.alarmed(*OUTDATED),
        lambda e, s: f"{e.stale_sections or 'Some'} sections changed, are new or are gone since they were indexed.",
        OUTDATED,
    ),
    Row(
        "4",
        "reindex",
        lambda e, s: coverage_fell(e) and recovers(e, s, "index") and not rivals(e, s),
        lambda e, s: f"Retrieval got worse and a refreshed index recovers it: {_figures(e, 'index')}.",
        RETRIEVAL,
    ),
    Row(
        "5",
        "alert",
        lambda e, s: coverage_fell(e) and "index" in e.replay and not recovers(e, s, "index"),
        lambda e, s: (
            f"The documents lack the answer: retrieval got worse and a refreshed index does not recover it "
            f"({_figures(e, 'index')})."
        ),
    ),
    Row(
        "6",
        "retrain",
        lambda e, s: answers_worse(e, s) and e.tunable and enough_labels(e, s),
        lambda e, s: (
            f"Answers given good context are worse for {e.worse_windows} windows, with {e.new_labelled_examples} new "
            f"labelled examples and {e.new_preferences} preferences to learn from."
        ),
        QUALITY,
    ),
    Row(
        "7",
        "reprompt",
        lambda e, s: answers_worse(e, s) and e.new_labelled_examples >= s.reprompt_examples,
        lambda e, s: (
            f"Answers given good context are worse, and {_no_retraining(e, s)}: reprompt with them and collect labels."
        ),
        QUALITY,
    ),
    Row(
        "7",
        "collect",
        answers_worse,
        lambda e, s: (
            f"Answers given good context are worse, and {e.new_labelled_examples} labelled examples are too few to "
            f"reprompt with ({s.reprompt_examples}): collect labels, the most informative questions first."
        ),
    ),
    Row(
        "8",
        "quarantine_ratings",
        lambda e, s: flood(e, s) and not quality_moved(e),
        lambda e, s: f"A few users carry {e.rating_alarm_users_share:.0%} of the bad ratings: set them aside.",
        RATINGS,
    ),
    Row(
        "9",
        "alert",
        lambda e, s: rating_moved(e) and not quality_moved(e),
        lambda e, s: "Ratings fell across users while measured quality is stable: a person must look.",
    ),
    Row(
        "10",
        "nothing",
        lambda e, s: (
            questions_moved(e)
            and not (quality_moved(e) or coverage_fell(e) or rating_moved(e))
            and not (e.volume_jump or e.judge_moved or others(e))
        ),
        lambda e, s: "The questions moved, quality and coverage are stable: offer the new ones for review.",
    ),
    Row(
        "11",
        "alert",
        lambda e, s: live_moved(e) or e.judge_moved or e.volume_jump,
        lambda e, s: _inconclusive(e, s),
    ),
    Row("-", "nothing", lambda e, s: True, lambda e, s: "Nothing is out of line."),
)


def _no_retraining(e: Evidence, s: DiagnosisSettings) -> str:
    if not e.tunable:
        return f"there are {e.new_labelled_examples} labelled examples for a model that no adapter can be trained for"
    return f"{e.new_labelled_examples} labelled examples are too few to retrain ({s.retrain_examples})"


def diagnose(evidence: Evidence, settings: DiagnosisSettings = DiagnosisSettings()) -> Remedy:
    """The remedy of the first row that matches; the last row always does, and does nothing."""
    fits = [row.when(evidence, settings) for row in TABLE]
    at = fits.index(True)
    row, minutes = TABLE[at], cost(settings, TABLE[at].kind)
    left = tuple(
        _left(other, fit, evidence, settings) for other, fit in zip(TABLE, fits, strict=True) if other is not row
    )
    return Remedy(row.kind, row.name, row.say(evidence, settings), _seen(evidence), minutes, left)


def _left(row: Row, fits: bool, e: Evidence, s: DiagnosisSettings) -> dict:
    """An alternative: what it would have cost, and why an earlier row or its own evidence ruled it out."""
    component = next((part for part, kind in REMEDY_OF.items() if kind == row.kind and part in e.replay), None)
    minutes = expected_cost(e, s, component) if component else cost(s, row.kind)
    why = "an earlier row comes first" if fits else "the evidence does not fit"
    return {"row": row.name, "kind": row.kind, "expected_cost": round(minutes, 1), "why not": why}


def cause(
    found: Remedy,
    live: str,
    e: Evidence,
    stale: str,
    events: int | None = None,
    s: DiagnosisSettings = DiagnosisSettings(),
) -> str:
    """What a remedy is asked for, as a hash: equal until the evidence that a new try could rest on has changed.

    That is what the sources hold for a re-index, how many labels there are for what learns from them, how many came
    back for what asks for more, what a judge says of its anchors, whose ratings carry the alarm, else the release; and
    whether an alarm that was too young to act on (see `Brakes.evidence`) has come of age.
    """
    labels = e.new_labelled_examples + e.new_preferences
    needed = {"retrain": s.retrain_preferences, "reprompt": s.reprompt_examples}
    said = next((signal.evidence.get("said") for signal in e.signals if signal.name == "anchors"), None)
    by_kind = {"reindex": stale, "recalibrate": said, "quarantine_ratings": sorted(e.rating_alarm_voices)}
    by_kind |= {"collect": e.settled_labels}
    rests_on = by_kind.get(found.kind, found.row)
    return digest(
        found.kind,
        live,
        rests_on,
        events is None or events >= s.evidence,
        *([labels // needed[found.kind]] if found.kind in needed else []),
    )


def acted_on(found: Remedy, e: Evidence) -> list[str]:
    """Signals in alarm that the remedy answers; the detectors of all others go on as they are."""
    about = {name for row in TABLE if (row.name, row.kind) == (found.row, found.kind) for name in row.about}
    return [name for name in e.alarms if name in about]


def events_behind(found: Remedy, e: Evidence) -> int | None:
    """Events that the best of the alarms behind a statistical row rests on; None where nothing is left to chance."""
    if found.row in ("0", "1", "3", "-"):
        return None
    states = [signal.evidence.get("state") for signal in e.signals if signal.alarm]
    return max((state["events"] for state in states if state), default=None)


def _inconclusive(e: Evidence, s: DiagnosisSettings) -> str:
    if causes := rivals(e, s):
        costs = ", ".join(f"{c} {expected_cost(e, s, c):.0f} min" for c in causes)
        return f"Several causes explain the loss at about the same expected cost ({costs}): a person must choose."
    moved = {
        "quality": quality_moved(e),
        "retrieval": coverage_fell(e),
        "ratings": rating_moved(e),
        "questions": questions_moved(e),
        "judge": e.judge_moved,
        "volume": e.volume_jump,
    }
    names = [*(name for name, is_moved in moved.items() if is_moved), *others(e)]
    return f"No single cause explains what moved ({', '.join(names)}): a person must look at the evidence."


def _figures(e: Evidence, component: str) -> str:
    swap = e.replay[component]
    return f"{100 * swap.mean:+.1f} points ({100 * swap.lower:+.1f} to {100 * swap.upper:+.1f}) on {swap.n} questions"


def _seen(e: Evidence) -> dict:
    """The evidence that is not at its default, as plain JSON; of the signals those in alarm."""
    default = as_json(Evidence())
    loud = replace(e, signals=tuple(signal for signal in e.signals if signal.alarm))
    return {name: value for name, value in as_json(loud).items() if value != default[name]}
