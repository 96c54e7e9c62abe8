"""Drift: has something moved since the reference? Staleness by counting, streams and questions by testing.

Every detector gives a `Signal`, 0 to 1, higher is worse. A signal says when to look; `diagnose` says what to do.
To add one: a function of a `Watch` that gives a Signal (None: nothing to look at), a row in DETECTORS, a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from scipy import stats

from data.records import Record
from tasks.questions import Tests, collapse, compare, topics

LAMBDAS = (0.25, 0.5, 1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Signal(Record):
    """What one detector saw: `value` 0 to 1, higher is worse; `sentence` for a person; `evidence` as plain JSON."""

    name: str
    value: float
    alarm: bool
    sentence: str
    evidence: dict = field(default_factory=dict)


# --- staleness --------------------------------------------------------------------------------


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


# --- streams ----------------------------------------------------------------------------------


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


def _step(state: EDetector, factors: tuple[float, ...]) -> EDetector:
    runs = tuple((run + 1) * factor for run, factor in zip(state.runs, factors, strict=True))
    events, middle = state.events + 1, math.log(max(factors[len(factors) // 2], 1e-12))
    rise = max(0.0, state.rise + middle)
    after = replace(state, runs=runs, events=events, rise=rise, since=events if rise == 0 else state.since)
    return replace(after, alarm=state.alarm or after.level >= state.threshold)


def stream(name: str, state: EDetector, values: Sequence[float]) -> Signal:
    """The signal of a stream after `values`, 1 being bad; `evidence["state"]` is the detector to go on with."""
    for x in values:
        state = update(state, x)
    rate = sum(values) / len(values) if len(values) else 0.0
    if state.alarm:
        sentence = (
            f"{name} got worse: {rate:.1%} bad among the last {len(values)}, against at most {state.p0:.1%} in the "
            f"reference, since about event {state.since} of {state.events}."
        )
    else:
        sentence = f"{name} is in line: {rate:.1%} bad among the last {len(values)}, reference at most {state.p0:.1%}."
    evidence = {"rate": rate, "n": len(values), "level": state.level, "since": state.since, "state": _plain(state)}
    return Signal(name, state.value, state.alarm, sentence, evidence)


# --- questions --------------------------------------------------------------------------------


def query_drift(
    reference_embeddings: np.ndarray,
    window_embeddings: np.ndarray,
    reference_texts: Sequence[str],
    window_texts: Sequence[str],
    users: tuple[Sequence[str], Sequence[str]] | None = None,
    permutations: int = 999,
    seed: int = 0,
    state: EDetector | None = None,
    alpha: float = 0.05,
) -> Signal:
    """Did the questions move? One window of questions against the reference, by Holm over three permutation tests.

    The tests: squared maximum mean discrepancy of the embeddings, Mann-Whitney rank of the similarity to the nearest
    reference question, Fisher count of questions with a word the reference lacks; leave-one-out for the reference.
    `users` are the users of reference and window: their questions then change sides together. Repeated questions are
    collapsed. With a `state` (see `watch_p`) the alarm is the detector's, over all windows; without, p <= alpha.

    Args:
        reference_embeddings: float [n, d], unit rows; 600 to 2,000 of the past, windows that did not alarm included.
        window_embeddings: float [m, d], unit rows; about 200, disjoint from earlier windows, each tested once.
    """
    kept, fresh = collapse(reference_texts), collapse(window_texts)
    embeddings = np.vstack([np.asarray(reference_embeddings)[kept], np.asarray(window_embeddings)[fresh]])
    texts = [reference_texts[i] for i in kept] + [window_texts[i] for i in fresh]
    who = [users[0][i] for i in kept] + [users[1][i] for i in fresh] if users else None
    tests: Tests = compare(embeddings.astype(np.float32), texts, len(kept), who, permutations, seed)
    p = tests.holm
    moved = topics(embeddings, texts, len(kept), seed) if p <= alpha else []
    if state is not None:
        state = update_p(state, p)
    alarm = state.alarm if state is not None else p <= alpha
    evidence = {
        "p": p,
        "mmd": tests.mmd,
        "nearest": tests.nearest,
        "vocabulary": tests.vocabulary,
        "reference": len(kept),
        "window": len(fresh),
        "topics": moved,
        "state": _plain(state) if state is not None else None,
    }
    named = "; ".join(f"{topic['words']} ({topic['window_share']:.0%} of questions)" for topic in moved)
    if alarm:
        sentence = f"The questions moved (p {p:.3f} in this window of {len(fresh)})" + (f": {named}." if named else ".")
    elif p <= alpha:
        sentence = f"One window of {len(fresh)} questions is out of line (p {p:.3f}): {named or 'no single topic'}."
    else:
        sentence = f"The questions are in line with the reference (p {p:.3f}, window of {len(fresh)})."
    return Signal("questions", 1 - p, alarm, sentence, evidence)


def _plain(state: EDetector) -> dict:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(state).items()}


# --- the table --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Questions:
    """Questions with their embeddings ([n, d], unit rows) and users ('' throughout: unknown)."""

    embeddings: np.ndarray
    texts: tuple[str, ...]
    users: tuple[str, ...]


@dataclass(frozen=True)
class Watch:
    """What one monitoring run has to look at; what is None or absent is not looked at.

    `stale` holds the arguments of `staleness`; `streams` the new values of each stream, 1 being bad; `states` the
    detectors of streams and of "questions" as they stood.
    """

    stale: dict | None = None
    streams: dict[str, Sequence[float]] = field(default_factory=dict)
    states: dict[str, EDetector] = field(default_factory=dict)
    reference: Questions | None = None
    window: Questions | None = None
    seed: int = 0


def _staleness(watch: Watch) -> Signal | None:
    return staleness(**watch.stale) if watch.stale is not None else None


def _stream(name: str, watch: Watch) -> Signal | None:
    if name not in watch.streams or name not in watch.states:
        return None
    return stream(name, watch.states[name], watch.streams[name])


def _questions(watch: Watch) -> Signal | None:
    if watch.reference is None or watch.window is None:
        return None
    old, new = watch.reference, watch.window
    users = (old.users, new.users) if all(old.users) and all(new.users) else None
    state = watch.states.get("questions")
    return query_drift(old.embeddings, new.embeddings, old.texts, new.texts, users=users, seed=watch.seed, state=state)


DETECTORS: dict[str, Callable[[Watch], Signal | None]] = {
    "staleness": _staleness,
    "ratings": partial(_stream, "ratings"),
    "quality": partial(_stream, "quality"),
    "grounding": partial(_stream, "grounding"),
    "abstention": partial(_stream, "abstention"),
    "retrieval": partial(_stream, "retrieval"),
    "latency": partial(_stream, "latency"),
    "questions": _questions,
}


def detect(watch: Watch) -> tuple[Signal, ...]:
    """The signals of every detector that has something to look at, in the order of the table."""
    seen = (detector(watch) for detector in DETECTORS.values())
    return tuple(signal for signal in seen if signal is not None)
