"""Prediction-powered intervals: they cover what people would say, whatever the judge says."""

import numpy as np
import pytest

from tasks.intervals import paired_interval
from tasks.ppi import Judged, estimate, judged_interval


def world(draws, n, others, agree, bias=0.0, seed=0):
    """Differences in {-1, 0, 1} with mean about -.1, and a judge that sees the truth with probability `agree`.

    `bias` is the probability of one more point for the candidate.
    """
    random = np.random.default_rng(seed)
    truth = random.choice([-1.0, 0.0, 1.0], p=[0.25, 0.6, 0.15], size=(draws, n + others))
    noise = random.choice([-1.0, 0.0, 1.0], p=[0.2, 0.6, 0.2], size=truth.shape)
    seen = np.where(random.random(truth.shape) < agree, truth, noise) + (random.random(truth.shape) < bias)
    return truth[:, :n], seen[:, :n], seen[:, n:]


@pytest.mark.parametrize(("agree", "bias"), [(0.8, 0.0), (0.8, 0.3), (0.0, 0.0), (0.0, 0.5)])
def test_intervals_cover_the_human_mean_however_wrong_the_judge_is(agree, bias):
    found = estimate(*world(1000, 100, 300, agree, bias))
    lower, upper = found.bounds(0.025, 100)
    assert np.mean((lower <= -0.1) & (upper >= -0.1)) >= 0.93
    assert found.mean.mean() == pytest.approx(-0.1, abs=0.01)


def test_a_good_judge_is_worth_labels_and_a_useless_one_costs_none():
    labels, verdicts, others = world(500, 100, 1500, agree=0.9)
    alone = labels.std(-1, ddof=1) / 10
    assert np.mean(estimate(labels, verdicts, others).error / alone) < 0.75
    useless = estimate(*world(500, 100, 1500, agree=0.0))
    assert np.std(useless.mean) == pytest.approx(np.mean(useless.error), rel=0.1)
    assert np.mean(useless.weight) < 0.15


def test_the_estimate_follows_the_formula_by_hand():
    labels, verdicts, others = (
        np.array([1.0, 0.0, 0.0, -1.0]),
        np.array([1.0, 0.0, 1.0, -1.0]),
        np.array([1.0, 0.0] * 4),
    )
    covariance = np.cov(labels, verdicts)[0, 1]
    pooled = (3 * verdicts.var(ddof=1) + 7 * others.var(ddof=1)) / 10
    weight = covariance / ((1 + 4 / 8) * pooled)
    found = estimate(labels, verdicts, others)
    assert found.weight == pytest.approx(min(weight, 1.0))
    assert found.mean == pytest.approx(labels.mean() + found.weight * (others.mean() - verdicts.mean()))
    residual = (labels - found.weight * verdicts).var(ddof=1)
    assert found.error == pytest.approx(np.sqrt(residual / 4 + found.weight**2 * others.var(ddof=1) / 8))


def test_a_judge_that_says_the_same_of_everything_leaves_the_labels_alone():
    labels = np.array([1.0, 0.0, -1.0, 0.0])
    for others in (np.ones(50), np.array([])):
        found = estimate(labels, np.ones(4), others)
        assert (found.weight, found.mean) == (0.0, 0.0)
        assert found.error == pytest.approx(labels.std(ddof=1) / 2)


def test_labels_and_verdicts_must_be_of_the_same_items():
    with pytest.raises(ValueError, match="at least two, one for each"):
        estimate(np.ones(5), np.ones(4), np.ones(9))
    with pytest.raises(ValueError, match="at least two"):
        estimate(np.ones(1), np.ones(1), np.ones(9))


def items(n, others, agree, per_document=1, bias=0.0, seed=1):
    labels, verdicts, rest = (part[0] for part in world(1, n, others, agree, bias, seed))
    labelled = [
        Judged(float(f), f"d{i // per_document}", float(y))
        for i, (y, f) in enumerate(zip(labels, verdicts, strict=True))
    ]
    return labelled + [Judged(float(f), f"d{(n + i) // per_document}") for i, f in enumerate(rest)]


def test_alone_in_its_document_every_question_counts_as_in_the_estimate():
    made = items(120, 900, agree=0.8)
    labels = np.array([item.label for item in made[:120]])
    verdicts = np.array([item.verdict for item in made])
    found, interval = estimate(labels, verdicts[:120], verdicts[120:]), judged_interval(made, 0.05)
    assert interval.mean == pytest.approx(float(found.mean))
    assert interval.upper - interval.mean == pytest.approx(float(found.bounds(0.05, 120)[1] - found.mean), rel=0.02)


def test_questions_of_one_document_do_not_count_as_many():
    alone = items(60, 600, agree=0.8)
    copied = [Judged(i.verdict, f"{i.cluster}-{n}", i.label) for i in alone for n in range(5)]
    together = [Judged(i.verdict, i.cluster, i.label) for i in alone for _ in range(5)]
    widths = [
        judged_interval(made, 0.05).upper - judged_interval(made, 0.05).mean for made in (alone, together, copied)
    ]
    assert widths[1] == pytest.approx(widths[0], rel=0.02)
    assert widths[2] < 0.5 * widths[0]


def test_with_a_judge_fewer_labels_settle_what_they_alone_cannot():
    made = items(150, 3000, agree=0.98)
    labels = [item.label for item in made[:150]]
    alone = paired_interval("labels", labels, [0.0] * 150, [item.cluster for item in made[:150]], 0.04)
    judged = judged_interval(made, 0.04)
    assert alone.verdict == "hold"
    assert judged.verdict == "reject"
    assert judged.n == 150


def test_a_judge_that_inflates_the_candidate_does_not_promote_it():
    verdicts = [judged_interval(items(100, 2000, 0.7, bias=0.4, seed=s), 0.05).verdict for s in range(40)]
    assert "promote" not in verdicts


def test_labels_from_one_document_are_too_few():
    with pytest.raises(ValueError, match="at least two"):
        judged_interval(items(5, 50, 0.8, per_document=100), 0.05)


def test_answers_that_are_the_same_count_as_no_difference_without_a_label():
    inside, covered = 0, 0
    for seed in range(300):
        random = np.random.default_rng(seed)
        made = []
        for _ in range(400):
            same = random.random() < 0.6
            truth = 0.0 if same else float(random.choice([-1, 0, 1], p=[0.5, 0.3, 0.2]))
            verdict = 0.0 if same else truth if random.random() < 0.7 else 1.0
            made.append((truth, same, verdict))
        labelled = set(random.permutation([at for at, one in enumerate(made) if not one[1]])[:60])
        items = [Judged(v, f"d{at}", t if at in labelled else None, same) for at, (t, same, v) in enumerate(made)]
        interval = judged_interval(items, 0.05, 0.025)
        inside += interval.n == 60
        covered += interval.lower <= -0.12 <= interval.upper
    assert inside == 300
    assert covered / 300 > 0.92
