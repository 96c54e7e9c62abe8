"""Calibration: what a judge must show before it is heard, and what it never may."""

import json
import math

import numpy as np
import pytest

from data import reviews
from data.records import as_json
from flows import monitor
from flows.calibrate import compare, measure
from flows.calibrate import main as calibrate_command
from settings import settings
from tasks import anchors, signals
from tasks.calibrate import (
    KIND,
    Calibration,
    Labelled,
    Rules,
    calibrate,
    cohen,
    markdown,
    read_labels,
)
from tasks.diagnose import Evidence, diagnose
from tasks.judge import containment
from tests.fake_judge import lexical, serve
from tests.ledgers import go_live, new_ledger, release

VERSION = "tiny@1"


def labelled(n=1000, agree=0.95, inflate=0.0, systems=("a", "b"), seed=0):
    """Answers of two systems and a judge that agrees with people, and calls `inflate` of b's wrong ones right."""
    random, items, verdicts = np.random.default_rng(seed), [], []
    for number in range(n):
        for system in systems:
            label = int(random.random() < 0.7)
            said = label if random.random() < agree else 1 - label
            if system == "b" and not said and random.random() < inflate:
                said = 1
            items.append(Labelled(f"q{number}", ("x",), "y", system, label))
            verdicts.append(float(said))
    return items, verdicts


def test_a_judge_that_agrees_with_people_passes():
    found = calibrate(*labelled(), VERSION)
    assert found.passed, found.says()
    assert found.items == 2000
    assert 0.8 < found.kappa < 0.95
    assert found.true_positives == pytest.approx(0.95, abs=0.02)


def test_each_thing_that_a_judge_lacks_is_said():
    def lacks(*about, rules=Rules()):
        found = calibrate(*about, VERSION, rules)
        assert not found.passed
        return " ".join((*found.lacking, *found.biased))

    assert "90 labelled answers" in lacks(*labelled(n=45))
    assert "kappa" in lacks(*labelled(agree=0.7))
    assert "wrong answers" in lacks(*labelled(inflate=0.9, systems=("b",)))
    assert "inflate b against a" in lacks(*labelled(inflate=0.5))
    assert "bias takes" in lacks(*labelled(n=120, agree=0.9))
    assert "two systems" in lacks(*labelled(systems=("a",)))


def test_a_judge_that_says_yes_to_everything_does_not_pass():
    items, _ = labelled()
    found = calibrate(items, [1.0] * len(items), VERSION)
    assert (found.kappa, found.true_negatives) == (0.0, 0.0)
    assert not found.passed


def test_bias_is_paired_by_question_and_has_a_side():
    found = calibrate(*labelled(inflate=0.5), VERSION)
    worst = found.bias[0]
    assert (worst.arm, worst.against) == ("b", "a")
    assert worst.lower > 0
    assert found.bias[-1].mean == pytest.approx(-worst.mean)


def test_the_items_that_a_bias_takes_follow_the_formula():
    items, verdicts = labelled(agree=0.9)
    found = calibrate(items, verdicts, VERSION, Rules(margin=0.1))
    excess = np.array(verdicts) - [item.label for item in items]
    spread = np.var(excess[::2] - excess[1::2], ddof=1)
    assert found.bias[0].needed == pytest.approx((1.645 / 0.05) ** 2 * spread, rel=0.01)


def test_unmeasured_items_are_counted_and_left_out():
    items, verdicts = labelled()
    found = calibrate(items, [math.nan] * 100 + verdicts[100:], VERSION)
    assert (found.items, found.unmeasured) == (1900, 100)
    assert "1 labelled answers" in calibrate(items[:2], [1.0, math.nan], VERSION).lacking[0]
    assert not calibrate(items[:2], [math.nan, math.nan], VERSION).passed


def test_kappa_is_agreement_beyond_chance():
    assert cohen(np.array([1, 0, 1, 0]), np.array([1, 0, 1, 0])) == 1.0
    assert cohen(np.array([1, 0, 0, 1]), np.array([1, 1, 0, 0])) == 0.0
    assert cohen(np.ones(3), np.ones(3)) is None


def test_what_labels_of_one_kind_cannot_tell_is_stored_as_unknown():
    found = calibrate([Labelled(f"q{n}", ("x",), "x", "a", 1) for n in range(4)], [1.0] * 4, VERSION)
    assert (found.kappa, found.true_positives, found.true_negatives) == (None, 1.0, None)
    assert "kappa unknown" in found.says() and "| kappa | unknown | 0.60 |" in markdown(found)
    assert Calibration.of(json.loads(json.dumps(as_json(found), allow_nan=False))) == found


def test_a_file_of_labels_is_read_and_a_wrong_line_is_named(tmp_path):
    file = tmp_path / "labels.jsonl"
    row = {"question": "q", "answers": ["x"], "answer": "y", "system": "a", "label": 1}
    file.write_text(json.dumps(row) + "\n\n")
    assert read_labels(file) == [Labelled("q", ("x",), "y", "a", 1)]
    changed = [json.dumps(row | change) for change in ({"label": 2}, {"verdict": 1}, {"answers": "x"})]
    for wrong in ("{", "[]", '{"question": "q"}', *changed):
        file.write_text(json.dumps(row) + "\n" + wrong)
        with pytest.raises(ValueError, match="line 2"):
            read_labels(file)
    file.write_text("")
    with pytest.raises(ValueError, match="no labels"):
        read_labels(file)


def test_there_are_fifty_anchors_half_of_them_right_and_words_alone_mostly_tell_which():
    rows = read_labels(anchors.FILE)
    assert (len(rows), sum(row.label for row in rows)) == (50, 25)
    said = np.array([containment(row.answer, row.answers) == 1.0 for row in rows])
    assert np.mean(said == [row.label for row in rows]) > 0.6


def alarm(book):
    """Whether the monitor would say that the judge of the assistant wiki has moved."""
    return signals.anchors(**anchors.asked_twice(book.signal_states("wiki"))).alarm


def test_a_judge_that_was_swapped_behind_its_address_is_told_from_its_anchors(tmp_path):
    book = new_ledger(tmp_path, "wiki")
    with serve(lexical) as endpoint:
        anchors.watch(book, "wiki", endpoint.judge(tmp_path))
        assert anchors.asked_twice(book.signal_states("wiki")) is None
        anchors.watch(book, "wiki", endpoint.judge(tmp_path))
        assert not alarm(book)
        assert len(endpoint.asked) == 100, "anchors are asked anew, not remembered"
        endpoint.reply = lambda body: '{"correct": "yes"}'
        anchors.watch(book, "wiki", endpoint.judge(tmp_path))
    assert alarm(book)


def test_a_moved_judge_asks_for_a_recalibration_and_touches_nothing_live(tmp_path, monkeypatch):
    monkeypatch.setattr(monitor.events, "emit", lambda *event, **about: None)
    book, live = new_ledger(tmp_path, "wiki"), release()
    go_live(book, live)
    evidence = Evidence(judge_moved=True)
    monitor.ask_for(book, "wiki", live.id, diagnose(evidence), evidence, {})
    assert book.decisions("wiki", "diagnosis")[0]["verdict"] == "recalibrate"
    assert [row["kind"] for row in book.outbox("wiki")] == ["recalibrate"]
    assert book.assistant("wiki")["live_release"] == live.id


def test_a_judge_that_does_not_answer_has_not_moved_and_is_no_reference(tmp_path):
    book = new_ledger(tmp_path, "wiki")
    with serve(lambda body: "nonsense") as endpoint:
        assert anchors.watch(book, "wiki", endpoint.judge(tmp_path)) == {}
        for reply in (lexical, lambda body: '{"correct": "yes"}', lambda body: "nonsense"):
            endpoint.reply = reply
            anchors.watch(book, "wiki", endpoint.judge(tmp_path))
    assert alarm(book), "an alarm stays until the judge can be asked"


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """A ledger with the assistant wiki, and the judge of the settings on a real port."""
    book = new_ledger(tmp_path, "wiki")
    chosen = {"home": tmp_path, "ledger_url": str(book.engine.url), "judge_model": "tiny"}
    with serve(lexical) as endpoint:
        for name, value in (chosen | {"judge_url": endpoint.url}).items():
            monkeypatch.setattr(settings(), name, value)
        yield book


def test_the_command_records_a_calibration_and_takes_the_anchors_as_the_new_reference(configured, tmp_path, capsys):
    file = tmp_path / "labels.jsonl"
    rows = [
        {"question": f"q{n}", "answers": ["Röntgen"], "answer": said, "system": system, "label": int(said == "Röntgen")}
        for n in range(110)
        for system, said in (("old", ("Röntgen", "Curie")[n % 2]), ("new", ("Röntgen", "Curie")[n % 3 == 0]))
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    found = measure("wiki", str(file))
    assert found.passed, found.says()
    recorded = configured.decisions("wiki", KIND)[0]
    assert (recorded["verdict"], Calibration.of(recorded["body"])) == ("passed", found)
    assert found.version.startswith("tiny@")
    assert configured.signal_states("wiki")["judge"]["version"] == found.version
    assert "| new | old |" in markdown(found)
    assert "270 requests" in capsys.readouterr().out


def test_a_judge_that_cannot_be_asked_keeps_the_calibration_it_has(configured, tmp_path, monkeypatch):
    items = [Labelled(f"q{n}", ("x",), "x", "a", 1) for n in range(4)]
    monkeypatch.setattr(settings(), "judge_url", "http://127.0.0.1:9/v1")
    monkeypatch.setattr("tasks.judge.RETRIES", 0)
    with pytest.raises(ConnectionError, match="no verdict on 4 of 4 items"):
        compare("wiki", items)
    assert configured.decisions("wiki", KIND) == [] and "judge" not in configured.signal_states("wiki")


def test_the_command_takes_the_labels_of_the_review_queue_and_says_whether_the_judge_may_block(
    configured, monkeypatch, capsys
):
    monkeypatch.setattr("sys.argv", ["flows.calibrate", "--assistant", "wiki"])
    with pytest.raises(SystemExit, match=r"nobody labelled an answer of 'wiki' yet.*flows\.review ask"):
        calibrate_command()
    answers = [
        {"question": f"q{n}", "references": ["Röntgen"], "answer": said, "arm": "rel-1"}
        for n in range(105)
        for said in ("Röntgen", "Curie")
    ]
    reviews.ask_labels(configured, "wiki", answers)
    for item in reviews.items(configured, "wiki", reviews.LABEL):
        verdict = "accepted" if item.body["answer"] == "Röntgen" else "corrected"
        reviews.settle(configured, item.number, verdict, "eve")
    calibrate_command()
    said = capsys.readouterr().out
    assert "may block a candidate together with people" in said
    assert "not to be trusted: no question was answered by two systems" in said
    assert "| labelled answers with a verdict (0 without) | 210 | 200 |" in said
    monkeypatch.setattr("sys.argv", ["flows.calibrate", "--assistant", "wiki", "--labels", "nowhere.jsonl"])
    with pytest.raises(SystemExit, match=r"nowhere\.jsonl"):
        calibrate_command()


def test_the_command_says_what_it_needs(tmp_path):
    with pytest.raises(LookupError, match="PERENNIAL_JUDGE_URL"):
        measure("wiki", str(tmp_path / "none"))
