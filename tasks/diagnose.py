"""Diagnosis: which remedy, if any. The table of METHODS section 4, first match wins, as one table in code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from data.records import Interval, Record, as_json
from tasks.drift import Signal

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
class DiagnosisSettings(Record):
    """Thresholds of the table, and what each remedy costs in minutes of machine and people.

    `recovers` is the share of the loss a swap must win back to be the cause; `rivals` how close two causes'
    expected costs may be before a person has to choose; `few_users` the share of bad ratings that makes them a flood.
    """

    rollback_hours: float = 24.0
    parse_failures: float = 0.02
    recovers: float = 0.5
    rivals: float = 0.2
    worse_windows: int = 2
    retrain_examples: int = 500
    retrain_preferences: int = 300
    reprompt_examples: int = 8
    few_users: float = 0.5
    cost_rollback: float = 1.0
    cost_reindex: float = 5.0
    cost_reprompt: float = 15.0
    cost_retrain: float = 60.0
    cost_person: float = 30.0


@dataclass(frozen=True)
class Evidence(Record):
    """Everything the table looks at. What was not measured stays at its default, which never acts.

    Times are from the last promotion to the *beginning* of the trouble (None: no promotion). `replay` holds one
    paired interval for each swapped component, swapped - live, on live quality: "index" (refreshed), "model",
    "prompt", "retrieval" and "release" (the previous release whole). `loss` is how far quality fell, 0 to 1.
    """

    signals: tuple[Signal, ...] = ()
    seconds_since_promotion: float | None = None
    in_canary: bool = False
    hard_broken: tuple[str, ...] = ()
    parse_failures: float = 0.0
    schema_mismatch: bool = False
    below_chance: bool = False
    version_mismatch: bool = False
    volume_jump: bool = False
    judge_moved: bool = False
    quality_alarm: bool = False
    change_covers_deploy: bool = False
    stale_sections: int = 0
    retrieval_term_down: bool = False
    labelled_quality_down: bool = False
    worse_windows: int = 0
    new_labelled_examples: int = 0
    new_preferences: int = 0
    rating_alarm: bool = False
    rating_alarm_users_share: float = 0.0
    query_drift: bool = False
    loss: float = 0.0
    replay: dict[str, Interval] = field(default_factory=dict)
    questions: tuple[str, ...] = ()

    def alarmed(self, name: str) -> bool:
        return any(signal.name == name and signal.alarm for signal in self.signals)


@dataclass(frozen=True)
class Remedy(Record):
    """What to do: `row` of the table, `reason` in one sentence, `evidence` behind it, `expected_cost` in minutes."""

    kind: str
    row: str
    reason: str
    evidence: dict = field(default_factory=dict)
    expected_cost: float = 0.0


# --- what the rows ask ------------------------------------------------------------------------


def broken(e: Evidence, s: DiagnosisSettings) -> list[str]:
    """What the system itself enforces and finds broken."""
    found = list(e.hard_broken)
    if e.parse_failures > s.parse_failures:
        found.append(f"{e.parse_failures:.1%} of outputs do not parse ({s.parse_failures:.1%} allowed)")
    if e.schema_mismatch:
        found.append("schema mismatch")
    if e.below_chance:
        found.append("scores below chance")
    return found


def after_release(e: Evidence, s: DiagnosisSettings) -> bool:
    """The trouble began inside a canary or soon after a promotion."""
    since = e.seconds_since_promotion
    return e.in_canary or (since is not None and 0 <= since <= s.rollback_hours * 3600)


def quality_moved(e: Evidence) -> bool:
    return e.quality_alarm or e.labelled_quality_down or e.alarmed("quality")


def rating_moved(e: Evidence) -> bool:
    return e.rating_alarm or e.alarmed("ratings")


def questions_moved(e: Evidence) -> bool:
    return e.query_drift or e.alarmed("questions")


def coverage_fell(e: Evidence) -> bool:
    return e.retrieval_term_down or e.alarmed("retrieval")


def live_moved(e: Evidence) -> bool:
    """Anything a person or a reference measured, as against what a judge said."""
    others = (quality_moved(e), rating_moved(e), questions_moved(e), coverage_fell(e), e.stale_sections > 0)
    return any(others) or any(signal.alarm for signal in e.signals if signal.name not in ("judge", "anchors"))


def better(e: Evidence, component: str) -> bool:
    """Swapping the component in did better in replay, for sure: lower bound above zero."""
    return component in e.replay and e.replay[component].lower > 0


def recovers(e: Evidence, s: DiagnosisSettings, component: str) -> bool:
    """The component is a cause: its swap wins back at least half of the loss, lower bound above zero."""
    return better(e, component) and e.replay[component].mean >= s.recovers * e.loss


REMEDY_OF = {"index": "reindex", "model": "retrain", "prompt": "reprompt", "retrieval": "reprompt"}


def expected_cost(e: Evidence, s: DiagnosisSettings, component: str) -> float:
    """Minutes for the remedy, and a person's minutes for the share of the loss its swap would leave."""
    left = max(0.0, 1 - e.replay[component].mean / e.loss) if e.loss > 0 else 0.0
    return _cost(s, REMEDY_OF[component]) + left * s.cost_person


def rivals(e: Evidence, s: DiagnosisSettings) -> list[str]:
    """Components that explain the loss about equally well at about the same expected cost; empty: one cause or none."""
    causes = sorted((c for c in REMEDY_OF if recovers(e, s, c)), key=lambda c: expected_cost(e, s, c))
    if len(causes) < 2:
        return []
    first = expected_cost(e, s, causes[0])
    close = [c for c in causes if expected_cost(e, s, c) <= (1 + s.rivals) * first]
    return close if len(close) > 1 else []


def answers_worse(e: Evidence, s: DiagnosisSettings) -> bool:
    """Retrieval is fine, answers given good context are worse for long enough, no release explains it, one cause."""
    lasting = e.labelled_quality_down and e.worse_windows >= s.worse_windows
    release = after_release(e, s) or e.change_covers_deploy
    return lasting and not coverage_fell(e) and not release and not rivals(e, s)


def enough_labels(e: Evidence, s: DiagnosisSettings) -> bool:
    return e.new_labelled_examples >= s.retrain_examples or e.new_preferences >= s.retrain_preferences


def flood(e: Evidence, s: DiagnosisSettings) -> bool:
    return rating_moved(e) and e.rating_alarm_users_share >= s.few_users


# --- the table --------------------------------------------------------------------------------

Say = Callable[[Evidence, DiagnosisSettings], str]


@dataclass(frozen=True)
class Row:
    """One row: if `when` holds, do `kind` and `say` why."""

    name: str
    kind: str
    when: Callable[[Evidence, DiagnosisSettings], bool]
    say: Say


TABLE: tuple[Row, ...] = (
    Row(
        "0",
        "rollback",
        lambda e, s: bool(broken(e, s)) and after_release(e, s),
        lambda e, s: f"{'Stop the canary' if e.in_canary else 'Roll back now'}: {'; '.join(broken(e, s))}.",
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
    ),
    Row(
        "2",
        "rollback",
        lambda e, s: quality_moved(e) and e.change_covers_deploy and better(e, "release"),
        lambda e, s: f"Quality fell with the last release, and the one before does better: {_figures(e, 'release')}.",
    ),
    Row(
        "3",
        "reindex",
        lambda e, s: e.stale_sections > 0 or e.alarmed("staleness"),
        lambda e, s: f"{e.stale_sections or 'Some'} sections changed, are new or are gone since they were indexed.",
    ),
    Row(
        "4",
        "reindex",
        lambda e, s: coverage_fell(e) and recovers(e, s, "index") and not rivals(e, s),
        lambda e, s: f"Retrieval got worse and a refreshed index recovers it: {_figures(e, 'index')}.",
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
        lambda e, s: answers_worse(e, s) and enough_labels(e, s),
        lambda e, s: (
            f"Answers given good context are worse for {e.worse_windows} windows, with {e.new_labelled_examples} new "
            f"labelled examples and {e.new_preferences} preferences to learn from."
        ),
    ),
    Row(
        "7",
        "reprompt",
        lambda e, s: answers_worse(e, s) and e.new_labelled_examples >= s.reprompt_examples,
        lambda e, s: (
            f"Answers given good context are worse, and {e.new_labelled_examples} labelled examples are too few to "
            f"retrain ({s.retrain_examples}): reprompt with them and collect labels."
        ),
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
            and not (e.volume_jump or e.judge_moved or _others(e))
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


def diagnose(evidence: Evidence, settings: DiagnosisSettings = DiagnosisSettings()) -> Remedy:
    """The remedy of the first row that matches; the last row always does, and does nothing."""
    for row in TABLE:
        if row.when(evidence, settings):
            return Remedy(row.kind, row.name, row.say(evidence, settings), _seen(evidence), _cost(settings, row.kind))
    raise AssertionError("the last row of TABLE must always match")


def _others(e: Evidence) -> list[str]:
    """Alarms no row of the table is about, such as latency."""
    known = ("staleness", "ratings", "quality", "questions", "retrieval", "judge", "anchors")
    return [signal.name for signal in e.signals if signal.alarm and signal.name not in known]


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
    names = [*(name for name, is_moved in moved.items() if is_moved), *_others(e)]
    return f"No single cause explains what moved ({', '.join(names)}): a person must look at the evidence."


def _figures(e: Evidence, component: str) -> str:
    swap = e.replay[component]
    return f"{100 * swap.mean:+.1f} points ({100 * swap.lower:+.1f} to {100 * swap.upper:+.1f}) on {swap.n} questions"


def _cost(s: DiagnosisSettings, kind: str) -> float:
    costs = {
        "rollback": s.cost_rollback,
        "reindex": s.cost_reindex,
        "reprompt": s.cost_reprompt,
        "retrain": s.cost_retrain,
        "nothing": 0.0,
        "quarantine_ratings": 0.0,
    }
    return costs.get(kind, s.cost_person)


def _seen(e: Evidence) -> dict:
    """The evidence that is not at its default, as plain JSON."""
    default = as_json(Evidence())
    return {name: value for name, value in as_json(e).items() if value != default[name]}
