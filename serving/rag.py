"""Retrieve, build the prompt, cite: the one code path of the endpoint, of evaluation and of training rows.

A prompt is written here and nowhere else, in the chat format of its model (serving/chat.py). Text that comes from
documents, users or reviewed pairs can not open or close a role: see `Format.escape`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.records import (
    Answer,
    Chunk,
    ChunkSettings,
    Citation,
    Decoding,
    Filter,
    Generation,
    Guard,
    Hit,
    Prompt,
    Release,
    Retrieval,
    Shot,
)
from serving import cache as answers
from serving.chat import chat_format
from serving.rerank import choose, permitted

if TYPE_CHECKING:
    import numpy as np

    from data.embedding import Embedder
    from data.store import Index
    from serving.engine import Engine

HISTORY_MESSAGES = 4
HISTORY_CHARACTERS = 600
CHARACTERS_PER_TOKEN = 3
"""Fewer than English text has (about four), so that what is set aside for a prompt is rather too much."""
CITE_FROM = 0.6
"""Least share of an answer's words that a passage must hold to be cited for it."""

FIELD = re.compile(r"\{(number|title|section|text|passages|question)\}")
MARK = re.compile(r"[ \t]*\[\d{1,2}\]")
OPEN_MARK = re.compile(r"\s*(\[\d{0,2})?\Z")
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")
WORD = re.compile(r"\w+", re.UNICODE)
STOP_WORDS = frozenset(
    WORD.findall("""
    a an and are as at be been by for from had has have in is it its of on or that the their they this to was were
    which with answer according passage
""")
)


# --- the prompt -------------------------------------------------------------------------------


def fill(template: str, **values: object) -> str:
    """`template` with its `{field}`s filled in one pass: braces in values, or unknown fields, stay as they are."""
    return FIELD.sub(lambda match: str(values.get(match[1], match[0])), template)


def build_prompt(prompt: Prompt, question: str, chunks: Sequence[Chunk], history: Sequence[dict] = ()) -> str:
    """The full text an engine continues: system, worked examples, short history, passages and question, then the open
    assistant turn.

    `history`: earlier turns, oldest first, `{"role", "content"}`; only the last `HISTORY_MESSAGES` are kept, each cut
    at `HISTORY_CHARACTERS`. Any role but `assistant` is rendered as `user`: a client can not speak as the system.
    Passages are numbered from 1 in the order of `chunks`. Raises ValueError for an unknown `prompt.chat`.
    """
    chat = chat_format(prompt.chat)
    turns = [turn for shot in prompt.shots for turn in shown(prompt, shot)]
    turns += [
        ("assistant" if message["role"] == "assistant" else "user", message["content"][:HISTORY_CHARACTERS])
        for message in history[-HISTORY_MESSAGES:]
    ]
    return chat.write(prompt.system, [*turns, ("user", asked(prompt, question, chunks))])


def asked(prompt: Prompt, question: str, chunks: Sequence[Chunk]) -> str:
    """The turn that asks: the passages, numbered from 1, and the question below them."""
    passages = "".join(
        fill(prompt.passage, number=number, title=chunk.title, section=chunk.section, text=chunk.text)
        for number, chunk in enumerate(chunks, start=1)
    )
    return fill(prompt.user, passages=passages, question=question)


def shown(prompt: Prompt, shot: Shot) -> tuple[tuple[str, str], tuple[str, str]]:
    """A worked example as the two turns that it was."""
    return ("user", asked(prompt, shot.question, [shot.chunk])), ("assistant", shot.answer)


def standing(release: Release, tombstones: frozenset[str]) -> Release:
    """The release as it may be shown to a model: without the worked examples whose text is deleted or superseded, or
    that were learnt from feedback withdrawn since.

    As with what is retrieved, a rollback can not bring them back (invariant 4).
    """
    kept = tuple(shot for shot in release.prompt.shots if tombstones.isdisjoint(shot.rests_on))
    return replace(release, prompt=replace(release.prompt, shots=kept)) if kept != release.prompt.shots else release


def expected_tokens(release: Release, question: str, history: Sequence[dict], searches: bool, tools: str = "") -> int:
    """About how many tokens a prompt will have, before it is known which passages it shows."""
    passages = release.retrieval.top_k * ChunkSettings().max_tokens if searches else 0
    written = build_prompt(release.prompt, question, (), history) + tools
    return len(written) // CHARACTERS_PER_TOKEN + passages


# --- retrieval --------------------------------------------------------------------------------


def retrieve(
    index: Index,
    embedder: Embedder,
    question: str,
    retrieval: Retrieval,
    tombstones: frozenset[str] = frozenset(),
    allowed: Filter = Filter(),
) -> tuple[Hit, ...]:
    """The hits shown for one question, best first, of what is `allowed`; never a tombstoned chunk (invariant 4)."""
    return retrieve_turn(index, embedder, question, "", retrieval, tombstones, allowed)[0]


def retrieve_turn(
    index: Index,
    embedder: Embedder,
    question: str,
    before: str,
    retrieval: Retrieval,
    tombstones: frozenset[str],
    allowed: Filter = Filter(),
) -> tuple[tuple[Hit, ...], np.ndarray]:
    """`retrieve` within a conversation, and the question's unit vector [dimensions]. `before`: the question before it.

    A follow-up ("and on Solo?") is searched as it stands and once more behind the question before it, and a chunk's
    scores are averaged: what it leaves out is found by the second search, and a change of subject wins the first.
    """
    if not before:
        vector = embedder.embed([question])[0]
        return search(index, question, vector, retrieval, tombstones, allowed), vector
    texts = (question, f"{before[:HISTORY_CHARACTERS]} {question}")
    vectors = embedder.embed(texts)
    found: dict[str, Hit] = {}
    for text, vector in zip(texts, vectors, strict=True):
        for hit in candidates(index, text, vector, retrieval, tombstones, allowed):
            known = found.get(hit.chunk.id)
            score = hit.score / 2 + (known.score if known else 0.0)
            found[hit.chunk.id] = replace(known or hit, score=score)
    best = sorted(found.values(), key=lambda hit: (-hit.score, hit.chunk.id))
    return choose(index, texts[1], best, retrieval, tombstones, allowed), vectors[0]


def search(
    index: Index,
    question: str,
    vector: np.ndarray,
    retrieval: Retrieval,
    tombstones: frozenset[str],
    allowed: Filter = Filter(),
) -> tuple[Hit, ...]:
    """`retrieve` with the question's unit vector [dimensions] already at hand."""
    found = candidates(index, question, vector, retrieval, tombstones, allowed)
    return choose(index, question, found, retrieval, tombstones, allowed)


def candidates(
    index: Index, question: str, vector: np.ndarray, retrieval: Retrieval, tombstones: frozenset[str], allowed: Filter
) -> list[Hit]:
    """All that the search by vectors and that by words found, best first, of which `choose` takes what is shown."""
    wide = replace(retrieval, top_k=2 * retrieval.candidates)
    hits = index.search(question, vector, wide, tombstones, allowed)
    return [hit for hit in hits if permitted(hit.chunk, tombstones, allowed)]


# --- what comes after the engine --------------------------------------------------------------


def clean(text: str, final: bool = True) -> str:
    """`text` without surrounding space and without `[1]`-like marks of the model's own: attribution is ours.

    With `final=False` an end that could still become a mark is held back, so that the result for a longer text always
    starts with the result for a shorter one and the difference can be streamed.
    """
    if not final:
        text = OPEN_MARK.sub("", text)
    return MARK.sub("", text).strip()


def words(text: str) -> list[str]:
    return [word for word in WORD.findall(text.lower()) if word not in STOP_WORDS]


def support(text: str, passage: str) -> float:
    """How much of `text` the passage holds: 1 where its words stand there in a row, else the share of them, below 1."""
    asked = words(text)
    if not asked:
        return 0.0
    held = words(passage)
    if f" {' '.join(asked)} " in f" {' '.join(held)} ":
        return 1.0
    known = set(held)
    return 0.99 * sum(word in known for word in asked) / len(asked)


def abstains(text: str, prompt: Prompt) -> bool:
    """Whether `text` is, or starts with, the prompt's sentence for "not in the documents"."""
    refusal = WORD.findall(prompt.abstain.lower())
    return bool(refusal) and WORD.findall(text.lower())[: len(refusal)] == refusal


def cite(text: str, hits: Sequence[Hit]) -> tuple[Citation, ...]:
    """For each sentence of `text`, the hit that holds most of its words (the better ranked of equals), in mark order.

    Deterministic, and independent of what the model claims. A sentence that no hit holds by `CITE_FROM` is not cited.
    An abstention has nothing to cite: `finish` does not ask.
    """
    cited: set[int] = set()
    for sentence in SENTENCE.split(text):
        best = max(range(len(hits)), key=lambda at: (support(sentence, hits[at].chunk.text), -at), default=None)
        if best is not None and support(sentence, hits[best].chunk.text) >= CITE_FROM:
            cited.add(best)
    return tuple(
        Citation(at + 1, hits[at].chunk.id, hits[at].chunk.document, hits[at].chunk.title, hits[at].chunk.section)
        for at in sorted(cited)
    )


def grounding(text: str, hits: Sequence[Hit]) -> float:
    """Mean over sentences of the best support in any hit, 0 to 1; 0 without hits."""
    sentences = SENTENCE.split(text)
    return sum(max((support(part, hit.chunk.text) for hit in hits), default=0.0) for part in sentences) / len(sentences)


def finish(question: str, generation: Generation, hits: Sequence[Hit], prompt: Prompt) -> Answer:
    """The answer to `question`: cleaned text, whether it abstains, and its citations (none when it does).

    Where the model wrote marks alone the answer is the prompt's abstention; one that wrote nothing has an empty text.
    """
    text = clean(generation.text)
    if not text and generation.text.strip():
        text = prompt.abstain
    abstained = abstains(text, prompt)
    return Answer(question, text, abstained, () if abstained else cite(text, hits), tuple(hits), generation)


def unanswered(question: str, prompt: Prompt) -> Answer:
    """The answer when nothing was retrieved: the prompt's abstention, without asking the model to guess."""
    return Answer(question, prompt.abstain, True, (), (), Generation(prompt.abstain, 0, 0, "stop", 0.0, 0.0))


def content(answer: Answer) -> str:
    """What a client reads: the text and the marks of its citations, as in `Paris [2]`."""
    return answer.text + marks(answer.citations)


def marks(citations: Iterable[Citation]) -> str:
    return "".join(f" [{citation.number}]" for citation in citations)


def limited(decoding: Decoding, guard: Guard) -> Decoding:
    """`decoding` within the guard's limits, as the endpoint applies it."""
    return replace(decoding, max_new_tokens=min(decoding.max_new_tokens, guard.max_new_tokens))


# --- many at once -----------------------------------------------------------------------------


def retrieve_many(
    questions: Sequence[str],
    index: Index,
    embedder: Embedder,
    retrieval: Retrieval,
    tombstones: frozenset[str] = frozenset(),
    excluded: Sequence[frozenset[str]] | None = None,
    allowed: Filter = Filter(),
) -> list[tuple[Hit, ...]]:
    """`retrieve` for each question; `excluded[i]` are chunk ids left out for question i alone."""
    found: list[tuple[Hit, ...]] = []
    for start in range(0, len(questions), 8):  # up to 8 at a time the embedder stays in fp32, as for a live question
        some = list(questions[start : start + 8])
        for at, (question, vector) in enumerate(zip(some, embedder.embed(some), strict=True), start):
            hidden = tombstones | excluded[at] if excluded else tombstones
            found.append(search(index, question, vector, retrieval, hidden, allowed))
    return found


def answer_given(
    questions: Sequence[str],
    found: Sequence[tuple[Hit, ...]],
    release: Release,
    engine: Engine,
    cache: Path | None = None,
) -> list[Answer]:
    """Answers in the order of `questions` from the given hits, by the same steps as the endpoint, in one batch.

    Greedy generations are kept in `cache` (default settings().home/answers.db), keyed by everything that decides the
    text: asking again, or asking another release that builds the same prompt for the same model, is a read.
    """
    prompts = {
        at: build_prompt(release.prompt, questions[at], [hit.chunk for hit in hits])
        for at, hits in enumerate(found)
        if hits
    }
    decoding = limited(release.decoding, release.guard)
    generations = generate(list(dict.fromkeys(prompts.values())), release, decoding, engine, cache)
    return [
        finish(question, generations[prompts[at]], found[at], release.prompt)
        if at in prompts
        else unanswered(question, release.prompt)
        for at, question in enumerate(questions)
    ]


def generate(
    prompts: list[str], release: Release, decoding: Decoding, engine: Engine, cache: Path | None
) -> dict[str, Generation]:
    """A generation for each distinct prompt, from the cache where decoding is greedy.

    What was generated before a failure is kept: it may have been paid for.
    """
    if decoding.temperature > 0:
        return dict(zip(prompts, engine.generate(prompts, decoding), strict=True))
    kept = answers.AnswerCache(cache)
    keys = {prompt: answers.key(release, prompt, decoding, engine.version) for prompt in prompts}
    known = kept.read(list(keys.values()))
    missing = [prompt for prompt in prompts if keys[prompt] not in known]
    fresh = {}
    if missing:
        try:
            for prompt, generation in zip(missing, engine.generate(missing, decoding), strict=True):
                fresh[keys[prompt]] = generation
        finally:
            kept.write(fresh)
    known |= fresh
    return {prompt: known[keys[prompt]] for prompt in prompts}
