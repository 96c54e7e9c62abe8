"""Watch an assistant: read its sources, its request log and its ratings since the last run, and gather evidence.

What the detectors remember between runs (cursors, references, e-detector states) is kept in the ledger and stored in
the same transaction as the remedy they lead to.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from data import formats
from data.ledger import Ledger
from data.records import Interval, Record, Release, Snapshot, Sources, as_json, digest
from data.requests import RequestLog
from settings import settings
from tasks import anchors, deploy, drift, index
from tasks.diagnose import Evidence
from tasks.drift import EDetector, Questions, Signal, Watch

STREAMS = ("ratings", "grounding", "abstention", "latency")


@dataclass(frozen=True)
class MonitorSettings(Record):
    """`reference` and `window` in questions (METHODS: 600 to 2,000 and 200; these are the sample's smaller ones).

    A stream learns its rate from its first `reference` events and says so. The false-alarm budget `alpha` covers all
    streams and the question windows over `horizon` events. A question is relevant from `relevant` cosine on.
    """

    reference: int = 300
    most_reference: int = 2000
    window: int = 100
    horizon: int = 10_000
    alpha: float = 0.05
    slack: float = 0.03
    relevant: float = 0.45
    slow_s: float = 10.0
    debounce_s: float = 10.0
    recent_requests: int = 50
    replay: int = 200


def watch(assistant: str, chosen: MonitorSettings = MonitorSettings()) -> tuple[Evidence, dict[str, dict]]:
    """The evidence on one assistant, and the new states of its detectors, to be stored with what is decided."""
    book, log = Ledger(settings().ledger), RequestLog(settings().requests)
    row = book.assistant(assistant)
    live = book.live()[assistant].live
    if live is None:
        return Evidence(), {}
    sources = Sources.of(row["sources"])
    wait_for_quiet(sources, chosen.debounce_s)
    stale = index.stale_sections(sources, live.index, Snapshot.of(row["snapshot"]) if row["snapshot"] else None)
    if not stale:
        unbury(book, live)
    states = book.signal_states(assistant)
    cursor = states.get("cursor", {"request": 0, "rating": 0})
    logged = log.window(assistant, cursor["request"], 20_000)
    asked = [r for r in logged if r["source"] == "user"]
    rated = [r for r in book.feedback(assistant, cursor["rating"]) if r["rating"] in (1, -1)]
    answered = [r for r in asked if r["status"] == 200]

    values = {
        "ratings": [float(r["rating"] < 0) for r in rated],
        "grounding": [1.0 - r["grounding"] for r in answered if not r["abstained"] and r["grounding"] is not None],
        "abstention": [float(r["abstained"]) for r in answered if (r["similarity"] or 0.0) >= chosen.relevant],
        "latency": [float(r["total_s"] > chosen.slow_s) for r in answered],
    }
    owner = served_by(live)
    streams = {name: learned(states.get(name), values[name], owner, chosen) for name in STREAMS}
    reference, window, questions = question_windows(states.get("questions"), answered, chosen)
    looked = Watch(
        stale={"changed": len(stale.changed), "added": len(stale.added), "deleted": len(stale.deleted)},
        streams={name: fresh for name, (_, fresh) in streams.items()},
        states={name: EDetector.of(s["detector"]) for name, (s, _) in streams.items() if s["detector"]}
        | {"questions": EDetector.of(questions["detector"])},
        reference=reference,
        window=window,
        seed=questions["windows"],
    )
    signals = drift.detect(looked)
    for signal in signals:
        if signal.name in streams:
            streams[signal.name][0]["detector"] = signal.evidence["state"]
        elif signal.name == "questions":
            questions = tested(questions, signal, chosen)

    recent = [r for r in asked if r["release"] == live.id][-chosen.recent_requests :]
    failed = [r for r in recent if r["status"] == 500]  # 503 and 504 are about capacity, not about the release
    since = time.time() - row["live_since"] if row["live_since"] else None
    alarmed = {signal.name for signal in signals if signal.alarm}
    quality = bool(alarmed & {"grounding", "abstention", "ratings"})
    evidence = Evidence(
        signals=signals,
        seconds_since_promotion=since,
        parse_failures=len(failed) / len(recent) if len(recent) >= 20 and len(failed) >= 3 else 0.0,
        judge_moved=anchors.have_moved(states),
        quality_alarm=bool(alarmed & {"grounding", "abstention"}),
        change_covers_deploy=bool(quality and since is not None and since < 86_400),
        stale_sections=len(stale.changed) + len(stale.added) + len(stale.deleted),
        rating_alarm="ratings" in alarmed,
        rating_alarm_users_share=users_share(rated),
        query_drift="questions" in alarmed,
    )
    if evidence.change_covers_deploy:
        evidence = replace(evidence, replay=replay(book, live, [r["question"] for r in answered], chosen))
    new_cursor = {
        "request": logged[-1]["id"] if logged else cursor["request"],
        "rating": rated[-1]["seq"] if rated else cursor["rating"],
        "stale": stale.fingerprint,
    }
    return evidence, {name: state for name, (state, _) in streams.items()} | {
        "cursor": new_cursor,
        "questions": questions,
    }


def unbury(book: Ledger, live: Release) -> None:
    """The live index holds exactly the sources: text that came back before a new index was released is shown again."""
    from data.store import open_index

    if book.tombstones(live.assistant) & (present := open_index(live.index).ids()):
        book.bury(live.assistant, set(), present)


def wait_for_quiet(sources: Sources, debounce_s: float) -> None:
    """Let an edit in progress finish: wait until the newest file of the documents is `debounce_s` old, once."""
    newest = max(file.modified for file in formats.listed(sources.documents))
    newest = datetime.fromisoformat(newest).timestamp() if newest else 0.0
    time.sleep(min(max(0.0, newest + debounce_s - time.time()), debounce_s))


def served_by(live: Release) -> str:
    """What the reference of a stream belongs to: it restarts with model, prompt or settings, not with the index."""
    return digest(live.model.sha256, live.prompt, live.retrieval, live.decoding)[:16]


def learned(state: dict | None, values: list[float], owner: str, chosen: MonitorSettings) -> tuple[dict, list[float]]:
    """The state of a stream, its reference filled first, and the values that are left for the detector."""
    if state is None or state["owner"] != owner:
        state = {"owner": owner, "reference": [], "detector": None}
    missing = chosen.reference - len(state["reference"])
    if missing > 0:
        state = state | {"reference": state["reference"] + values[:missing]}
        values = values[missing:]
    if state["detector"] is None and len(state["reference"]) >= chosen.reference:
        bar = drift.threshold(len(STREAMS) + 1, chosen.horizon, chosen.alpha)
        detector = drift.watch(drift.upper_rate(state["reference"]), bar, chosen.slack)
        state = state | {"detector": as_json(detector)}
    return state, values if state["detector"] else []


def question_windows(state: dict | None, answered: list[dict], chosen: MonitorSettings):
    """Reference and window of questions (None while they fill) and the state that remembers which requests they are."""
    bar = drift.threshold(len(STREAMS) + 1, max(1, chosen.horizon // chosen.window), chosen.alpha)
    state = state or {"reference": [], "pending": [], "windows": 0, "detector": as_json(drift.watch_p(bar))}
    ids = [r["id"] for r in answered if r["embedding"]]
    missing = chosen.reference - len(state["reference"])
    state = state | {"reference": state["reference"] + ids[: max(0, missing)]}
    state = state | {"pending": state["pending"] + ids[max(0, missing) :]}
    if len(state["pending"]) < chosen.window:
        return None, None, state
    log = RequestLog(settings().requests)
    kept = {part: log.rows(state[part]) for part in ("reference", "pending")}
    if len(kept["reference"]) < chosen.reference // 2:  # pruned, or deleted by their users: learn again
        return None, None, state | {"reference": [row["id"] for row in kept["reference"]]}
    return questions(kept["reference"]), questions(kept["pending"]), state


def tested(state: dict, signal: Signal, chosen: MonitorSettings) -> dict:
    """The state after a window was tested: each is tested once, and joins the reference unless it was out of line."""
    joined = state["reference"] + ([] if signal.evidence["p"] <= chosen.alpha else state["pending"])
    return state | {
        "detector": signal.evidence["state"],
        "reference": joined[-chosen.most_reference :],
        "pending": [],
        "windows": state["windows"] + 1,
    }


def questions(rows: list[dict]) -> Questions:
    vectors = [np.frombuffer(row["embedding"], np.float16).astype(np.float32) for row in rows]
    return Questions(np.stack(vectors), tuple(r["question"] for r in rows), tuple(r["user"] or "" for r in rows))


def users_share(rated: list[dict]) -> float:
    """Share of the bad ratings that the worst user gave; keyless ratings count as one user."""
    bad = [row["user"] or "" for row in rated if row["rating"] < 0]
    return max((bad.count(user) for user in set(bad)), default=0) / len(bad) if len(bad) >= 5 else 0.0


def replay(book: Ledger, live: Release, asked: list[str], chosen: MonitorSettings) -> dict[str, Interval]:
    """The previous accepted release whole, on the most recent questions, beside the live one: paired live quality.

    Live quality of an unlabelled answer: its grounding, 0 for an abstention.
    """
    from serving import rag
    from tasks.arm import Arm
    from tasks.intervals import paired_interval

    recent = list(dict.fromkeys(asked))[-chosen.replay :]
    try:
        previous = deploy.rollback_release(book, live.assistant, None, keep_index=True)
    except ValueError:  # there has been no other model, prompt or settings
        return {}
    if len(recent) < 20:
        return {}
    tombstones = book.tombstones(live.assistant)
    scores = []
    with ExitStack() as opened:
        for release in (previous, live):
            arm = Arm.open(release, opened)
            found = rag.retrieve_many(recent, arm.index, arm.embedder, release.retrieval, tombstones)
            answers = rag.answer_given(recent, found, release, arm.engine)
            scores.append([0.0 if a.abstained else rag.grounding(a.text, a.hits) for a in answers])
    return {"release": paired_interval("live quality", scores[0], scores[1], recent, 0.0)}
