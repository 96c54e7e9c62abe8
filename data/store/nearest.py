"""The approximate vector index of a large table: LanceDB's IVF on 8-bit vectors, tuned against exact search."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from lancedb.index import IvfSq

from data.records import Nearest
from data.store.tables import matrix, read

# Up to this many chunks every vector is compared; above, that takes longer than the rest of an answer's retrieval.
MOST_EXACT = 50_000
ROWS_A_PARTITION = 400
NEIGHBOURS = 10
PROBE_QUESTIONS = 100
WANTED_RECALL = 0.99
LEAST_RECALL = 0.95
REFINE = 3
MOST_SEGMENTS = 8


def index(table, embed: Callable[[list[str]], np.ndarray]) -> Nearest | None:
    """Brings the vector index up to date, and how it is to be searched; None where every vector is compared.

    The fewest partitions that find 99% of the exact ten nearest are searched. Probe questions are sentences of the
    chunks. An index that cannot find 95% is built anew, and if that does not help either, search stays exact.
    """
    if table.count_rows() <= MOST_EXACT:
        return None
    built = next((i for i in table.list_indices() if i.columns == ["vector"]), None)
    if built is None:
        _build(table)
    elif (stats := table.index_stats(built.name)).num_unindexed_rows:
        merged = stats.num_indices if stats.num_indices > MOST_SEGMENTS else 0
        table.to_lance().optimize.optimize_indices(num_indices_to_merge=merged, index_names=[built.name])
        table.checkout_latest()
    found = read(table, ("id", "text", "vector"))
    questions = embed(_probes(found["text"].to_pylist()))
    exact = _exact(questions, matrix(found))
    tuned = _tuned(table, questions, exact)
    if tuned is None and built is not None:
        _build(table)
        tuned = _tuned(table, questions, exact)
    return tuned


def _build(table) -> None:
    partitions = table.count_rows() // ROWS_A_PARTITION
    table.create_index("vector", config=IvfSq(distance_type="cosine", num_partitions=partitions), replace=True)


def _tuned(table, questions: np.ndarray, exact: np.ndarray) -> Nearest | None:
    """The cheapest setting with the wanted recall, else the best with the least; None when there is none."""
    partitions = max(1, table.count_rows() // ROWS_A_PARTITION)
    best = None
    for probes in (2**step for step in range(2, 11)):
        probes = min(probes, partitions)
        recall = _recall(table, questions, exact, probes)
        if recall >= LEAST_RECALL and (best is None or recall > best.recall):
            best = Nearest("IVF_SQ", probes, REFINE, round(recall, 4))
        if recall >= WANTED_RECALL or probes == partitions:
            return best
    return best


def _recall(table, questions: np.ndarray, exact: np.ndarray, probes: int) -> float:
    """Share of what is as near as the exact tenth; `exact` [n] is the similarity of that one."""
    found = 0
    for question, tenth in zip(questions, exact, strict=True):
        search = table.search(question, vector_column_name="vector").distance_type("cosine").nprobes(probes)
        near = search.refine_factor(REFINE).limit(NEIGHBOURS).select(["_distance"]).to_arrow()
        found += int((1 - near["_distance"].to_numpy() >= tenth - 1e-6).sum())
    return found / (NEIGHBOURS * len(questions))


def _exact(questions: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Cosine similarity of the tenth nearest row for each question [n]."""
    similar = questions @ vectors.T
    return -np.partition(-similar, NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1]


def _probes(texts: list[str]) -> list[str]:
    """A sentence from each of evenly spaced chunks, as much like a question as the documents give."""
    step = max(1, len(texts) // PROBE_QUESTIONS)
    return [re.split(r"(?<=[.!?])\s+", text)[-1] or text for text in texts[::step][:PROBE_QUESTIONS]]
