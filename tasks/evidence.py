"""Evidence: all that diagnosis looks at, and the questions that its table asks of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from data.records import Interval, Record
from tasks.signals import Signal

QUERIES = ("questions", "question length", "question language")
RETRIEVAL = ("retrieval", "top score", "score gap", "unanswerable", "probes")
QUALITY = ("quality", "labels", "grounding", "abstention")
RATINGS = ("ratings", "edits")
JUDGE = ("judge", "anchors")
OUTDATED = ("staleness", "deleted text cited")
COVERED = (*QUERIES, *RETRIEVAL, *QUALITY, *RATINGS, *JUDGE, *OUTDATED)
"""Signals that rows of the table are about; the alarm of any other is for a person."""


@dataclass(frozen=True)
class DiagnosisSettings(Record):
    """Thresholds of the table, and what each remedy costs in minutes of machine and people.

    `recovers` is the share of the loss a swap must win back to be the cause; `rivals` how close two causes'
    expected costs may be before a person has to choose; `few_users` the share of bad ratings that makes them a flood;
    `evidence` how many events an alarm must rest on before it may act.
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
    evidence: int = 30
    cost_rollback: float = 1.0
    cost_reindex: float = 5.0
    cost_reprompt: float = 15.0
    cost_retrain: float = 60.0
    cost_person: float = 30.0


@dataclass(frozen=True)
class Evidence(Record):
    """Everything the table looks at. What was not measured stays at its default, which never acts.

    Times are from the last promotion that could be the cause to the *beginning* of the trouble (None: none was).
    `replay` holds one paired interval for each swapped component, swapped - live, on live quality: "index"
    (refreshed), "model", "prompt", "retrieval" and "release" (the previous release whole). `loss` is how far quality
    fell, 0 to 1. `budget` says how often the signals alarm by chance. `tunable`: an adapter can be trained for the live
    model. `settled_labels`: answers that people were asked to label and did, those they could say nothing of included.
    """

    signals: tuple[Signal, ...] = ()
    budget: str = ""
    seconds_since_promotion: float | None = None
    in_canary: bool = False
    hard_broken: tuple[str, ...] = ()
    parse_failures: float = 0.0
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
    settled_labels: int = 0
    tunable: bool = True
    rating_alarm: bool = False
    rating_alarm_users_share: float = 0.0
    rating_alarm_voices: tuple[str, ...] = ()
    query_drift: bool = False
    loss: float = 0.0
    replay: dict[str, Interval] = field(default_factory=dict)
    questions: tuple[str, ...] = ()

    def alarmed(self, *names: str) -> bool:
        return any(signal.name in names and signal.alarm for signal in self.signals)

    @property
    def alarms(self) -> tuple[str, ...]:
        return tuple(signal.name for signal in self.signals if signal.alarm)

    @property
    def worth_a_replay(self) -> bool:
        """Quality, what is found or what people say got worse, so that it matters which component did it.

        Not where an outdated index is to be healed first (row 3), which only a rollback (row 2) would come before.
        """
        if self.stale_sections and not self.change_covers_deploy:
            return False
        return quality_moved(self) or coverage_fell(self) or rating_moved(self)


# --- what the rows ask ------------------------------------------------------------------------


def broken(e: Evidence, s: DiagnosisSettings) -> list[str]:
    """What the system itself enforces and finds broken."""
    found = list(e.hard_broken)
    if e.parse_failures > s.parse_failures:
        found.append(f"{e.parse_failures:.1%} of outputs do not parse ({s.parse_failures:.1%} allowed)")
    if e.below_chance:
        found.append("scores below chance")
    return found


def after_release(e: Evidence, s: DiagnosisSettings) -> bool:
    """The trouble began inside a canary or soon after a promotion."""
    since = e.seconds_since_promotion
    return e.in_canary or (since is not None and 0 <= since <= s.rollback_hours * 3600)


def quality_moved(e: Evidence) -> bool:
    return e.quality_alarm or e.labelled_quality_down or e.alarmed(*QUALITY)


def rating_moved(e: Evidence) -> bool:
    return e.rating_alarm or e.alarmed(*RATINGS)


def questions_moved(e: Evidence) -> bool:
    return e.query_drift or e.alarmed(*QUERIES)


def coverage_fell(e: Evidence) -> bool:
    return e.retrieval_term_down or e.alarmed(*RETRIEVAL)


def live_moved(e: Evidence) -> bool:
    """Anything a person or a reference measured, as against what a judge said."""
    others = (quality_moved(e), rating_moved(e), questions_moved(e), coverage_fell(e), e.stale_sections > 0)
    return any(others) or any(signal.alarm for signal in e.signals if signal.name not in JUDGE)


def better(e: Evidence, component: str) -> bool:
    """Swapping the component in did better in replay, for sure: lower bound above zero."""
    return component in e.replay and e.replay[component].lower > 0


def recovers(e: Evidence, s: DiagnosisSettings, component: str) -> bool:
    """The component is a cause: its swap wins back at least half of the loss, lower bound above zero."""
    return better(e, component) and e.replay[component].mean >= s.recovers * e.loss


def cost(s: DiagnosisSettings, kind: str) -> float:
    """Minutes of machine, or of a person, that a remedy takes."""
    costs = {
        "rollback": s.cost_rollback,
        "reindex": s.cost_reindex,
        "reprompt": s.cost_reprompt,
        "retrain": s.cost_retrain,
        "nothing": 0.0,
        "quarantine_ratings": 0.0,
    }
    return costs.get(kind, s.cost_person)


REMEDY_OF = {"index": "reindex", "model": "retrain", "prompt": "reprompt", "retrieval": "reprompt"}


def expected_cost(e: Evidence, s: DiagnosisSettings, component: str) -> float:
    """Minutes for the remedy, and a person's minutes for the share of the loss its swap would leave."""
    left = max(0.0, 1 - e.replay[component].mean / e.loss) if e.loss > 0 else 0.0
    return cost(s, REMEDY_OF[component]) + left * s.cost_person


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


def others(e: Evidence) -> list[str]:
    """Alarms no row of the table is about, such as latency."""
    return [name for name in e.alarms if name not in COVERED]
