import asyncio

import pytest
from sqlalchemy.exc import OperationalError

from serving import limits
from serving.keys import Key
from serving.limits import Budgets, Rate, Throttle
from serving.refused import Refused

NOON = 20_000 * limits.DAY + limits.DAY // 2


def refused(*arguments) -> Refused:
    with pytest.raises(Refused) as raised:
        arguments[0](*arguments[1:])
    return raised.value


class Clock:
    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


def hold(budgets: Budgets, key: Key, tokens: int = 64, cost: float = 0.0):
    return asyncio.run(budgets.hold(key, tokens, cost))


def test_a_minutes_requests_may_come_at_once_and_the_next_when_their_share_of_it_has_passed():
    clock = Clock()
    rate = Rate(clock)
    assert [rate.take("a", 3)[0] for _ in range(3)] == [2, 1, 0]
    error = refused(rate.take, "a", 3)
    assert (error.status, error.code, error.retry_after) == (429, "rate_limit_exceeded", 20)
    assert rate.take("b", 3) == (2, 20.0), "another name has its own"
    clock.now += 19
    assert refused(rate.take, "a", 3).retry_after == 1
    clock.now += 1
    assert rate.take("a", 3)[0] == 0
    clock.now += 600
    assert rate.take("a", 3)[0] == 2, "what was not used in earlier minutes is not saved up"


def test_names_beyond_the_memory_are_forgotten_oldest_first(monkeypatch):
    monkeypatch.setattr(limits, "ADDRESSES", 2)
    rate = Rate(Clock())
    for name in "abc":
        rate.take(name, 1)
    assert refused(rate.take, "c", 1).status == 429 and rate.take("a", 1)


def test_a_spent_budget_is_refused_until_midnight_and_what_the_log_knows_counts():
    clock = Clock(NOON)
    row = {"key": "k", "prompt_tokens": 900, "completion_tokens": 50, "cost": 0.5}
    budgets = Budgets(lambda since: [row] if since == 20_000 * limits.DAY else [], clock)
    key = Key("k", "ann", tokens_per_day=1000)
    assert budgets.headers(key) == {}, "nobody has read yet what was spent"
    settle = hold(budgets, key)
    assert refused(hold, budgets, key).retry_after == limits.DAY // 2, "what is under way counts as set aside"
    settle(30, 0.0)
    settle(0, 0.0)
    assert budgets.headers(key)["x-ratelimit-remaining-tokens"] == "20"
    assert hold(budgets, key)
    clock.now += limits.DAY
    hold(budgets, key)(0, 0.0)
    assert budgets.headers(key)["x-ratelimit-remaining-tokens"] == "1000"


def test_a_budget_of_money_is_spent_by_cost_and_a_key_without_one_never():
    budgets = Budgets(lambda since: [], Clock(NOON))
    poor, free = Key("p", "ann", cost_per_day=1.0), Key("f", "bob")
    hold(budgets, poor)(100, 1.0)
    hold(budgets, free)(10**9, 10.0**6)
    assert refused(hold, budgets, poor).code == "insufficient_quota"
    assert hold(budgets, free) and budgets.headers(free) == {}


def test_the_cost_of_what_is_under_way_is_set_aside_like_its_tokens():
    budgets, key = Budgets(lambda since: [], Clock(NOON)), Key("k", "ann", cost_per_day=1.0)
    settle = hold(budgets, key, cost=1.5)
    assert refused(hold, budgets, key).code == "insufficient_quota"
    settle(10, 0.2)
    assert hold(budgets, key)


def test_a_log_that_cannot_be_read_is_a_503_until_it_can_and_is_read_once_for_many_at_once():
    failing, read = [OperationalError("SELECT", {}, Exception("locked"))], []

    def spent(since):
        if failing:
            raise failing.pop()
        read.append(since)
        return []

    budgets, key = Budgets(spent, Clock(NOON)), Key("k", "ann", tokens_per_day=1000)
    assert refused(hold, budgets, key).status == 503 and budgets.headers(key) == {}

    async def both():
        await asyncio.gather(budgets.hold(key, 300, 0.0), budgets.hold(key, 300, 0.0))

    asyncio.run(both())
    assert len(read) == 1 and budgets.headers(key)["x-ratelimit-remaining-tokens"] == "400"


def test_bad_keys_are_told_to_wait_after_too_many_from_one_address(monkeypatch):
    monkeypatch.setattr(limits, "ADDRESSES", 2)
    throttle = Throttle(limit=3)
    assert [refused(throttle.failed, "a").status for _ in range(5)] == [401, 401, 401, 429, 429]
    assert refused(throttle.failed, "b").status == 401
    assert refused(throttle.failed, "c").status == 401
    assert len(throttle._failures) == 2
