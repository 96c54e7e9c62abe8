"""Many histories of the project's e-detector at once: the recursion of `tasks/edetector.py` on arrays."""

from __future__ import annotations

import numpy as np

from tasks.edetector import LAMBDAS, advance


def first_alarms(values: np.ndarray, p0: np.ndarray, bar: float) -> np.ndarray:
    """Event of the first alarm (from 1) in each row of `values` [histories, events]; 0 where there is none.

    `p0` [histories]: the reference rates, slack included. The same as `update` one event at a time (a test says so).
    """
    rate = np.broadcast_to(np.asarray(p0, dtype=float), len(values))[:, None]
    lambdas = np.array(LAMBDAS)
    used = (lambdas * rate < 1).astype(float)
    runs, first = np.zeros((len(values), len(lambdas))), np.zeros(len(values), dtype=int)
    for event in range(values.shape[1]):
        runs = advance(runs, 1 + lambdas * (values[:, event, None] - rate)) * used
        level = runs.sum(1) / used.sum(1)
        first = np.where((first == 0) & (level >= bar), event + 1, first)
    return first
