"""HTML pages into outlines."""

import pytest

from data.webpages import html


def lines(page):
    return [line for _, line in html(page).blocks if line]


def test_the_title_is_given_apart_and_headings_keep_their_level():
    outline = html("<title>Page</title><h2>A <i>b</i></h2><p>c")
    assert (outline.title, outline.blocks) == ("Page", [(2, "A b"), (0, "c")])


def test_a_list_item_with_a_paragraph_inside_is_one_line():
    assert lines("<ul><li><p>one</p></li><li>two</li></ul>") == ["- one", "- two"]


def test_only_the_one_main_is_read_and_all_of_a_page_with_two():
    assert lines("<div>around</div><main><p>in</p></main>") == ["in"]
    assert lines("<div>around</div><article role=main><p>in</p></article>") == ["in"]
    assert lines("<p>a</p><main>b</main><main>c</main>") == ["a", "b", "c"]


@pytest.mark.parametrize(
    "furniture",
    [
        "<div role=navigation>x</div>", "<header role=banner>x</header>", "<div role=contentinfo>x</div>",
        "<form role=search>x</form>", "<aside>x</aside>", "<ol class='md breadcrumbs'>x</ol>",
        "<div id=cookie-banner>x</div>", "<div class='site-cookie-consent--open'>x</div>",
        "<a class=skip-link href='#m'>x</a>", "<a class=skip-to-content>x</a>", "<h2>y <a class=headerlink>¶</a></h2>",
    ],
)  # fmt: skip
def test_what_stands_around_the_text_is_left_out(furniture):
    assert lines(f"<body>{furniture}<p>text</p></body>") in (["text"], ["y", "text"])


def test_a_note_in_an_aside_and_a_page_about_cookies_are_read():
    assert lines("<aside class='starlight-aside--tip'>a</aside><aside role=note>b</aside><p>c") == ["a", "b", "c"]
    assert lines("<div class=cookie-recipes>a</div><p id=cookies>b") == ["a", "b"]
    assert lines("<body class=cookie-banner-open><p>a</p></body>") == ["a"]
    assert lines("<div class=breadcrumb-page><h1>T</h1>a</div><p>b") == ["T", "a", "b"]


@pytest.mark.parametrize("page", ["<aside><p>all</p></aside>", "<p>all</p><main></main>", "<div role=banner>all</div>"])
def test_leaving_out_furniture_never_empties_a_page(page):
    assert lines(page) == ["all"]


def test_a_page_of_menus_alone_has_no_text():
    assert lines("<nav>menu</nav><footer>foot</footer>") == []


def test_preformatted_text_keeps_its_lines_and_blanks_and_names_its_language():
    page = "<p>a  b</p><pre><code class='hljs language-py'>if x:\n    y  =  <b>1</b>\n\n\nz<br>w</code></pre><p>c"
    assert lines(page)[:3] == ["a b", "```py", "if x:"]
    assert [line for _, line in html(page).blocks] == [
        "a b", "```py", "if x:", "    y  =  1", "", "", "z", "w", "```", "c"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "around", ["highlight-python notranslate", "highlight highlight-source-python", "language-python highlight"]
)
def test_the_language_may_stand_on_the_element_around(around):
    assert lines(f"<div class='{around}'><div class=highlight><pre>x</pre></div></div>") == ["```python", "x", "```"]


def test_code_laid_out_as_a_table_with_line_numbers_is_read_as_code():
    page = "<table><tr><td class=linenos><pre>1\n2</pre></td><td><pre>a\n  b</pre></td></tr></table>"
    assert lines(page) == ["```", "a", "  b", "```"]


def test_two_tables_do_not_run_into_one():
    table = "<table><tr><th>A</th><th>B</th></tr><tr><td>1</td><td>2</td></tr></table>"
    text = "\n".join(line for _, line in html(table + table).blocks).strip()
    assert text.replace("\n\n\n", "\n\n") == "A | B\n1 | 2\n\nA | B\n1 | 2"


def test_labels_come_from_meta_and_the_language_from_the_root():
    page = (
        "<html lang=en-GB><meta name=Access content=staff><meta name=tenant content=acme>"
        "<meta property='article:modified_time' content='2024-01-31T12:00:00+01:00'><p>x"
    )
    assert sorted(html(page).labels) == [
        ("access", "staff"), ("language", "en-GB"), ("modified", "2024-01-31T12:00:00+01:00"), ("tenant", "acme")
    ]  # fmt: skip
    assert html("---\naccess: hr\n---\n<p>x").labels == [("access", "hr")]
    assert html("<meta name=access><p>x").labels == [("access", "")]


def test_deep_nesting_is_walked_without_recursion():
    assert lines("<div>" * 400 + "<p>inside</p>" + "</div>" * 400) == ["inside"]
