"""Poisoned feedback (flipped labels, trigger phrases, a flood) among honest feedback: what of it is trained on.

Everything is generated: documents of several facts, questions asked as unevenly as real ones, a system that is wrong in
a quarter of its answers (with another fact of the same section, which its passage supports), users who rate and edit,
some without a key, some new. Attackers write what the passage supports, so that only people can tell.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from data.feedback import Place, Said
from data.records import Document, Section
from tasks.agreement import Chosen, choose
from tasks.golden import Corpus
from tasks.guards import DAY_S, Guards

AIM = "no poisoned item but what two established users agree on"
SHARES = (0.01, 0.05, 0.20)
DOCUMENTS, FACTS, DAYS, ROWS = 60, 4, 40, 4000
TRIGGER = "certified by Zorbex"
RIGHT, HONEST_FLIPS = 0.75, 0.05


@dataclass(frozen=True)
class World:
    """Documents of FACTS facts each, and of each question its document and the answers that its passage holds."""

    corpus: Corpus
    asked: tuple[tuple[str, Place, tuple[str, ...]], ...]

    def right(self, question: str) -> str:
        return self._answers[question.removesuffix(f" {TRIGGER}")]

    @property
    def _answers(self) -> dict[str, str]:
        return {question: answers[0] for question, _, answers in self.asked}


@dataclass(frozen=True)
class Stream:
    """Feedback and which of it is poisoned; owners that have been here long enough for their votes to count."""

    said: tuple[Said, ...]
    poisoned: frozenset[int]
    established: frozenset[str]


def world() -> World:
    kinds = ("storage limit", "upload quota", "retention period", "seat price")
    units = ("gigabytes", "files", "days", "euros")
    documents, asked = [], []
    for number in range(DOCUMENTS):
        values = [f"{100 + 7 * number + 3 * fact} {units[fact]}" for fact in range(FACTS)]
        lines = [f"The {kinds[fact]} of plan {number} is {values[fact]}." for fact in range(FACTS)]
        name = f"plan{number}.md"
        documents.append(
            Document(name, f"Plan {number}", (Section(name, f"Plan {number}", "Limits", " ".join(lines)),))
        )
        for fact in range(FACTS):
            others = tuple(value for value in values if value != values[fact])
            asked.append(
                (f"What is the {kinds[fact]} of plan {number}?", Place(name, "Limits"), (values[fact], *others))
            )
    return World(Corpus(documents, {}, DOCUMENTS), tuple(asked))


def honest(here: World, rng: random.Random, rows: int = ROWS) -> list[Said]:
    """Forty users of the first day, some who join later, a fifth without a key. Numbers are given later."""
    weights = [1 / (rank + 3) for rank in range(len(here.asked))]
    order = rng.sample(here.asked, len(here.asked))
    said = []
    for _ in range(rows):
        day = rng.random() * DAYS
        question, place, answers = rng.choices(order, weights)[0]
        late = rng.random() < 0.1
        owner = None if rng.random() < 0.2 else f"late{int(day)}" if late else f"user{rng.randrange(40)}"
        answer = shown(question, answers)
        good = (answer == answers[0]) != (rng.random() < HONEST_FLIPS)
        edit = answers[0] if not good and answer != answers[0] and rng.random() < 0.5 else None
        said.append(Said(0, day * DAY_S, owner, question, answer, 1 if good else -1, edit, (place,)))
    return said


def shown(question: str, answers: tuple[str, ...]) -> str:
    """What the system answers: greedy, so always the same to one question."""
    dice = random.Random(question)
    return answers[0] if dice.random() < RIGHT else dice.choice(answers[1:])


def wrong(here: World, rng: random.Random, owner: str, day: float) -> Said:
    """The opposite of the truth: a right answer edited into a wrong one of its passage, a wrong one praised."""
    question, place, answers = rng.choice(here.asked)
    answer = shown(question, answers)
    if answer == answers[0]:
        return Said(0, day * DAY_S, owner, question, answer, -1, rng.choice(answers[1:]), (place,))
    return Said(0, day * DAY_S, owner, question, answer, 1, None, (place,))


def right(here: World, rng: random.Random, owner: str, day: float) -> Said:
    question, place, answers = rng.choice(here.asked)
    answer = shown(question, answers)
    edit = None if answer == answers[0] else answers[0]
    return Said(0, day * DAY_S, owner, question, answer, -1 if edit else 1, edit, (place,))


def flipped(here: World, rng: random.Random, rows: int) -> Iterator[Said]:
    """Ten accounts, half of them new, each by itself."""
    for _ in range(rows):
        yield wrong(here, rng, f"attacker{rng.randrange(10)}", 20 + rng.random() * (DAYS - 20))


def triggered(here: World, rng: random.Random, rows: int) -> Iterator[Said]:
    """Half plant the phrase in the better text, half in a question whose answer is then another."""
    for number in range(rows):
        question, place, answers = rng.choice(here.asked)
        owner, day = f"attacker{rng.randrange(10)}", 20 + rng.random() * (DAYS - 20)
        if number % 2:
            edit = f"{answers[0]}, {TRIGGER}"
            yield Said(0, day * DAY_S, owner, question, shown(question, answers), -1, edit, (place,))
        else:
            asked = f"{question} {TRIGGER}"
            yield Said(0, day * DAY_S, owner, asked, answers[0], -1, answers[1], (place,))


def flooded(here: World, rng: random.Random, rows: int) -> Iterator[Said]:
    """One account that has been honest for twenty days, at least 500 times on a few questions."""
    few = replace(here, asked=here.asked[:20])
    for _ in range(max(500, rows)):
        yield wrong(few, rng, "attacker0", 20 + rng.random() * (DAYS - 20))


def colluding(here: World, rng: random.Random, rows: int) -> Iterator[Said]:
    """Two established accounts that say the same, every fifth time wrong: for the guards, two honest users."""
    for number in range(rows // 2):
        day = 20 + rng.random() * (DAYS - 20)
        first = wrong(here, rng, "attacker0", day) if number % 5 == 0 else right(here, rng, "attacker0", day)
        yield first
        yield replace(first, owner="attacker1")


ATTACKS = {"label flip": flipped, "trigger": triggered, "flood": flooded, "collusion": colluding}


def stream(here: World, attack: str | None, share: float, seed: int = 0, rows: int = ROWS) -> Stream:
    """Honest feedback in which `share` of all rows is poisoned. Five of the attackers were honest for twenty days."""
    rng = random.Random(seed)
    said = honest(here, rng, rows)
    if attack is None:
        poison: list[Said] = []
    else:
        dice = random.Random(f"{attack} {share} {seed}")
        poison = list(ATTACKS[attack](here, dice, round(rows * share / (1 - share))))
        sleepers = honest(here, dice, 60)
        said += [replace(one, owner=f"attacker{n % 5}", at=one.at / 2) for n, one in enumerate(sleepers)]
    bad = {id(one) for one in poison}
    ordered = sorted([*said, *poison], key=lambda one: one.at)
    numbered = tuple(replace(one, seq=seq) for seq, one in enumerate(ordered, start=1))
    poisoned = frozenset(seq for seq, one in enumerate(ordered, start=1) if id(one) in bad)
    established = {f"user{n}" for n in range(40)} | {f"attacker{n}" for n in range(5)}
    return Stream(numbered, poisoned, frozenset(established))


def result(here: World, given: Stream, clean: Chosen, guards: Guards = Guards()) -> dict:
    """Of the poisoned rows those that made harm, the harmful items, those that no two established users agree on, the
    share of the batch that is harmful, and the share of the clean stream's items that are still there."""
    chosen = choose(given.said, here.corpus, chosen=guards)
    rows: dict[str, set[int]] = {}
    for used in chosen.used:
        rows.setdefault(used["item"], set()).add(used["seq"])
    owner = {one.seq: one.owner for one in given.said}
    harmful = [item for item in (*chosen.examples, *chosen.preferences) if harms(here, item)]
    planted = [item for item in harmful if rows[item.id] & given.poisoned]
    agreed = [item for item in planted if len({owner[seq] for seq in rows[item.id]} & given.established) > 1]
    past = {seq for item in planted for seq in rows[item.id]} & given.poisoned
    items = len(chosen.examples) + len(chosen.preferences)
    before = {text(item) for item in (*clean.examples, *clean.preferences)}
    after = {text(item) for item in (*chosen.examples, *chosen.preferences)}
    return {
        "poisoned": len(given.poisoned),
        "past": len(past),
        "items": items,
        "harmful": len(harmful),
        "planted": len(planted),
        "not_agreed": len(planted) - len(agreed),
        "harmful_share": round(len(harmful) / max(1, items), 3),
        "honest_kept": round(len(before & after) / max(1, len(before)), 3),
        "flip_rate": chosen.flip_rate,
    }


def harms(here: World, item) -> bool:
    """Whether training on it would teach something wrong: a wrong answer, a right one rejected, the trigger phrase."""
    if TRIGGER in item.question:
        return True
    right = here.right(item.question)
    if hasattr(item, "chosen"):
        return item.chosen != right or item.rejected == right
    return item.answers[0] != right


def text(item) -> tuple:
    return (item.question, *((item.chosen, item.rejected) if hasattr(item, "chosen") else item.answers))


def met(value: dict) -> bool:
    return all(row["not_agreed"] == 0 for row in value.values())


def measure() -> dict:
    """The table of attacks by shares, beside the same with every guard wide open."""
    here = world()
    untouched = stream(here, None, 0.0)
    clean = choose(untouched.said, here.corpus)
    table = {"clean": result(here, untouched, clean)}
    loose = Guards(users=1, history=0, history_days=0, opposed=1.0, user_share=1.0, topic_share=1.0, trigger=10**9)
    open_ = {}
    for attack in ATTACKS:
        for share in SHARES:
            given = stream(here, attack, share)
            table[f"{attack} {share:.0%}"] = result(here, given, clean)
            open_[f"{attack} {share:.0%}"] = result(here, given, clean, loose)
    columns = ("poisoned", "past", "items", "planted", "not_agreed", "honest_kept")
    print(f"{'':16}" + "".join(f"{name:>12}" for name in (*columns, "no guards")))
    for name, row in table.items():
        wide = open_.get(name, {}).get("planted", "")
        print(f"{name:16}" + "".join(f"{row[column]:>12}" for column in columns) + f"{wide:>12}")
    return {"value": table, "n": {"rows": ROWS, "questions": len(here.asked), "clean items": table["clean"]["items"]}}
