"""Detectors that count: what is an alarm and what is not."""

import pytest

from tasks.drift import worse_groups
from tasks.signals import anchors, clock, deleted_cited, embedder_mismatch, probe_hits, volume


def test_one_answer_that_cites_deleted_text_is_an_alarm():
    assert deleted_cited(1, 50).alarm and not deleted_cited(0, 50).alarm


def test_an_index_of_another_embedder_is_an_alarm():
    assert embedder_mismatch("a" * 64, "b" * 64).alarm and not embedder_mismatch("a" * 64, "a" * 64).alarm


def test_probes_that_lose_their_section_are_an_alarm_and_one_lost_is_not():
    assert not probe_hits([1.0] * 60, None).alarm
    assert not probe_hits([1.0] * 59 + [0.0], 1.0).alarm
    assert probe_hits([1.0] * 45 + [0.0] * 15, 1.0).alarm


def test_a_volume_jump_needs_runs_to_compare_with():
    assert not volume(5000, 1.0, [10.0] * 3).alarm
    assert volume(5000, 1.0, [10.0] * 10).alarm
    assert not volume(30, 1.0, [10.0] * 10).alarm


def test_a_clock_that_steps_back_or_runs_ahead_is_told():
    assert not clock([1.0, 2.0, 1.5], 3.0).alarm
    assert clock([5000.0, 1400.0], 5001.0).alarm
    assert clock([5000.0], 1000.0).alarm


def test_a_judge_that_grew_stricter_is_seen_on_its_anchors():
    first = [1.0] * 30 + [0.0] * 20
    assert not anchors(first, first).alarm
    assert not anchors(first, [0.0] * 2 + first[2:]).alarm
    assert anchors(first, [0.0] * 12 + first[12:]).alarm
    assert not anchors(first, [None] * 50).alarm
    with pytest.raises(ValueError, match="same answers"):
        anchors(first, first[1:])


def test_a_group_that_is_worse_for_sure_is_named():
    calm, angry = [0.0] * 45 + [1.0] * 5, [1.0] * 30 + [0.0] * 20
    assert worse_groups({"north": calm, "south": angry}, 0.12) == {"south": 0.6}
