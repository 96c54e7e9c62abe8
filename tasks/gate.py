"""The gate: may this candidate replace the champion? Paired, on the same questions, in one run.

Promote when the lower bound of the mean paired difference is above minus the margin, reject when the upper bound is
below it, otherwise hold and say how many items would settle it. Pure functions over scores: nothing is read or run.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from data.golden_sets import REPLACED
from data.records import Decision, Interval, Record, as_json
from tasks import slices
from tasks.intervals import (
    SWAPS,
    Pairs,
    Scores,
    items_needed,
    pair,
    paired_interval,
    probe_interval,
)
from tasks.metrics import ADVISORY, aggregate

__all__ = ["GateSettings", "Scores", "decide", "guardrail", "paired_interval"]

KINDS = ("bootstrap", "first-tuned", "change", "index-only")


@dataclass(frozen=True)
class GateSettings(Record):
    """Run knobs of the gate. Margins are on the 0 to 1 scale of the metrics, `max_slowdown` is a ratio of seconds.

    `looks` is how many times this candidate may be tested in all, 1 or 2: each look then has alpha / looks.
    `tuned_decisions` is how many tuned candidates one golden set may judge before part of it must be replaced.
    `approval_hours`: how long a person may take to approve an accepted candidate; None: nobody is asked.
    """

    primary: str = "correct"
    guardrails: tuple[str, ...] = ("grounding", "abstention", "safety", "latency")
    margin: float = 0.05
    guardrail_margin: float = 0.10
    max_slowdown: float = 1.25
    min_questions: int = 60
    min_clusters: int = 15
    min_guardrail_items: int = 60
    min_slice_items: int = 30
    max_missing: float = 0.02
    alpha: float = 0.05
    looks: int = 1
    probes: int = 60
    probe_floor: float = 0.80
    tuned_decisions: int = 20
    approval_hours: float | None = None

    def __post_init__(self):
        if self.looks not in (1, 2):
            raise ValueError(f"{self.looks} looks; a candidate is tested once, or twice where that is planned before")
        if len(self.guardrails) > 4:
            raise ValueError(
                f"{len(self.guardrails)} guardrails; at most four, or a good candidate fails one by chance"
            )
        if self.primary in self.guardrails:
            raise ValueError(f"{self.primary!r} is the primary metric and a guardrail; take it out of one")
        if judged := [name for name in (self.primary, *self.guardrails) if name.startswith(ADVISORY)]:
            raise ValueError(
                f"{judged[0]!r} is a judge's score, and those only advise; name one of tasks.metrics.METRICS"
            )

    @property
    def look_alpha(self) -> float:
        """The error level of one look."""
        return self.alpha / self.looks


def decide(
    candidate: Scores,
    champion: Scores | None,
    hard: Mapping[str, str | None],
    settings: GateSettings = GateSettings(),
    kind: str = "change",
    probes: Sequence[float] | None = None,
    release: str = "",
    champion_release: str | None = None,
    tuned_decisions: int = 0,
    looks_before: Sequence[float] = (),
    by_chance: float | None = None,
    people: Interval | None = None,
    sealed: Collection[str] = (),
) -> Decision:
    """The verdict on one candidate, in order: hard constraints, primary metric, guardrails, people, slices, sealed.

    `hard` names every hard constraint that was checked: None if it holds, else how it is broken. `kind` is
    "bootstrap" (hard constraints only), "first-tuned" (must be better than the bootstrap), "change" or "index-only"
    (judged on `probes`, 1 passed and 0 failed, where too few golden questions vote). `tuned_decisions` is how many
    tuned candidates this golden set has already judged. `looks_before`: the error level of each test that refused this
    candidate; testing until it passes would promote a worse one. Neither keeps an index back: nothing in it was chosen
    by looking at the set. `by_chance`: see `intervals.better_by_chance`. `people`: what they and a judge hold against
    the candidate, see `tasks.objection`. `sealed`: questions that count in the intervals and in none of the means
    beside them; see `tasks.slices`.

    Raises:
        ValueError: for an unknown kind, no hard constraints, or no champion's scores to compare with.
    """
    if kind not in KINDS:
        raise ValueError(f"no kind of candidate {kind!r}; it is one of {', '.join(KINDS)}")
    if not hard:
        raise ValueError("no hard constraint was checked; a candidate is never accepted without them")
    if champion is None and kind != "bootstrap":
        raise ValueError(f"a {kind} candidate is judged against the champion; score it on the same questions")

    alpha = settings.look_alpha
    metrics = _means(candidate, sealed)
    baseline = _means(champion, sealed) if champion else None
    intervals: list[Interval] = []
    notes: list[str] = []

    def verdict(name: str, reason: str, superior: bool = False, judged: str = "golden", look: int = 0) -> Decision:
        return Decision(
            name,
            reason,
            release,
            champion_release,
            superior,
            judged,
            tuple(intervals),
            metrics,
            baseline,
            tuple(notes),
            look,
            alpha,
            settings=as_json(settings),
        )

    broken = [f"{name}: {problem}" for name, problem in hard.items() if problem is not None]
    if broken:
        return verdict("reject", f"Hard constraint broken: {'; '.join(broken)}.", judged="hard constraints")
    if kind == "bootstrap":
        reason = f"All {len(hard)} hard constraints hold; this release is live until a tuned one is proven better."
        return verdict("bootstrap", reason, judged="hard constraints")

    pairs = pair(settings.primary, candidate, champion)
    margin = 0.0 if kind == "first-tuned" else settings.margin
    primary = pairs.interval(settings.primary, margin, alpha, settings.max_missing)
    intervals.append(primary)
    superior = pairs.superior(primary, alpha) and max(pairs.missing) <= settings.max_missing
    if candidate.unit != "document":
        notes.append(f"Split and clustered by {candidate.unit}: too few documents to cluster by document.")

    probed = None
    if probes is not None:
        probed = probe_interval(probes, settings.probe_floor, alpha)
        intervals.append(probed)
        if probed.verdict == "reject":
            return verdict("reject", f"Probes of the new and changed sections fail: {_probes(probed, settings)}.")
        if probed.verdict == "hold":
            notes.append(f"Probes alone would be undecided: {_probes(probed, settings)}.")

    if primary.n < settings.min_questions or primary.clusters < settings.min_clusters:
        short = (
            f"{primary.n} questions from {primary.clusters} {candidate.unit}s vote, "
            f"and {settings.min_questions} from {settings.min_clusters} are needed"
        )
        if kind != "index-only":
            wanted = max(0, settings.min_questions - primary.n)
            unheard = max(0, settings.min_clusters - primary.clusters)
            return verdict("hold", f"Only {short}: add {wanted} questions and {unheard} {candidate.unit}s.")
        notes.append(f"Judged on probe questions: {short}.")
        if probed is None or probed.n < settings.probes:
            have = probed.n if probed else 0
            reason = f"Only {short}, and {have} probe questions of {settings.probes}: add {settings.probes - have}."
            return verdict("hold", reason, judged="probes")
        if probed.verdict == "hold":
            settle = _settle(items_needed(probed), "probes")
            return verdict("hold", f"Probes are undecided: {_probes(probed, settings)}; {settle}.", judged="probes")
        return verdict("promote", f"Hard constraints hold and {_probes(probed, settings)}.", judged="probes")

    if kind != "index-only" and tuned_decisions >= settings.tuned_decisions:
        new = math.ceil(REPLACED * primary.n)
        worn = f"This golden set has judged {tuned_decisions} tuned candidates"
        reason = f"{worn}: replace {new} of its {primary.n} questions by new ones before the next."
        return verdict("hold", reason)

    if kind != "index-only" and sum(looks_before) + alpha > settings.alpha + 1e-9:
        reason = (
            f"Tested {len(looks_before)} time{'s' * (len(looks_before) > 1)} already, and testing until it passes "
            "would promote a worse one by chance: make a new candidate, or plan two looks before the first."
        )
        return verdict("hold", reason)
    look = len(looks_before) + 1
    if by_chance is not None:
        allowed = float(stats.binom.isf(0.001, SWAPS, alpha)) / SWAPS
        notes.append(f"A/A: {by_chance:.1%} of {SWAPS} random exchanges of the two arms came out better.")
        if by_chance > allowed:
            reason = (
                f"These questions say better by chance too often ({by_chance:.1%}, {allowed:.1%} allowed): check them."
            )
            return verdict("hold", reason)

    rejects, undecided, unmeasured, guarding = [], [], [], 0
    _sort(primary, pairs, settings, rejects, undecided, unmeasured)
    for name in settings.guardrails:
        guarded = pair(name, candidate, champion)
        if not guarded.questions:
            notes.append(f"Guardrail {name} does not apply: no question has a score for it.")
            continue
        interval = guardrail(name, guarded, settings)
        intervals.append(interval)
        if kind == "first-tuned":  # an untuned base that always abstains is no yardstick
            if interval.verdict != "promote":
                notes.append(f"Guardrail that does not decide on a first tuned release: {_figures(interval)}.")
            continue
        guarding += 1
        if interval.n < settings.min_guardrail_items:
            unmeasured.append(
                f"guardrail {name} has {interval.n} questions and needs {settings.min_guardrail_items}: "
                f"add {settings.min_guardrail_items - interval.n}"
            )
        else:
            _sort(interval, guarded, settings, rejects, undecided, unmeasured)
    if people is not None:
        intervals.append(people)
        if people.verdict == "reject":
            rejects.append(_figures(people))
        else:
            undecided.append(f"{_figures(people)}; {_settle(items_needed(people), 'labelled questions')}")
    if rejects:
        return verdict("reject", f"Worse than allowed: {'; '.join(rejects)}.", look=look)
    harmed, warned = slices.harm(pairs, candidate.by_slice, sealed, settings)
    notes.extend(f"Warning, not proven: {_figures(interval)}." for interval in warned)
    if harmed:
        return verdict("reject", f"Proven harm in a slice: {'; '.join(map(_figures, harmed))}.", look=look)
    if undecided or unmeasured:
        if undecided and look == settings.looks:
            notes.append("No look is left for this candidate: more questions count for the next one.")
        # Where nothing but measurements is wanting no second chance is taken: that was no look.
        reason = f"Not settled: {'; '.join(undecided + unmeasured)}."
        return verdict("hold", reason, superior, look=look if undecided else 0)
    if kind != "index-only" and (gap := slices.sealed_gap(pairs, sealed)):
        return verdict("hold", gap, look=look)
    than = "Better than" if superior else "Not worse than"
    held = f"; {guarding} guardrail{'s hold' if guarding != 1 else ' holds'}" if guarding else ""
    reason = f"{than} the champion: {_figures(primary)}{held}."
    return verdict("promote", reason, superior, look=look)


def _means(scores: Scores, sealed: Collection[str]) -> dict[str, float]:
    return aggregate(scores.without(sealed).metrics)


def guardrail(name: str, pairs: Pairs, settings: GateSettings) -> Interval:
    """The interval of a metric against the guardrails' margin; of latency, of the log ratio of seconds."""
    alpha = settings.look_alpha
    if name != "latency":
        return pairs.interval(name, settings.guardrail_margin, alpha, settings.max_missing)
    # Log seconds, sign turned: the mean difference is the log of how much faster the candidate is.
    faster = Pairs(
        pairs.questions,
        pairs.clusters,
        [-math.log(seconds) for seconds in pairs.candidate],
        [-math.log(seconds) for seconds in pairs.champion],
    )
    return faster.interval(name, math.log(settings.max_slowdown), alpha, settings.max_missing)


def _sort(
    interval: Interval,
    pairs: Pairs,
    settings: GateSettings,
    rejects: list[str],
    undecided: list[str],
    unmeasured: list[str],
) -> None:
    """Puts what an interval says where it belongs; nothing if it passes."""
    if max(pairs.missing) > settings.max_missing:
        ours, theirs = pairs.missing
        unmeasured.append(
            f"{interval.metric} is missing for {ours:.1%} of the candidate's questions and {theirs:.1%} of the "
            f"champion's ({settings.max_missing:.1%} allowed): measure again all {interval.n}"
        )
    elif interval.verdict == "reject":
        rejects.append(_figures(interval))
    elif interval.verdict == "hold":
        undecided.append(f"{_figures(interval)}; {_settle(items_needed(interval), 'questions')}")


def _figures(interval: Interval) -> str:
    bounds = f"bounds {_points(interval.lower)} to {_points(interval.upper)}"
    where = f"margin {100 * interval.margin:.1f}, {interval.n} questions, {interval.clusters} clusters"
    if interval.metric == "latency":
        slower = math.exp(-interval.mean)
        return f"latency x{slower:.2f} of the champion's (at most x{math.exp(interval.margin):.2f}, {interval.n} timed)"
    seen = f"detectable {100 * interval.detectable:.1f}"
    if interval.margin:
        seen += f", power {interval.power:.0%} at a tie"
    return f"{interval.metric} {_points(interval.mean)} points ({bounds}, {where}, {seen})"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _probes(interval: Interval, settings: GateSettings) -> str:
    passed, bound = 1 - interval.discordance, interval.lower + settings.probe_floor
    return (
        f"{passed:.0%} of {interval.n} probes pass (at least {bound:.0%} for sure, {settings.probe_floor:.0%} needed)"
    )


def _settle(items: int | None, what: str) -> str:
    return (
        f"about {items} {what} would settle it" if items else f"more than 100,000 {what} would be needed to settle it"
    )
