"""Forms of the numbers that banks and states give to a person, each with its check digits."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module

from data.personal import NUMBERED, called, whole_groups

GAP = r"(?:[ \u00a0\u2009\u202f]?[-‐‑–]?[ \u00a0\u2009\u202f]?\r?\n?)"
"""What stands between two groups of one number: a space, a hyphen, the end of a line."""
CARD = re.compile(rf"[2-6](?<![\w.,][2-6])(?<!\d-[2-6])(?:{GAP}[0-9]){{12,18}}(?!\w|\.\d)")
IBAN = re.compile(rf"[A-Za-z](?<!\w[A-Za-z])[A-Za-z]\d\d(?:{GAP}[A-Za-z0-9]){{11,30}}")
BRAND = re.compile(  # by first digits and length
    r"4(?:\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"  # Visa, Mastercard
    r"|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}|6(?:011|4[4-9]\d|5\d\d)\d{12}"  # American Express, Diners, Discover
    r"|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"  # JCB, UnionPay
    r"|(?:50(?:18|20|38)|5893|6304|6759|676[1-3])\d{9,15}"  # Maestro
)
NINO = r"(?![DFIQUV])(?!BG|GB|KN|NK|NT|TN|ZZ)[A-Z](?![DFIOQUV])[A-Z] ?\d\d ?\d\d ?\d\d ?[A-D]"
"""A British National Insurance number (HMRC, NIM39110), which has no check digit."""

NATIONAL: tuple[tuple[str, str, str, str], ...] = (
    # python-stdnum's module, a form that is nothing else, a form that needs a word near it, the words
    ("us.ssn", r"\d{3}[-‑–]\d\d[-‑–]\d{4}", r"\d{3} ?\d\d ?\d{4}", "ssn|social security"),
    ("us.itin", r"9\d\d-\d\d-\d{4}", r"9\d\d ?\d\d ?\d{4}", "itin|taxpayer"),
    ("gb.nhs", "", r"\d{3}[ -]?\d{3}[ -]?\d{4}", "nhs"),
    ("de.idnr", r"\d\d \d{3} \d{3} \d{3}", r"\d\d[ /]?\d{3}[ /]?\d{3}[ /]?\d{3}", "steuer|idnr|id-nr|tax id|tin"),
    ("fr.nir", r"[1-478] ?\d\d ?\d\d ?\d[\dABab] ?\d{3} ?\d{3} ?\d\d", "", ""),
    ("es.dni", r"\d\d\.?\d{3}\.?\d{3}[ -]?[A-Za-z]", "", ""),
    ("es.nie", r"[XYZxyz][ -]?\d{7}[ -]?[A-Za-z]", "", ""),
    ("it.codicefiscale", r"[A-Za-z]{3} ?[A-Za-z]{3} ?\d\d[A-Za-z]\d\d ?[A-Za-z]\d{3} ?[A-Za-z]", "", ""),
    ("nl.bsn", r"\d{4}\.\d\d\.\d{3}", r"\d{3}[ .]?\d{2,3}[ .]?\d{3}|\d{8}", "bsn|burgerservicenummer|sofinummer"),
    ("be.nn", r"\d\d\.\d\d\.\d\d-\d{3}[. -]\d\d", r"\d{6} ?\d{3} ?\d\d", "rijksregister|registre national|niss|insz"),
    ("ch.ssn", r"756[. ]?\d{4}[. ]?\d{4}[. ]?\d\d", "", ""),
    ("at.vnr", "", r"\d{4}[ -]?\d{6}", "sozialversicherung|svnr|sv-nr|vsnr"),
    ("se.personnummer", r"(?:\d\d)?\d{6}[-+]\d{4}", r"\d{10}|\d{12}", "personnummer"),
    ("dk.cpr", "", r"\d{6}[- ]?\d{4}", "cpr|personnummer"),
    ("no.fodselsnummer", r"\d{6} \d{5}", r"\d{11}", "fødselsnummer|fodselsnummer|personnummer"),
    ("fi.hetu", r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Y]", "", ""),
    ("pl.pesel", "", r"\d{11}", "pesel"),
    ("cz.rc", r"\d{6}/\d{4}", "", ""),
    ("ro.cnp", "", r"\d{13}", "cnp|cod numeric personal"),
    ("pt.cc", r"\d{8} ?\d ?[A-Z][A-Z0-9]\d", "", ""),
    ("pt.nif", "", r"\d{3} ?\d{3} ?\d{3}", "nif|contribuinte"),
    ("ie.pps", "", r"\d{7} ?[A-Wa-w][A-Ia-i]?", "pps|ppsn"),
    ("bg.egn", "", r"\d{10}", "egn|егн"),
    ("gr.amka", "", r"\d{11}", "amka|αμκα"),
    ("hr.oib", "", r"\d{11}", "oib"),
    ("tr.tckimlik", "", r"\d{11}", "tckn|tc kimlik|kimlik"),
    ("br.cpf", r"\d{3}\.\d{3}\.\d{3}-\d\d", r"\d{11}", "cpf"),
    ("mx.curp", r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z0-9]\d", "", ""),
    ("ca.sin", "", r"\d{3}[ -]?\d{3}[ -]?\d{3}", "sin|social insurance|assurance sociale"),
    ("au.tfn", "", r"\d{3} ?\d{3} ?\d{2,3}", "tfn|tax file"),
    ("in_.aadhaar", "", r"\d{4}[ -]?\d{4}[ -]?\d{4}", "aadhaar|aadhar|uidai"),
    ("cn.ric", r"\d{6}(?:19|20)\d{9}[\dXx]", "", ""),
    ("kr.rrn", r"\d{6}-\d{7}", "", ""),
    ("za.idnr", "", r"\d{6} ?\d{4} ?\d{3}", "sa id|rsa id|id number|identity number"),
)


@cache
def _standard(name: str) -> Callable[..., bool]:
    """python-stdnum's test of one kind of number: its format, its check digits, the date or place in it."""
    return import_module(f"stdnum.{name}").is_valid


def _longest(match: re.Match, holds: Callable[[str], bool]) -> tuple[int, int] | None:
    end = next((end for end in whole_groups(match[0]) if holds(match[0][:end])), None)
    return (match.start(), match.start() + end) if end else None


def iban(match: re.Match) -> tuple[int, int] | None:
    """ISO 13616: the country's length and form, remainder 1 by 97."""
    return _longest(match, lambda form: _standard("iban")(_plain(form), check_country=False))  # no list of banks


def card(match: re.Match) -> tuple[int, int] | None:
    """A payment card's number by network and Luhn's digit (ISO/IEC 7812). Unbroken digits called an order stay."""
    span = _longest(match, _card)
    before = match.string[max(0, match.start() - 48) : match.start()]
    return None if span and match[0].isdigit() and called(NUMBERED, before) else span


def _card(form: str) -> bool:
    digits = _plain(form)
    whole = BRAND.fullmatch(digits) and all(len(group) > 3 for group in re.findall(r"\d+", form)[:-1])
    return bool(whole and _standard("luhn")(digits))


def _plain(form: str) -> str:
    return re.sub(r"[\W_]+", "", form)


def _bounded(*forms: str) -> re.Pattern:
    return re.compile(rf"(?<![\w.,/+-])(?:{'|'.join(form for form in forms if form)})(?!\w|[.,/-]\d)")


NATIONAL_ID = _bounded(NINO, *(form for _, *forms, _ in NATIONAL for form in forms))


@cache
def _forms() -> list[tuple[re.Pattern, Callable[[str], bool], re.Pattern | None]]:
    """Each form with the check of its country and the words it needs."""
    table = [(_bounded(NINO), lambda _: True, None)]
    for module, alone, near, words in NATIONAL:
        table += [(_bounded(alone), _standard(module), None)] if alone else []
        table += [(_bounded(near), _standard(module), re.compile(rf"(?i)\b(?:{words})"))] if near else []
    return table


def national_id(match: re.Match) -> tuple[int, int] | None:
    """The number, if one country's check holds; a form that other numbers have too needs a word for it up to 60
    characters before or 24 after."""
    text, start = match.string, match.start()
    for form, holds, words in _forms():
        if number := form.match(text, start):
            around = text[max(0, start - 60) : start] + " | " + text[number.end() : number.end() + 24]
            if (not words or words.search(around)) and (holds(number[0]) or holds(_plain(number[0]))):
                return number.span()
    return None
