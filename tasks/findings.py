"""What one evaluation found, ready to be shown: intervals of every metric, tables, the worst regressions."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from data.records import Decision, Interval
from tasks.gate import GateSettings, guardrail
from tasks.intervals import Scores, pair

WORST = 20


@dataclass(frozen=True)
class Found:
    """Every metric's interval, the untuned model's means, tables (a title row, then rows), the worst regressions."""

    decision: Decision
    intervals: list[Interval]
    untuned: dict[str, float]
    tables: dict[str, list[list[str]]]
    worst: list[dict]


def find(decision: Decision, body: dict, untuned: dict[str, float] | None) -> Found:
    """What there is to show, from the stored scores: nothing of the sealed part but what the decision says."""
    settings = GateSettings.of(decision.settings) if decision.settings else GateSettings()
    read = {name: Scores.of(body[name]) for name in ("candidate", "champion") if body[name]}
    arms = {name: scores.without(body.get("sealed", ())) for name, scores in read.items()}
    measured, worst, slices = list(decision.intervals), [], []
    if len(arms) == 2:
        named = {interval.metric for interval in measured}
        measured += [i for i in intervals_of(arms, settings) if i.metric not in named]
        worst = regressions(arms, body["rows"], settings.primary)
        slices = sliced(arms, settings)
    return Found(
        decision,
        measured,
        untuned or {},
        {
            "Figures": levels(decision, untuned or {}),
            "Slices": slices,
            "Costs and latencies": costs(arms, body),
            "Seeds and hashes": hashes(decision, body),
        },
        worst,
    )


def intervals_of(arms: dict[str, Scores], settings: GateSettings) -> list[Interval]:
    """The interval of every metric both arms have, the primary first; margins of guardrails but for the primary."""
    names = sorted(arms["candidate"].metrics, key=lambda name: name != settings.primary)
    found = []
    for name in names:
        pairs = pair(name, arms["candidate"], arms["champion"])
        if pairs.questions and name == settings.primary:
            found.append(pairs.interval(name, settings.margin, settings.look_alpha, settings.max_missing))
        elif pairs.questions:
            found.append(guardrail(name, pairs, settings))
    return found


def levels(decision: Decision, untuned: dict[str, float]) -> list[list[str]]:
    """Means of every metric in each arm, 0 to 1 and higher better (latency in seconds)."""
    baseline = decision.baseline or {}
    rows = [
        [name, *(f"{arm[name]:.3f}" if name in arm else "" for arm in (decision.metrics, baseline, untuned))]
        for name in decision.metrics or {}
    ]
    return [["metric", "candidate", "champion", "untuned"], *rows] if rows else []


def sliced(arms: dict[str, Scores], settings: GateSettings) -> list[list[str]]:
    """The primary metric in each slice, the worst first."""
    pairs = pair(settings.primary, arms["candidate"], arms["champion"])
    rows = []
    for name, inside in arms["candidate"].by_slice.items():
        part = pairs.only(inside).interval(name, settings.margin, settings.look_alpha, settings.max_missing)
        rows.append(
            (part.mean, [name, str(part.n), difference(part), f"{100 * part.lower:+.1f} to {100 * part.upper:+.1f}"])
        )
    rows.sort(key=lambda row: row[0])
    return [["slice", "questions", "difference in points", "bounds"], *(row for _, row in rows)] if rows else []


def costs(arms: dict[str, Scores], body: dict) -> list[list[str]]:
    """Tokens and seconds of each arm's answers, and what the evaluation took."""
    rows = [["arm", "prompt tokens a question", "answer tokens", "median seconds", "95% within"]]
    for name, scores in arms.items():
        used = [statistics.fmean(column) for column in zip(*(row["tokens"] for row in body["rows"][name]), strict=True)]
        timed = sorted(value for value in scores.metrics.get("latency", ()) if value is not None)
        seconds = (
            [f"{timed[len(timed) // 2]:.2f}", f"{timed[math.ceil(0.95 * len(timed)) - 1]:.2f}"] if timed else ["", ""]
        )
        rows.append([name, *(f"{mean:.0f}" for mean in used), *seconds])
    done = body["evaluation"]
    return [*rows, [f"the evaluation: {done['questions']} questions", "", "", f"{done['seconds']:.0f} in all", ""]]


def hashes(decision: Decision, body: dict) -> list[list[str]]:
    """Everything needed to take the decision again."""
    rows = [["what", "value"]]
    for name, value in body["about"].items():
        parts = {f"{name} {part}": inner for part, inner in value.items()} if isinstance(value, dict) else {name: value}
        rows += [[part, str(inner)] for part, inner in parts.items() if inner is not None]
    judged = [f"look {decision.look}" if decision.look else "no test", f"alpha {decision.alpha:g}", decision.judged]
    settings = ", ".join(f"{name} {value}" for name, value in (decision.settings or {}).items())
    return [*rows, ["judged", ", ".join(judged)], ["gate settings", settings], ["changed", ", ".join(body["changed"])]]


def regressions(arms: dict[str, Scores], rows: dict[str, list[dict]], primary: str) -> list[dict]:
    """The questions that lost most of the primary metric, and among equals most over all metrics."""
    theirs = {row["id"]: (row, at) for at, row in enumerate(rows["champion"])}
    found = []
    for at, row in enumerate(rows["candidate"]):
        other, place = theirs[row["id"]]
        scores = {
            name: (values[at], arms["champion"].metrics[name][place])
            for name, values in arms["candidate"].metrics.items()
            if name != "latency" and name in arms["champion"].metrics
        }
        scores = {name: both for name, both in scores.items() if None not in both}
        lost = _lost(scores.get(primary, (0.0, 0.0)))
        if lost > 0:
            told = {"lost": lost, "in all": sum(map(_lost, scores.values())), "scores": scores}
            found.append(told | {"candidate": row, "champion": other})
    found.sort(key=lambda told: (-told["lost"], -told["in all"], told["candidate"]["id"]))
    return found[:WORST]


def _lost(both: tuple[float, float]) -> float:
    """A score that is missing is the worst case for the candidate."""
    mine, theirs = both
    return (1.0 if math.isnan(theirs) else theirs) - (0.0 if math.isnan(mine) else mine)


def difference(interval: Interval) -> str:
    return f"{100 * interval.mean:+.1f}"
