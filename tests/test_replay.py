"""Replay: one component at a time, and its figures on live quality."""

from dataclasses import replace

from data.records import Answer, Chunk, Generation, Hit, Prompt
from tasks.replay import compare, live_quality, swaps
from tests.ledgers import release

LIVE = release(model="a")


def said(text: str, abstained: bool = False) -> Answer:
    hit = Hit(Chunk("c", "d", "D", "s", "h", "A link is valid for ten days."), 1.0, 0.8)
    return Answer("q", text, abstained, (), (hit,), Generation(text, 1, 1, "stop", 0.1, 0.1))


def test_only_components_that_differ_are_swapped_and_the_index_stays():
    previous = replace(release(model="b", index="older"), prompt=Prompt(system="Other."))
    found = swaps(LIVE, previous)
    assert set(found) == {"release", "model", "prompt"}
    assert all(swapped.index == LIVE.index for swapped in found.values())
    assert found["model"].prompt.system == LIVE.prompt.system and found["model"].model == previous.model
    assert found["prompt"].model == LIVE.model and found["prompt"].prompt.system == "Other."


def test_a_person_s_answer_counts_before_grounding_and_an_abstention_is_nothing():
    grounded = said("A link is valid for ten days.")
    assert live_quality(grounded, "") == 1.0
    assert live_quality(grounded, "Twelve weeks") == 0.0
    assert live_quality(said("I do not know.", abstained=True), "") == 0.0


def test_the_swap_that_cures_is_above_zero_and_the_refreshed_index_is_no_gain():
    questions = [f"q{number}" for number in range(60)]
    good, bad = said("A link is valid for ten days."), said("blue river window")
    answered = {"live": [bad] * 30 + [good] * 30, "model": [good] * 60}
    found = compare(answered, [""] * 60, questions)
    assert found["model"].lower > 0.2
    assert found["index"].mean == 0.0 and found["index"].lower <= 0
