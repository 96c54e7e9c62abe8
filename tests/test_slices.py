"""Parts of the golden questions: harm in a slice, what the sealed part keeps back, and that it tells nothing else."""

import numpy as np
import pytest

from tasks.gate import GateSettings, decide
from tasks.intervals import pair
from tasks.slices import apart_by_chance
from tests.test_gate import OK, judged, scores


def test_a_slice_blocks_on_proven_harm_and_only_warns_otherwise():
    n = 400
    candidate, champion = np.ones(n), np.ones(n)
    champion[300:] = 0
    slices = [("billing",) if i < 40 else () for i in range(n)]
    for lost, verdict in ((20, "reject"), (4, "promote")):
        worse = candidate.copy()
        worse[:40:2][:lost] = 0
        decision = decide(scores(worse, slices=slices), scores(champion, slices=slices), OK)
        assert decision.verdict == verdict
        assert "billing" in decision.reason + " ".join(decision.notes)


def kept_apart(n=200, documents=10):
    """The questions of the last documents, four each."""
    return {f"q{i}" for i in range(n - 4 * documents, n)}


def test_a_candidate_that_gains_only_on_the_questions_that_could_be_looked_at_is_held():
    champion = np.tile([0.0, 1.0], 100)
    candidate = champion.copy()
    candidate[:160] = 1.0
    assert judged(candidate, champion).verdict == "promote"
    decision = judged(candidate, champion, sealed=kept_apart())
    assert decision.verdict == "hold" and decision.look == 1
    assert "(+50.0 points) than on the sealed ones (+0.0)" in decision.reason
    assert judged(candidate, champion, kind="index-only", sealed=kept_apart()).verdict == "promote"


def test_a_gain_everywhere_is_promoted_whatever_is_sealed_and_a_loss_where_nobody_looked_is_rejected():
    champion = np.tile([0.0, 1.0], 100)
    better, worse = champion.copy(), champion.copy()
    better[::4] = 1.0
    worse[160:] = 0.0
    worse[:40] = 1.0
    assert judged(better, champion, sealed=kept_apart()).verdict == "promote"
    decision = judged(worse, champion, sealed=kept_apart())
    assert decision.verdict == "reject" and "correct in the sealed part -50.0" in decision.reason


def test_the_sealed_part_is_in_the_verdict_and_in_no_figure_beside_it():
    champion = np.ones(200)
    candidate = champion.copy()
    candidate[196:] = 0.0
    decision = judged(candidate, champion, settings=GateSettings(margin=0.08), sealed=kept_apart())
    assert decision.verdict == "promote" and decision.intervals[0].mean == pytest.approx(-0.02)
    assert decision.metrics == decision.baseline == {"correct": 1.0}
    assert "sealed" not in " ".join(decision.notes)


def test_what_is_sealed_by_chance_seldom_holds_an_equal_candidate():
    held, random = 0, np.random.default_rng(5)
    for _ in range(100):
        d = random.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=200)
        both = pair("correct", scores(np.maximum(d, 0.0)), scores(np.maximum(-d, 0.0)))
        apart = {f"q{4 * document + i}" for document in random.choice(50, 10, replace=False) for i in range(4)}
        held += apart_by_chance(both, apart) <= 0.05
    assert held <= 11
    assert apart_by_chance(both, ()) == apart_by_chance(both, set(both.questions)) == 1.0
