"""The e-detector: many at once are the same as one at a time, and a restart keeps the reference."""

import numpy as np

from benchmarks.run_lengths import first_alarms
from tasks.edetector import restart, update, watch


def test_the_recursion_on_arrays_alarms_at_the_same_event_as_one_update_at_a_time():
    rng = np.random.default_rng(0)
    values = (rng.random((6, 400)) < np.array([0.1, 0.1, 0.3, 0.3, 0.5, 0.5])[:, None]).astype(float)
    p0 = np.array([0.1, 0.4, 0.1, 0.4, 0.1, 0.4])
    expected = []
    for row, rate in zip(values, p0, strict=True):
        state, first = watch(rate, 1e4), 0
        for event, x in enumerate(row, start=1):
            state = update(state, float(x))
            first = first or (event if state.alarm else 0)
        expected.append(first)
    assert first_alarms(values, p0, 1e4).tolist() == expected
    assert sum(first > 0 for first in expected) >= 2


def test_a_restart_forgets_the_alarm_and_keeps_the_reference():
    state = watch(0.1, 10.0)
    for _ in range(20):
        state = update(state, 1.0)
    assert state.alarm
    assert restart(state) == watch(0.1, 10.0)
