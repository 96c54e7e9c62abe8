"""False alarms of a whole assistant in thirty weeks in which nothing happens.

Seven streams and the windows of questions, as the monitor watches them: each learns its reference first, all
share one budget. Simulated, with skewed, continuous, rare and clustered values; the p-values of quiet windows are
uniform on the thousand values that 999 permutations can give (`drift-detectors` measures that on real questions).
"""

from __future__ import annotations

import numpy as np

from benchmarks.run_lengths import first_alarms

AIM = "at most .05 false alarms in all, on average"
WEEKS, HISTORIES, A_WEEK, HORIZON, ALPHA = 30, 400, 300, 10_000, 0.05
WINDOWS = 3


def met(value: dict) -> bool:
    return value["false alarms"] <= 0.05


def drawn(rng: np.random.Generator, events: int) -> dict[str, np.ndarray]:
    """The values of one history: the streams by the name of the row in STREAMS they stand for."""
    users = rng.integers(0, 40, events)
    habit = rng.beta(2, 18, 40)  # some users are never content
    return {
        "ratings": (rng.random(events) < habit[users]).astype(float),
        "edits": (rng.random(events) < 0.04).astype(float),
        "grounding": rng.beta(1.2, 5, events),
        "abstention": (rng.random(events) < 0.03).astype(float),
        "latency": rng.lognormal(0, 0.6, events),
        "top score": rng.beta(8, 4, events),
        "answer length": rng.poisson(rng.gamma(4, 5, events)).astype(float),
    }


def measure() -> dict:
    """Mean false alarms of a history, beside a test of every signal in every week at 5% against its reference."""
    from scipy import stats

    from tasks.edetector import threshold, upper_rate, watch_p
    from tasks.references import MonitorSettings
    from tasks.streams import STREAMS, badness, usual

    chosen, events = MonitorSettings(), WEEKS * A_WEEK
    streams: dict[str, list[np.ndarray]] = {}
    rates: dict[str, list[float]] = {}
    naive = 0
    for history in range(HISTORIES):
        rng = np.random.default_rng(history)
        for name, values in drawn(rng, chosen.reference + events).items():
            bad, reference = STREAMS[name].bad, values[: chosen.reference]
            mark = usual(bad, reference)
            before, after = (
                np.array([badness(bad, mark, x) for x in part]) for part in (reference, values[chosen.reference :])
            )
            streams.setdefault(name, []).append(after.astype(np.float32))
            rates.setdefault(name, []).append(upper_rate(before) + chosen.slack)
            weeks = after.reshape(WEEKS, A_WEEK)
            naive += int((stats.ttest_ind(weeks, before, axis=1, alternative="greater").pvalue < 0.05).sum())
        naive += int((rng.random(WEEKS) < 0.05).sum())
    signals = len(streams) + 1
    alarms = {
        name: int((first_alarms(np.stack(rows), np.array(rates[name]), threshold(signals, HORIZON, ALPHA)) > 0).sum())
        for name, rows in streams.items()
    }
    alarms["questions"] = sum(
        quiet_windows(np.random.default_rng([1, history]), watch_p(threshold(signals, WEEKS * WINDOWS, ALPHA)))
        for history in range(HISTORIES)
    )
    value = {
        "false alarms": sum(alarms.values()) / HISTORIES,
        "naive": round(naive / HISTORIES, 2),
        "by signal": alarms,
    }
    return {"value": value, "n": {"histories": HISTORIES, "weeks": WEEKS, "signals": signals, "events": events}}


def quiet_windows(rng: np.random.Generator, state) -> bool:
    """Whether the detector of questions alarms over WEEKS of quiet windows."""
    from tasks.edetector import update_p

    for p in np.minimum(1.0, 3 * rng.integers(1, 1001, (WEEKS * WINDOWS, 3)).min(1) / 1000):
        state = update_p(state, float(p))
    return state.alarm
