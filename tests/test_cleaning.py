"""Unfit documents, copies, and lines that are furniture."""

import base64
import random
from collections import Counter
from pathlib import Path

import pytest

from data.cleaning import (
    boilerplate,
    language,
    lines,
    quality,
    without_boilerplate,
    without_page_furniture,
)
from data.formats import read
from data.records import Document, Section

SAMPLE = Path(__file__).parent.parent / "data" / "sample" / "documents"


def document(*texts, id="a.md", title="Handbook", **labels):
    """A document with a section for each (heading, text) or text."""
    parts = [part if isinstance(part, tuple) else ("", part) for part in texts]
    return Document(id, title, tuple(Section(id, title, heading, text) for heading, text in parts), **labels)


def prose(seed, count=300):
    """Lower-case words that mean nothing, in sentences."""
    words = random.Random(seed).choices([f"{a}{b}{c}" for a in "bdfglmt" for b in "aeiou" for c in "nrstk"], k=count)
    return ". ".join(" ".join(words[i : i + 12]) for i in range(0, count, 12)) + "."


# --- language ---------------------------------------------------------------------------------

TEXTS = {
    "en": "Files in the trash are kept for thirty days, and can be restored by anyone who may edit the folder.",
    "de": "Dateien im Papierkorb bleiben dreißig Tage erhalten und können von allen wiederhergestellt werden.",
    "fr": "Les fichiers de la corbeille sont conservés pendant trente jours et peuvent être restaurés par tous.",
    "es": "Los archivos de la papelera se conservan durante treinta días y cualquiera puede recuperarlos.",
    "pl": "Pliki w koszu są przechowywane przez trzydzieści dni i każdy może je przywrócić.",
    "ru": "Файлы в корзине хранятся тридцать дней, и любой участник может их восстановить.",
    "el": "Τα αρχεία στον κάδο διατηρούνται για τριάντα ημέρες και μπορούν να επαναφερθούν.",
    "ar": "يتم الاحتفاظ بالملفات في سلة المهملات لمدة ثلاثين يومًا ويمكن لأي شخص استعادتها.",
    "hi": "कूड़ेदान में फ़ाइलें तीस दिनों तक रखी जाती हैं और कोई भी उन्हें वापस ला सकता है।",
    "zh": "回收站中的文件保留三十天，任何可以编辑该文件夹的人都可以恢复它们。",
    "ja": "ごみ箱のファイルは三十日間保存され、フォルダーを編集できる人なら誰でも復元できます。",
    "ko": "휴지통에 있는 파일은 삼십 일 동안 보관되며 폴더를 편집할 수 있는 사람은 누구나 복원할 수 있습니다.",
}
CODE = "def total(rows):\n    found = [row.price for row in rows if row.price]\n    return sum(found) / len(found)\n"


@pytest.mark.parametrize("code", TEXTS)
def test_a_sentence_or_two_are_enough_to_tell_the_language(code):
    assert language(TEXTS[code]) == code


@pytest.mark.parametrize(
    "text", ["", "OK", "12 34 55 99 120.0", "A1-B2 / X9", "zxcv qwrt bnmk", CODE, f"```\n{CODE}```"]
)
def test_what_is_too_short_or_no_prose_has_no_language(text):
    assert language(text) == ""


def test_a_few_words_of_english_between_much_code_are_no_prose():
    source = "import random\n" + "".join(f"row_{i} = sorted(rows[{i}], key={{'a': {i}}})\n" for i in range(9))
    assert language("Import all of it before the rows are sorted.\n" + source) == ""


def test_code_does_not_hide_the_language_of_the_prose_around_it():
    assert language(f"{TEXTS['de']}\n\n```python\n{CODE * 5}```\n\n{TEXTS['de']}") == "de"
    assert language(f"{TEXTS['fr']}\n{TEXTS['fr']}\n{CODE}") == "fr"


# --- quality ----------------------------------------------------------------------------------

FIT = {
    "short answer": document("30", title="How many days is a deleted file kept?"),
    "short chinese answer": document("保留三十天。", title="文件"),
    "thai": document("ไฟล์ในถังขยะจะถูกเก็บไว้สามสิบวัน", title="ก"),
    "table": document("\n".join(f"| Plan {i} | {i * 12}.50 | {i * 120}.00 | {i * 7} |" for i in range(60))),
    "rule of a table": document("| Plan | Price |\n|" + "-" * 900 + "|" + "-" * 900 + "|\n| Solo | 5.00 |"),
    "code": document("```python\n" + CODE * 8 + "```"),
    "closing brackets": document("\n".join(f"  call({i}, 'value {i}')\n  }}" for i in range(80))),
    "addresses": document("\n".join(f"https://quillbox.example/a/very/long/path/of/pages/{i:080}" for i in range(40))),
    "on lorem ipsum": document(
        "Designers fill a page with lorem ipsum dolor sit amet until the text has been written."
    ),
    "typographic quotes": document("„Spaß“ und „groß“ sagte er – „ähnlich“ wie „Öl“. " * 3 + TEXTS["de"]),
    "japanese": document(TEXTS["ja"] * 3),
}
UNFIT = {
    "only 2 words": document("TODO"),
    "no words": document("--- *** ---"),
    "99% of it is not letters": document(
        "\n".join("0.123 0.456 0.789 12.5 99.1 42.0 17.3" for _ in range(40)) + "\nend of x y"
    ),
    "the same line 40 times: 'Page could not be loaded'": document("A dashboard\n" + "Page could not be loaded\n" * 40),
    "phrases of five words": document("buy now and save big money today " * 100),
    "looks like lorem ipsum": document(
        "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore."
    ),
    "'ü'": document("Für größere Mengen gelten höhere Gebühren.".encode().decode("cp1252")),
    "characters were lost": document(TEXTS["de"].encode("cp1252").decode("utf-8", errors="replace") * 2),
    "base64/minified data": document(
        "An attachment\n" + base64.encodebytes(random.Random(1).randbytes(3000)).decode(), title="Mail of 3 May"
    ),
}


@pytest.mark.parametrize("name", FIT)
def test_short_answers_tables_code_and_every_script_are_fit(name):
    assert quality(FIT[name]) == ""


@pytest.mark.parametrize("reason", UNFIT)
def test_an_unfit_document_is_refused_with_the_reason(reason):
    assert reason in quality(UNFIT[reason])


def test_no_document_of_the_sample_is_refused_or_furnished():
    found = read(str(SAMPLE)).documents
    assert [quality(document) for document in found if quality(document)] == []
    assert boilerplate(Counter(line for document in found for line in lines(document)), len(found)) == frozenset()


# --- furniture --------------------------------------------------------------------------------

BANNER = "We use cookies to improve your visit. Accept all cookies?"
HELPFUL = "Was this page helpful?"
RIGHTS = "© 2024 Quillbox. All rights reserved."


def furnished(number):
    return document(
        BANNER + "\n\n" + prose(number, 60) + "\n\nPrices start at 10 a month.",
        ("More", HELPFUL + "\n" + RIGHTS),
        id=f"{number}",
    )


def counted(documents):
    return Counter(line for one in documents for line in lines(one))


def test_lines_of_most_documents_go_and_sections_of_nothing_else_with_them():
    documents = [furnished(number) for number in range(30)]
    furniture = boilerplate(counted(documents), len(documents))
    assert len(furniture) == 3
    cleaned = without_boilerplate(documents[0], furniture)
    assert [(part.heading, part.text) for part in cleaned.sections] == [
        ("", prose(0, 60) + "\n\nPrices start at 10 a month.")
    ]


def test_figures_tables_code_and_the_middle_of_a_document_are_never_furniture():
    body = "\n".join(f"{prose(i, 12)}" for i in range(24)).split("\n")
    middle = "\n".join([*body[:12], HELPFUL, *body[12:]])
    kept = ["Call us on 0800 123 456 at any time.", "| Name | Type | Default |", "Yes No"]
    assert lines(document("\n".join(kept))) == set()
    assert lines(document("```\nfrom pydantic import BaseModel\n```")) == set()
    assert lines(document(HELPFUL)).isdisjoint(lines(document(middle)))


def test_blanks_and_case_do_not_make_another_line():
    assert lines(document("Was  this page HELPFUL?")) == lines(document(HELPFUL))
    assert all(0 <= line < 2**63 for line in lines(furnished(1)))


def test_furniture_needs_half_of_twenty_documents():
    assert boilerplate({1: 10, 2: 9}, 20) == {1}
    assert boilerplate({1: 19}, 19) == frozenset()


def test_what_was_furniture_stays_so_until_it_is_rare():
    assert boilerplate({1: 9, 2: 9}, 20, before=frozenset({1})) == {1}
    assert boilerplate({1: 8}, 19, before=frozenset({1})) == {1}
    assert boilerplate({1: 5}, 20, before=frozenset({1})) == frozenset()
    assert boilerplate({1: 11}, 11, before=frozenset({1})) == frozenset()


def test_a_document_of_nothing_but_furniture_is_returned_unchanged():
    only = document(BANNER, ("More", HELPFUL))
    assert without_boilerplate(only, lines(only)) is only
    assert without_boilerplate(only, frozenset({1})) is only


def test_what_is_left_of_a_text_is_as_it_was():
    text = f"{HELPFUL}\n\nFirst.\n\n```\ncode\n\n\n  more\n```\nLast words here."
    assert without_boilerplate(document(text), lines(document(HELPFUL))).sections[0].text == text.removeprefix(
        HELPFUL + "\n\n"
    )


# --- pages ------------------------------------------------------------------------------------


def pages(count, top="{number} Some title of it all", bottom="Page {number} of {count}", **about):
    return [
        "\n".join([top.format(number=number, count=count), prose(number, 40), prose(number + 50, 40),
                   bottom.format(number=number, count=count)]).strip("\n")
        for number in range(1, count + 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "number", ["Page {number} of {count}", "{number}", "- {number} -", "Seite {number}/{count}", "第 {number} 页"]
)
def test_page_numbers_go_from_every_page(number):
    body = [f"{prose(n, 40)}\n{prose(n + 50, 40)}" for n in range(1, 7)]
    assert without_page_furniture(pages(6, top="", bottom=number)) == body
    assert without_page_furniture(pages(6, top=number, bottom="")) == body


def test_a_running_title_stays_once():
    cleaned = without_page_furniture(pages(6, top="Handbook of Quillbox", bottom="Valid from May 2024"))
    assert [("Handbook" in page, "Valid" in page) for page in cleaned] == [(True, True)] + [(False, False)] * 5


def test_a_number_that_is_the_same_on_every_page_stays_once():
    assert ["2024" in page for page in without_page_furniture(pages(5, top="2024", bottom=""))] == [True] + [False] * 4


def test_a_running_title_with_a_page_number_in_it_stays_once():
    cleaned = without_page_furniture(pages(6, top="Handbook of Quillbox 2024 | {number}", bottom=""))
    assert ["Handbook" in page for page in cleaned] == [True] + [False] * 5


def test_numbers_that_do_not_count_the_pages_are_kept():
    totals = pages(6, top="Step {number}", bottom="")
    assert without_page_furniture(totals) == totals
    rows = [page + f"\nTotal of the page {n * 7 + 3}.50\n{n * n}" for n, page in enumerate(pages(6, top="", bottom=""))]
    assert without_page_furniture(rows) == rows


def test_fewer_than_four_pages_or_half_of_them_have_no_furniture():
    assert without_page_furniture(pages(3)) == pages(3)
    some = pages(3) + [prose(n, 40) for n in range(60, 64)]
    assert without_page_furniture(some) == some


def test_a_line_in_the_middle_of_pages_is_kept():
    middle = [f"{prose(n, 5)}\n" * 5 + "The same line.\n" + f"{prose(n + 9, 5)}\n" * 5 for n in range(6)]
    assert without_page_furniture(middle) == middle


def test_empty_pages_stay_so_that_page_numbers_hold():
    given = [*pages(5), ""]
    assert len(without_page_furniture(given)) == 6
    assert without_page_furniture([]) == []
