"""Prompts are read from files, releases and MLflow's registry, and compared line by line."""

from dataclasses import replace

import pytest

from data.records import Chunk, Prompt, Shot
from flows import split
from settings import settings
from tasks import prompts, registry
from tests.ledgers import new_ledger, release

SERVED = Prompt(chat="llama")


@pytest.mark.parametrize("name, text", [("p.json", '{"system": "Be brief."}'), ("p.yaml", "system: Be brief.\n")])
def test_a_file_replaces_the_texts_it_gives_and_nothing_else(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    read = prompts.read_file(str(tmp_path / name), SERVED)
    assert read == Prompt(system="Be brief.", chat="llama")


@pytest.mark.parametrize(
    "text, wrong",
    [('{"chat": "llama"}', "'chat'"), ("- one", "must map"), ("system: 7", "must map"), ("a: [", "neither JSON")],
)
def test_a_file_with_anything_else_in_it_is_refused(tmp_path, text, wrong):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match=wrong):
        prompts.read_file(str(tmp_path / "p.yaml"), SERVED)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no prompt file nowhere"):
        prompts.read_file("nowhere.yaml", SERVED)


def test_a_diff_shows_the_lines_that_differ_under_their_names():
    a, b = Prompt(system="Be brief.\nCite."), Prompt(system="Be kind.\nCite.")
    lines = prompts.diff(a, b, ("rel-1", "rel-2")).splitlines()
    assert lines[:2] == ["--- rel-1", "+++ rel-2"]
    assert [line for line in lines[2:] if line[0] in "+-"] == ["-Be brief.", "+Be kind."]
    assert prompts.diff(a, a) == ""


def test_the_command_shows_the_difference_of_a_release_and_a_file(tmp_path, capsys):
    book = new_ledger(tmp_path, "wiki")
    book.add_release(release(), "tuned", None, {})
    (tmp_path / "p.json").write_text('{"abstain": "No idea."}')
    split.run(book, split.arguments(["diff", release().id, str(tmp_path / "p.json")]))
    assert "-The documents do not say.\n+No idea." in capsys.readouterr().out
    split.run(book, split.arguments(["diff", release().id, release().id]))
    assert capsys.readouterr().out == "the same prompt\n"


def test_worked_examples_of_another_assistant_stay_with_it(tmp_path):
    book, shot = new_ledger(tmp_path, "wiki", "other"), Shot("q", "a", Chunk("c", "d.md", "A", "B", "h", "text"), 1)
    theirs = replace(release("other"), prompt=Prompt(system="Other.", shots=(shot,)))
    book.add_release(theirs, "reprompt", None, {})
    assert prompts.find(book, "wiki", theirs.id, SERVED) == Prompt(system="Other.")
    assert (
        prompts.find(book, "other", theirs.id, SERVED) == prompts.find(book, None, theirs.id, SERVED) == theirs.prompt
    )


def test_a_number_needs_an_assistant(tmp_path):
    with pytest.raises(ValueError, match="--assistant"):
        prompts.find(new_ledger(tmp_path), None, "3", SERVED)


def test_a_registered_prompt_comes_back_as_it_was_and_a_version_that_is_not_there_is_named(tmp_path, monkeypatch):
    address = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setattr(registry, "settings", lambda: settings().model_copy(update={"mlflow_uri": address}))
    import mlflow

    mlflow.set_tracking_uri(address)
    first, second = (
        Prompt(chat="llama"),
        Prompt(system="Say {{no}} more than you must: {}.", passage="{number}\n{text}"),
    )
    for each in (first, second, first):
        registry.prompt_version("wiki", each)
    assert [registry.prompt("wiki", version, SERVED) for version in (1, 2)] == [first, second]
    system, user = {"role": "system", "content": "By hand."}, {"role": "user", "content": "{passages} {question}"}
    mlflow.genai.register_prompt(name="other-prompt", template=[system, user])
    by_hand = registry.prompt("other", 1, SERVED)
    assert by_hand == Prompt(system="By hand.", user="{passages} {question}", chat="llama")
    mlflow.genai.register_prompt(name="other-prompt", template=[user])
    mlflow.genai.register_prompt(name="text-prompt", template="Answer {{question}}")
    for name, version in (("other", 2), ("text", 1)):
        with pytest.raises(ValueError, match="no chat prompt of a system and a user message"):
            registry.prompt(name, version, SERVED)
    with pytest.raises(KeyError, match="wiki-prompt has no version 3"):
        prompts.find(new_ledger(tmp_path), "wiki", "3", SERVED)
