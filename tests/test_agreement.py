"""What feedback adds to a snapshot: the guards on items, and attacks on a generated stream."""

from dataclasses import replace
from functools import cache

import pytest

from benchmarks.feedback_guards import result, stream, world
from data.feedback import Place, Said
from data.records import Document, Example, GoldenQuestion, Section
from tasks import agreement
from tasks.agreement import choose
from tasks.golden import Corpus
from tasks.guards import ROWS, Guards

SECTIONS = 60
OPEN = Guards(history=0, history_days=0, user_share=1.0, topic_share=1.0)
ATTACKED_ROWS = 2500
OPEN_TO_ATTACK = replace(OPEN, users=1, trigger=10**9, opposed=1.0)


def corpus(topics=SECTIONS):
    """Facts spread over `topics` documents."""
    lines = [f"The limit of item {number} is {number + 100} units." for number in range(SECTIONS)]
    return Corpus(
        [
            Document(f"d{n}.md", f"Page {n}", (Section(f"d{n}.md", f"Page {n}", "Limit", "\n".join(lines[n::topics])),))
            for n in range(topics)
        ],
        {},
        SECTIONS,
    )


def said(seq, number, owner, edit=None, topics=SECTIONS, **more):
    place = (Place(f"d{number % topics}.md", "Limit"),)
    text = edit or f"{number + 100} units"
    return Said(seq, float(seq), owner, f"What is the limit of item {number}?", "5 units", -1, text, place, **more)


def agreed(numbers, owners=lambda number: (f"a{number}", f"b{number}"), topics=SECTIONS, **more):
    """Two users each with the same edit."""
    pairs = [(number, owner) for number in numbers for owner in owners(number)]
    return [said(seq, number, owner, topics=topics, **more) for seq, (number, owner) in enumerate(pairs, start=1)]


def guards_of(chosen):
    return {refusal.guard for refusal in chosen.refused}


def test_an_item_on_a_held_out_source_is_refused_and_only_by_that_guard(monkeypatch):
    golden = [GoldenQuestion("g", "Who wrote page one?", ("eve",), "d1.md", "Limit", "hash")]
    rows = agreed([1, 2])
    chosen = choose(rows, corpus(), golden, chosen=OPEN)
    assert [example.document for example in chosen.examples] == ["d2.md"] and guards_of(chosen) == {"held out"}
    assert [pair.document for pair in chosen.preferences] == ["d2.md"]
    monkeypatch.delitem(agreement.ITEMS, "held out")
    assert len(choose(rows, corpus(), golden, chosen=OPEN).examples) == 2


def test_the_teams_own_examples_come_first(monkeypatch):
    rows = agreed([1, 2])
    given = [
        Example("what is the limit of item 1", ("7 units",)),
        Example("What's the limit of item 2?", ("102 units",)),
    ]
    chosen = choose(rows, corpus(), given=given, chosen=OPEN)
    assert chosen.examples == [] and [pair.chosen for pair in chosen.preferences] == ["102 units"]
    assert [refusal.reason for refusal in chosen.refused] == [
        "the given examples answer otherwise: what is the limit of item 1"
    ] * 2
    monkeypatch.delitem(agreement.ITEMS, "given")
    assert len(choose(rows, corpus(), given=given, chosen=OPEN).examples) == 2


def test_what_a_reviewer_accepted_is_left_out_when_the_documents_lost_it(monkeypatch):
    rows = [said(1, 1, None, "7 units", verdict="accepted", reviewer="eve")]
    lost = [Example("What is the limit of item 1?", ("7 units",), "d1.md", "Limit")]
    chosen = choose(rows, corpus(), chosen=OPEN, outdated=lost.__contains__)
    assert chosen.examples == chosen.preferences == [] and chosen.outdated == lost
    assert guards_of(chosen) == {"outdated"}
    monkeypatch.delitem(agreement.ITEMS, "outdated")
    assert choose(rows, corpus(), chosen=OPEN, outdated=lost.__contains__).examples


def batch(users, numbers, topics=SECTIONS, guards=OPEN, **more):
    chosen = choose(agreed(numbers, users, topics, **more), corpus(topics), chosen=guards)
    return len(chosen.examples) + len(chosen.preferences), guards_of(chosen)


def same_two(number):
    return ("ann", "bob")


def test_of_ten_questions_one_of_each_user_and_two_of_each_topic():
    ten, users, topics = range(10), replace(OPEN, user_share=0.05), replace(OPEN, topic_share=0.2)
    assert batch(same_two, ten) == (20, set()), "an example and a preference of each"
    assert batch(same_two, ten, guards=users) == (2, {"share"})
    assert batch(lambda n: (f"a{n}", f"b{n}"), ten, guards=users) == (20, set())
    assert batch(same_two, ten, topics=5, guards=topics) == (20, set())
    assert batch(same_two, ten, topics=1, guards=topics) == (2, {"share"})


def test_the_shares_are_of_the_batch_that_is_left():
    rows = agreed(range(60), lambda n: ("ann", "bob") if n < 30 else (f"a{n}", f"b{n}"))
    chosen = choose(rows, corpus(), chosen=replace(OPEN, user_share=0.05))
    owners = {one.seq: one.owner for one in rows}
    items = {row["item"]: owners[row["seq"]] for row in chosen.used if row["kind"] == "example"}
    by_ann = sum(owner in ("ann", "bob") for owner in items.values())
    assert 0 < by_ann <= max(1, 0.05 * len(items)) and len(items) == 30 + by_ann


def test_what_three_users_agree_on_is_due_to_none_of_them_and_what_a_reviewer_accepted_neither():
    share = replace(OPEN, user_share=0.05)
    assert batch(lambda n: ("ann", "bob", "eve"), range(5), guards=share) == (10, set())
    assert batch(lambda n: ("ann",), range(5), guards=share, verdict="accepted", reviewer="eve") == (10, set())


@pytest.mark.parametrize(
    "guard, rows",
    [
        ("alone", [said(1, 1, "ann")]),
        ("unsupported", [said(1, 1, "ann", "seven"), said(2, 1, "bob", "seven")]),
        ("conflicting", [said(1, 1, "ann"), said(2, 1, "bob"), said(3, 1, "eve", "item 1")]),
        ("unpaired", [replace(said(n, 1, f"user{n}"), edit=None) for n in (1, 2)]),
    ],
)
def test_votes_that_make_nothing_say_why(guard, rows):
    chosen = choose(rows, corpus(), chosen=OPEN)
    assert chosen.used == [] and guards_of(chosen) == {guard}
    assert f"{len(rows)} {guard}" in str(chosen)


# --- attacks (FAULTS T5) ----------------------------------------------------------------------


@cache
def here():
    return world()


@cache
def clean():
    return choose(stream(here(), None, 0.0, rows=ATTACKED_ROWS).said, here().corpus)


BOUNDS = {
    # attack, share of poisoned rows: least share of the honest items that stay
    ("label flip", 0.01): 0.9,
    ("label flip", 0.05): 0.9,
    ("label flip", 0.20): 0.9,
    ("trigger", 0.01): 0.9,
    ("trigger", 0.05): 0.9,
    ("trigger", 0.20): 0.9,
    ("flood", 0.01): 0.9,
    ("flood", 0.05): 0.9,
    ("flood", 0.20): 0.9,
}


@pytest.mark.parametrize("attack, share", BOUNDS)
def test_nothing_poisoned_is_trained_on_and_the_honest_items_stay(attack, share):
    found = result(here(), stream(here(), attack, share, rows=ATTACKED_ROWS), clean())
    assert (found["past"], found["planted"]) == (0, 0), found
    assert found["honest_kept"] >= BOUNDS[attack, share], found


def test_two_established_users_who_collude_and_are_mostly_honest_get_at_most_their_share():
    found = result(here(), stream(here(), "collusion", 0.20, rows=ATTACKED_ROWS), clean())
    assert found["not_agreed"] == 0 and found["harmful_share"] <= 0.05, found


def test_without_the_guards_the_same_attack_is_trained_on():
    found = result(here(), stream(here(), "label flip", 0.20, rows=ATTACKED_ROWS), clean(), OPEN_TO_ATTACK)
    assert found["not_agreed"] >= 5 and found["planted"] >= 10, found


@pytest.mark.parametrize("guard", ["new user", "unreliable", "trigger"])
def test_each_guard_against_attacks_is_missed_when_it_is_off(guard, monkeypatch):
    attack = "trigger" if guard == "trigger" else "label flip"
    given = stream(here(), attack, 0.20, rows=ATTACKED_ROWS)
    monkeypatch.delitem(ROWS, guard)
    refused = {refusal.guard for refusal in choose(given.said, here().corpus).refused}
    found = result(here(), given, clean())
    assert guard not in refused and (found["planted"] or found["honest_kept"] < 0.9), found


def test_a_clean_stream_makes_items_and_none_is_wrong():
    found = result(here(), stream(here(), None, 0.0, rows=ATTACKED_ROWS), clean())
    assert found["items"] >= 20 and found["harmful"] == 0, found
