"""Markdown, text and HTML into blocks."""

import pytest

from data.markup import html, markdown, plain, text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("open **Backup > Security** now", "open Backup > Security now"),
        ("see [the `x` page](a.md#b) and ![logo](l.png)", "see the x page and logo"),
        ("snake_case and 2 * 3 * 4 stay", "snake_case and 2 * 3 * 4 stay"),
        ("*really* `**not this**`", "really **not this**"),
        ("a &amp; b<br/>c", "a & bc"),
        ("* item with *stress*", "* item with stress"),
        ("`list[int](x)` and a [b] c", "list[int](x) and a [b] c"),
    ],
)
def test_markdown_marks_are_removed_and_text_is_not(line, expected):
    assert plain(line) == expected


def test_front_matter_gives_the_title_and_no_text():
    assert markdown("---\ntitle: 'From here'\nx: y\n---\nbody") == ("From here", [(0, "body")])


def test_underlined_headings_count_in_markdown_and_a_rule_does_not():
    assert markdown("Top\n===\n\nNext\n---\nx\n\n---\ny")[1] == [
        (1, "Top"), (0, ""), (2, "Next"), (0, "x"), (0, ""), (0, "y")
    ]  # fmt: skip


def test_text_without_underlines_has_no_headings():
    assert {level for level, _ in text("a\n\nb")[1]} == {0}


def test_html_title_is_given_apart_and_headings_keep_their_level():
    assert html("<title>Page</title><h2>A <i>b</i></h2><p>c") == ("Page", [(2, "A b"), (0, "c")])


def test_an_html_list_item_with_a_paragraph_inside_is_one_line():
    assert html("<ul><li><p>one</p></li><li>two</li></ul>")[1] == [(0, "- one"), (0, "- two")]
