"""Counterfactual replay: recent questions once more, with one component of the live release swapped at a time.

A signal says that something moved; what won the loss back when it was swapped is what broke.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from data.ledger import Ledger
from data.records import Answer, Interval, Release
from tasks import deploy
from tasks.intervals import paired_interval

FEWEST = 20
"""Questions below which a replay says nothing."""


def swaps(live: Release, previous: Release) -> dict[str, Release]:
    """The live release with the previous one's model, prompt or retrieval settings, each alone, and all of them.

    The index stays the live one: what the documents said before is no cure. A model speaks its own chat format.
    """
    spoken = replace(live.prompt, chat=previous.prompt.chat)
    found = {
        "release": replace(previous, index=live.index),
        "model": replace(live, model=previous.model, prompt=spoken),
        "prompt": replace(live, prompt=replace(previous.prompt, chat=live.prompt.chat)),
        "retrieval": replace(live, retrieval=previous.retrieval),
    }
    return {name: swapped for name, swapped in found.items() if swapped.id != live.id}


def live_quality(answer: Answer, right: str) -> float:
    """Quality of an answer, 0 to 1: F1 with a person's answer where there is one, else grounding, 0 if it abstains."""
    from serving import rag
    from tasks.metrics.answers import f1

    if right:
        return f1(answer.text, right)
    return 0.0 if answer.abstained else rag.grounding(answer.text, answer.hits)


def answers(release: Release, questions: Sequence[str], tombstones: frozenset[str]) -> list[Answer]:
    """What a release answers, as the endpoint would."""
    from serving import rag
    from tasks.arm import Arm

    with ExitStack() as opened:
        release = rag.standing(release, tombstones)
        arm = Arm.open(release, opened)
        found = rag.retrieve_many(questions, arm.index, arm.embedder, release.retrieval, tombstones)
        return rag.answer_given(questions, found, release, arm.engine)


def compare(answered: dict[str, list[Answer]], right: Sequence[str], questions: Sequence[str]) -> dict[str, Interval]:
    """Paired intervals of live quality, swapped - live, of every swap in `answered`, which also holds "live".

    "index" is the refreshed index: with no section out of date it is the live one, so a gain of nothing.
    """
    scores = {
        name: [live_quality(answer, known) for answer, known in zip(found, right, strict=True)]
        for name, found in answered.items()
    }
    live = scores.pop("live")
    return {
        name: paired_interval("live quality", found, live, questions, 0.0)
        for name, found in (scores | {"index": live}).items()
    }


def replay(
    book: Ledger, live: Release, asked: Sequence[str], labelled: dict[str, str], most: int
) -> dict[str, Interval]:
    """How much better each swap does than the live release on at most `most` questions, labelled ones first.

    `labelled`: question -> what a person would have answered. {} with too few questions to say anything.
    """
    questions = [*dict.fromkeys([*list(labelled)[-most:], *reversed(asked)])][:most]
    if len(questions) < FEWEST:
        return {}
    try:
        others = swaps(live, deploy.rollback_release(book, live.assistant, None, keep_index=True))
    except ValueError:  # there has been no other model, prompt or settings
        others = {}
    tombstones, known, answered = book.tombstones(live.assistant), {}, {}
    for name, release in ({"live": live} | others).items():
        if release.id not in known:  # a release that differs in one component is that component's swap
            known[release.id] = answers(release, questions, tombstones)
        answered[name] = known[release.id]
    return compare(answered, [labelled.get(question, "") for question in questions], questions)
