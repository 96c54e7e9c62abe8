"""Copies and near copies among documents."""

import random
from dataclasses import replace

import pytest

from data import copies
from data.copies import duplicates, fingerprint
from data.formats import read
from tests.test_cleaning import SAMPLE, document, prose


def prints(**texts):
    return [fingerprint(document(text, id=id)) for id, text in texts.items()]


def test_an_exact_copy_gives_way_to_the_newest_then_to_the_smallest_id():
    copies = [fingerprint(document("The same.", id=id, modified=time)) for id, time in
              (("b", "2024-05-01"), ("a", "2024-05-01"), ("c", "2025-01-01"), ("d", ""))]  # fmt: skip
    assert duplicates(copies) == {"a": ("c", "exact"), "b": ("c", "exact"), "d": ("c", "exact")}
    assert duplicates([copies[0], copies[1], copies[3]]) == {"b": ("a", "exact"), "d": ("a", "exact")}


def test_copies_are_only_found_within_one_tenant_and_access():
    text = prose(1)
    apart = [document(text, id="a"), document(text, id="b", tenant="acme"), document(text, id="c", access="staff"),
             document(text + " tail", id="d", tenant="acme", access="staff")]  # fmt: skip
    assert duplicates([fingerprint(one) for one in apart]) == {}
    assert duplicates([fingerprint(replace(one, tenant="", access="")) for one in apart]).keys() == {"b", "c", "d"}


def test_other_blanks_punctuation_and_a_typo_make_a_near_copy():
    text = prose(2)
    word = text.split()[40]
    found = duplicates(prints(a=text, b=text.replace(". ", ".\n\n"), c=text.replace(word, word + "q", 1)))
    assert found == {"b": ("a", "near"), "c": ("a", "near")}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("costs 10 a month", "costs 11 a month"),
        ("costs -5 a month", "costs 5 a month"),
        ("costs 5 € a month", "costs 5 $ a month"),
        ("from 9 to 17", "from 17 to 9"),
        ("it is shared", "it is not shared"),
        ("it can be shared", "it can't be shared"),
        ("it is enabled", "it is disabled"),
        ("after two days", "after three days"),
        ("install it on Windows", "install it on Linux"),
        ("退款在三天内", "退款在五天内"),
        ("我们在北京", "我们在上海"),
    ],
)
def test_a_text_that_says_something_else_in_one_place_is_no_copy(before, after):
    text = prose(3, 600)
    first, second = prints(a=f"{text} {before}. {text[:200]}", b=f"{text} {after}. {text[:200]}")
    signatures = [[one.signature[i : i + 4] for i in range(0, 512, 4)] for one in (first, second)]
    assert sum(a == b for a, b in zip(*signatures, strict=True)) > 0.9 * 128, "near by their words alone"
    assert duplicates([first, second]) == {}


def test_half_the_words_in_common_is_no_copy():
    assert duplicates(prints(a=prose(4) + prose(5), b=prose(4) + prose(6))) == {}


def test_a_chain_of_near_copies_keeps_its_far_end_and_never_names_a_dropped_one():
    words = prose(7, 400).split()
    links = {}
    for step in range(8):  # a few words more are changed at each step
        links[f"d{step}"] = " ".join(f"{w}q" if i % 40 == 3 and i < 40 * step else w for i, w in enumerate(words))
    found = duplicates(prints(**links))
    kept = set(links) - found.keys()
    assert found and len(kept) > 1
    assert {keeper for keeper, _ in found.values()} <= kept


def test_an_exact_copy_of_a_near_copy_leads_to_the_document_that_is_kept():
    text = prose(8)
    word = text.split()[40]
    changed = text.replace(word, word + "q", 1)
    assert duplicates(prints(a=text, b=changed, c=changed)) == {"b": ("a", "near"), "c": ("a", "near")}
    assert duplicates(prints(a=text, b=changed, c=changed), near=False) == {"c": ("b", "exact")}


def test_the_order_given_does_not_matter():
    text = prose(9)
    all_words = text.split()
    some = prints(**{f"d{i}": text.replace(all_words[i * 7], "changed", 1) for i in range(12)}, x=text, y=text)
    first = duplicates(some)
    assert first
    for seed in range(5):
        random.Random(seed).shuffle(some)
        assert duplicates(some) == first


def test_an_id_that_stands_there_twice_is_an_error():
    with pytest.raises(ValueError, match=r"two fingerprints of 'a'"):
        duplicates(prints(a="One.") + prints(a="Two."))


def test_a_fingerprint_is_the_same_on_every_machine():
    one = fingerprint(document(("Trash", "Files stay 30 days."), tenant="acme"))
    assert (one.signature[:8].hex(), one.figures[:8], one.reader) == ("97ecadd0f87a6dbc", "41062e77", "acme\n")


def test_a_signature_does_not_depend_on_how_the_phrases_are_batched():
    text = prose(10, 9000)
    assert len(fingerprint(document(text)).signature) == 4 * copies.PERMUTATIONS
    assert duplicates(prints(a=text, b=text.replace(". ", ".\n")))


def test_no_document_of_the_sample_is_a_copy():
    assert duplicates([fingerprint(document) for document in read(str(SAMPLE)).documents]) == {}
