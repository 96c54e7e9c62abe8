"""The e-detector: many at once are the same as one at a time, and a restart keeps the reference."""

import math

import numpy as np
import pytest

from benchmarks.run_lengths import first_alarms
from tasks.edetector import restart, threshold, update, update_p, upper_rate, watch, watch_p


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


def test_the_detector_follows_the_recursion_by_hand():
    state = watch(0.1, 1e5)
    for x in (1, 0):
        state = update(state, x)
    expected = [((0 + 1) * (1 + step * 0.9) + 1) * (1 - step * 0.1) for step in (0.25, 0.5, 1, 2, 3)]
    assert state.runs == pytest.approx(expected)
    assert state.level == pytest.approx(sum(expected) / 5)


def test_steps_that_could_turn_negative_are_left_out():
    assert watch(0.4, 100).lambdas == (0.25, 0.5, 1.0, 2.0)
    assert all(1 - step * 0.93 > 0 for step in watch(0.9, 100, slack=0.03).lambdas)


def test_the_threshold_shares_the_error_over_signals_and_events():
    assert threshold(8, 10_000, 0.05) == 1_600_000


def test_the_reference_rate_is_an_upper_bound():
    assert upper_rate([0.0] * 300) == pytest.approx(1 - 0.05 ** (1 / 300))
    assert upper_rate([1.0]) == upper_rate([1.0] * 10) == 1.0
    assert 0.5 < upper_rate(list(np.linspace(0, 1, 100))) < 0.56


def run_length(rate, state, seed, quiet=0, most=6000):
    rng = np.random.default_rng(seed)
    for _ in range(quiet):
        state = update(state, float(rng.random() < 0.1))
    for count in range(1, most):
        state = update(state, float(rng.random() < rate))
        if state.alarm:
            return count
    return most


def test_doubled_bad_ratings_are_found_in_two_hundred_events():
    runs = [run_length(0.2, watch(0.1, 1e5), seed, quiet=500) for seed in range(40)]
    assert np.mean(runs) <= 200


def test_a_quiet_stream_rarely_alarms_within_its_budget():
    events = 500
    state = watch(0.1, threshold(1, events, alpha=0.1))
    alarms = [run_length(0.1, state, seed, most=events) < events for seed in range(100)]
    assert np.mean(alarms) <= 0.1


def test_an_alarm_stays_on_and_says_when_the_trouble_began():
    state = watch(0.1, 1e4)
    for _ in range(30):
        for x in (0,) * 9 + (1,):
            state = update(state, x)
    for _ in range(30):
        state = update(state, 1)
    assert state.alarm
    assert 290 <= state.since <= 302
    while state.level >= state.threshold:
        state = update(state, 0)
    assert state.alarm


@pytest.mark.parametrize("x", [-0.1, 1.1, math.nan])
def test_what_was_not_measured_is_not_an_event(x):
    with pytest.raises(ValueError, match="leave out"):
        update(watch(0.1, 100), x)


def test_uniform_p_values_make_e_values_of_mean_one_and_small_ones_alarm():
    p = (np.arange(1, 200_001) - 0.5) / 200_000
    assert np.mean(p**-0.5 / 2) == pytest.approx(1, abs=0.01)
    state = watch_p(threshold(1, 30))
    windows = 0
    while not state.alarm:
        state, windows = update_p(state, 0.003), windows + 1
    assert windows == 3
    with pytest.raises(ValueError, match="above 0"):
        update_p(state, 0.0)
