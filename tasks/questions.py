"""Two samples of questions compared: three permutation tests that share their permutations, and the topics that moved.

Each statistic is recomputed under every relabelling, so its p-value is exact whenever the questions (or, given
users, the users) are exchangeable; neither dependence between nearest neighbours nor a chatty user spoils it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats

NEIGHBOURS = 64
FEWEST = 20
"""Different questions on a side below which nothing is tested."""
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Tests:
    """One-sided p-values of the three tests, and `holm`, the smallest after Holm's correction."""

    mmd: float
    nearest: float
    vocabulary: float

    @property
    def holm(self) -> float:
        return min(1.0, 3 * min(self.mmd, self.nearest, self.vocabulary))


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def collapse(texts: Sequence[str]) -> list[int]:
    """Indices of the first occurrence of each question, spacing, case and punctuation aside."""
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(" ".join(words(text)) or text, i)
    return list(first.values())


def compare(
    embeddings: np.ndarray,
    texts: Sequence[str],
    reference: int,
    users: Sequence[str] | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> Tests:
    """Tests of the questions after the first `reference` of them against those.

    Args:
        embeddings: float32 [n, d], unit rows, the reference first.
        users: who asked each; relabelling then moves all questions of a user together.

    Raises:
        ValueError: with fewer than FEWEST questions on a side.
    """
    n = len(texts)
    if min(reference, n - reference) < FEWEST:
        given = f"{reference} reference and {n - reference} window questions"
        raise ValueError(f"{given}; collect at least {FEWEST} of each")
    labels = relabel(n, reference, users, permutations, np.random.default_rng(seed))
    similarity = embeddings @ embeddings.T
    return Tests(
        *(_p(f) for f in (discrepancy(similarity, labels), nearest(similarity, labels), unseen_words(texts, labels)))
    )


def relabel(n: int, reference: int, users: Sequence[str] | None, permutations: int, rng) -> np.ndarray:
    """Bool [permutations + 1, n], True in the window; row 0 is how it was, the others are shuffled.

    A user on both sides counts as two, so that what was asked on one side stays together.
    """
    actual = np.arange(n) >= reference
    if users is None:
        return np.vstack([actual, *(rng.permutation(actual) for _ in range(permutations))])
    _, group = np.unique([f"{side}{user}" for side, user in zip(actual, users, strict=True)], return_inverse=True)
    sizes = np.bincount(group)
    rows, wanted = [actual], n - reference
    for _ in range(permutations):
        order = rng.permutation(len(sizes))
        total = np.cumsum(sizes[order])
        taken = int(np.argmin(np.abs(total - wanted))) + 1
        chosen = np.zeros(len(sizes), dtype=bool)
        chosen[order[:taken]] = True
        rows.append(chosen[group])
    return np.vstack(rows)


def _p(statistic: np.ndarray) -> float:
    """Share of relabellings at least as extreme as the first row; never 0."""
    tolerance = 1e-9 * (1 + abs(statistic[0]))
    return float(np.mean(statistic >= statistic[0] - tolerance))


def discrepancy(similarity: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012), Gaussian kernel, median bandwidth."""
    distance = np.maximum(0.0, 2 - 2 * similarity)
    scale = np.median(distance[np.triu_indices(len(distance), 1)]) or 1.0
    kernel = np.exp(-distance / scale, dtype=np.float32)
    np.fill_diagonal(kernel, 0.0)
    window = labels.astype(np.float32)
    m, n = window.sum(1), (1 - window).sum(1)
    reached = window @ kernel
    inside = np.einsum("pn,pn->p", reached, window)
    across = np.einsum("pn,pn->p", reached, 1 - window)
    outside = float(kernel.sum(dtype=np.float64)) - inside - 2 * across
    return inside / (m * (m - 1)) + outside / (n * (n - 1)) - 2 * across / (m * n)


def nearest(similarity: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mann-Whitney: mean rank of the window's distance to its nearest reference question; leave-one-out."""
    alone = similarity.copy()
    np.fill_diagonal(alone, -np.inf)
    depth = min(NEIGHBOURS, len(alone) - 1)
    near = np.argpartition(-alone, depth - 1, axis=1)[:, :depth]
    near = np.take_along_axis(near, np.argsort(-np.take_along_axis(alone, near, 1), axis=1), 1)
    by_distance = np.take_along_axis(alone, near, 1)
    distance = np.empty(labels.shape)
    for row, window in enumerate(labels):
        known = ~window[near]
        # Where all neighbours are in the window, the farthest of them stands in: an upper bound, never an alarm more.
        place = np.where(known.any(1), known.argmax(1), depth - 1)
        distance[row] = -by_distance[np.arange(len(near)), place]
    rank, inside = stats.rankdata(distance, axis=1), labels.sum(1)
    of_window = (rank * labels).sum(1)
    return of_window / inside - (rank.sum(1) - of_window) / (labels.shape[1] - inside)


def unseen_words(texts: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Fisher: excess share of window questions with a word that no (other) reference question has."""
    bags = [set(words(text)) for text in texts]
    count = Counter(word for bag in bags for word in bag)
    # A word can only be new to somebody if all others who use it are in the window, so common words never matter.
    largest = int(labels.sum(1).max())
    rare = {word: i for i, word in enumerate(sorted(word for word, uses in count.items() if uses <= largest + 1))}
    pairs = [(i, rare[word]) for i, bag in enumerate(bags) for word in sorted(bag) if word in rare]
    if not pairs:
        return np.zeros(len(labels))
    row, column = np.array(pairs).T
    has = sparse.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=(len(bags), len(rare)))
    known = (~labels).astype(np.float32) @ has
    result = np.empty(len(labels))
    for index, window in enumerate(labels):
        unseen = known[index][column] - (~window)[row] < 0.5
        new = np.bincount(row, weights=unseen, minlength=len(bags)) > 0
        result[index] = new[window].mean() - new[~window].mean()
    return result


def topics(embeddings: np.ndarray, texts: Sequence[str], reference: int, seed: int = 0, most: int = 3) -> list[dict]:
    """Topics that grew most in the window: k-means clusters, each with its telling words, shares and three questions.

    Only clusters that at least doubled and gained 3% of the window are named.
    """
    from sklearn.cluster import KMeans

    window = np.arange(len(texts)) >= reference
    clusters = KMeans(n_clusters=int(np.clip(len(texts) // 30, 2, 24)), n_init=2, random_state=seed).fit(embeddings)
    everywhere = Counter(word for text in texts for word in set(words(text)))
    found = []
    for label in range(clusters.n_clusters):
        inside = clusters.labels_ == label
        now, before = float(inside[window].mean()), float(inside[~window].mean())
        if now - before < 0.03 or now < 2 * before:
            continue
        asked = np.flatnonzero(inside & window)
        here = Counter(word for i in asked for word in set(words(texts[i])) if len(word) > 3)
        telling = sorted(here, key=lambda word: (-(here[word] ** 2) / everywhere[word], word))[:3]
        central = asked[np.argsort(-(embeddings[asked] @ clusters.cluster_centers_[label]))[:3]]
        found.append(
            {
                "words": " ".join(telling),
                "window_share": now,
                "reference_share": before,
                "examples": [texts[i] for i in central],
            }
        )
    return sorted(found, key=lambda topic: topic["reference_share"] - topic["window_share"])[:most]
