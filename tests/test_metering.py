import pytest

from data.requests import Logged
from serving import metering
from serving.metering import LEAST, Admission, Meters, cost
from serving.refused import Refused
from settings import Settings


@pytest.fixture
def now(monkeypatch):
    """The time of the endpoint's clock, in the one item of a list."""
    at = [100.0]
    monkeypatch.setattr(metering.time, "monotonic", lambda: at[0])
    return at


def row(**changed) -> Logged:
    return Logged("r", 0.0, "helpdesk", "rel-1", "live", **changed)


def test_an_answered_request_is_counted_with_its_tokens_cost_and_flags():
    meters = Meters()
    whose = {"key": "key-1", "tenant": "acme", "cost": 0.25, "flags": ("override",)}
    meters.count(row(prompt_tokens=300, completion_tokens=9, abstained=True, **whose))
    text = meters.render()[0].decode()
    assert 'perennial_requests_total{arm="live",assistant="helpdesk",status="200"} 1.0' in text
    assert 'perennial_tokens_total{assistant="helpdesk",key="key-1",kind="prompt",tenant="acme"} 300.0' in text
    assert 'perennial_cost_total{assistant="helpdesk",key="key-1",tenant="acme"} 0.25' in text
    assert 'perennial_flags_total{assistant="helpdesk",flag="override"} 1.0' in text
    assert 'perennial_abstained_total{assistant="helpdesk"} 1.0' in text


def test_what_the_field_has_names_for_is_measured_under_them():
    meters = Meters()
    meters.count(row(prompt_tokens=300, completion_tokens=9, first_token_s=0.2, total_s=0.6))
    text = meters.render()[0].decode()
    model = 'gen_ai_request_model="helpdesk"'
    assert f"gen_ai_server_time_to_first_token_seconds_sum{{{model}}} 0.2" in text
    assert f"gen_ai_server_request_duration_seconds_sum{{{model}}} 0.6" in text
    assert f'gen_ai_server_time_per_output_token_seconds_bucket{{{model},le="0.08"}} 1.0' in text
    assert f'gen_ai_client_token_usage_sum{{{model},gen_ai_token_type="output"}} 9.0' in text


def test_a_request_costs_what_its_tokens_do():
    prices = Settings(price_prompt_million=2.0, price_completion_million=10.0)
    assert cost(1_000_000, 100_000, prices) == 3.0


def test_a_stage_that_was_not_reached_is_not_measured():
    meters = Meters()
    meters.count(row(status=503, total_s=0.1))
    assert 'stage="engine"' not in meters.render()[0].decode()


def test_requests_beyond_the_limit_are_told_when_to_come_back():
    admission = Admission(2, 20.0, Meters().in_flight)
    leave = admission.enter()
    admission.enter()
    with pytest.raises(Refused) as raised:
        admission.enter()
    assert raised.value.status == 429 and raised.value.retry_after == 1
    leave()
    admission.enter()


def test_who_would_wait_longer_than_the_patience_is_told_how_long(now):
    admission = Admission(1000, 20.0, Meters().in_flight)
    waiting = [admission.enter() for _ in range(12)]
    for _ in range(2):  # two seconds an answer: ten are answered within the patience
        now[0] += 2.0
        admission.ended(True)
        waiting.pop()()
    admission.enter()
    with pytest.raises(Refused) as raised:
        admission.enter()
    assert raised.value.status == 429 and raised.value.retry_after == 2
    admission.enter(paced=False)()
    while len(waiting) >= LEAST:
        waiting.pop()()
    admission.enter()


def test_a_pause_with_nothing_to_answer_is_no_slow_pace(now):
    admission = Admission(1000, 20.0, Meters().in_flight)
    for _ in range(3):
        leave = admission.enter()
        now[0] += 0.5
        admission.ended(True)
        leave()
        now[0] += 3600
    assert admission.pace_s == 0.5


def test_however_slow_the_engine_a_few_are_let_in(now):
    admission = Admission(1000, 20.0, Meters().in_flight)
    for _ in range(2):
        leave = admission.enter()
        now[0] += 50.0
        admission.ended(True)
        leave()
    for _ in range(LEAST + 1):
        admission.enter()
    with pytest.raises(Refused):
        admission.enter()


def test_a_first_answer_that_waited_for_its_model_sends_nobody_away(now):
    admission = Admission(1000, 20.0, Meters().in_flight)
    waiting = [admission.enter() for _ in range(30)]
    for took_s in (8.0, 0.1):
        now[0] += took_s
        admission.ended(True)
        waiting.pop()()
        admission.enter()


def test_an_outage_that_is_over_sends_nobody_away(now):
    admission = Admission(1000, 20.0, Meters().in_flight)
    for _ in range(30):
        leave = admission.enter()
        now[0] += 0.5
        admission.ended(True)
        leave()
    waiting = [admission.enter() for _ in range(20)]
    now[0] += 60.0
    admission.ended(False)
    waiting.pop()()
    now[0] += 0.5
    admission.ended(True)
    waiting.pop()()
    assert admission.pace_s == 0.5
    now[0] += 60.0
    admission.ended(True)  # one that came through late
    waiting.pop()()
    admission.enter()


def test_a_place_is_given_back_once_however_often_it_is_left():
    admission = Admission(1, 20.0, Meters().in_flight)
    leave = admission.enter()
    leave()
    leave()
    assert admission.inside == 0
