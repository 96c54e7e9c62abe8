"""Injected causes and what is done about them: through the monitor's own watch and diagnosis, on a real ledger and log.

The world is made: plans with facts, questions on them, answers right, wrong, declined or broken as the cause has it.
All answers are simulated, those of the replay too; sources, probes and the judge's anchors are given. Streams,
references, windows, labels, change points, replay intervals and the table are the project's own. Each cause is made
once; each run draws other questions, users and luck.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np

from benchmarks.machine import home

AIM = "right action 90%, wrong automatic action at most 2%, benign left alone 95%"
RUNS, BENIGN, QUIET, CHUNK, CHUNKS, LABELS = 20, 30, 480, 240, 3, 90
ACTS = ("reindex", "retrain", "reprompt", "rollback", "freeze", "quarantine_ratings")
FACTS = ("storage limit", "upload quota", "retention period", "seat price", "session timeout", "export size")
UNITS = ("gigabytes", "files", "days", "euros", "minutes", "megabytes")
UNKNOWN = ("carbon offset", "parking permit", "pension plan")


@dataclass(frozen=True)
class Cause:
    """What is done to the world, and what should be done about it.

    `broken`: what the live release does to an answer, with what chance; it is the `culprit`'s (model or prompt), so the
    release before is without it, or '' where every release does it. `wrong` is the share of reviewed answers that are
    wrong afterwards.
    """

    right: str
    broken: str = ""
    chance: float = 0.0
    culprit: str = ""
    wrong: float = 0.08
    flood: int = 0
    stale: int = 0
    topics: tuple[str, ...] = FACTS
    style: str = ""
    anchors: int = 0
    slow: bool = False


CAUSES = {
    "stale index": Cause("reindex", stale=3),
    "content gap": Cause("alert", topics=(*FACTS, *UNKNOWN)),
    "broken adapter": Cause("rollback", "babble", 0.5, "model"),
    "wrong chat template": Cause("rollback", "template", 0.7, "model"),
    "prompt regression": Cause("rollback", "decline", 0.35, "prompt"),
    "domain shift": Cause("retrain", wrong=0.45, style="hey quick one, "),
    "format break": Cause("freeze", "crash", 0.2),
    "judge swap": Cause("recalibrate", anchors=14),
    "single-user flood": Cause("quarantine_ratings", flood=120),
    "slow decay": Cause("retrain", wrong=0.5, slow=True),
    "benign topic mix": Cause("nothing", topics=FACTS[:3]),
    "quiet": Cause("nothing"),
}
BENIGN_CAUSES = ("benign topic mix", "quiet")


def met(value: dict) -> bool:
    return value["right"] >= 0.90 and value["wrong automatic"] <= 0.02 and value["benign left alone"] >= 0.95


# --- the world --------------------------------------------------------------------------------


def passage(topic: str, plan: int):
    from data.records import Chunk, Hit

    unit = UNITS[FACTS.index(topic)] if topic in FACTS else "units"
    text = f"The {topic} of plan {plan} is {100 + 7 * plan} {unit}, as agreed."
    return Hit(Chunk(f"{topic} {plan}", f"plan{plan}.md", f"Plan {plan}", topic, f"{topic} {plan}", text), 0.9, 0.75)


def asked(topic: str, plan: int, style: str = "") -> str:
    return f"{style}what is the {topic} of plan {plan}?"


def answer(question: str, fault: str, luck: random.Random):
    """What a release answers: usually right; a `fault` babbles, declines or shows its template."""
    from data.records import Answer, Generation

    topic, plan = question.split("what is the ")[1].rstrip("?").split(" of plan ")
    known = topic in FACTS
    hits = (passage(topic if known else luck.choice(FACTS), int(plan)),)
    text, dice = hits[0].chunk.text.split(",")[0] + ".", luck.random()
    declined = fault == "decline" or not known or dice < 0.02
    if fault == "babble" or 0.02 <= dice < 0.05:
        text = (
            " ".join(luck.choices(("blue", "window", "seven", "maybe", "river", "none", "under", "glass"), k=9)) + "."
        )
    if fault == "template":
        text = f"{text}<|im_end|><|im_start|>user"
    text = "I do not know." if declined else text
    return Answer(question, text, declined, (), hits, Generation(text, 300, len(text.split()), "stop", 0.2, 1.0))


def vector(topic: str, luck: np.random.Generator) -> bytes:
    centre = np.random.default_rng(sum(map(ord, topic))).normal(size=32)
    found = centre / np.linalg.norm(centre) + 0.13 * luck.normal(size=32)
    return (found / np.linalg.norm(found)).astype("<f2").tobytes()


@dataclass
class World:
    """One run of one cause: an assistant in the ledger, its releases, and its luck."""

    name: str
    cause: Cause
    seed: int

    def __post_init__(self):
        self.luck, self.draw = random.Random(self.seed), np.random.default_rng(self.seed)
        self.number, self.labelled = 0, 0

    def fault(self, release, luck: random.Random) -> str:
        """What `release` does to an answer by this cause: its own culprit does, or where there is none, all do."""
        cause = self.cause
        mine = not cause.culprit or getattr(release, cause.culprit) == getattr(self.live, cause.culprit)
        return cause.broken if mine and luck.random() < cause.chance else ""

    def answers(self, release, questions, _tombstones) -> list:
        """In place of an engine in the replay."""
        found, which = [], release.id
        for question in questions:
            luck = random.Random(f"{self.seed} {which} {question}")
            found.append(answer(question, self.fault(release, luck), luck))
        return found

    def rows(self, n: int, release, injected: bool) -> list[dict]:
        from serving import rag

        found, which = [], release.id
        for _ in range(n):
            topics = self.cause.topics if injected else FACTS
            topic, plan = self.luck.choice(topics), self.luck.randrange(40)
            question = asked(topic, plan, self.cause.style if injected else "")
            fault = self.fault(release, self.luck) if injected else ""
            reply, self.number = answer(question, fault, self.luck), self.number + 1
            crashed, near = fault == "crash", topic in FACTS
            total = self.luck.lognormvariate(0.0, 0.3)
            found.append(
                {
                    "response": f"{self.name}-{self.number}",
                    "at": time.time(),
                    "assistant": self.name,
                    "release": which,
                    "arm": "live",
                    "source": "user",
                    "user": f"user{self.luck.randrange(60)}",
                    "question": question,
                    "answer": "" if crashed else reply.text,
                    "abstained": None if crashed else reply.abstained,
                    "chunks": [hit.chunk.id for hit in reply.hits],
                    "scores": [0.9, 0.9 - self.luck.uniform(0.1, 0.5)],
                    "cited": [] if reply.abstained else [reply.hits[0].chunk.id],
                    "similarity": self.luck.gauss(0.75 if near else 0.3, 0.06),
                    "grounding": None if reply.abstained or crashed else rag.grounding(reply.text, reply.hits),
                    "embedding": vector(topic + ("" if not injected else self.cause.style), self.draw),
                    "prompt_tokens": 300,
                    "completion_tokens": len(reply.text.split()) + 8,
                    "first_token_s": 0.2 * total,
                    "total_s": total,
                    "status": 500 if crashed else 200,
                    "error": "",
                }
            )
        return found

    def ratings(self, n: int, injected: bool) -> list[dict]:
        """Thumbs, one in ten down; a flood is one user's."""
        cause, found = self.cause, []
        for number in range(n + (cause.flood if injected else 0)):
            flood = number >= n
            user = "flooder" if flood else f"user{self.luck.randrange(60)}"
            rating = -1 if flood or self.luck.random() < 0.10 else 1
            said = {"assistant": self.name, "release": self.live.id, "rating": rating, "user": user, "chunks": []}
            found.append(said | {"at": time.time()})
        self.luck.shuffle(found)
        return found

    def labels(self, n: int, wrong: float) -> list[tuple[dict, dict]]:
        """Reviewed feedback: the reviewer accepts the answer, or the edit of a wrong one."""
        found = []
        for _ in range(n):
            topic, plan = self.luck.choice(FACTS), self.luck.randrange(40)
            right = passage(topic, plan).chunk.text.split(",")[0] + "."
            bad = self.luck.random() < wrong
            self.labelled += 1
            said = {"assistant": self.name, "question": asked(topic, plan), "answer": right, "chunks": []}
            said |= {"release": self.live.id}
            said |= {"edit": right, "answer": "It is 7."} if bad else {"rating": 1}
            verdict = {"kind": "feedback", "state": "settled", "verdict": "accepted", "reviewer": "Ann", "body": {}}
            found.append((said | {"at": time.time()}, verdict | {"assistant": self.name}))
        return found


# --- one run ----------------------------------------------------------------------------------


def live_through(world: World) -> tuple[str, str]:
    """The first action beyond telling a person, and its row; where there is none, an alert if there was one."""
    from data.ledger import Ledger
    from data.records import IndexVersion, Model, Prompt, Release, Sources
    from data.requests import RequestLog
    from settings import settings
    from tasks import diagnose, replay, watch
    from tasks.evidence import DiagnosisSettings
    from tasks.index import Staleness

    cause, book, log = world.cause, Ledger(settings().ledger), RequestLog(settings().requests)
    index = IndexVersion(world.name, "uri", "t", 1, "sum", "emb", "chu", 3, 3, "snap")
    before = Release(world.name, Model("a" * 64, "m.gguf", "openvino", "b" * 64), index, Prompt(system="First."))
    world.live = replace(before, model=Model("c" * 64, "n.gguf", "openvino", "b" * 64))
    if cause.culprit == "prompt":
        world.live = replace(before, prompt=Prompt(system="Second."))
    deployed = bool(cause.culprit)
    book.register(Sources(world.name, "docs"), {})
    go_live(book, before)
    if not deployed:
        go_live(book, world.live)
        aged(book, world.name)
    stale = Staleness((), (), (), "f")
    probes = {"key": "k", "embedder": "emb", "rate": 1.0}

    def look() -> diagnose.Remedy:
        with (
            patch.object(watch.index, "stale_sections", lambda *_: stale),
            patch.object(watch, "unbury", lambda *_: None),
            patch.object(watch, "wait_for_quiet", lambda *_: None),
            patch.object(watch, "probe", lambda *_: (probes, None)),
            patch.object(watch, "with_passages", lambda _live, asked: asked),
            patch.object(replay, "answers", world.answers),
        ):
            evidence, states = watch.watch(world.name, watch.outdated(world.name))
        book.store_signals(world.name, states)
        return diagnose.diagnose(evidence, DiagnosisSettings(retrain_examples=60))

    def write(rows: list[dict], ratings: list[dict], labels: list[tuple[dict, dict]]) -> None:
        from data.requests import requests
        from data.tables import feedback, reviews

        with log.engine.begin() as c:
            c.execute(requests.insert(), rows)
        with book.write() as c:
            c.execute(feedback.insert(), ratings)
            for said, review in labels:
                seq = c.execute(feedback.insert().values(**said)).inserted_primary_key[0]
                c.execute(reviews.insert().values(**review, subject=str(seq), at=said["at"], settled_at=said["at"]))

    first = before if deployed else world.live
    if cause.anchors:
        verdicts = [1.0] * 30 + [0.0] * 20
        book.store_signals(world.name, {"judge": {"version": "v", "first": verdicts}})
    write(world.rows(QUIET, first, False), world.ratings(QUIET, False), world.labels(LABELS, 0.08))
    early = look()
    if early.kind != "nothing":
        return early.kind, f"{early.row} before anything happened"
    if deployed:
        go_live(book, world.live)
    if cause.anchors:
        now = [0.0] * cause.anchors + [1.0] * (30 - cause.anchors) + [0.0] * 20
        book.store_signals(world.name, {"judge": {"version": "v", "first": verdicts, "now": now}})
    if cause.stale:
        stale = Staleness(tuple((f"plan{n}.md", "limits") for n in range(cause.stale)), (), (), "g")
    told = ("nothing", "-")
    for chunk in range(CHUNKS):
        wrong = cause.wrong * (chunk + 1) / CHUNKS if cause.slow else cause.wrong
        write(world.rows(CHUNK, world.live, True), world.ratings(CHUNK, chunk == 0), world.labels(LABELS, wrong))
        found = look()
        if found.kind not in ("nothing", "alert"):
            return found.kind, found.row
        told = (found.kind, found.row) if found.kind == "alert" and told[0] == "nothing" else told
    return told


def go_live(book, release) -> None:
    book.add_release(release, "tuned", None, {})
    for condition, verdict in (("gate", "promote"), ("smoke", "answered"), ("canary", "held")):
        book.decide(release.assistant, condition, release.id, verdict, "", {})
    book.promote(release.assistant, release.id, book.assistant(release.assistant)["live_seq"])


def aged(book, name: str) -> None:
    """The live release has been live for three days."""
    from data.tables import assistants

    with book.write() as c:
        c.execute(assistants.update().where(assistants.c.name == name).values(live_since=time.time() - 3 * 86_400))


def measure(runs: int = RUNS, benign: int = BENIGN) -> dict:
    """The actions taken by cause; shares over all injected runs, and over all benign ones."""
    with home():
        from data.ledger import migrate
        from settings import settings

        migrate(settings().ledger)
        table = {}
        for cause, made in CAUSES.items():
            n = benign if cause in BENIGN_CAUSES else runs
            seen = [live_through(World(f"{cause} {seed}".replace(" ", "-"), made, seed)) for seed in range(n)]
            table[cause] = Counter(f"{kind} (row {row})" for kind, row in seen)
            print(f"{cause:20} should {made.right:20} did {dict(table[cause])}", flush=True)
    return {"value": shares(table), "n": {cause: sum(seen.values()) for cause, seen in table.items()}}


def shares(table: dict[str, Counter]) -> dict:
    """`wrong automatic`: something that acts by itself was done that is not the cause's remedy."""
    right = wrong = injected = alone = calm = 0
    for cause, seen in table.items():
        for said, n in seen.items():
            kind = said.split(" (")[0]
            wrong += n * (kind in ACTS and kind != CAUSES[cause].right)
            if cause in BENIGN_CAUSES:
                calm, alone = calm + n, alone + n * (kind == "nothing")
            else:
                injected, right = injected + n, right + n * (kind == CAUSES[cause].right)
    return {
        "right": round(right / max(1, injected), 3),
        "wrong automatic": round(wrong / max(1, injected + calm), 3),
        "benign left alone": round(alone / max(1, calm), 3),
        "actions": {cause: dict(seen) for cause, seen in table.items()},
    }
