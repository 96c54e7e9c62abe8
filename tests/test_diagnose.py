"""Diagnosis: each row of the table, and which one comes first."""

from dataclasses import replace

import pytest

from data.records import Interval, as_json
from tasks.diagnose import KINDS, TABLE, Remedy, acted_on, diagnose
from tasks.evidence import DiagnosisSettings, Evidence, expected_cost
from tasks.signals import Signal, staleness

HOUR = 3600.0


def swap(mean, lower=None):
    return Interval(
        "quality", mean, mean - 0.03 if lower is None else lower, mean + 0.03, 300, 60, 0, 0.2, 0.05, "hold"
    )


WORSE = Evidence(labelled_quality_down=True, worse_windows=2, loss=0.1)
DEPLOYED = Evidence(quality_alarm=True, change_covers_deploy=True, loss=0.1, replay={"release": swap(0.08)})
LESS_FOUND = Evidence(retrieval_term_down=True, quality_alarm=True, loss=0.1)

CASES = [
    ("0", "rollback", Evidence(hard_broken=("citations resolve",), in_canary=True)),
    ("0", "rollback", Evidence(parse_failures=0.03, seconds_since_promotion=HOUR)),
    ("0", "rollback", Evidence(hard_broken=("unmeasured",), seconds_since_promotion=23 * HOUR)),
    ("1", "freeze", Evidence(below_chance=True, seconds_since_promotion=25 * HOUR)),
    ("1", "freeze", Evidence(hard_broken=("format",))),
    ("1", "freeze", Evidence(version_mismatch=True, seconds_since_promotion=HOUR)),
    ("1b", "recalibrate", Evidence(judge_moved=True)),
    ("2", "rollback", DEPLOYED),
    ("3", "reindex", Evidence(stale_sections=1)),
    ("3", "reindex", Evidence(signals=(staleness(1, 0, 0, 90),))),
    ("4", "reindex", replace(LESS_FOUND, replay={"index": swap(0.06)})),
    ("5", "alert", replace(LESS_FOUND, replay={"index": swap(0.0)})),
    ("5", "alert", replace(LESS_FOUND, replay={"index": swap(0.04, lower=0.01)})),
    ("6", "retrain", replace(WORSE, new_labelled_examples=500)),
    ("6", "retrain", replace(WORSE, new_preferences=300)),
    ("7", "reprompt", replace(WORSE, new_labelled_examples=499)),
    ("7", "reprompt", replace(WORSE, new_labelled_examples=600, new_preferences=400, tunable=False)),
    ("7", "collect", replace(WORSE, new_labelled_examples=2)),
    ("8", "quarantine_ratings", Evidence(rating_alarm=True, rating_alarm_users_share=0.8)),
    ("9", "alert", Evidence(rating_alarm=True, rating_alarm_users_share=0.1)),
    ("10", "nothing", Evidence(query_drift=True)),
    ("11", "alert", Evidence(quality_alarm=True, loss=0.1)),
    ("11", "alert", Evidence(volume_jump=True)),
    ("11", "alert", Evidence(signals=(Signal("latency", 1.0, True, "slow"),))),
    ("-", "nothing", Evidence()),
    ("-", "nothing", Evidence(signals=(Signal("questions", 0.98, False, "one window"),))),
]


@pytest.mark.parametrize(("row", "kind", "evidence"), CASES)
def test_each_row_has_its_remedy(row, kind, evidence):
    remedy = diagnose(evidence)
    assert (remedy.row, remedy.kind) == (row, kind)
    assert remedy.reason.endswith(".")
    assert Remedy.of(as_json(remedy)) == remedy


def test_every_row_is_reached_by_a_case_and_every_kind_is_known():
    assert {(row, kind) for row, kind, _ in CASES} == {(row.name, row.kind) for row in TABLE}
    assert {row.kind for row in TABLE} <= set(KINDS)


def test_what_is_broken_comes_before_everything():
    everything = replace(DEPLOYED, stale_sections=5, new_labelled_examples=900, rating_alarm=True, judge_moved=True)
    assert diagnose(replace(everything, hard_broken=("format",))).kind == "freeze"
    assert diagnose(replace(everything, hard_broken=("format",), in_canary=True)).kind == "rollback"
    assert diagnose(everything).row == "2"
    assert diagnose(replace(everything, change_covers_deploy=False)).row == "3"


def test_no_rollback_when_the_previous_release_is_not_proven_better():
    unproven = replace(DEPLOYED, replay={"release": swap(0.02, lower=-0.01)})
    assert diagnose(unproven).kind == "alert"


def test_less_retrieved_is_not_a_reason_to_reindex_when_the_reader_is_the_cause():
    remedy = diagnose(replace(LESS_FOUND, replay={"index": swap(0.02, lower=0.005), "model": swap(0.08)}))
    assert remedy.kind == "alert"


def test_broken_instruments_never_retrain():
    broken = replace(WORSE, new_labelled_examples=5000, below_chance=True)
    assert diagnose(broken).kind == "freeze"


def test_no_retraining_after_a_release_or_on_one_bad_window():
    ready = replace(WORSE, new_labelled_examples=900)
    assert diagnose(replace(ready, worse_windows=1)).kind == "alert"
    assert diagnose(replace(ready, change_covers_deploy=True)).kind == "alert"
    assert diagnose(replace(ready, seconds_since_promotion=HOUR)).kind == "alert"
    assert diagnose(replace(ready, retrieval_term_down=True)).kind == "alert"
    assert diagnose(replace(ready, seconds_since_promotion=48 * HOUR)).kind == "retrain"


def test_two_causes_at_about_the_same_cost_leave_the_choice_to_a_person():
    equal = DiagnosisSettings(cost_reprompt=5.0, cost_reindex=5.0)
    both = replace(LESS_FOUND, replay={"index": swap(0.08), "prompt": swap(0.08)})
    assert expected_cost(both, equal, "index") == pytest.approx(5 + 0.2 * 30)
    assert diagnose(both, equal).row == "11"
    assert "a person must choose" in diagnose(both, equal).reason
    assert diagnose(both, replace(equal, cost_reprompt=30.0)).kind == "reindex"


def test_a_moved_judge_beside_moved_quality_is_not_just_the_judge():
    assert diagnose(Evidence(judge_moved=True, quality_alarm=True)).kind == "alert"


def test_a_flood_of_ratings_does_not_hide_measured_harm():
    flooded = Evidence(rating_alarm=True, rating_alarm_users_share=0.9, quality_alarm=True, loss=0.1)
    assert diagnose(flooded).kind == "alert"


def test_questions_that_moved_beside_another_alarm_are_not_benign():
    assert diagnose(Evidence(query_drift=True, quality_alarm=True)).kind == "alert"
    assert diagnose(Evidence(query_drift=True, judge_moved=True)).kind == "alert"


def test_thresholds_are_settings():
    small = DiagnosisSettings(retrain_examples=50)
    assert diagnose(replace(WORSE, new_labelled_examples=60), small).kind == "retrain"
    assert diagnose(replace(WORSE, new_labelled_examples=60)).kind == "reprompt"


def test_a_remedy_carries_only_the_evidence_there_was():
    remedy = diagnose(Evidence(stale_sections=3))
    assert remedy.evidence == {"stale_sections": 3}
    assert remedy.expected_cost == DiagnosisSettings().cost_reindex


def test_a_remedy_acts_on_the_signals_of_its_row_alone():
    loud = Evidence(stale_sections=1, signals=(staleness(1, 0, 0), Signal("labels", 1.0, True, "worse")))
    assert acted_on(diagnose(loud), loud) == ["staleness"]


def test_what_asks_for_labels_leaves_the_detectors_on_that_a_new_prompt_restarts():
    worse = replace(WORSE, new_labelled_examples=20, signals=(Signal("labels", 1.0, True, "worse"),))
    reprompt = diagnose(worse)
    assert acted_on(reprompt, worse) == ["labels"] and acted_on(replace(reprompt, kind="collect"), worse) == []


def test_a_model_served_elsewhere_is_not_said_to_have_too_few_labels_to_retrain():
    assert "no adapter" in diagnose(replace(WORSE, new_labelled_examples=600, tunable=False)).reason
    assert "too few to retrain (500)" in diagnose(replace(WORSE, new_labelled_examples=60)).reason


def test_nothing_is_replayed_while_an_edit_is_to_be_healed_first():
    edited = Evidence(quality_alarm=True, stale_sections=1)
    assert not edited.worth_a_replay
    assert replace(edited, change_covers_deploy=True).worth_a_replay
    assert replace(edited, stale_sections=0).worth_a_replay
