"""The gate: who is let through, who is not, and what it says."""

import json
import math

import numpy as np
import pytest

from data.records import Decision, Interval, as_json
from tasks.findings import intervals_of
from tasks.gate import GateSettings, Scores, decide
from tasks.intervals import better, better_by_chance, items_needed, pair, paired_interval, tango_bounds, tango_z

OK = {"format": None, "citations resolve": None}


def scores(values, per_document=4, name="correct", slices=(), **more):
    n = len(values)
    metrics = {name: [float(v) if v is not None else None for v in values]} | more
    return Scores(
        tuple(f"q{i}" for i in range(n)), tuple(f"d{i // per_document}" for i in range(n)), metrics, tuple(slices)
    )


def arms(n=200, gains=0, losses=0, right=0.6):
    """Champion and candidate 0/1 scores that differ in exactly `gains` and `losses` places, spread over documents."""
    order = np.random.default_rng(7).permutation(n)
    champion = np.zeros(n)
    champion[order[: int(right * n)]] = 1
    candidate = champion.copy()
    candidate[order[:losses]] = 0
    candidate[order[n - gains :]] = 1
    return candidate, champion


def judged(candidate, champion, kind="change", settings=GateSettings(), hard=OK, **more):
    return decide(scores(candidate), scores(champion), hard, settings, kind, release="new", **more)


def test_an_equal_candidate_is_promoted_and_a_much_worse_one_rejected():
    assert judged(*arms(gains=4, losses=4)).verdict == "promote"
    assert judged(*arms(losses=40)).verdict == "reject"


def test_a_hold_says_how_many_questions_would_settle_it():
    decision = judged(*arms(gains=8, losses=16))
    assert decision.verdict == "hold"
    assert "questions would settle it" in decision.reason


def test_more_items_with_the_same_difference_settle_a_hold():
    held = judged(*arms(n=200, gains=8, losses=16))
    needed = items_needed(held.intervals[0])
    times = math.ceil(needed / 200)
    settled = judged(*arms(n=200 * times, gains=8 * times, losses=16 * times))
    assert settled.verdict in ("promote", "reject") or needed > 1000


def test_a_broken_hard_constraint_rejects_the_best_candidate():
    decision = judged(*arms(gains=60), hard={"format": None, "deleted text": "chunk c1 was deleted and is cited"})
    assert decision.verdict == "reject"
    assert "chunk c1 was deleted" in decision.reason


def test_the_bootstrap_needs_hard_constraints_only():
    only = scores([0.0] * 5)
    assert decide(only, None, OK, kind="bootstrap").verdict == "bootstrap"
    assert decide(only, None, {"format": "no JSON"}, kind="bootstrap").verdict == "reject"
    with pytest.raises(ValueError, match="no hard constraint was checked"):
        decide(only, None, {}, kind="bootstrap")


def test_the_first_tuned_candidate_must_be_better_than_the_bootstrap():
    tie, better, worse = arms(gains=4, losses=4), arms(gains=20), arms(losses=20)
    assert judged(*tie, kind="change").verdict == "promote"
    assert judged(*tie, kind="first-tuned").verdict == "hold"
    assert judged(*better, kind="first-tuned").verdict == "promote"
    assert judged(*worse, kind="first-tuned").verdict == "reject"


def test_superiority_is_said_only_when_the_lower_bound_is_above_zero():
    assert judged(*arms(gains=20)).superior
    assert not judged(*arms(gains=4, losses=2)).superior


@pytest.mark.parametrize(("n", "per_document"), [(59, 2), (60, 5)])
def test_too_few_questions_or_documents_hold(n, per_document):
    candidate, champion = arms(n=n, gains=20)
    decision = decide(scores(candidate, per_document), scores(champion, per_document), OK)
    assert decision.verdict == "hold"
    assert "vote" in decision.reason


def test_missing_scores_over_two_percent_hold_however_good_the_rest_is():
    candidate, champion = arms(n=200, gains=60)
    candidate[:5] = math.nan
    decision = judged(candidate, champion)
    assert decision.verdict == "hold"
    assert "2.5% of the candidate's" in decision.reason
    assert not decision.superior


def test_fewer_missing_scores_count_against_the_candidate_in_either_arm():
    candidate, champion = arms(n=200)
    base = paired_interval("correct", candidate, champion, [str(i) for i in range(200)], 0.05, binary=True)
    for which in (0, 1):
        holed = [candidate.copy(), champion.copy()]
        place = np.flatnonzero(champion == (1 - which))[0]
        holed[which][place] = math.nan
        interval = paired_interval("correct", *holed, [str(i) for i in range(200)], 0.05, binary=True)
        assert interval.mean == pytest.approx(base.mean - 1 / 200)


def test_an_interval_with_too_much_missing_holds_by_itself():
    candidate, champion = arms(n=200, gains=60)
    where = [str(i) for i in range(200)]
    assert paired_interval("correct", candidate, champion, where, 0.05, binary=True).verdict == "promote"
    candidate[:5] = math.nan
    assert paired_interval("correct", candidate, champion, where, 0.05, binary=True).verdict == "hold"


def test_a_question_only_one_arm_has_is_missing_in_the_other():
    candidate, champion = arms(n=200)
    decision = decide(scores(candidate[:150]), scores(champion), OK)
    assert decision.verdict == "hold"
    assert "25.0%" in decision.reason


def test_a_failing_guardrail_blocks_a_better_candidate():
    candidate, champion = arms(gains=30)
    worse, before = arms(losses=50, right=0.9)
    decision = decide(scores(candidate, grounding=list(worse)), scores(champion, grounding=list(before)), OK)
    assert decision.verdict == "reject"
    assert "grounding" in decision.reason


def test_a_guardrail_that_does_not_apply_is_named_and_not_held_on():
    candidate, champion = arms(gains=30)
    none = [None] * 200
    decision = decide(scores(candidate, abstention=none), scores(champion, abstention=none), OK)
    assert decision.verdict == "promote"
    assert any("abstention does not apply" in note for note in decision.notes)


def test_a_guardrail_with_too_few_items_holds():
    candidate, champion = arms(gains=30)
    few = [1.0] * 59 + [None] * 141
    decision = decide(scores(candidate, abstention=few), scores(champion, abstention=few), OK)
    assert decision.verdict == "hold"
    assert "needs 60" in decision.reason


def test_a_slower_candidate_fails_the_latency_ratio():
    candidate, champion = arms(gains=30)
    rng = np.random.default_rng(1)
    seconds = rng.uniform(0.4, 0.6, 200)
    for ratio, verdict in ((1.0, "promote"), (1.6, "reject")):
        slow = list(seconds * ratio * rng.uniform(0.97, 1.03, 200))
        decision = decide(scores(candidate, latency=slow), scores(champion, latency=list(seconds)), OK)
        assert decision.verdict == verdict


def test_an_index_only_candidate_with_few_questions_is_judged_on_probes():
    few = arms(n=20)
    assert judged(*few).verdict == "hold"
    passed = judged(*few, kind="index-only", probes=[1.0] * 58 + [0.0] * 2)
    assert (passed.verdict, passed.judged) == ("promote", "probes")
    assert judged(*few, kind="index-only", probes=[1.0] * 59).verdict == "hold"
    assert judged(*few, kind="index-only", probes=[1.0] * 30 + [0.0] * 30).verdict == "reject"
    assert judged(*few, kind="index-only", probes=[1.0] * 51 + [0.0] * 9).verdict == "hold"
    assert judged(*few, kind="index-only").verdict == "hold"


def test_failing_probes_reject_an_index_that_golden_questions_would_pass():
    assert judged(*arms(), kind="index-only", probes=[0.0] * 60).verdict == "reject"
    assert judged(*arms(), kind="index-only", probes=[1.0] * 60).judged == "golden"


def test_a_worn_golden_set_holds_tuned_candidates_but_not_an_index():
    pair = arms(gains=30)
    assert judged(*pair, tuned_decisions=20).verdict == "hold"
    assert judged(*pair, tuned_decisions=19).verdict == "promote"
    assert judged(*pair, kind="index-only", tuned_decisions=20).verdict == "promote"


def test_a_candidate_that_held_is_not_tested_until_it_passes():
    pair, two = arms(gains=30), GateSettings(looks=2)
    first = judged(*pair)
    assert (first.verdict, first.look, first.alpha) == ("promote", 1, 0.05)
    again = judged(*pair, looks_before=(0.05,))
    assert again.verdict == "hold" and "Tested 1 time already" in again.reason
    planned = judged(*pair, settings=two, looks_before=(0.025,))
    assert (planned.verdict, planned.look, planned.alpha) == ("promote", 2, 0.025)
    assert judged(*pair, settings=two, looks_before=(0.025, 0.025)).verdict == "hold"
    assert judged(*pair, settings=two, looks_before=(0.05,)).verdict == "hold"
    assert judged(*pair, kind="index-only", looks_before=(0.05,)).verdict == "promote"
    with pytest.raises(ValueError, match="3 looks"):
        GateSettings(looks=3)


def test_a_hold_for_want_of_questions_was_no_look():
    assert judged(*arms(n=40, gains=20)).look == 0
    assert judged(*arms(gains=8, losses=16)).look == 1


def test_a_hold_that_tested_nothing_was_no_look_and_one_that_left_something_undecided_was():
    candidate, champion = arms(gains=30)
    few = [1.0] * 59 + [None] * 141
    short = decide(scores(candidate, abstention=few), scores(champion, abstention=few), OK)
    holed = [math.nan] * 5 + list(candidate[5:])
    missing, unfair = judged(holed, champion), judged(candidate, champion, by_chance=0.2)
    assert [(held.verdict, held.look) for held in (short, missing, unfair)] == [("hold", 0)] * 3
    candidate, champion = arms(gains=8, losses=16)
    both = decide(scores(candidate, abstention=few), scores(champion, abstention=few), OK)
    assert "needs 60" in both.reason and both.look == 1


def test_arms_exchanged_by_coins_are_rarely_called_better():
    candidate, champion = (scores(values) for values in arms(gains=40, losses=10))
    assert 0 < better_by_chance(pair("correct", candidate, champion), 0.05) <= 0.08


def test_questions_that_say_better_by_chance_are_not_decided_on():
    pair = arms(gains=30)
    assert "A/A: 4.0%" in " ".join(judged(*pair, by_chance=0.04).notes)
    held = judged(*pair, by_chance=0.2)
    assert held.verdict == "hold" and "better by chance" in held.reason


def test_better_needs_mcnemar_too():
    assert better(0.01, 12, 2, 0.05) and not better(-0.01, 12, 2, 0.05)
    assert not better(0.001, 8, 3, 0.05)


def test_a_release_with_failing_probes_is_rejected_whatever_else_changed():
    assert judged(*arms(), probes=[0.0] * 60).verdict == "reject"


def test_power_and_the_detectable_effect_are_said():
    decision = judged(*arms(gains=8, losses=16))
    assert "detectable" in decision.reason and "power" in decision.reason
    close, wide = (judged(*arms(n=400, gains=g, losses=g)).intervals[0].power for g in (4, 60))
    assert close > 0.9 > wide > 0


def test_every_metric_of_both_arms_has_an_interval():
    some = scores(arms(gains=4)[0], token_f1=[0.5] * 200, abstention=[None] * 200, latency=[0.4] * 200)
    assert [i.metric for i in intervals_of({"candidate": some, "champion": some}, GateSettings())] == [
        "correct",
        "token_f1",
        "latency",
    ]


def test_a_planned_second_look_halves_alpha():
    one = judged(*arms(gains=4, losses=4)).intervals[0]
    two = judged(*arms(gains=4, losses=4), settings=GateSettings(looks=2)).intervals[0]
    assert two.lower < one.lower


def test_a_decision_is_plain_json():
    decision = judged(*arms(gains=4))
    assert Decision.of(json.loads(json.dumps(as_json(decision)))) == decision


def test_wrong_settings_and_shapes_are_refused():
    with pytest.raises(ValueError, match="at most four"):
        GateSettings(guardrails=("a", "b", "c", "d", "e"))
    with pytest.raises(ValueError, match="give one for each"):
        Scores(("q1", "q2"), ("d1",))
    with pytest.raises(ValueError, match="repeated"):
        Scores(("q1", "q1"), ("d1", "d1"))
    with pytest.raises(ValueError, match="no kind"):
        judged(*arms(), kind="reindex")
    with pytest.raises(ValueError, match="judged against the champion"):
        decide(scores([1.0]), None, OK)


# --- the interval -----------------------------------------------------------------------------


def test_tango_at_zero_is_mcnemar():
    assert tango_z(12, 2, 44, 0.0) == pytest.approx(10 / math.sqrt(14))


@pytest.mark.parametrize(("gains", "losses", "n"), [(0, 0, 30), (12, 2, 44), (0, 30, 30), (30, 0, 30), (1, 0, 200)])
def test_tango_bounds_contain_the_difference_and_mirror(gains, losses, n):
    low, high = tango_bounds(gains, losses, n, 0.05)
    assert -1 <= low <= (gains - losses) / n <= high <= 1
    assert tango_bounds(losses, gains, n, 0.05) == pytest.approx((-high, -low), abs=1e-6)
    if abs(gains - losses) < n:
        assert tango_z(gains, losses, n, low) == pytest.approx(1.6449, abs=1e-3)


@pytest.mark.parametrize("graded", [False, True])
def test_no_difference_on_few_questions_is_not_proof_of_no_harm(graded):
    same = [0.5 if graded else 1.0] * 30
    interval = paired_interval("m", same, same, [str(i) for i in range(30)], 0.05, binary=not graded)
    assert interval.verdict == "hold"


def test_questions_of_one_document_count_as_less_than_independent_ones():
    candidate, champion = np.repeat([1.0, 0, 0, 1, 0, 1, 1, 0] * 5, 5), np.repeat([1.0, 1, 0, 0, 0, 1, 0, 1] * 5, 5)
    apart = paired_interval("m", candidate, champion, [str(i) for i in range(200)], 0.05)
    together = paired_interval("m", candidate, champion, [str(i // 5) for i in range(200)], 0.05)
    assert together.clusters == 40
    assert together.upper - together.lower > 2 * (apart.upper - apart.lower)


def test_swapping_the_arms_mirrors_the_interval():
    rng = np.random.default_rng(3)
    a, b = rng.random(120), rng.random(120)
    where = [str(i // 3) for i in range(120)]
    one, other = paired_interval("m", a, b, where, 0.05), paired_interval("m", b, a, where, 0.05)
    assert (one.lower, one.upper) == pytest.approx((-other.upper, -other.lower))


def test_items_needed_at_a_tie_match_the_formula():
    n, differing = 1000, 180
    d = np.zeros(n)
    d[: differing // 2], d[differing // 2 : differing] = 1, -1
    candidate, champion = (d > 0).astype(float), (d < 0).astype(float)
    interval = paired_interval("m", candidate, champion, [str(i) for i in range(n)], 0.01, binary=True)
    assert interval.verdict == "hold"
    formula = (1.645 + 0.842) ** 2 * 0.18 / 0.01**2
    assert items_needed(interval) == pytest.approx(formula, rel=0.03)


def test_a_candidate_at_the_margin_is_rarely_promoted_even_on_thirty_questions():
    rng, promoted, runs, names = np.random.default_rng(5), 0, 400, [str(i) for i in range(30)]
    for _ in range(runs):
        u = rng.random(30)
        candidate, champion = (u > 0.07).astype(float), (u > 0.02).astype(float)
        interval = paired_interval("m", candidate, champion, names, 0.05, binary=True)
        promoted += interval.verdict == "promote"
    assert promoted / runs <= 0.07


def test_a_worn_set_says_how_many_questions_must_be_new():
    assert "replace 40 of its 200 questions" in judged(*arms(), tuned_decisions=20).reason


def test_what_people_and_a_judge_hold_against_a_candidate_rejects_or_holds_it_and_never_promotes():
    def people(verdict):
        return Interval("people and judge", -0.12, -0.18, -0.06, 80, 60, 0.05, 0.3, 0.1, verdict)

    good = arms(gains=4, losses=4)
    rejected, held = (judged(*good, people=people(verdict)) for verdict in ("reject", "hold"))
    assert (rejected.verdict, held.verdict) == ("reject", "hold")
    assert "people and judge -12.0 points" in rejected.reason and rejected.intervals[-1].n == 80
    assert "labelled questions would settle it" in held.reason
    assert judged(*arms(losses=40), people=people("hold")).verdict == "reject"
