"""What people and a judge hold against a candidate: when they are heard, and what never is."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from data import reviews
from data.records import as_json
from tasks import evaluate
from tasks.calibrate import KIND, Rules, calibrate
from tasks.gate import GateSettings
from tasks.intervals import Scores
from tasks.objection import Answered, answered, heard, may_block, weigh
from tasks.ppi import Judged
from tests.ledgers import go_live, new_ledger, release
from tests.test_calibrate import VERSION, labelled

GOOD = calibrate(*labelled(), VERSION)


def test_a_judge_may_block_only_when_calibrated_as_it_is_now():
    assert may_block(GOOD, VERSION, moved=False) == ""
    assert "never calibrated" in may_block(None, VERSION, moved=False)
    assert "tiny@1 was calibrated" in may_block(GOOD, "tiny@2", moved=False)
    assert "has moved" in may_block(GOOD, VERSION, moved=True)
    assert "kappa" in may_block(calibrate(*labelled(agree=0.7), VERSION), VERSION, moved=False)
    assert may_block(replace(GOOD, items=199, lacking=("199 labelled items",)), VERSION, moved=False)


def test_bias_does_not_keep_a_judge_out_where_labels_correct_it():
    biased = calibrate(*labelled(inflate=0.5, agree=0.98), VERSION)
    assert not biased.passed
    assert may_block(biased, VERSION, moved=False) == ""


def worse(labels, n=800, documents=800, same=0):
    """A candidate 20 points worse where it differs; the judge sees most of it; people judged the first `labels`."""
    random, found = np.random.default_rng(0), []
    for number in range(n):
        truth = float(random.choice([-1, 0, 1], p=[0.25, 0.7, 0.05]))
        verdict = truth if random.random() < 0.9 else 0.0
        pair = Judged(verdict, f"d{number % documents}", truth if number < labels else None)
        row = {"question": f"q{number}", "references": ["x"], "answer": "y"}
        unlabelled = () if number < labels else tuple(row | {"arm": arm} for arm in ("new", "old"))
        found.append(Answered(pair, unlabelled))
    return found + [Answered(Judged(0.0, f"s{number}", None, True), ()) for number in range(same)]


def test_people_and_judge_reject_a_worse_candidate_and_say_what_they_rest_on():
    found = weigh(worse(80), VERSION)
    assert found.interval.verdict == "reject" and found.interval.n == 80
    for said in ("80 labelled pairs", "720 judged or equal ones", "the judge counting 0.", "margin of 5.0"):
        assert said in found.says


@pytest.mark.parametrize(("labels", "documents"), [(0, 800), (59, 800), (80, 14)])
def test_a_judge_alone_or_with_few_labels_rejects_nothing_and_asks_people_for_a_bounded_number(labels, documents):
    pairs = worse(labels, documents=documents) if documents > 14 else few_documents()
    found = weigh(pairs, VERSION)
    assert found.interval is None and "does not vote" in found.says
    assert 0 < len(found.unlabelled) <= 2 * Rules().labelled or documents == 14
    assert f"{len(found.unlabelled)} answers wait for a label" in found.says


def few_documents():
    """Eighty labels, all of them on 14 documents; other documents have none."""
    pairs = worse(80)
    return [
        replace(one, pair=replace(one.pair, cluster=f"d{at % 14}")) if at < 80 else one for at, one in enumerate(pairs)
    ]


def test_where_few_answers_differ_labels_of_all_of_them_are_enough():
    found = weigh(worse(50, n=50, same=10), VERSION)
    assert found.interval.n == 50 and found.interval.upper < 0
    assert "does not vote" in weigh(worse(49, n=50, same=10), VERSION).says
    assert weigh(worse(0, n=0, same=100), VERSION).interval is None


def test_a_judge_that_finds_nothing_worse_asks_nobody():
    content = [Answered(Judged(0.0, f"d{n}"), ({"question": "q"},)) for n in range(100)]
    assert weigh(content, VERSION).unlabelled == ()


def test_a_candidate_that_people_find_equal_is_not_kept_back_by_a_judge_that_hates_it():
    hated = [Answered(Judged(-1.0, f"d{n}", 0.0 if n < 80 else None), ()) for n in range(800)]
    found = weigh(hated, VERSION)
    assert found.interval is None and "no objection" in found.says


def test_proven_worse_by_less_than_is_certain_holds():
    random = np.random.default_rng(1)
    truths = random.choice([-1.0, 0.0, 1.0], p=[0.11, 0.85, 0.04], size=300)
    found = weigh([Answered(Judged(t, f"d{n}", t), ()) for n, t in enumerate(truths)], VERSION)
    assert found.interval.verdict == "hold" and found.interval.upper < 0
    assert "not proven to be within the margin" in found.says


# --- on a stored evaluation -------------------------------------------------------------------


class Stored:
    """An evaluation of 300 open questions on disk: the candidate is wrong, and judged so, on every third of them."""

    def __init__(self, folder, judge=VERSION):
        self.book, self.live, self.candidate = new_ledger(folder, "wiki"), release(model="a"), release(model="c")
        go_live(self.book, self.live)
        self.book.add_release(self.candidate, "tuned", self.live.id, {})
        n = 300
        ids = tuple(f"g{at}" for at in range(n))
        clusters = tuple(f"d{at // 4}" for at in range(n))
        wrong = [float(at % 3 != 0) for at in range(n)]
        arms = {
            name: Scores(ids, clusters, {"correct": [1.0] * n, "judged_correct": said})
            for name, said in (("candidate", wrong), ("champion", [1.0] * n))
        }
        rows = {
            name: [
                {"id": id, "question": f"Q {id}?", "accepted": ["noon"], "answer": "noon" if ok else "night"}
                for id, ok in zip(ids, right, strict=True)
            ]
            for name, right in (("candidate", wrong), ("champion", [1.0] * n))
        }
        evaluation = evaluate.Evaluation(
            str(folder / "scores.json"), self.candidate.id, self.live.id, "tuned", n, 0, 1.0
        )
        about = {"suite": "s"} | ({"judge": judge} if judge else {})
        self.body = {name: as_json(scores) for name, scores in arms.items()}
        self.body |= {"evaluation": as_json(evaluation), "rows": rows, "about": about, "hard": {"whole": None}}
        self.body |= {"probes": None, "first_tuned": False, "changed": ["model"], "repeated": {}, "sealed": []}
        (folder / "scores.json").write_text(json.dumps(self.body))
        self.evaluation = evaluation

    def calibrated(self, found=GOOD):
        self.book.decide("wiki", KIND, None, "passed", "", as_json(found))

    def decided(self):
        objection = heard(self.book, self.evaluation, GateSettings())
        reviews.ask_labels(self.book, "wiki", objection.unlabelled)
        return evaluate.decide(self.evaluation, "tuned", GateSettings(guardrails=()), objection=objection)

    def label(self, right):
        """A person labels what waits, right where `right` says so of the item's body."""
        for item in reviews.items(self.book, "wiki", reviews.LABEL):
            reviews.settle(self.book, item.number, "accepted" if right(item.body) else "corrected", "eve")


@pytest.fixture
def stored(tmp_path):
    return Stored(tmp_path)


def test_without_a_calibration_the_judge_advises_and_nobody_is_asked(stored):
    decision = stored.decided()
    assert decision.verdict == "promote"
    assert "The judge advises and does not vote: it was never calibrated" in " ".join(decision.notes)
    assert reviews.items(stored.book, "wiki", reviews.LABEL) == []


def test_a_calibrated_judges_objection_asks_for_labels_which_then_reject_the_candidate(stored):
    stored.calibrated()
    first = stored.decided()
    waiting = reviews.items(stored.book, "wiki", reviews.LABEL)
    assert first.verdict == "promote" and len(waiting) == 120
    assert "finds it worse (-33.3 points" in " ".join(first.notes)
    assert {item.body["arm"] for item in waiting} == {stored.candidate.id, stored.live.id}
    stored.label(lambda body: body["answer"] == "noon")
    second = stored.decided()
    assert second.verdict == "reject" and "people and judge -33.3 points" in second.reason
    assert reviews.items(stored.book, "wiki", reviews.LABEL) == [], "enough is labelled"


def test_people_who_find_the_answers_right_overrule_the_judge(stored):
    stored.calibrated()
    stored.decided()
    stored.label(lambda body: True)
    decision = stored.decided()
    assert decision.verdict == "promote" and "no objection" in " ".join(decision.notes)


def test_labels_of_another_releases_answers_or_of_other_answers_count_nothing(stored):
    stored.calibrated()
    stored.decided()
    stored.label(lambda body: body["answer"] == "noon")
    settled = reviews.items(stored.book, "wiki", reviews.LABEL, "settled")
    assert sum(one.pair.label is not None for one in answered(stored.body, settled)) == 60
    forgotten = replace(settled[0], body={}, verdict="discarded")
    assert answered(stored.body, [forgotten, *settled]) == answered(stored.body, settled)
    for other in ({"arm": "rel-other"}, {"answer": "noon, or so"}):
        elsewhere = [replace(item, body=item.body | other) for item in settled]
        assert all(one.pair.label is None for one in answered(stored.body, elsewhere))


def test_for_an_answer_that_nobody_can_judge_another_one_is_asked_about(stored):
    stored.calibrated()
    stored.decided()
    first = reviews.items(stored.book, "wiki", reviews.LABEL)[0]
    reviews.settle(stored.book, first.number, "discarded", "eve")
    stored.label(lambda body: body["answer"] == "noon")
    stored.decided()
    assert len(reviews.items(stored.book, "wiki", reviews.LABEL)) == 2
    stored.label(lambda body: body["answer"] == "noon")
    assert stored.decided().verdict == "reject"


def test_sealed_and_unmeasured_questions_are_neither_judged_nor_asked_about(stored):
    body = stored.body
    body["rows"]["champion"] = body["rows"]["champion"][10:]
    body["candidate"]["metrics"]["judged_correct"][10:15] = [math.nan] * 5
    assert len(answered(body, [])) == 285


def test_a_judge_whose_anchors_moved_since_its_calibration_does_not_vote(stored):
    stored.calibrated()
    state = {"version": VERSION, "first": [1.0] * 50}
    stored.book.store_signals("wiki", {"judge": state | {"now": [0.0] * 50}})
    assert "it has moved since" in heard(stored.book, stored.evaluation, GateSettings()).says


def test_without_a_judge_nothing_is_said(tmp_path):
    assert heard(Stored(tmp_path, judge=None).book, Stored(tmp_path, None).evaluation, GateSettings()).says == ""
