import pytest

from data.requests import Logged
from serving.guard import Refused
from serving.metering import Admission, Meters


def row(**changed) -> Logged:
    return Logged("r", 0.0, "helpdesk", "rel-1", "live", **changed)


def test_an_answered_request_is_counted_with_its_tokens_and_times():
    meters = Meters()
    meters.count(row(prompt_tokens=300, completion_tokens=8, total_s=0.3, abstained=True))
    text = meters.render()[0].decode()
    assert 'perennial_requests_total{arm="live",assistant="helpdesk",status="200"} 1.0' in text
    assert 'perennial_tokens_total{assistant="helpdesk",kind="prompt"} 300.0' in text
    assert 'perennial_seconds_bucket{assistant="helpdesk",le="0.4",stage="total"} 1.0' in text
    assert 'perennial_abstained_total{assistant="helpdesk"} 1.0' in text


def test_a_stage_that_was_not_reached_is_not_measured():
    meters = Meters()
    meters.count(row(status=503, total_s=0.1))
    assert 'stage="engine"' not in meters.render()[0].decode()


def test_requests_beyond_the_limit_are_told_when_to_come_back():
    admission = Admission(2, Meters().in_flight)
    leave = admission.enter()
    admission.enter()
    with pytest.raises(Refused) as raised:
        admission.enter()
    assert raised.value.status == 429 and raised.value.retry_after == 1
    leave()
    admission.enter()


def test_a_place_is_given_back_once_however_often_it_is_left():
    admission = Admission(1, Meters().in_flight)
    leave = admission.enter()
    leave()
    leave()
    assert admission.inside == 0
