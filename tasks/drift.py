"""Drift: has something moved since the reference? Staleness by counting, streams and questions by testing.

Every detector gives a `Signal`, 0 to 1, higher is worse. A signal says when to look; `diagnose` says what to do.
To add one: a function of a `Watch` that gives a Signal (None: nothing to look at), a row in DETECTORS, a test. What can
be read off one request or one piece of feedback is a row in `tasks/streams.py` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from scipy import stats

from tasks import signals
from tasks.edetector import EDetector, update, update_p
from tasks.questions import Tests, collapse, compare, topics
from tasks.signals import Signal
from tasks.streams import STREAMS

# --- streams ----------------------------------------------------------------------------------


def stream(name: str, state: EDetector, values: Sequence[float], noun: str = "bad") -> Signal:
    """The signal of a stream after `values`, 1 being bad; `evidence["state"]` is the detector to go on with."""
    for x in values:
        state = update(state, x)
    rate = sum(values) / len(values) if len(values) else 0.0
    if state.alarm:
        sentence = (
            f"{name} got worse: {rate:.1%} {noun} among the last {len(values)}, against at most {state.p0:.1%} in the "
            f"reference, since about event {state.since} of {state.events}."
        )
    else:
        sentence = f"{name} is in line: {rate:.1%} {noun} among the last {len(values)}, at most {state.p0:.1%} before."
    evidence = {"rate": rate, "n": len(values), "level": state.level, "since": state.since, "state": _plain(state)}
    return Signal(name, state.value, state.alarm, sentence, evidence)


def worse_groups(groups: dict[str, Sequence[float]], p0: float, alpha: float = 0.05) -> dict[str, float]:
    """Groups of users whose own rate is above p0 for sure (exact lower bound, Holm's first step) -> that rate."""
    found = {}
    for group, values in groups.items():
        bad, n = sum(values), len(values)
        low = stats.beta.ppf(alpha / len(groups), bad, n - bad + 1) if bad else 0.0
        if low > p0:
            found[group] = bad / n
    return found


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

    `stale` to `anchors` hold the arguments of the detectors in `signals`; `streams` the new values of each stream, 1
    being bad; `states` the detectors of streams and of "questions" as they stood; `learning` how many events of how
    many a reference without a detector has; `groups` the ratings of each group of users, 1 being bad.
    """

    stale: dict | None = None
    cited: dict | None = None
    embedders: dict | None = None
    probes: dict | None = None
    volume: dict | None = None
    clock: dict | None = None
    anchors: dict | None = None
    streams: dict[str, Sequence[float]] = field(default_factory=dict)
    states: dict[str, EDetector] = field(default_factory=dict)
    learning: dict[str, tuple[int, int]] = field(default_factory=dict)
    groups: dict[str, Sequence[float]] = field(default_factory=dict)
    reference: Questions | None = None
    window: Questions | None = None
    seed: int = 0


def _learning(name: str, watch: Watch) -> Signal:
    have, needed = watch.learning[name]
    evidence = {"have": have, "needed": needed}
    return Signal(name, 0.0, False, f"{name} is still learning what is usual: {have} of {needed} events.", evidence)


def _counted(detector: Callable[..., Signal], arguments: str, watch: Watch) -> Signal | None:
    given = getattr(watch, arguments)
    return detector(**given) if given is not None else None


def _stream(name: str, watch: Watch) -> Signal | None:
    if name in watch.learning:
        return _learning(name, watch)
    if name not in watch.streams or name not in watch.states:
        return None
    return stream(name, watch.states[name], watch.streams[name], STREAMS[name].noun)


def _ratings(watch: Watch) -> Signal | None:
    signal = _stream("ratings", watch)
    if signal is None or not watch.groups or "ratings" not in watch.states:
        return signal
    worse = worse_groups(watch.groups, watch.states["ratings"].p0)
    named = ", ".join(f"{group} ({rate:.0%})" for group, rate in sorted(worse.items(), key=lambda one: -one[1])[:3])
    sentence = f"{signal.sentence} Worse for sure: {named}." if named else signal.sentence
    return replace(signal, sentence=sentence, evidence=signal.evidence | {"groups": worse})


def _questions(watch: Watch) -> Signal | None:
    if "questions" in watch.learning:
        return _learning("questions", watch)
    if watch.reference is None or watch.window is None:
        return None
    old, new = watch.reference, watch.window
    users = (old.users, new.users) if all(old.users) and all(new.users) else None
    state = watch.states.get("questions")
    return query_drift(old.embeddings, new.embeddings, old.texts, new.texts, users=users, seed=watch.seed, state=state)


DETECTORS: dict[str, Callable[[Watch], Signal | None]] = {
    "staleness": partial(_counted, signals.staleness, "stale"),
    "deleted text cited": partial(_counted, signals.deleted_cited, "cited"),
    "questions": _questions,
    **{name: partial(_stream, name) for name in STREAMS},
    "ratings": _ratings,
    "embedder": partial(_counted, signals.embedder_mismatch, "embedders"),
    "probes": partial(_counted, signals.probe_hits, "probes"),
    "volume": partial(_counted, signals.volume, "volume"),
    "clock": partial(_counted, signals.clock, "clock"),
    "anchors": partial(_counted, signals.anchors, "anchors"),
}


def detect(watch: Watch) -> tuple[Signal, ...]:
    """The signals of every detector that has something to look at, in the order of the table."""
    seen = (detector(watch) for detector in DETECTORS.values())
    return tuple(signal for signal in seen if signal is not None)
