"""Code between fences."""

from data.fences import fenced, language, stretches


def test_code_is_fenced_without_the_empty_lines_at_its_ends():
    assert fenced(["", "  a", "", "b  ", " "], "py") == ["```py", "  a", "", "b", "```"]
    assert fenced(["", " "]) == []


def test_a_fence_is_longer_than_any_that_the_code_holds():
    assert fenced(["```", "x", "````"])[0] == "`````"


def test_the_language_is_the_first_word_of_the_info_if_it_is_a_word():
    infos = ["python", 'py title="a.py"', " {.rust .ignore}", "c++", '{test="skip"}', 'title="x"', ""]
    assert [language(info) for info in infos] == ["python", "py", "rust", "c++", "", "", ""]


def test_stretches_tell_code_from_text_and_lose_nothing():
    text = "a\n```py\n\nx\n```\n\nb\n````\n```\n````\nc"
    found = list(stretches(text))
    assert [code for code, _ in found] == [False, True, False, True, False]
    assert found[3][1] == "````\n```\n````\n"
    assert "".join(part for _, part in found) == text


def test_inline_code_of_three_ticks_opens_no_fence_and_an_open_fence_runs_to_the_end():
    assert list(stretches("```x``` y\nb")) == [(False, "```x``` y\nb")]
    assert list(stretches("a\n```\nb\n")) == [(False, "a\n"), (True, "```\nb\n")]
