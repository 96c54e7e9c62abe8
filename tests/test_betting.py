"""Bets on the difference of two arms: right about winners, and about there being none, however often one looks."""

import numpy as np
import pytest

from tasks.betting import LAMBDAS, WAITING, block, capital, compare, differences, planned


def drawn(seed: int, p: float, n: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < p).astype(float)


def turns(a, b) -> list[tuple[str, float]]:
    """Users of both arms, one of each in turn."""
    return [user for pair in zip(a, b, strict=True) for user in zip("ab", pair, strict=True)]


@pytest.mark.parametrize("share, sizes", [(0.5, (1, 1)), (0.2, (4, 1)), (0.1, (9, 1)), (0.75, (1, 3))])
def test_a_block_holds_users_as_the_split_gives_them(share, sizes):
    assert block(share) == sizes


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_of_nobody_or_of_all_is_refused(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        block(share)


def test_a_block_is_of_the_latest_users_once_both_arms_can_fill_it():
    users = [("a", 1), ("a", 0), ("a", 1), ("a", 1), ("b", 1), ("a", 0), ("a", 0), ("a", 0), ("a", 0), ("b", 0)]
    assert differences(users, 0.2).tolist() == [1 - 0.75, 0 - 0.0]
    assert len(differences([("a", 1)] * 3 + [("b", 0)], 0.2)) == 0
    assert differences([("a", 0), ("a", 1), ("b", 1), ("b", 1)], 0.5).tolist() == [0.0, 1.0]


def test_of_an_arm_that_runs_ahead_the_oldest_users_are_dropped():
    users = [("a", 0)] * 30 + [("a", 1)] * WAITING + [("b", 1)] * (WAITING + 1)
    assert differences(users, 0.5).tolist() == [0.0] * WAITING


def test_a_score_beyond_0_to_1_is_refused():
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="from 0 to 1"):
            differences([("a", wrong), ("b", 0.5)], 0.5)


@pytest.mark.parametrize("share, rate", [(0.4, 0.4), (0.45, 0.45), (0.3, 0.3), (0.5, 0.545)])
def test_what_moves_both_arms_alike_makes_no_winner_whatever_the_share(share, rate):
    """Right answers of both fall from 90% to 50% half way; in the last case b's users rate a fifth more often."""
    won, n = 0, 1000
    for seed in range(60):
        draws = np.random.default_rng(seed).random((2, n))
        right = draws[1] < np.where(np.arange(n) < n // 2, 0.9, 0.5)
        users = list(zip(np.where(draws[0] < rate, "b", "a"), right.astype(float), strict=True))
        won += compare(users, share).ahead != ""
    assert won <= 5


def test_the_capital_is_the_mean_of_products_over_the_bets():
    d = np.array([1.0, -0.5, 0.25])
    by_hand = np.mean([(1 + bet) * (1 - bet / 2) * (1 + bet / 4) for bet in LAMBDAS])
    assert np.exp(capital(d)[-1]) == pytest.approx(by_hand)


def test_looked_at_after_every_user_equal_arms_have_a_winner_in_at_most_one_of_twenty():
    ahead = [compare(turns(drawn(2 * n, 0.7, 800), drawn(2 * n + 1, 0.7, 800))).ahead for n in range(200)]
    assert sum(arm != "" for arm in ahead) <= 10


def test_a_better_arm_wins_within_the_planned_users_and_the_worse_one_does_not():
    blocks = planned(0.7, 0.15)
    ahead = [compare(turns(drawn(2 * n, 0.7, blocks), drawn(2 * n + 1, 0.85, blocks))).ahead for n in range(200)]
    assert ahead.count("b") >= 160 and ahead.count("a") == 0


def test_the_arms_exchanged_say_the_opposite():
    one, other = drawn(1, 0.6, 400), drawn(2, 0.85, 400)
    forth, back = compare(turns(one, other)), compare(turns(other, one))
    assert (forth.ahead, back.ahead) == ("b", "a") and forth.estimate == -back.estimate
    assert (forth.lower, forth.upper) == pytest.approx((-back.upper, -back.lower))


def test_bounds_and_verdict_agree_because_nothing_is_added_once_it_is_proven():
    a, b = drawn(1, 0.6, 1000), drawn(2, 0.8, 1000)
    found = compare(turns(a, b))
    assert found.ahead == "b" and 0 < found.lower < found.estimate < found.upper < 1
    assert found.users == {"a": found.blocks, "b": found.blocks} and found.blocks < 1000
    assert compare(turns(a[: found.blocks], b[: found.blocks])) == found
    assert compare(turns(a[: found.blocks - 1], b[: found.blocks - 1])).ahead == ""


def test_bounds_cover_the_true_difference_at_every_look():
    missed = 0
    for n in range(60):
        a, b = drawn(2 * n, 0.7, 300), drawn(2 * n + 1, 0.8, 300)
        looks = [compare(turns(a[:k], b[:k])) for k in range(50, 301, 50)]
        missed += any(not look.lower <= 0.1 <= look.upper for look in looks)
    assert missed <= 3


def test_nobody_yet_means_nothing_is_known():
    found = compare([])
    assert (found.estimate, found.lower, found.upper, found.ahead, found.blocks) == (0.0, -1.0, 1.0, "", 0)


def test_a_smaller_difference_takes_more_users_and_one_beyond_certainty_is_refused():
    assert planned(0.8, 0.05) > planned(0.8, 0.1) > planned(0.8, 0.2)
    assert planned(0.8, 0.1, power=0.9) > planned(0.8, 0.1) and planned(0.8, 0.1, alpha=0.01) > planned(0.8, 0.1)
    for p0, difference in ((0.95, 0.1), (0.8, 0.0), (-0.1, 0.2)):
        with pytest.raises(ValueError, match="within 0 to 1"):
            planned(p0, difference)
    with pytest.raises(ValueError, match="too small"):
        planned(0.5, 0.001)
