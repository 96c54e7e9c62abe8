"""Drift: what raises an alarm, what does not, and how often by chance."""

import json

import numpy as np
import pytest

from data.records import as_json
from tasks.drift import DETECTORS, Questions, Watch, detect, query_drift, stream
from tasks.edetector import EDetector, threshold, watch, watch_p
from tasks.questions import collapse, compare, nearest, relabel, unseen_words
from tasks.signals import Signal, staleness


def test_any_stale_section_is_an_alarm_and_none_is_not():
    assert staleness(0, 0, 0, 500).alarm is False
    for counts in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        signal = staleness(*counts, sections=500)
        assert signal.alarm
        assert signal.value == pytest.approx(1 / 500)


def test_a_stream_goes_on_where_it_stopped():
    values = [0, 0, 1, 1, 0, 1] * 10
    whole = stream("ratings", watch(0.2, 1e5), values).evidence["state"]
    first = stream("ratings", watch(0.2, 1e5), values[:25]).evidence["state"]
    second = stream("ratings", EDetector.of(json.loads(json.dumps(first))), values[25:]).evidence["state"]
    assert whole == second


# --- questions --------------------------------------------------------------------------------


WORDS = [
    "card",
    "money",
    "bank",
    "transfer",
    "account",
    "payment",
    "cash",
    "refund",
    "limit",
    "fee",
    "code",
    "pin",
    "app",
]


def asked(n, seed, topic=(), share=0.0, center=None):
    """Questions of everyday words; a share of them about `topic`, near `center` in the embedding."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 16))
    texts = [" ".join(rng.choice(WORDS, 4)) + f" {rng.integers(1000)}" for _ in range(n)]
    for i in range(int(share * n)):
        vectors[i] = center + 0.3 * rng.normal(size=16)
        texts[i] = " ".join([*rng.choice(list(topic), 2), *rng.choice(WORDS, 2)])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), texts


def test_a_new_topic_is_found_and_named_with_example_questions():
    old, before = asked(400, 1)
    new, now = asked(150, 2, ("mortgage", "tenant"), 0.25, np.full(16, 1.0))
    signal = query_drift(old, new, before, now, permutations=199)
    assert signal.alarm
    assert any("mortgage" in topic["words"] for topic in signal.evidence["topics"])
    assert any("tenant" in example or "mortgage" in example for example in signal.evidence["topics"][0]["examples"])
    json.dumps(as_json(signal))


def test_without_drift_few_windows_are_out_of_line():
    alarms = 0
    for seed in range(40):
        (old, before), (new, now) = asked(150, 100 + seed), asked(50, 900 + seed)
        alarms += query_drift(old, new, before, now, permutations=99, seed=seed).alarm
    assert alarms <= 6


def test_one_window_out_of_line_is_not_an_alarm_of_the_detector():
    old, before = asked(300, 1)
    new, now = asked(100, 2, ("mortgage", "tenant"), 0.4, np.full(16, 1.0))
    state = watch_p(threshold(8, 30))
    signal = query_drift(old, new, before, now, permutations=199, state=state)
    assert signal.evidence["p"] <= 0.05
    assert not signal.alarm
    assert EDetector.of(signal.evidence["state"]).events == 1


def test_one_chatty_user_is_not_drift():
    rng = np.random.default_rng(0)
    (old, before), (new, now) = asked(300, 1), asked(100, 2, ("mortgage",), 0.3, np.full(16, 1.0))
    users = [f"u{i % 100}" for i in range(300)], ["chatty"] * 30 + [f"v{i}" for i in range(70)]
    alone = query_drift(old, new, before, now, permutations=199)
    grouped = query_drift(old, new, before, now, users=users, permutations=199)
    assert alone.alarm
    assert not grouped.alarm
    labels = relabel(400, 300, users[0] + users[1], 20, rng)
    assert all(len(set(row[300:330])) == 1 for row in labels)


def test_repeated_questions_are_collapsed():
    assert collapse(["Where is it?", "where  is it", "Other", "where is IT!"]) == [0, 2]
    (old, before), (new, now) = asked(100, 1), asked(50, 2)
    twice = query_drift(old, np.vstack([new, new]), before, now + now, permutations=99)
    assert (twice.evidence["reference"], twice.evidence["window"]) == (100, 50)


def test_a_question_is_never_its_own_neighbour_nor_its_own_vocabulary():
    vectors, texts = asked(200, 3)
    labels = relabel(200, 140, None, 200, np.random.default_rng(0))
    ranks = nearest((vectors @ vectors.T).astype(np.float32), labels)
    assert abs(ranks.mean()) < 5
    assert abs(unseen_words(texts, labels).mean()) < 0.05
    tests = compare(vectors.astype(np.float32), texts, 140, permutations=99)
    assert min(tests.mmd, tests.nearest, tests.vocabulary) > 0.01


def test_words_the_reference_lacks_are_found_by_the_vocabulary_test():
    vectors, texts = asked(200, 4)
    texts = [" ".join(text.split()[:4]) for text in texts]
    texts[160:] = [f"{text} zyzzyva" for text in texts[160:]]
    assert compare(vectors.astype(np.float32), texts, 140, permutations=199).vocabulary <= 0.01


def test_too_few_questions_are_refused():
    vectors, texts = asked(40, 5)
    with pytest.raises(ValueError, match="at least 20"):
        query_drift(vectors[:30], vectors[30:], texts[:30], texts[30:])


# --- the table --------------------------------------------------------------------------------


def test_detectors_look_only_at_what_there_is():
    assert detect(Watch()) == ()
    signals = detect(
        Watch(
            stale={"changed": 2, "added": 0, "deleted": 1, "sections": 90},
            streams={"ratings": [0, 0, 1]},
            states={"ratings": watch(0.1, 1e5)},
        )
    )
    assert [signal.name for signal in signals] == ["staleness", "ratings"]
    assert set(DETECTORS) >= {"staleness", "ratings", "grounding", "abstention", "latency", "questions"}


def test_every_signal_is_between_zero_and_one_and_plain_json():
    old, new = asked(100, 1), asked(60, 2)
    look = Watch(
        stale={"changed": 200, "added": 0, "deleted": 0, "sections": 90},
        streams={"latency": [1] * 40},
        states={"latency": watch(0.1, 1e5), "questions": watch_p(1e4)},
        reference=Questions(old[0], tuple(old[1]), ("",) * 100),
        window=Questions(new[0], tuple(new[1]), ("",) * 60),
    )
    signals = detect(look)
    assert len(signals) == 3
    for signal in signals:
        assert 0 <= signal.value <= 1
        assert Signal.of(json.loads(json.dumps(as_json(signal)))) == signal
