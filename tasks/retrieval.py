"""Retrieval measured by itself: where the right chunks come among those found, with intervals, alone or compared.

Nothing is generated, so a whole golden set takes seconds; without one, `probes` makes questions from the documents.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.records import (
    Answer,
    Chunk,
    Filter,
    GoldenQuestion,
    Hit,
    IndexVersion,
    Interval,
    Prompt,
    Record,
    Release,
    Retrieval,
    digest,
)
from tasks.arm import Arm, sentences
from tasks.gate import GateSettings, Scores
from tasks.intervals import pair
from tasks.metrics.item import Item
from tasks.metrics.retrieval import DEPTHS, RANKED, hit_rate

PROBE = "probe-"
"""How the ids of probe questions begin."""
MOST_WORDS = 12
FEWEST_WORDS = 3
COMMON = 0.2
"""A word in more than this share of the chunks tells nothing about one of them."""

VERDICTS = {"promote": "not worse", "reject": "worse", "hold": "undecided"}


@dataclass(frozen=True)
class Measure(Record):
    """A metric's mean with its two-sided 95% interval; where two are compared, the other's mean and the difference.

    `difference` is as in the gate: paired by question, with one-sided 95% bounds and the gate's margin.
    """

    metric: str
    mean: float
    lower: float
    upper: float
    other: float | None = None
    difference: Interval | None = None


@dataclass(frozen=True)
class RetrievalReport(Record):
    """How well `index` is searched with `retrieval`, on `questions` questions of `clusters` documents (`unit`).

    `probes`: how many of them were made from the documents. `left_out`: questions that measure nothing here, because
    they have no answer, are set aside, or their source is not in an index or not to be seen.
    """

    index: IndexVersion
    retrieval: Retrieval
    questions: int
    probes: int
    left_out: int
    clusters: int
    unit: str
    measures: tuple[Measure, ...]
    other_index: IndexVersion | None = None
    other_retrieval: Retrieval | None = None

    def __getitem__(self, metric: str) -> Measure:
        return next(measure for measure in self.measures if measure.metric == metric)


def evaluate_retrieval(
    index: IndexVersion,
    questions: Sequence[GoldenQuestion],
    retrieval: Retrieval = Retrieval(),
    allowed: Filter = Filter(),
    against: IndexVersion | Retrieval | Release | None = None,
    tombstones: frozenset[str] = frozenset(),
) -> RetrievalReport:
    """Every metric of RANKED on the first ten hits, and `hit_rate` on those shown, as production searches.

    `against` is what to compare with: another index under the same settings, other settings on the same index, or the
    index and settings of a release. Intervals are clustered by document, by section where there are too few. Raises
    ValueError when no question has its source in the index.
    """
    pairs = [(index, retrieval)]
    match against:
        case IndexVersion():
            pairs.append((against, retrieval))
        case Retrieval():
            pairs.append((index, against))
        case Release():
            pairs.append((against.index, against.retrieval))
    gold = [gold_chunks(version, questions, allowed, tombstones) for version, _ in pairs]
    asked = [question for question in questions if all(found[question.id] for found in gold)]
    if not asked:
        raise ValueError(
            f"none of {len(questions)} questions has its source in version {index.version} of {index.table}: bind "
            "golden questions to documents of this assistant, or measure with probes"
        )
    few = len({question.document for question in asked}) < GateSettings().min_clusters
    ids, clusters = tuple(q.id for q in asked), tuple(f"{q.document}#{q.section}" if few else q.document for q in asked)
    arms = [
        Scores(ids, clusters, scores(version, settings, asked, found, allowed, tombstones))
        for (version, settings), found in zip(pairs, gold, strict=True)
    ]
    return RetrievalReport(
        index=index,
        retrieval=retrieval,
        questions=len(asked),
        probes=sum(question.id.startswith(PROBE) for question in asked),
        left_out=len(questions) - len(asked),
        clusters=len(set(clusters)),
        unit="section" if few else "document",
        measures=tuple(measure(metric, *arms) for metric in arms[0].metrics),
        other_index=pairs[1][0] if against else None,
        other_retrieval=pairs[1][1] if against else None,
    )


def gold_chunks(
    version: IndexVersion, questions: Sequence[GoldenQuestion], allowed: Filter, tombstones: frozenset[str]
) -> dict[str, frozenset[str]]:
    """Question id -> the chunks that answer it, as the gate has them, without those that may not be shown.

    None for a question without an answer or set aside.
    """
    from data.store import open_index
    from serving.rerank import permitted

    index = open_index(version)
    arm = Arm(None, None, index, None)  # of a release, only where its questions' chunks are
    return {
        question.id: frozenset(
            chunk
            for chunk in (arm.gold_chunks(question) if question.votes and question.answers else ())
            if permitted(index.chunk(chunk), tombstones, allowed)
        )
        for question in questions
    }


def scores(
    version: IndexVersion,
    retrieval: Retrieval,
    questions: Sequence[GoldenQuestion],
    gold: dict[str, frozenset[str]],
    allowed: Filter = Filter(),
    tombstones: frozenset[str] = frozenset(),
) -> dict[str, list[float | None]]:
    """Metric -> a score for each question."""
    from data.embedding import load
    from data.store import open_index
    from serving import rag
    from serving.engine.models import embedder_folder

    deep = replace(retrieval, top_k=max(*DEPTHS, retrieval.top_k), section_characters=0)
    asked = [question.question for question in questions]
    found = rag.retrieve_many(asked, open_index(version), load(embedder_folder()), deep, tombstones, allowed=allowed)

    def items(most: int) -> list[Item]:
        return [
            Item(question.question, unread(question, hits[:most]), question, gold[question.id])
            for question, hits in zip(questions, found, strict=True)
        ]

    ranked = items(max(DEPTHS))
    shown = {"hit_rate": [hit_rate(item) for item in items(retrieval.top_k)]}
    return shown | {name: [metric(item) for item in ranked] for name, metric in RANKED.items()}


def unread(question: GoldenQuestion, hits: Sequence[Hit]) -> Answer:
    """The answer of nobody, on these hits: what metrics of retrieval look at."""
    from serving import rag

    return replace(rag.unanswered(question.question, Prompt()), hits=tuple(hits))


def measure(metric: str, ours: Scores, theirs: Scores | None = None) -> Measure:
    """One row of a report. A single mean's interval is that of its difference from nothing."""
    limit = GateSettings().max_missing
    nothing = replace(ours, metrics={metric: [0.0] * len(ours.questions)})
    alone = pair(metric, ours, nothing).interval(metric, 0.0, 0.025, limit)
    bounds = max(0.0, alone.lower), min(1.0, alone.upper)
    if theirs is None:
        return Measure(metric, alone.mean, *bounds)
    compared = pair(metric, ours, theirs)
    difference = compared.interval(metric, GateSettings().margin, GateSettings().alpha, limit)
    return Measure(metric, alone.mean, *bounds, sum(compared.champion) / len(compared.champion), difference)


# --- questions where nobody has written any ---------------------------------------------------


def probes(index: IndexVersion, n: int = 200, seed: int = 0, allowed: Filter = Filter()) -> list[GoldenQuestion]:
    """At most `n` questions made from the documents themselves, the same ones each time, documents in turn.

    One is the heading with the title, turned round; the next the words of a chunk's most telling sentence, sorted,
    without those that are in many chunks. They are easier than what people ask: compare with them, do not boast.
    """
    from data.store import open_index
    from serving.rag import words
    from serving.rerank import permitted

    chunks = [chunk for chunk in open_index(index).chunks() if permitted(chunk, frozenset(), allowed)]
    known: Counter[str] = Counter()
    for chunk in chunks:
        known.update(set(words(f"{chunk.title} {chunk.section} {chunk.text}")))
    common = max(2, COMMON * len(chunks))
    sections = {(chunk.document, chunk.section_hash): heading(chunk) for chunk in chunks}
    headed = Counter(sections.values())

    def telling(chunk: Chunk) -> str:
        def rarity(kept: list[str]) -> float:
            return sum(math.log(len(chunks) / known[word]) for word in kept) / len(kept)

        said = (dict.fromkeys(words(part)) for part in sentences(chunk))  # the last word of a long one is cut off
        parts = [[word for word in part if 0 < known[word] <= common] for part in said]
        best = max((kept[:MOST_WORDS] for kept in parts if len(kept) >= FEWEST_WORDS), key=rarity, default=[])
        return " ".join(sorted(best))

    made: dict[str, GoldenQuestion] = {}
    for chunk in in_turn(chunks, seed):
        if len(made) == n:
            break
        names = heading(chunk) if headed[heading(chunk)] == 1 else ""
        forms = (telling(chunk), names) if len(made) % 2 else (names, telling(chunk))
        if question := next((form for form in forms if form and form not in made), None):
            made[question] = GoldenQuestion(
                PROBE + digest(question, chunk.document)[:16],
                question,
                (chunk.text,),
                chunk.document,
                chunk.section,
                chunk.section_hash,
            )
    return list(made.values())


def heading(chunk: Chunk) -> str:
    """The innermost heading first, then those around it, the title last; '' without a heading.

    >>> heading(Chunk("c", "a.md", "Offices", "Lyon > Parking", "h", "It is free."))
    'Parking, Lyon, Offices'
    """
    return ", ".join([*reversed(chunk.section.split(" > ")), chunk.title]) if chunk.section else ""


def in_turn(chunks: Sequence[Chunk], seed: int) -> list[Chunk]:
    """The chunks in a random order that depends on `seed` alone, one of each document before the second of any."""
    turns: Counter[str] = Counter()
    placed = []
    for chunk in sorted(chunks, key=lambda chunk: digest(seed, chunk.id)):
        placed.append((turns[chunk.document], chunk))
        turns[chunk.document] += 1
    return [chunk for _, chunk in sorted(placed, key=lambda place: place[0])]


# --- to be read -------------------------------------------------------------------------------


def markdown(report: RetrievalReport) -> str:
    """The report as a table: a row a metric, every figure in per cent."""
    asked = f"{report.questions} questions"
    if report.probes:
        asked += f", {report.probes} of them probes made from the documents (easier than what people ask)"
    about = f"{asked}; {report.clusters} {report.unit}s; {report.left_out} left out; {_named(report.index)}"
    compared = report.other_index is not None
    columns = ["metric", "%", "95% interval", *(["other", "difference", "bounds", "verdict"] if compared else [])]
    lines = [about, "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in report.measures:
        shown = f"{row.metric}, {report.retrieval.top_k} shown" if row.metric == "hit_rate" else row.metric
        cells = [shown, f"{100 * row.mean:.1f}", f"{100 * row.lower:.1f} to {100 * row.upper:.1f}"]
        if (d := row.difference) is not None:
            verdict = "better" if d.lower > 0 else VERDICTS[d.verdict]
            cells += [f"{100 * row.other:.1f}", f"{100 * d.mean:+.1f}"]
            cells += [f"{100 * d.lower:+.1f} to {100 * d.upper:+.1f}", f"{verdict} (margin {100 * d.margin:g})"]
        lines.append(f"| {' | '.join(cells)} |")
    if compared:
        same = report.other_retrieval == report.retrieval
        lines += ["", f"The other: {_named(report.other_index)}{'' if same else f', {report.other_retrieval}'}"]
    return "\n".join(lines)


def _named(index: IndexVersion) -> str:
    return f"index version {index.version} of {index.chunks} chunks"
