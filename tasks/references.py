"""What detectors remember between runs: a reference learnt first, whose it is, when it is void, and how far they are.

A new assistant learns and says so. A reference belongs to what it measures: a release that changes only the index
takes all of them over, one that changes model, prompt or settings learns the answers' anew, watched by its
parent's meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.records import Record, Release, as_json, digest
from data.requests import RequestLog
from settings import settings
from tasks import edetector
from tasks.drift import Questions
from tasks.edetector import EDetector
from tasks.questions import FEWEST, collapse
from tasks.signals import Signal
from tasks.streams import BROKEN, STREAMS, badness, usual

SIGNALS = len(STREAMS) + 1
"""The family that shares the false-alarm budget: every stream, and the windows of questions."""
TRAIL = 300
"""Points kept of each signal for its plot."""
GROUPS = {
    "staleness": "documents",
    "deleted text cited": "documents",
    "questions": "queries",
    "probes": "retrieval",
    "volume": "service",
}
"""The group, as in a row of STREAMS, of signals that are no streams; of any other it is the instruments."""


@dataclass(frozen=True)
class MonitorSettings(Record):
    """`reference` and `window` in questions (METHODS: 600 to 2,000 and 200; these are the sample's smaller ones).

    A stream learns its rate from its first `reference` events (`reference_labels` for reviewed answers) and says so.
    The false-alarm budget `alpha` covers all streams and the question windows over `horizon` events of each. A
    change point covers a deploy if it is estimated at most `around` events from it.
    """

    reference: int = 300
    reference_labels: int = 60
    most_reference: int = 2000
    window: int = 100
    window_labels: int = 50
    horizon: int = 10_000
    alpha: float = 0.05
    slack: float = 0.03
    around: int = 50
    debounce_s: float = 10.0
    recent_requests: int = 50
    replay: int = 200
    probes: int = 60


def bar(chosen: MonitorSettings) -> float:
    """The threshold of every stream."""
    return edetector.threshold(SIGNALS, chosen.horizon, chosen.alpha)


def question_bar(chosen: MonitorSettings) -> float:
    """The threshold of the question windows, as many as fit into the horizon."""
    return edetector.threshold(SIGNALS, max(1, chosen.horizon // chosen.window), chosen.alpha)


def budget(chosen: MonitorSettings) -> str:
    """The false-alarm budget in one sentence, for the report."""
    return (
        f"At most {chosen.alpha:.0%} chance of any false alarm among {SIGNALS} signals, each over its next "
        f"{chosen.horizon} events ({max(1, chosen.horizon // chosen.window)} windows of questions)."
    )


def owners(live: Release) -> dict[str, str]:
    """What the references of answers, retrieval and questions belong to; not to the index's content."""
    return {
        "answers": digest(live.model.sha256, live.prompt, live.retrieval, live.decoding)[:16],
        "retrieval": digest(live.retrieval, live.index.embedder)[:16],
        "questions": "",
    }


def learned(
    name: str,
    state: dict | None,
    values: Sequence,
    live: Release,
    chosen: MonitorSettings,
    earlier: Sequence = (),
    promoted: float | None = None,
) -> tuple[dict, list[float]]:
    """The state of a stream after it learnt what it still has to, and what is left for its detector, 1 being bad.

    `earlier` are this run's values from before the live release, which went live at `promoted` (epoch seconds). A
    stream whose reference became void learns a new one, and its old detector goes on until that is complete; an alarm
    it had was about what is gone, so it begins again. Where it alarms over what the new reference would be made of,
    that is not taken: what is broken must not become what is usual.
    """
    stream = STREAMS[name]
    owner, needed = owners(live)[stream.of], chosen.reference_labels if stream.source == "labels" else chosen.reference
    if state is None or "promoted" not in state:  # there is none, or one of an earlier version
        state = {"owner": owner, "reference": [], "usual": [], "detector": None}
        state |= {"deployed": None, "promoted": promoted, "began": None}
    if state["owner"] == owner:
        values = [*earlier, *values]
    else:
        state = state | {"owner": owner, "reference": [], "deployed": None, "promoted": promoted}
        if state["detector"]:
            state |= {"detector": as_json(_fed(stream.bad, state, earlier))}
            state = restarted(state) if state["detector"]["alarm"] else state
            state |= {"deployed": state["detector"]["events"]}
    seen = values
    if state["reference"] is not None:  # None: complete
        missing = max(0, needed - len(state["reference"]))
        state = state | {"reference": [*state["reference"], *values[:missing]]}
        if state["detector"] and len(state["reference"]) >= needed and _fed(stream.bad, state, values[:missing]).alarm:
            state |= {"reference": []}
        elif len(state["reference"]) >= needed:
            mark = usual(stream.bad, state["reference"])
            rate = edetector.upper_rate([badness(stream.bad, mark, value) for value in state["reference"]])
            detector = as_json(edetector.watch(rate, bar(chosen), 0.0 if name in BROKEN else chosen.slack))
            seen = values[missing:]
            state |= {"usual": mark, "detector": detector, "reference": None, "deployed": None}
    return state, [badness(stream.bad, state["usual"], value) for value in seen] if state["detector"] else []


def _fed(bad: str, state: dict, values: Sequence) -> EDetector:
    """The state's detector after these values of its stream."""
    detector = EDetector.of(state["detector"])
    for value in values:
        detector = edetector.update(detector, badness(bad, state["usual"], value))
    return detector


def learning(states: dict[str, dict], chosen: MonitorSettings) -> dict[str, tuple[int, int]]:
    """Stream -> how many events of how many it has, for those that have no detector yet."""
    needed = {"labels": chosen.reference_labels}
    return {
        name: (len(state["reference"]), needed.get(STREAMS[name].source, chosen.reference))
        for name, state in states.items()
        if state["detector"] is None
    }


def watched(state: dict, signal: Signal, now: float) -> dict:
    """The state after its detector saw the new values: the detector, and one more point of its plot.

    `began` is when what the detector takes for the beginning of the trouble was seen, to one run of the monitor.
    """
    point = [round(now), round(signal.value, 4), round(signal.evidence["rate"], 4), signal.evidence["n"]]
    trail = [*state.get("trail", []), point] if signal.evidence["n"] else state.get("trail", [])
    same = state["began"] is not None and signal.evidence["since"] == state["detector"]["since"]
    began = state["began"] if same else now
    return state | {"detector": signal.evidence["state"], "trail": trail[-TRAIL:], "began": began}


def restarted(state: dict) -> dict:
    """The state after somebody acted on its alarm: the detector, if it has one, begins again, the reference stays."""
    if not state.get("detector"):
        return state
    detector = as_json(edetector.restart(EDetector.of(state["detector"])))
    return state | {"detector": detector, "deployed": None, "began": None}


def covers_deploy(state: dict, chosen: MonitorSettings) -> bool:
    """The trouble of this stream began with a deploy that its detector saw, by counting events and not by clocks."""
    detector, deployed = state["detector"], state["deployed"]
    if deployed is None or not detector or not detector["alarm"]:
        return False
    return abs(detector["since"] - deployed) <= chosen.around


def told(before: Mapping[str, dict], seen: Sequence[Signal], states: Mapping[str, dict], now: float) -> dict:
    """What people are shown of every signal: its group, whether it is in alarm, its sentence, and a trail if it has no
    state of its own. One that had nothing to look at this time stays as it was, without its alarm."""
    found = {name: shown | {"alarm": False} for name, shown in before.items()}
    for signal in seen:
        group = STREAMS[signal.name].group if signal.name in STREAMS else GROUPS.get(signal.name, "instruments")
        shown = {"group": group, "alarm": signal.alarm, "sentence": signal.sentence}
        if "detector" not in states.get(signal.name, {}):
            trail = before.get(signal.name, {}).get("trail", [])
            shown["trail"] = [*trail, [round(now), round(signal.value, 4)]][-TRAIL:]
        found[signal.name] = shown
    return found


# --- questions --------------------------------------------------------------------------------


def question_windows(
    state: dict | None, rows: list[dict], chosen: MonitorSettings
) -> tuple[Questions | None, Questions | None, dict]:
    """Reference and window of questions (None while they fill) and the state that remembers which requests they are.

    A busy assistant's window is larger, up to four times; older questions that did not fit are not tested. Where too
    few differ on a side (one question asked again and again, rows deleted), that side is collected anew.
    """
    state = state or {"reference": [], "pending": [], "windows": 0, "detector": None}
    if not state["detector"] or state["detector"]["threshold"] != question_bar(chosen):
        state = state | {"detector": as_json(edetector.watch_p(question_bar(chosen)))}
    ids = [r["id"] for r in rows if r["embedding"]]
    missing = max(0, chosen.reference - len(state["reference"]))
    state = state | {"reference": state["reference"] + ids[:missing]}
    state = state | {"pending": (state["pending"] + ids[missing:])[-4 * chosen.window :]}
    if len(state["reference"]) < chosen.reference or len(state["pending"]) < chosen.window:
        return None, None, state
    log = RequestLog(settings().requests)
    kept = {part: log.rows(state[part]) for part in ("reference", "pending")}
    if len(kept["reference"]) < chosen.reference // 2:  # pruned, or deleted by their users: learn again
        return None, None, state | {"reference": [row["id"] for row in kept["reference"]]}
    poor = [part for part, rows in kept.items() if len(collapse([row["question"] for row in rows])) < FEWEST]
    if poor:
        return None, None, state | {part: [] for part in ("pending", *poor)}
    return questions(kept["reference"]), questions(kept["pending"]), state


def tested(state: dict, signal: Signal, chosen: MonitorSettings, now: float) -> dict:
    """The state after a window was tested: each is tested once, and joins the reference unless it was out of line."""
    joined = state["reference"] + ([] if signal.evidence["p"] <= chosen.alpha else state["pending"])
    point = [round(now), round(signal.value, 4), round(signal.evidence["p"], 4), signal.evidence["window"]]
    return state | {
        "detector": signal.evidence["state"],
        "reference": joined[-chosen.most_reference :],
        "pending": [],
        "windows": state["windows"] + 1,
        "trail": [*state.get("trail", []), point][-TRAIL:],
    }


def questions(rows: list[dict]) -> Questions:
    vectors = [np.frombuffer(row["embedding"], np.float16).astype(np.float32) for row in rows]
    return Questions(np.stack(vectors), tuple(r["question"] for r in rows), tuple(r["user"] or "" for r in rows))
