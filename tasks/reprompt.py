"""Worked examples for a prompt: reviewed pairs, spread over what was answered wrong, that fit a budget of tokens.

None is a golden question or nearly, or about a source that golden questions are about. Each stands beside the passage
that holds its answer today and that everyone may read; where that text is gone, or the feedback withdrawn, so is the
example (serving.rag).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data import snapshots
from data.feedback import Said
from data.ledger import Ledger
from data.records import GoldenQuestion, Hit, Prompt, Record, Release, Shot, Snapshot
from serving import rag
from tasks import votes
from tasks.golden import Corpus, leaks, unit
from tasks.guards import MARK

Find = Callable[[Sequence[str]], Sequence[tuple[Hit, ...]]]
"""Questions -> the hits of each, as the endpoint would show them to anyone."""
Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts -> unit rows [texts, dimensions]."""


@dataclass(frozen=True)
class FewShot(Record):
    """How many worked examples a prompt shows, `fewest` or none, and the `tokens` that they may take together."""

    fewest: int = 2
    most: int = 4
    tokens: int = 600


def worked_examples(
    book: Ledger, live: Release, snapshot: Snapshot, said: Sequence[Said], few: FewShot = FewShot()
) -> tuple[Shot, ...]:
    """The worked examples for a prompt of what is live, from all that was `said`; () where there are too few."""
    from data.embedding import load
    from data.store import open_index
    from serving.engine.models import embedder_folder

    embedder, index = load(embedder_folder()), open_index(live.index)
    tombstones = book.tombstones(live.assistant)
    alone = replace(live.retrieval, section_characters=0)  # a shot is kept by its chunk's id, neighbours have their own

    def find(questions: Sequence[str]) -> list[tuple[Hit, ...]]:
        return rag.retrieve_many(questions, index, embedder, alone, tombstones)

    pairs = showable(said, snapshots.golden(snapshot), Corpus([], {}, snapshot.documents), find)
    wrong = [one.question for one in said if one.reviewed and votes.denied(one) is not None]
    return spread(pairs, wrong, embedder.embed, live.prompt, few)


def showable(said: Sequence[Said], golden: Sequence[GoldenQuestion], corpus: Corpus, find: Find) -> list[Shot]:
    """The pairs that a prompt may show: reviewed, the newest of each question, with the first passage that says so."""
    newest: dict[votes.Key, tuple[str, str, int]] = {}
    for one in sorted(said, key=lambda one: one.at):
        text = votes.endorsed(one)
        usable = one.reviewed and not one.golden and not one.withdrawn and text and one.question
        if usable and not MARK.search(f"{one.question} {text}"):
            newest[votes.key(one.question)] = (one.question, text, one.seq)
    asked = list(newest.values())
    near = leaks([question for question, *_ in asked], [question.question for question in golden])
    asked = [pair for at, pair in enumerate(asked) if at not in near]
    held = {unit(question.document, question.section, corpus) for question in golden if question.document}
    found = []
    for (question, answer, label), hits in zip(asked, find([question for question, *_ in asked]), strict=True):
        chunk = next((hit.chunk for hit in hits if votes.supports(hit.chunk.text, answer)), None)
        if chunk is not None and unit(chunk.document, chunk.section, corpus) not in held:
            found.append(Shot(question, answer, chunk, label))
    return found


def spread(pairs: Sequence[Shot], wrong: Sequence[str], embed: Embed, prompt: Prompt, few: FewShot) -> tuple[Shot, ...]:
    """At most `few.most` of the pairs that fit, chosen one by one for how near they bring the nearest of them to the
    questions answered `wrong` (to all, where none was): greedy facility location (Nemhauser et al. 1978).
    """
    if len(pairs) < few.fewest:
        return ()
    near = embed([pair.question for pair in pairs]) @ embed(list(wrong) or [pair.question for pair in pairs]).T
    covered, left, taken = np.zeros(near.shape[1]), few.tokens, []
    for _ in range(few.most):
        room = [at for at, pair in enumerate(pairs) if at not in taken and tokens(prompt, pair) <= left]
        if not room:
            break
        best = max(room, key=lambda at: (np.maximum(covered, near[at]).sum(), -at))
        taken.append(best)
        left -= tokens(prompt, pairs[best])
        covered = np.maximum(covered, near[best])
    return tuple(pairs[at] for at in taken) if len(taken) >= few.fewest else ()


def tokens(prompt: Prompt, shot: Shot) -> int:
    """About how many tokens an example takes in a prompt, rather too many."""
    return sum(len(text) for _, text in rag.shown(prompt, shot)) // rag.CHARACTERS_PER_TOKEN
