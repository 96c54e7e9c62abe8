"""Watch an assistant: read its sources, its request log and its ratings since the last run, and gather evidence.

What the detectors remember between runs (cursors, references, e-detector states) is kept in the ledger and stored in
the same transaction as the remedy they lead to.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime

from data import formats
from data.ledger import Ledger
from data.records import Interval, Release, Snapshot, Sources, as_json, digest
from data.requests import RequestLog
from settings import settings
from tasks import anchors, drift, index, references, streams
from tasks.drift import Watch
from tasks.edetector import EDetector
from tasks.evidence import Evidence
from tasks.index import Staleness
from tasks.labels import Label, labels, untrained
from tasks.references import MonitorSettings
from tasks.replay import replay
from tasks.signals import Signal

MOST_ROWS = 20_000
RUNS = 200
"""Runs of the monitor whose volume is remembered."""
BROKEN = {"format": "answers carry marks of a template", "leaks": "answers hold secrets"}
"""Streams of what the system itself promises: in alarm they are broken constraints, not a matter of degree."""


def watch(assistant: str, chosen: MonitorSettings = MonitorSettings()) -> tuple[Evidence, dict[str, dict]]:
    """The evidence on one assistant, and the new states of its detectors, to be stored with what is decided."""
    book, log, now = Ledger(settings().ledger), RequestLog(settings().requests), time.time()
    row = book.assistant(assistant)
    live = book.live()[assistant].live
    if live is None:
        return Evidence(), {}
    sources = Sources.of(row["sources"])
    wait_for_quiet(sources, chosen.debounce_s)
    stale = index.stale_sections(sources, live.index, Snapshot.of(row["snapshot"]) if row["snapshot"] else None)
    if not stale:
        unbury(book, live)
    before = acted_on(book, assistant, book.signal_states(assistant))
    cursor = {"request": 0, "rating": 0, "label": 0, "at": now, "buried": ""} | before.get("cursor", {})
    logged = log.window(assistant, cursor["request"], MOST_ROWS)
    asked = with_user_before([r for r in logged if r["source"] == "user"])
    answered = [r for r in asked if r["status"] == 200]
    ratings = book.feedback(assistant)
    said = [r for r in ratings if r["seq"] > cursor["rating"]]
    judged = labels(book, assistant)
    tombstones = book.tombstones(assistant)
    buried = digest(*sorted(tombstones))

    read = streams.values("requests", asked) | streams.values("feedback", said)
    read |= streams.values("labels", [vars(label) for label in judged if label.review > cursor["label"]])
    states, fresh = {}, {}
    for name, values in read.items():
        states[name], fresh[name] = references.learned(name, before.get(name), values, live, chosen)
    reference, window, questions = references.question_windows(before.get("questions"), answered, chosen)
    probes, probed = probe(live, tombstones, before.get("probes"), chosen)
    volumes = before.get("volume", {"rates": []})
    busy = {"requests": len(asked), "hours": max(now - cursor["at"], 0.0) / 3600, "before": volumes["rates"]}
    looked = Watch(
        stale={"changed": len(stale.changed), "added": len(stale.added), "deleted": len(stale.deleted)},
        cited=cited_deleted(answered, tombstones) if buried == cursor["buried"] else None,
        embedders={"indexed": live.index.embedder, "serving": probes["embedder"]},
        probes=probed,
        volume=busy if "cursor" in before else None,
        clock={"times": [r["at"] for r in logged], "now": now} if logged else None,
        anchors=anchors.asked_twice(before),
        streams=fresh,
        states={name: EDetector.of(s["detector"]) for name, s in states.items() if s["detector"]}
        | {"questions": EDetector.of(questions["detector"])},
        learning=references.learning(states, chosen) | question_learning(questions, chosen),
        groups=groups(said),
        reference=reference,
        window=window,
        seed=questions["windows"],
    )
    signals = drift.detect(looked)
    for signal in signals:
        if signal.name in states and states[signal.name]["detector"]:
            states[signal.name] = references.watched(states[signal.name], signal, now)
        elif signal.name == "questions" and window is not None:
            questions = references.tested(questions, signal, chosen, now)
    last = {"request": logged[-1]["id"] if logged else cursor["request"]}
    last |= {"rating": said[-1]["seq"] if said else cursor["rating"]}
    last |= {"label": judged[-1].review if judged else 0, "at": now, "buried": buried, "stale": stale.fingerprint}
    rates = [*volumes["rates"], busy["requests"] / busy["hours"]] if busy["hours"] > 0.01 else volumes["rates"]
    states |= {"cursor": last, "questions": questions, "probes": probes, "volume": {"rates": rates[-RUNS:]}}

    since = now - row["live_since"] if row["live_since"] else None
    evidence = concluded(signals, states, stale, since, live, asked, ratings, chosen)
    examples, preferences = untrained(book, live, judged)
    evidence = replace(evidence, new_labelled_examples=examples, new_preferences=preferences)
    if evidence.labelled_quality_down:
        evidence = replace(evidence, worse_windows=worse_windows(judged, states["labels"], chosen))
    if evidence.worth_a_replay:
        states["replay"] = replayed(book, live, answered, judged, before.get("replay"), evidence, chosen)
        evidence = replace(
            evidence, replay={part: Interval.of(found) for part, found in states["replay"]["figures"].items()}
        )
    return evidence, states


def concluded(
    signals: tuple[Signal, ...],
    states: dict[str, dict],
    stale: Staleness,
    since: float | None,
    live: Release,
    asked: list[dict],
    ratings: list[dict],
    chosen: MonitorSettings,
) -> Evidence:
    """What the signals of one run mean for the table of `diagnose`."""
    alarmed = {signal.name: signal for signal in signals if signal.alarm}
    recent = [r for r in asked if r["release"] == live.id][-chosen.recent_requests :]
    failed = [r for r in recent if r["status"] == 500]  # 503 and 504 are about capacity, not about the release
    fell = [name for name in ("labels", "grounding", "abstention") if name in alarmed]
    losses = [alarmed[name].evidence["rate"] - alarmed[name].evidence["state"]["p0"] for name in fell]
    moved = [*fell, *(name for name in ("ratings", *BROKEN) if name in alarmed)]
    hits = next((signal.evidence["rate"] for signal in signals if signal.name == "probes"), 1.0)
    return Evidence(
        signals=signals,
        budget=references.budget(chosen),
        seconds_since_promotion=since,
        hard_broken=tuple(what for name, what in BROKEN.items() if name in alarmed),
        parse_failures=len(failed) / len(recent) if len(recent) >= 20 and len(failed) >= 3 else 0.0,
        schema_mismatch="unmeasured" in alarmed,
        below_chance=hits < 0.1,
        version_mismatch="embedder" in alarmed,
        volume_jump="volume" in alarmed,
        judge_moved="anchors" in alarmed,
        quality_alarm=bool({"grounding", "abstention"} & alarmed.keys()),
        labelled_quality_down="labels" in alarmed,
        change_covers_deploy=any(references.covers_deploy(states[name], chosen) for name in moved),
        stale_sections=len(stale.changed) + len(stale.added) + len(stale.deleted),
        retrieval_term_down=bool({"top score", "score gap", "unanswerable", "probes"} & alarmed.keys()),
        rating_alarm="ratings" in alarmed,
        rating_alarm_users_share=users_share([r for r in ratings if r["rating"]][-200:]),
        query_drift="questions" in alarmed,
        loss=max([*losses, 0.0]),
    )


# --- what a run reads -------------------------------------------------------------------------


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


def acted_on(book: Ledger, assistant: str, states: dict[str, dict]) -> dict[str, dict]:
    """The states with the detectors restarted that a finished remedy, or a person, acted on; the others go on."""
    for row in book.outbox(assistant, ("acted",)):
        for name in row["body"].get("signals", ()):
            if name in states:
                states[name] = references.restarted(states[name], row["seq"])
    return states


def with_user_before(asked: list[dict]) -> list[dict]:
    """The requests, each with the user of the one before it."""
    users = [None, *(row["user"] for row in asked)]
    return [row | {"user_before": user} for row, user in zip(asked, users, strict=False)]


def cited_deleted(answered: list[dict], tombstones: frozenset[str]) -> dict:
    """Answers that cite a chunk that was buried already at the run before, so before they were given."""
    cited = sum(not tombstones.isdisjoint(row["cited"] or ()) for row in answered)
    return {"cited": cited, "answers": len(answered)}


def groups(said: list[dict]) -> dict[str, list[float]]:
    """Ratings by whose key they came with, 1 being bad; groups of fewer than ten say nothing."""
    found: dict[str, list[float]] = {}
    for row in said:
        if row["rating"]:
            found.setdefault(row["owner"] or "without a key", []).append(float(row["rating"] < 0))
    return {owner: values for owner, values in found.items() if len(values) >= 10}


def question_learning(questions: dict, chosen: MonitorSettings) -> dict[str, tuple[int, int]]:
    have = len(questions["reference"])
    return {"questions": (have, chosen.reference)} if have < chosen.reference else {}


def probe(
    live: Release, tombstones: frozenset[str], state: dict | None, chosen: MonitorSettings
) -> tuple[dict, dict | None]:
    """Ask the index for its own sections, once for each index, embedder and set of deletions; None: asked already."""
    from data import store
    from data.embedding import load
    from serving import rag
    from serving.engine.models import embedder_folder
    from tasks.retrieval import probes

    weights = (embedder_folder() / "model.safetensors").stat().st_mtime
    key = digest(live.index.checksum, live.retrieval, len(tombstones), weights)
    if state and state["key"] == key:
        return state, None
    embedder = load(embedder_folder())
    state = {"key": key, "embedder": embedder.sha256, "rate": state["rate"] if state else None}
    asked = probes(live.index, chosen.probes) if embedder.sha256 == live.index.embedder else []
    if not asked:
        return state, None
    found = rag.retrieve_many(
        [question.question for question in asked], store.open_index(live.index), embedder, live.retrieval, tombstones
    )
    hits = [
        float(any(hit.chunk.section_hash == question.section_hash for hit in some))
        for question, some in zip(asked, found, strict=True)
    ]
    return state | {"rate": sum(hits) / len(hits)}, {"hits": hits, "reference": state["rate"]}


# --- what it means ----------------------------------------------------------------------------


def worse_windows(judged: list[Label], state: dict, chosen: MonitorSettings) -> int:
    """How many of the last windows of reviewed answers in a row were worse than the reference."""
    wrong = [float(label.wrong) for label in judged]
    windows = [
        wrong[end - chosen.window_labels : end]
        for end in range(len(wrong), chosen.window_labels - 1, -chosen.window_labels)
    ]
    count = 0
    for window in windows:
        if sum(window) / len(window) <= state["detector"]["p0"]:
            break
        count += 1
    return count


def users_share(rated: list[dict]) -> float:
    """Share of the bad ratings that the worst user gave; ratings without a user are nobody's in particular."""
    bad = [row["user"] or "" for row in rated if row["rating"] < 0]
    return max((bad.count(user) for user in set(bad) if user), default=0) / len(bad) if len(bad) >= 5 else 0.0


def replayed(
    book: Ledger,
    live: Release,
    answered: list[dict],
    judged: list[Label],
    state: dict | None,
    evidence: Evidence,
    chosen: MonitorSettings,
) -> dict:
    """The figures of the counterfactual replay, once for each release and set of alarms: it takes minutes."""
    key = digest(live.id, sorted(signal.name for signal in evidence.signals if signal.alarm))
    if state and state["key"] == key:
        return state
    labelled = {label.question: label.right for label in judged if label.right}
    figures = replay(book, live, [row["question"] for row in answered], labelled, chosen.replay)
    return {"key": key, "figures": {part: as_json(found) for part, found in figures.items()}}
