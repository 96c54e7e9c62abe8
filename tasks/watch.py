"""Watch an assistant: read its sources, its request log and its ratings since the last run, and gather evidence.

What the detectors remember between runs (cursors, references, e-detector states) is kept in the ledger and stored in
the same transaction as the remedy they lead to.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime

from data import formats, reviews, splits
from data.ledger import Ledger
from data.quarantine import counted
from data.records import Interval, Release, Snapshot, Sources, as_json, digest
from data.requests import RequestLog
from serving.engine.upstream import untunable
from settings import settings
from tasks import anchors, drift, index, references, signals, streams
from tasks.drift import Watch
from tasks.edetector import EDetector
from tasks.evidence import QUALITY, RATINGS, RETRIEVAL, Evidence
from tasks.index import Staleness
from tasks.labels import Label, collected, labels, untrained
from tasks.quarantine import RECENT, carriers
from tasks.references import MonitorSettings
from tasks.replay import replay
from tasks.signals import Signal
from tasks.streams import BROKEN

MOST_ROWS = 20_000
RUNS = 200
"""Runs of the monitor whose volume is remembered."""
REPLAYED = 10
"""Rows of the log, of all assistants, that are searched for each question to be replayed."""
FEWEST_PROBES = 5
"""Probes without a single hit that are below chance for sure."""


def outdated(assistant: str, chosen: MonitorSettings = MonitorSettings()) -> Staleness:
    """What the sources of a live assistant hold otherwise than its index: arithmetic, whatever its log is like."""
    book = Ledger(settings().ledger)
    row, live = book.assistant(assistant), book.live()[assistant].live
    sources = Sources.of(row["sources"])
    wait_for_quiet(sources, chosen.debounce_s)
    stale = index.stale_sections(sources, live.index, Snapshot.of(row["snapshot"]) if row["snapshot"] else None)
    if not stale:
        unbury(book, live)
    return stale


def staleness_alone(assistant: str, stale: Staleness) -> tuple[Evidence, dict[str, dict]]:
    """Evidence and states to go by when `watch` fails: what the detectors remember stays, and an edit still heals."""
    cursor = Ledger(settings().ledger).signal_states(assistant).get("cursor", {})
    found = signals.staleness(**counts(stale))
    return Evidence(signals=(found,), stale_sections=len(stale)), {"cursor": cursor | {"stale": stale.fingerprint}}


def watch(
    assistant: str, stale: Staleness, chosen: MonitorSettings = MonitorSettings()
) -> tuple[Evidence, dict[str, dict]]:
    """The evidence on one live assistant, and the new states of its detectors, to be stored with what is decided."""
    book, log = Ledger(settings().ledger), RequestLog(settings().requests)
    row, live = book.assistant(assistant), book.live()[assistant].live
    before = acted_on(book, assistant, book.signal_states(assistant))
    cursor = {"request": 0, "rating": 0, "label": 0, "buried": ""} | before.get("cursor", {})
    logged, now = log.window(assistant, cursor["request"], MOST_ROWS), time.time()
    asked = with_passages(live, with_user_before([r for r in logged if r["source"] == "user" and r["arm"] != "b"]))
    answered = [r for r in asked if r["status"] == 200]
    heard, apart = book.feedback(assistant), splits.tried(book, assistant) - {live.id}
    ratings = [row for row in counted(book, assistant, heard) if row["release"] not in apart]
    said = [r for r in ratings if r["seq"] > cursor["rating"]]
    judged = labels(book, assistant)
    tombstones = book.tombstones(assistant)
    buried = digest(*sorted(tombstones))

    reviewed = [vars(label) for label in judged if label.review > cursor["label"] and label.release not in apart]
    states, fresh = {}, {}
    for source, rows in (("requests", asked), ("feedback", said), ("labels", reviewed)):
        at = next((n for n, one in enumerate(rows) if one["release"] == live.id), len(rows))
        earlier, later = streams.values(source, rows[:at]), streams.values(source, rows[at:])
        for name, values in later.items():
            states[name], fresh[name] = references.learned(
                name, before.get(name), values, live, chosen, earlier[name], row["live_since"]
            )
    reference, window, questions = references.question_windows(before.get("questions"), answered, chosen)
    probes, probed = probe(live, tombstones, before.get("probes"), chosen)
    volumes = before.get("volume", {"rates": []})
    hours = max(now - cursor.get("at", now), 0.0) / 3600
    busy = {"requests": len(asked), "hours": hours, "before": volumes["rates"]}
    looked = Watch(
        stale=counts(stale),
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
    seen = drift.detect(looked)
    for signal in seen:
        if signal.name in states and states[signal.name]["detector"]:
            states[signal.name] = references.watched(states[signal.name], signal, now)
        elif signal.name == "questions" and window is not None:
            questions = references.tested(questions, signal, chosen, now)
        elif signal.name == "probes" and not signal.alarm:
            probes = probes | {"rate": signal.evidence["rate"]}
    last = {"request": logged[-1]["id"] if logged else cursor["request"]}
    last |= {"rating": heard[-1]["seq"] if heard else 0}
    last |= {"label": judged[-1].review if judged else 0, "at": now, "buried": buried, "stale": stale.fingerprint}
    rates = [*volumes["rates"], busy["requests"] / busy["hours"]] if busy["hours"] > 0.01 else volumes["rates"]
    states |= {"cursor": last, "questions": questions, "probes": probes, "volume": {"rates": rates[-RUNS:]}}
    states["told"] = references.told(before.get("told", {}), seen, states, now)

    evidence = concluded(seen, states, stale, row["live_since"], live, asked, ratings, chosen)
    asked_for = collected(book, assistant)
    examples, preferences = untrained(book, live, [*judged, *asked_for])
    settled = len(reviews.items(book, assistant, reviews.LABEL, "settled"))
    learnt = {"new_labelled_examples": examples, "new_preferences": preferences, "settled_labels": settled}
    evidence = replace(evidence, **learnt, tunable=not untunable(live.model))
    if evidence.labelled_quality_down:
        evidence = replace(evidence, worse_windows=worse_windows(judged, states["labels"], chosen))
    if evidence.worth_a_replay:
        states["replay"] = replayed(book, log, live, [*asked_for, *judged], before.get("replay"), evidence, chosen)
        evidence = replace(
            evidence, replay={part: Interval.of(found) for part, found in states["replay"]["figures"].items()}
        )
    return evidence, states


def concluded(
    seen: tuple[Signal, ...],
    states: dict[str, dict],
    stale: Staleness,
    live_since: float | None,
    live: Release,
    asked: list[dict],
    ratings: list[dict],
    chosen: MonitorSettings,
) -> Evidence:
    """What the signals of one run mean for the table of `diagnose`."""
    alarmed = {signal.name: signal for signal in seen if signal.alarm}
    recent = [r for r in asked if r["release"] == live.id][-chosen.recent_requests :]
    failed = [r for r in recent if r["status"] == 500]  # 503 and 504 are about capacity, not about the release
    fell = [name for name in ("labels", "grounding", "abstention") if name in alarmed]
    losses = [alarmed[name].evidence["rate"] - alarmed[name].evidence["state"]["p0"] for name in fell]
    broken = [name for name in BROKEN if name in alarmed]
    moved = [*fell, *broken, *(["ratings"] if "ratings" in alarmed else [])]
    unparsed = failed if len(recent) >= 20 and len(failed) >= 3 else []
    probed = next((signal.evidence for signal in seen if signal.name == "probes"), {"rate": 1.0, "n": 0})
    below_chance = probed["rate"] < 0.1 and probed["n"] >= FEWEST_PROBES
    # What a stream measures changes only with the release that owns it; requests and probes fail with any, now
    began = [(states[name]["promoted"], states[name]["began"]) for name in broken or fell]
    began += [(live_since, r["at"]) for r in unparsed[:1]] + ([(live_since, time.time())] if below_chance else [])
    voices, share = (), 0.0
    if "ratings" in alarmed:
        rated = [r for r in ratings if r["rating"]][-RECENT:]
        voices, share = carriers(rated, alarmed["ratings"].evidence["state"]["p0"])
    return Evidence(
        signals=seen,
        budget=references.budget(chosen),
        seconds_since_promotion=min((at - up for up, at in began if up is not None and at >= up), default=None),
        hard_broken=tuple(BROKEN[name] for name in broken),
        parse_failures=len(unparsed) / max(1, len(recent)),
        below_chance=below_chance,
        version_mismatch="embedder" in alarmed,
        volume_jump="volume" in alarmed,
        judge_moved="anchors" in alarmed,
        quality_alarm=bool({"grounding", "abstention"} & alarmed.keys()),
        labelled_quality_down="labels" in alarmed,
        change_covers_deploy=any(references.covers_deploy(states[name], chosen) for name in moved),
        stale_sections=len(stale),
        retrieval_term_down=bool({"top score", "score gap", "unanswerable", "probes"} & alarmed.keys()),
        rating_alarm="ratings" in alarmed,
        rating_alarm_users_share=share,
        rating_alarm_voices=voices,
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
            if name in states and states[name].get("acted", 0) < row["seq"]:
                states[name] = references.restarted(states[name]) | {"acted": row["seq"]}
    return states


def counts(stale: Staleness) -> dict[str, int]:
    return {"changed": len(stale.changed), "added": len(stale.added), "deleted": len(stale.deleted)}


def with_passages(live: Release, asked: list[dict]) -> list[dict]:
    """The requests, each whose answer carries a mark with the text of the passages that it may have it from."""
    from data.store import open_index

    if not any(streams.carries_marks(row) for row in asked):
        return asked
    held = open_index(live.index)
    found = []
    for row in asked:
        chunks = [held.chunk(chunk) for chunk in row["chunks"] or ()] if streams.carries_marks(row) else []
        found.append(row | {"passages": "\n".join(chunk.text for chunk in chunks if chunk)})
    return found


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
    """Ask the index for its own sections, once for each index, embedder and set of deletions; None: asked already.

    A section that is buried whole is not to be found: a new edition of it is on its way. The state's `rate` is the
    share found that later ones are compared with.
    """
    from data import store
    from data.embedding import load
    from serving.engine.models import embedder_folder
    from tasks.arm import find_own
    from tasks.retrieval import probes

    weights = (embedder_folder() / "model.safetensors").stat().st_mtime
    key = digest(live.index.checksum, live.retrieval, len(tombstones), weights)
    if state and state["key"] == key:
        return state, None
    embedder = load(embedder_folder())
    state = {"key": key, "embedder": embedder.sha256, "rate": state["rate"] if state else None}
    if embedder.sha256 != live.index.embedder:
        return state, None
    held = store.open_index(live.index)
    shown = {chunk.section_hash for chunk in held.chunks() if chunk.id not in tombstones}
    asked = [question for question in probes(live.index, chosen.probes) if question.section_hash in shown]
    if not asked:
        return state, None
    own = [(question.question, question.section_hash) for question in asked]
    hits = find_own(own, held, embedder, live.retrieval, tombstones)
    return state, {"hits": hits, "reference": state["rate"]}


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


def replayed(
    book: Ledger,
    log: RequestLog,
    live: Release,
    judged: list[Label],
    state: dict | None,
    evidence: Evidence,
    chosen: MonitorSettings,
) -> dict:
    """The figures of the counterfactual replay, once for each release and set of alarms it is about: it takes minutes.

    Too few questions for one are asked of the log again in the next run.
    """
    key = digest(live.id, sorted(set(evidence.alarms) & {*QUALITY, *RETRIEVAL, *RATINGS}))
    if state and state["key"] == key and state["figures"]:
        return state
    labelled = {label.question: label.right for label in judged if label.right}
    latest = log.window(live.assistant, log.last_id(live.assistant) - REPLAYED * chosen.replay, MOST_ROWS)
    asked = [row["question"] for row in latest if row["source"] == "user" and row["status"] == 200]
    figures = replay(book, live, asked, labelled, chosen.replay)
    return {"key": key, "figures": {part: as_json(found) for part, found in figures.items()}}
