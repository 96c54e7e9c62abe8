"""Clean text, and the labels of a document."""

from datetime import date, datetime, timedelta, timezone

import pytest

from data.sections import Part, Unreadable, clean, labels, sectioned, utc


def test_blanks_and_empty_lines_between_fences_stay_and_elsewhere_do_not():
    code = "```py\nif x:\n    y  =  1\n\n\n\tz\n```"
    assert clean(f"a   b\n\n\n\n{code}  \n\n\n\nc  d") == f"a b\n\n{code}\n\nc d"


def test_invisible_characters_are_removed_from_code_too():
    assert clean("```\na\u202e\u200b b\x07\r\n```") == "```\na b\n```"


def test_a_document_without_labels_has_none():
    assert labels([]) == {"modified": "", "language": "", "access": "", "tenant": ""}


@pytest.mark.parametrize(
    "value", ["a, b", "", " ", "[a]", "staff\u200b", "é", "x" * 65, ["staff"], {"a": 1}, True, 4.0]
)
@pytest.mark.parametrize("name", ["access", "tenant"])
def test_a_label_that_is_no_plain_word_is_refused_with_its_value(name, value):
    with pytest.raises(Unreadable, match=f"{name} is .*no plain word"):
        labels([(name, value)])


def test_a_plain_word_or_whole_number_is_a_label():
    assert labels([("access", " hr:staff_1.a-b "), ("tenant", 42)]) | {"modified": "", "language": ""} == {
        "modified": "", "language": "", "access": "hr:staff_1.a-b", "tenant": "42"
    }  # fmt: skip


def test_a_document_that_disagrees_with_itself_is_refused_and_one_that_repeats_itself_is_not():
    for other in ("hr", None):
        with pytest.raises(Unreadable, match="access is said to be"):
            labels([("access", "staff"), ("access", other)])
    assert labels([("access", "staff"), ("access", "staff")])["access"] == "staff"


def test_the_latest_time_counts_and_a_language_only_when_all_agree():
    times = [("modified", "2024-01-01"), ("modified", None), ("modified", "2024-03-01")]
    assert labels(times)["modified"] == "2024-03-01T00:00:00Z"
    assert labels([("language", "en-GB"), ("language", None), ("language", "EN_us")])["language"] == "en"
    assert labels([("language", "en"), ("language", "de")])["language"] == ""
    assert [labels([("language", value)])["language"] for value in ("eng", "English", "", 7)] == [""] * 4


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-01-31", "2024-01-31T00:00:00Z"),
        ("2024-01-31T12:00:00+02:00", "2024-01-31T10:00:00Z"),
        ("2024-01-31 12:00:00 +0200", "2024-01-31T10:00:00Z"),
        ("Tue, 15 Nov 1994 12:45:26 GMT", "1994-11-15T12:45:26Z"),
        (date(2024, 1, 31), "2024-01-31T00:00:00Z"),
        (datetime(2024, 1, 31, 12, tzinfo=timezone(timedelta(hours=-1))), "2024-01-31T13:00:00Z"),
        (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))), ""),
        ("last week", ""),
        (1700000000, ""),
        (None, ""),
    ],
)
def test_times_become_iso_utc_and_what_is_no_time_becomes_nothing(value, expected):
    assert utc(value) == expected


def test_labels_and_pages_reach_the_document():
    (document,) = sectioned("a", "A", [Part("", "x", 3), Part("", " ", 4), Part("", "y", 5)], [("tenant", "t")])
    assert [(section.heading, section.page) for section in document.sections] == [("", 3), ("(2)", 5)]
    assert (document.tenant, document.access) == ("t", "")
