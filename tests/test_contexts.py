"""Which examples are shown with which passages, and the rows made of them."""

from dataclasses import replace
from itertools import groupby

import pytest

from data.records import Example
from tasks.contexts import Mixture, bind, contexts, holds, rows
from tests import tiny
from tests.doors import ALWAYS_FULL, BOUND, CHUNKS, EXAMPLES, build, search, small_rows


def test_an_example_is_bound_to_the_passage_that_holds_its_answer():
    assert all(BOUND[e].text.endswith(f"{e.answers[0]}.") for e in EXAMPLES)


def test_an_example_whose_answer_no_passage_holds_is_left_out_and_counted():
    lost = Example("Which code opens door 1-9?", ("none of them",), "d1", "Section 9")
    bound, left = bind([lost, EXAMPLES[0]], CHUNKS, search)
    assert left == 1 and list(bound) == [EXAMPLES[0]]


def test_an_example_without_a_document_is_bound_through_search():
    loose = replace(EXAMPLES[0], document=None, section=None)
    assert bind([loose], CHUNKS, search)[0][loose] == CHUNKS[0]


def test_every_example_is_answered_in_every_pass_and_only_where_its_source_is_shown():
    made = list(contexts(BOUND, search, 3, ALWAYS_FULL, passes=1, seed=1))
    assert {e for context in made for e in context.answered} == set(EXAMPLES)
    for context in made:
        assert len(context.chunks) == 3
        assert all(BOUND[e] in context.chunks for e in context.answered)
    assert len(made) < len(EXAMPLES) / 2  # examples share contexts


def test_an_abstention_never_has_its_answer_in_sight():
    twin = replace(CHUNKS[3], id="twin", text=CHUNKS[0].text)  # not the source of door 0-0, but it answers it

    def with_twin(questions):
        return [
            [*hits[1:], twin] if "door 0" in asked else hits
            for asked, hits in zip(questions, search(questions), strict=True)
        ]

    made = list(contexts(BOUND, with_twin, 3, Mixture(abstain=0.3), passes=20, seed=1))
    missed = [(context, e) for context in made for e in context.unanswered]
    assert missed
    for context, example in missed:
        assert BOUND[example] not in context.chunks
        assert not any(holds(shown, example) for shown in context.chunks)


def test_the_share_of_abstentions_is_the_one_asked_for():
    made = list(contexts(BOUND, search, 3, Mixture(abstain=0.2, narrow=0.0), passes=30, seed=1))
    unanswered = sum(len(context.unanswered) for context in made)
    assert unanswered / (unanswered + sum(len(context.answered) for context in made)) == pytest.approx(0.2, abs=0.03)


def test_a_question_marked_unanswerable_is_always_an_abstention():
    nobody = Example("Who painted door 2-1?", (), "d2")
    made = list(contexts(BOUND | {nobody: None}, search, 3, Mixture(), passes=2, seed=1))
    assert sum(nobody in context.unanswered for context in made) >= 2
    assert not any(nobody in context.answered for context in made)


def test_narrow_contexts_keep_the_source():
    made = list(contexts(BOUND, search, 3, Mixture(abstain=0.0, narrow=1.0), passes=3, seed=1))
    assert {len(context.chunks) for context in made} == {1, 2}
    assert all(context.answered for context in made)


def test_contexts_end_when_search_finds_nothing():
    assert list(contexts({Example("door x?", ()): None}, lambda asked: [[]] * len(asked), 3, Mixture(), 3, 0)) == []


def test_completions_are_the_first_answer_or_the_abstention_and_an_end_mark():
    packed, made = small_rows(mixture=Mixture(abstain=0.4)), tiny.tokenizer()
    learned = set()
    for number in range(len(packed.lengths)):
        ids, _, branches, learn = packed.row(number)
        for branch, tokens in groupby(zip(branches, ids, learn, strict=True), key=lambda token: token[0]):
            if branch:
                learned.add(made.decode([token for _, token, taught in tokens if taught]))
    assert learned == {f"{e.answers[0]}<|im_end|>" for e in EXAMPLES} | {"The documents do not say.<|im_end|>"}


def test_long_contexts_lose_their_last_passages_but_never_the_answer():
    long = rows(
        contexts(BOUND, search, 3, ALWAYS_FULL, 1, seed=1),
        build,
        lambda t: tiny.tokenizer()(t).input_ids,
        "",
        replace(ALWAYS_FULL, most_tokens=90),
        10**9,
    )
    made = tiny.tokenizer()
    for number in range(len(long.lengths)):
        ids, _, _, learn = long.row(number)
        answers = made.decode(ids[learn == 1]).split("<|im_end|>")[:-1]
        text = made.decode(ids[learn == 0])
        assert answers and all(f" is {answer}." in text for answer in answers)


def test_rows_stop_at_the_token_budget():
    assert len(small_rows(tokens=500).ids) < len(small_rows().ids)
