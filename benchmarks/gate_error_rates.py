"""How often the gate lets a worse release through, and a better one: five real systems with human verdicts.

Every question is a document of its own and scores 0 or 1, so the gate's interval rests on three counts alone: questions
won, lost and tied. Drawing n questions with replacement makes them multinomial, and the rates below are sums over all
counts, through the gate's own interval and rule: what endless resampling would come to.
"""

import gzip
import json
import sys
from functools import cache
from itertools import combinations, permutations

import numpy as np
from scipy import stats

from benchmarks.machine import data

AIM = "margin 2: -3.4 let through <= 5% (n=100, 200), -5.9 <= 1% (200), +5.9 >= 83% (200), 97% (400); A/A <= 5%"
SYSTEMS = ("fid", "gpt35", "chatgpt", "gpt4", "newbing")
SIZES = (100, 200, 400, 800)
MARGINS = (0.02, 0.03, 0.05)
THRESHOLD = 0.70
NEGLIGIBLE = 1e-5
"""Probability of a count that is left out at either end."""


def met(value: dict) -> bool:
    wanted = value["targets"]
    return (
        max(wanted["promoted at -3.4"]["100"], wanted["promoted at -3.4"]["200"]) <= 0.05
        and wanted["promoted at -5.9"]["200"] <= 0.01
        and wanted["promoted at +5.9"]["200"] >= 0.83
        and wanted["promoted at +5.9"]["400"] >= 0.97
        and wanted["A/A superior, worst pair"] <= 0.05
    )


def measure() -> dict:
    """Rates of all 20 ordered pairs of systems at every size and margin, and the targets among them."""
    verdicts = read()
    table = [compared(verdicts, *names) for names in permutations(SYSTEMS, 2)]
    for row in sorted(table, key=lambda row: row["points"]):
        print(json.dumps(row), file=sys.stderr)
    same = {
        name: max(superior_by_chance(verdicts, *pair, n) for pair in combinations(SYSTEMS, 2)) for name, n in sized()
    }
    value = {
        "targets": {
            "promoted at -3.4": rates_at(table, -3.4, "paired, margin 2"),
            "promoted at -5.9": rates_at(table, -5.9, "paired, margin 2"),
            "promoted at +5.9": rates_at(table, 5.9, "paired, margin 2"),
            "A/A superior, worst pair": max(same.values()),
        },
        "A/A superior, worst pair by n": same,
        "worst false promotion": {rule: worst_false(table, rule) for rule in rules()},
        "pairs": table,
    }
    return {"value": value, "n": len(verdicts["fid"]), "against": "score >= .70, mean > champion", "limit": None}


def read() -> dict[str, np.ndarray]:
    """System -> whether a person called each answer right, of the questions not flagged improper."""
    with gzip.open(data("evouna_nq.json.gz")) as stream:
        rows = [row for row in json.load(stream) if not row["improper"]]
    return {name: np.array([bool(row[f"judge_{name}"]) for row in rows]) for name in SYSTEMS}


def rules() -> list[str]:
    return [f"score >= {THRESHOLD:.2f}", "mean > champion", *(f"paired, margin {100 * m:.0f}" for m in MARGINS)]


def sized() -> list[tuple[str, int]]:
    return [(str(n), n) for n in SIZES]


def compared(verdicts: dict[str, np.ndarray], candidate: str, champion: str) -> dict:
    """The true difference of two systems in points, and how often each rule promotes at each size."""
    a, b = verdicts[candidate], verdicts[champion]
    gain, loss = float((a & ~b).mean()), float((b & ~a).mean())
    promoted: dict[str, dict[str, float]] = {rule: {} for rule in rules()}
    for name, n in sized():
        gains, losses, chance = counts(n, gain, loss)
        promoted[rules()[0]][name] = float(stats.binom.sf(np.ceil(THRESHOLD * n) - 1, n, a.mean()))
        promoted[rules()[1]][name] = float(chance[gains > losses].sum())
        for margin in MARGINS:
            passes = decided(n, gains, losses, margin)
            promoted[f"paired, margin {100 * margin:.0f}"][name] = float(chance[passes].sum())
    rounded = {rule: {n: round(rate, 4) for n, rate in by_size.items()} for rule, by_size in promoted.items()}
    points, discordance = round(100 * (gain - loss), 2), round(gain + loss, 3)
    return {"candidate": candidate, "champion": champion, "points": points, "p_d": discordance, "promoted": rounded}


def counts(n: int, gain: float, loss: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of counts (won, lost) that can come up among n questions, and the probability of each."""
    reach = [np.arange(stats.binom.ppf(NEGLIGIBLE, n, p), stats.binom.isf(NEGLIGIBLE, n, p) + 1) for p in (gain, loss)]
    gains, losses = (grid.ravel().astype(int) for grid in np.meshgrid(*reach))
    possible = gains + losses <= n
    gains, losses = gains[possible], losses[possible]
    chance = stats.multinomial.pmf(np.stack([gains, losses, n - gains - losses], 1), n, [gain, loss, 1 - gain - loss])
    return gains, losses, chance


def decided(n: int, gains: np.ndarray, losses: np.ndarray, margin: float) -> np.ndarray:
    """Whether the gate promotes at each pair of counts."""
    from tasks.intervals import settled

    return np.array(
        [settled(*bounds(n, *won_lost), margin) == "promote" for won_lost in zip(gains, losses, strict=True)]
    )


@cache
def bounds(n: int, gains: int, losses: int) -> tuple[float, float]:
    """The gate's lower and upper bound for n questions of which the candidate wins and loses so many."""
    from tasks.intervals import paired_interval

    if gains < losses:  # arms exchanged: half the work
        lower, upper = bounds(n, losses, gains)
        return -upper, -lower
    candidate, champion = np.zeros(n), np.zeros(n)
    candidate[:gains], champion[gains : gains + losses] = 1, 1
    interval = paired_interval("correct", candidate, champion, range(n), 0.0, binary=True)
    return interval.lower, interval.upper


def superior_by_chance(verdicts: dict[str, np.ndarray], one: str, other: str, n: int) -> float:
    """How often "better" is said where the arms of a pair are swapped by a coin for every question."""
    from tasks.intervals import better

    half = float((verdicts[one] != verdicts[other]).mean()) / 2
    gains, losses, chance = counts(n, half, half)
    superior = [better(bounds(n, *won_lost)[0], *won_lost, 0.05) for won_lost in zip(gains, losses, strict=True)]
    return round(float(chance[superior].sum()), 4)


def rates_at(table: list[dict], points: float, rule: str) -> dict[str, float]:
    """The rates of the pair whose true difference, rounded, is `points`."""
    row = next(row for row in table if round(row["points"], 1) == points)
    return row["promoted"][rule]


def worst_false(table: list[dict], rule: str) -> dict[str, float]:
    """Size -> the highest rate among pairs that are worse than the rule's margin (2 points for the other two)."""
    margin = float(rule.removeprefix("paired, margin ")) if rule.startswith("paired") else 2.0
    worse = [row for row in table if row["points"] < -margin]
    return {n: max(row["promoted"][rule][n] for row in worse) for n, _ in sized()}
