"""Golden questions: binding, holding out, leaks, ageing."""

from collections import Counter
from dataclasses import replace

import pytest

from data.records import Document, Example, Section
from data.reviews import Ruling
from tasks.golden import Corpus, age, apply, bind, clusters, hold_out, leaks, ruled, to_golden


def corpus(aliases=None, **texts):
    """Documents by name; a text is {heading: text}."""
    made = [Document(f"{d}.md", d, tuple(Section(f"{d}.md", d, h, t) for h, t in parts.items()))
            for d, parts in texts.items()]  # fmt: skip
    return Corpus(made, aliases or {}, len(made))


TRASH = {"Trash": "Files stay 30 days. Admins may empty it.", "Price": "It costs 6 euros."}


def test_an_example_is_bound_to_the_one_section_that_holds_its_first_answer():
    bound = bind(Example("How long?", ("30 Days",), "a.md"), corpus(a=TRASH))
    assert (bound.document, bound.section) == ("a.md", "Trash")
    assert bind(Example("How long?", ("30 days",)), corpus(a=TRASH, b={"X": "no"})).document == "a.md"


def test_a_span_in_two_sections_or_inside_a_word_binds_to_none():
    twice = corpus(a={"One": "6 euros", "Two": "6 euros"})
    assert bind(Example("Price?", ("6 euros",), "a.md"), twice).section is None
    assert bind(Example("Price?", ("6 euros",)), twice).document is None
    assert bind(Example("Which?", ("30 day",), "a.md"), corpus(a=TRASH)).section is None


def test_a_heading_matches_in_full_or_by_its_last_part():
    nested = corpus(a={"Plans > Trash": "30 days", "Plans": "x"})
    for written in ("Plans > Trash", "trash"):
        assert bind(Example("q?", ("z",), "a.md", written), nested).section == "Plans > Trash"


def test_what_is_not_there_is_refused_by_name():
    with pytest.raises(LookupError, match=r"no document 'b\.md'"):
        bind(Example("q?", ("x",), "b.md"), corpus(a=TRASH))
    with pytest.raises(LookupError, match="no section 'Nope'"):
        bind(Example("q?", ("x",), "a.md", "Nope"), corpus(a=TRASH))


def test_a_question_about_a_dropped_copy_is_about_the_document_that_was_kept():
    assert bind(Example("q?", ("30 days",), "copy.md"), corpus({"copy.md": "a.md"}, a=TRASH)).document == "a.md"


def aged(old, new, **example):
    example = {"question": "How long?", "answers": ("30 days",), "document": "a.md"} | example
    question = to_golden(bind(Example(**example), old), old)
    return age(question, old.bound_text(question), new)


def test_an_unchanged_section_keeps_its_question_voting_whatever_else_changed():
    after = aged(corpus(a=TRASH), corpus(a=TRASH | {"Price": "It costs 7 euros."}))
    assert (after.state, after.votes) == ("active", True)


def test_a_question_whose_fact_was_edited_never_votes():
    after = aged(corpus(a=TRASH), corpus(a=TRASH | {"Trash": "Files stay 60 days. Admins may empty it."}))
    assert (after.state, after.votes) == ("aged", False)


def test_the_bare_span_standing_elsewhere_is_not_enough_to_vote():
    edited = {"Trash": "Files stay 60 days. Undo works for 30 days.", "Price": "It costs 6 euros."}
    assert aged(corpus(a=TRASH), corpus(a=edited)).state == "aged"


def test_a_question_whose_sentence_stands_in_exactly_one_new_place_is_rederived():
    new = corpus(a={"Bin": "New name. Files stay 30 days.", "Price": "It costs 6 euros."})
    after = aged(corpus(a=TRASH), new)
    assert (after.state, after.section, after.votes) == ("rederived", "Bin", True)
    assert after.section_hash == new.hash("a.md", "Bin")
    twice = corpus(a={"Bin": "Files stay 30 days.", "More": "Files stay 30 days."})
    assert aged(corpus(a=TRASH), twice).state == "aged"


def test_a_moved_document_takes_its_questions_along_under_their_old_id():
    old = corpus(a=TRASH)
    after = aged(old, corpus(moved=TRASH))
    assert (after.state, after.document) == ("rederived", "moved.md")
    assert after.id == Example("How long?", (), "a.md").id
    assert aged(old, corpus(other={"X": "nothing"})).state == "aged"


def test_an_unanswerable_question_ages_with_its_document_and_one_about_nothing_never_does():
    edited = corpus(a=TRASH | {"Price": "It costs 7 euros."})
    assert aged(corpus(a=TRASH), corpus(a=TRASH), answers=()).state == "active"
    assert aged(corpus(a=TRASH), edited, answers=()).state == "aged"
    assert aged(corpus(a=TRASH), edited, answers=(), document=None).state == "active"


def test_a_question_votes_again_when_its_section_is_as_it_was():
    old = corpus(a=TRASH)
    after = aged(old, corpus(a={"Trash": "Gone."}))
    assert age(after, old.bound_text(after), old).state == "active"


def many(documents, sections=2, questions=5):
    texts = {f"d{d}": {f"S{s}": f"text {d} {s}" for s in range(sections)} for d in range(documents)}
    made = [Example(f"Question {q} on {d} {s}?", ("x",), f"d{d}.md", f"S{s}")
            for d in range(documents) for s in range(sections) for q in range(questions)]  # fmt: skip
    return made, corpus(**texts)


def test_a_fifth_of_the_documents_is_held_out_with_at_most_three_questions_of_a_section():
    examples, texts = many(100)
    held = hold_out(examples, texts, [], set())
    assert len({example.document for example in held}) == 20
    assert max(Counter((e.document, e.section) for e in held).values()) == 3
    assert hold_out(examples[::-1], texts, [], set()) == held


def test_few_documents_are_split_by_section_and_never_more_than_half_is_held():
    examples, texts = many(5, sections=20)
    places = {(example.document, example.section) for example in hold_out(examples, texts, [], set())}
    assert len(places) == 20
    examples, texts = many(5)
    assert len({(e.document, e.section) for e in hold_out(examples, texts, [], set())}) == 5


def test_at_most_four_hundred_questions_are_held_from_at_least_sixty_places():
    examples, texts = many(60, sections=20)
    held = hold_out(examples, texts, [], set())
    assert len(held) == 400
    assert len({(example.document, example.section) for example in held}) >= 60


def test_a_held_out_set_stays_and_nothing_once_trained_on_joins_it():
    examples, texts = many(100)
    first = hold_out(examples, texts, [], set())
    golden = [to_golden(example, texts) for example in first]
    grown, more = many(160)
    second = hold_out(grown, more, golden, set(texts.documents))
    ids = {example.id for example in second}
    assert {example.id for example in first} <= ids
    joined = {example.document for example in second} - {example.document for example in first}
    assert joined
    assert not joined & set(texts.documents)


def test_examples_without_a_document_are_never_held_out():
    assert hold_out([Example("q?", ("x",))] * 40, corpus(a=TRASH), [], set()) == []


GOLDEN = ["How long are deleted files kept in the trash?", "What does error QB-217 mean?", "Who can empty the trash?"]


@pytest.mark.parametrize(
    "question",
    [
        "How long are deleted files kept in the trash?",
        "how long are deleted files kept in the trash",
        "How long are deleted files kept in trash?",
        "In the trash, how long are deleted files kept?",
        "How long are the deleted files kept in the trash??",
        "What does the error QB-217 mean?",
        "Who can empty trash?",
    ],
)
def test_a_near_duplicate_of_a_golden_question_is_a_leak(question):
    assert 0 in leaks([question], GOLDEN)


@pytest.mark.parametrize(
    "question", ["What does error QB-271 mean?", "How much does the Team plan cost?", "How do I empty a cache?"]
)
def test_another_question_is_no_leak(question):
    assert leaks([question], GOLDEN) == {}


def test_questions_form_clusters_by_the_same_rule_and_codes_keep_them_apart():
    asked = ["How long is the trial?", "how long is the trial", "What is QB-217?", "What is QB-271?", "Who is Ann?"]
    assert clusters(asked) == [0, 0, 2, 3, 4]
    assert clusters([]) == []


def ruling(old, new, *answers, before=("30 days",), discarded=False):
    """What a reviewer decided on the aged question about Trash after they saw it in `new`."""
    question = to_golden(bind(Example("How long?", ("30 days",), "a.md"), old), old)
    seen = replace(question, answers=answers, section_hash=new.hash("a.md", "Trash") or "")
    return Ruling(seen, before, new.bound_text(question), discarded, "eve")


EDITED = TRASH | {"Trash": "Files stay 60 days. Admins may empty it."}


def test_a_corrected_question_votes_on_the_text_its_reviewer_saw_and_ages_again_with_the_next():
    old, new = corpus(a=TRASH), corpus(a=EDITED)
    decided = ruling(old, new, "60 days")
    now = apply(decided, new)
    assert (now.answers, now.state, now.section_hash) == (("60 days",), "active", new.hash("a.md", "Trash"))
    later = corpus(a=EDITED | {"Trash": "Files stay 60 days. Owners may empty it."})
    assert apply(decided, later).state == "rederived"
    assert apply(decided, corpus(a=EDITED | {"Trash": "Files stay 90 days."})).state == "aged"


def test_a_discarded_question_is_none():
    assert apply(ruling(corpus(a=TRASH), corpus(a=EDITED), discarded=True), corpus(a=EDITED)) is None


def test_a_correction_of_what_is_gone_binds_to_the_one_section_that_holds_it_or_stays_aside():
    gone = corpus(a={"Price": "It costs 6 euros."}, b={"Bin": "Kept for 45 days."})
    decided = ruling(corpus(a=TRASH), gone, "45 days")
    assert (apply(decided, gone).document, apply(decided, gone).votes) == ("b.md", True)
    assert apply(ruling(corpus(a=TRASH), gone, "nowhere said"), gone).state == "aged"


def test_rulings_follow_one_another_until_the_team_changes_the_answers_itself():
    old, new = corpus(a=TRASH), corpus(a=EDITED)
    chain = [ruling(old, new, "60 days"), ruling(old, new, "90 days", before=("60 days",))]
    number = chain[0].question.id
    assert ruled(number, ("30 days",), chain) is chain[1]
    assert ruled(number, ("60 days",), chain) is chain[1]
    assert ruled(number, ("12 days",), chain) is None and ruled("other", ("30 days",), chain) is None
