"""What a free judge adds to 100 human labels: prediction-powered paired intervals on EVOUNA's real systems.

Every pair of the five systems, paired by question: a person's verdicts on 100 questions, lexical containment on as many
others as there are. Items are drawn with replacement, so each draw is a new sample of a world whose truth is the mean
of all human verdicts.
"""

from __future__ import annotations

import gzip
import json
from itertools import combinations

import numpy as np

from benchmarks.machine import data

AIM = "coverage >= .94; error >= 15% below labels alone on every pair, 20% on average"
SYSTEMS = ("fid", "gpt35", "chatgpt", "gpt4", "newbing")
LABELS, DRAWS, BATCH = 100, 10_000, 250


def met(value: dict) -> bool:
    return value["coverage"] >= 0.94 and value["least_saved"] >= 0.15 and value["mean_saved"] >= 0.20


def usable() -> list[dict]:
    """The questions that are proper and that every system answered and a person judged."""
    with gzip.open(data("evouna_nq.json.gz"), "rt") as file:
        rows = json.load(file)
    complete = [f"{part}_{system}" for part in ("answer", "judge") for system in SYSTEMS]
    return [row for row in rows if not row["improper"] and all(row[name] is not None for name in complete)]


def measure() -> dict:
    """`error` is the spread of the estimates over the draws; `stated` the mean standard error that they claim."""
    from tasks import ppi
    from tasks.judge import containment

    rows = usable()
    labels = {system: np.array([float(row[f"judge_{system}"]) for row in rows]) for system in SYSTEMS}
    verdicts = {
        system: np.array([containment(row[f"answer_{system}"], row["golden_answer"].split("/")) for row in rows])
        for system in SYSTEMS
    }
    random, pairs = np.random.default_rng(0), list(combinations(SYSTEMS, 2))
    drawn = {pair: [] for pair in pairs}
    for _ in range(DRAWS // BATCH):
        labelled = random.integers(len(rows), size=(BATCH, LABELS))
        others = random.integers(len(rows), size=(BATCH, len(rows) - LABELS))
        for one, two in pairs:
            y, f = labels[two] - labels[one], (verdicts[two] - verdicts[one]).astype(np.float32)
            drawn[one, two].append((ppi.estimate(y[labelled], f[labelled], f[others]), y[labelled]))
    table = {f"{one}-{two}": summary(labels[two] - labels[one], drawn[one, two]) for one, two in pairs}
    print_table(table)
    saved = [row["saved"] for row in table.values()]
    value = {
        "coverage": min(row["coverage"] for row in table.values()),
        "least_saved": min(saved),
        "mean_saved": round(float(np.mean(saved)), 4),
        "pairs": table,
    }
    return {"value": value, "n": len(rows), "against": f"{LABELS} labels alone", "limit": 1.0}


def summary(truth: np.ndarray, drawn: list) -> dict:
    """One pair: how often the 95% interval covers the truth, errors in points, the share of the error saved."""
    covered, means, errors, alone = [], [], [], []
    for found, labels in drawn:
        lower, upper = found.bounds(0.025, LABELS)
        covered.append((lower <= truth.mean()) & (truth.mean() <= upper))
        means.append(found.mean)
        errors.append(found.error)
        alone.append(labels.mean(-1))
    error, labels_alone = np.std(np.concatenate(means)), np.std(np.concatenate(alone))
    figures = {
        "truth": truth.mean(),
        "coverage": np.mean(covered),
        "error": error,
        "stated": np.mean(errors),
        "labels_alone": labels_alone,
        "saved": 1 - error / labels_alone,
        "worth": (labels_alone / error) ** 2,
    }
    return {name: round(float(figure), 4) for name, figure in figures.items()}


def print_table(table: dict[str, dict]) -> None:
    columns = list(next(iter(table.values())))
    print(f"| pair | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for pair, row in table.items():
        print(f"| {pair} | {' | '.join(f'{row[column]:.4f}' for column in columns)} |")
