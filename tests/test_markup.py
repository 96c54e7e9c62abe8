"""Markdown, plain text and reStructuredText into outlines."""

import pytest

from data.markup import front_matter, markdown, plain, rst, text
from data.sections import Unreadable


def body(outline):
    return "\n".join(line for _, line in outline.blocks).strip()


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


def test_front_matter_gives_title_and_labels_and_no_text():
    page = "---\ntitle: 'From here'\nAccess: staff\ntenant: 007\nlang: en\nlastmod: 2024-01-31\nx: y\n---\nbody"
    outline = markdown(page)
    assert (outline.title, outline.blocks) == ("From here", [(0, "body")])
    assert outline.labels == [
        ("access", "staff"), ("tenant", "007"), ("language", "en"), ("modified", "2024-01-31")
    ]  # fmt: skip


@pytest.mark.parametrize("page", ["<!-- licence -->\n---\naccess: no\n---\nx", "\n--- \naccess: no\n---"])
def test_front_matter_is_found_behind_a_comment_and_a_word_is_never_read_as_true_or_false(page):
    assert front_matter(page)[1] == [("access", "no")]


@pytest.mark.parametrize("value", ["[a, b]", "\n  - a", "{a: b}", "\n  a:"])
def test_a_label_that_is_a_list_or_a_mapping_does_not_pass_for_a_word(value):
    (label,) = front_matter(f"---\naccess: {value}\n---\nx")[1]
    assert " " in label[1]


def test_broken_front_matter_with_a_label_is_refused_and_without_one_is_left_out():
    with pytest.raises(Unreadable, match="not YAML"):
        markdown("---\ntitle: a: b\naccess: staff\n---\nx")
    assert markdown("---\ntitle: a: b\n---\nx")[:2] == ("a: b", [(0, "x")])


def test_text_between_two_rules_is_no_front_matter():
    assert body(markdown("---\njust text\n---\nmore")) == "just text\nmore"


def test_underlined_headings_count_in_markdown_and_a_rule_does_not():
    assert markdown("Top\n===\n\nNext\n---\nx\n\n---\ny").blocks == [
        (1, "Top"), (0, ""), (2, "Next"), (0, "x"), (0, ""), (0, "y")
    ]  # fmt: skip


CODE = "```python\ndef f():\n    return  **1**\n\n\n# no heading\n<!-- kept -->\n```"


@pytest.mark.parametrize(
    "page",
    [
        CODE,
        CODE.replace("```python", '~~~~ {.python title="a"}').replace("```", "~~~~"),
        "\n".join("    " + line if line else "" for line in CODE.split("\n")),
        "\n".join("> " + line if line else ">" for line in CODE.split("\n")),
    ],
)
def test_fenced_code_keeps_lines_blanks_and_comments_wherever_it_is_nested(page):
    assert body(markdown(f"a\n\n{page}\n\nb")) == f"a\n\n{CODE}\n\nb"


def test_code_that_opens_in_a_list_item_ends_where_it_ends():
    assert body(markdown("1. ```sh\n   ls\n   ```\n# Next")) == "1.\n```sh\nls\n```\nNext"


def test_three_ticks_in_a_line_open_no_code_and_code_that_is_not_closed_is_kept():
    assert markdown("```x``` y\n# H").blocks == [(0, "x y"), (1, "H")]
    assert body(markdown("a\n```\nb")) == "a\n```\nb\n```"


def test_comments_are_left_out_and_inline_code_that_shows_one_is_not():
    assert body(markdown("a <!-- b\n```\nc\n```\n--> d `<!-- e -->`")) == "a  d <!-- e -->"


def test_table_rows_are_read_with_and_without_outer_pipes_and_keep_pipes_in_code():
    assert body(markdown("| A | B |\n|---|:-:|\n| `x | y` | 1 \\| 2 |")) == "A | B\nx | y | 1 | 2"
    assert body(markdown("A|B\n-|-\nx|y\n\na|b")) == "A | B\nx | y\n\na|b"


def test_text_without_underlines_has_no_headings():
    assert {level for level, _ in text("a\n\nb").blocks} == {0}


def test_literal_blocks_of_rst_keep_lines_blanks_and_language():
    page = "T\n=\n\n::\n\n  a\n    b   c\n\n.. code-block:: sh\n\n   ls   -l\n\n>>> 1 +  1\n2\n"
    assert body(rst(page)) == "T\n```\na\n  b   c\n```\n\n```sh\nls   -l\n```\n\n```\n>>> 1 +  1\n2\n```"


def test_code_with_options_or_inside_an_unknown_directive_of_rst_is_kept():
    page = (
        "T\n=\n\n.. py:function:: f(a)\n   :module: m\n\n   :ref:`Text <t>` here.\n\n   .. code-block:: python\n"
        "      :linenos:\n\n      if x:\n          y  = 1\n"
    )
    assert body(rst(page)) == "T\nf(a)\n\nText here.\n\n```python\nif x:\n    y  = 1\n```"


def test_the_caption_of_an_rst_table_is_no_heading():
    page = "T\n=\n\n.. list-table:: Caption\n\n   * - A\n     - B\n   * - 1\n     - 2\n"
    assert [level for level, line in rst(page).blocks if line] == [1, 0, 0, 0]
    assert body(rst(page)).endswith("Caption\n\nA | B\n1 | 2")
