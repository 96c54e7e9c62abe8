import re
from itertools import pairwise

import pytest

from benchmarks.redaction import labelled
from data import redaction
from data.redaction import Found, Redacted, find, redact

TEXTS = labelled()


@pytest.mark.parametrize("kind", redaction.KINDS)
def test_nearly_all_of_each_kind_is_found_and_nearly_nothing_else(kind):
    """Exact spans in tests/personal_data.jsonl; `python -m benchmarks redaction` prints what is missed."""
    marked = {(at, *span) for at, (_, spans) in enumerate(TEXTS) for span in spans if span[0] == kind}
    found = {
        (at, place.kind, place.start, place.end)
        for at, (text, _) in enumerate(TEXTS)
        for place in find(text)
        if place.kind == kind
    }
    assert len(marked) >= 40
    assert len(found & marked) >= 0.97 * len(marked) and len(found & marked) >= 0.97 * len(found)


@pytest.mark.parametrize("text", [text for text, spans in TEXTS if not spans])
def test_what_only_looks_like_personal_data_or_a_secret_stays(text):
    assert redact(text) == Redacted(text, {})


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Write to ann.lee+x@mail.example.com today", "Write to [email] today"),
        ("IBAN DE89 3704 0044 0532 0130 00 please", "IBAN [iban] please"),
        ("card 4111 1111 1111 1111.", "card [card]."),
        ("from 192.168.0.17, then", "from [ip], then"),
        ("host 2001:0db8:85a3:0000:0000:8a2e:0370:7334 up", "host [ip] up"),
        ("host fe80::1 up", "host [ip] up"),
        ("call +33 6 12 34 56 78 now", "call [phone] now"),
        ("call (415) 555-2671 now", "call [phone] now"),
        ("my SSN is 536-90-4399", "my SSN is [national_id]"),
        ('db = "postgres://ann:Xk9vQ2zLm@db/app"', 'db = "postgres://[secret]@db/app"'),
        ("password=Tr0ub4dor&3, user=ann", "password=[secret], user=ann"),
    ],
)
def test_only_the_personal_part_is_replaced(text, kept):
    assert redact(text).text == kept


@pytest.mark.parametrize(
    "text",
    [
        "Between 1939-1945, at 10:30:00, version 3.11.4",
        "Order 4111 1111 1111 1112 of 2024-05-01",
        "It costs 1,250,000.50 and has 12 345 678 inhabitants",
        "std::vector and a::b",
    ],
)
def test_numbers_and_code_that_are_not_personal_stay(text):
    assert redact(text).text == text


def test_each_kind_is_counted():
    text = "ann@example.org or bob@example.org, +44 7911 123456, sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"
    assert redact(text) == Redacted("[email] or [email], [phone], [secret]", {"email": 2, "phone": 1, "secret": 1})


def test_places_are_in_order_and_do_not_overlap():
    for text, _ in TEXTS:
        places = find(text)
        assert all(one.end <= two.start for one, two in pairwise(places))


def test_redacting_twice_changes_nothing_more():
    for text, _ in TEXTS:
        once = redact(text).text
        assert redact(once).text == once


def test_only_the_kinds_that_are_asked_for_are_redacted():
    assert redact("ann@example.org, 203.0.113.7", kinds=["ip"]).text == "ann@example.org, [ip]"
    with pytest.raises(ValueError, match=r"no kind \['mail'\].*email"):
        redact("x", kinds=["mail"])


@pytest.mark.parametrize(
    "text",
    [
        "Questions: support@quillbox.example",
        "Invoices come from no-reply+billing@quillbox.example or customer.service@quillbox.example",
        "security-team@quillbox.example answers, privacy (at) quillbox (dot) example too",
        "Call 0800 123 4567 or 1-800-555-0199 or +49 800 1234567",
        "The fallback address is 192.168.77.1, the resolver 8.8.8.8",
        "Call 112, or extension 4711",
    ],
)
def test_what_an_organisation_publishes_stays_in_documents(text):
    assert redact(text, public=True) == Redacted(text, {})


@pytest.mark.parametrize(
    "text",
    [
        "Questions: support@quillbox.example",
        "Call 0800 123 4567",
        "The fallback address is 192.168.77.1",
    ],
)
def test_a_log_keeps_none_of_it(text):
    assert redact(text).found


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Ann's desk: ann.support@example.org", "Ann's desk: [email]"),
        ("Her mobile is +49 151 2345 6789", "Her mobile is [phone]"),
        ("She signed in from 84.178.21.5", "She signed in from [ip]"),
        ("the key is AKIA" + "QWERTYUIOPASDFGH", "the key is [secret]"),
    ],
)
def test_what_is_a_persons_is_redacted_from_documents_too(text, kept):
    assert redact(text, public=True).text == kept


def test_a_whole_private_key_goes_also_when_its_end_is_missing():
    lines = "\n".join("MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ" + str(n) for n in range(10, 20))
    whole = f"a\n-----BEGIN PRIVATE KEY-----\n{lines}\n-----END PRIVATE KEY-----\nb"
    assert redact(whole).text == "a\n[secret]\nb"
    assert redact(whole.split("-----END")[0]).text == "a\n[secret]"


def test_a_text_of_one_long_run_is_no_hazard():
    for sign in (
        "1",
        "0 ",
        "a@",
        "(at)",
        "a.",
        "://a:",
        "+1 ",
        "eyJ",
        "password:",
        "-----BEGIN RSA PRIVATE KEY-----\n",
    ):
        assert isinstance(find(sign * 3000), list)


def test_letters_that_change_length_in_lower_case_do_not_move_a_span():
    text = "İİİ password = Tr0ub4dor&3"
    assert find(text) == [Found("secret", 15, 26)]


@pytest.mark.parametrize("rule", redaction.RULES, ids=lambda rule: rule.pattern.pattern[:30])
def test_without_any_one_rule_something_is_missed(rule, monkeypatch):
    monkeypatch.setattr(redaction, "RULES", tuple(other for other in redaction.RULES if other is not rule))
    missed = sum(span[0] == rule.kind and Found(*span) not in find(text) for text, spans in TEXTS for span in spans)
    assert missed > 1


def test_the_places_where_a_slow_pattern_is_tried_are_joined_when_they_meet():
    near = redaction.Near(re.compile("x"), 2, 3)
    assert near.places("x....x..........x") == [(0, 9), (14, 20)]
