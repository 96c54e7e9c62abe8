"""The command that carries a release: what it writes, what it takes in, and who decides."""

import json

import pytest

from data import embedding
from data.records import Decision, as_json
from flows import release as command
from serving.engine import bases, models
from settings import settings
from tasks import evaluate
from tasks.gate import GateSettings
from tests import homes


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return homes.weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def staging(made, tmp_path, monkeypatch):
    """A home with a live release, the same embedded base and embedder everywhere."""
    given = homes.base(made)
    monkeypatch.setattr(bases, "embedded", lambda: given)
    monkeypatch.setattr(embedding, "load", lambda _: homes.Embed())
    monkeypatch.setattr(models, "embedder_folder", lambda: None)
    with homes.at(tmp_path / "staging") as chosen:
        homes.live(made, tmp_path / "documents")
        yield chosen.home


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["flows.release", *map(str, words)])
    command.main()


def test_a_carried_release_is_judged_here_with_the_settings_of_here(staging, tmp_path, monkeypatch, capsys):
    live = homes.ledger().live()[homes.NAME].live
    run(monkeypatch, "export", "--assistant", homes.NAME, "--to", tmp_path / "b")
    assert live.id in capsys.readouterr().out
    judged = []

    def gated(candidate, kind, snapshot, gates):
        judged.append((candidate.id, kind, gates))
        assert not any(evaluate.sound_files(candidate).values())
        assert [question.id for question in evaluate.voting(snapshot)] == ["q"]
        return Decision("hold", "Not settled.", candidate.id)

    monkeypatch.setattr(command, "release_candidate", gated)
    with homes.at(tmp_path / "production"):
        own, book = GateSettings(margin=0.01), homes.ledger()
        book.decide_gate(homes.NAME, Decision("reject", "", "rel-before", settings=as_json(own)))
        state = command.import_release.fn(str(tmp_path / "b"))
        assert state.name == "Held" and judged == [(live.id, "bootstrap", own)]
        assert book.live()[homes.NAME].live is None


def test_what_is_refused_ends_the_command_with_a_sentence(staging, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"nothing live|no release 'rel-none'"):
        run(monkeypatch, "export", "--assistant", homes.NAME, "--release", "rel-none", "--to", tmp_path / "b")
    (tmp_path / "c").write_text("no bundle")
    with pytest.raises(ValueError, match="where a file should begin"):
        command.import_release.fn(str(tmp_path / "c"))


def test_the_documents_of_an_assistant_that_is_new_here_are_where_one_says(staging, tmp_path, monkeypatch):
    run(monkeypatch, "export", "--assistant", homes.NAME, "--to", tmp_path / "b")
    monkeypatch.setattr(command, "release_candidate", lambda candidate, *_: Decision("hold", "", candidate.id))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "trash.md").write_text(homes.TEXTS[0])
    with homes.at(tmp_path / "production"):
        homes.ledger()
        command.import_release.fn(str(tmp_path / "b"), documents=str(tmp_path / "here"))
        assert homes.ledger().assistant(homes.NAME)["sources"]["documents"] == str(tmp_path / "here")


def test_the_report_of_where_it_comes_from_is_kept_beside(staging, tmp_path, monkeypatch):
    made = command.export_release(homes.NAME, tmp_path / "b")
    monkeypatch.setattr(command, "release_candidate", lambda candidate, *_: Decision("hold", "", candidate.id))
    with homes.at(tmp_path / "production"):
        homes.ledger()
        command.import_release.fn(str(tmp_path / "b"))
        kept = settings().home / "reports" / made.id / "origin"
        assert (kept / "report.md").read_text() == "# Report"
        assert json.loads((kept / "manifest.json").read_text())["decision"]["reason"] == "Surely better."
        (said,) = homes.ledger().decisions(homes.NAME, "import")
        assert said["reason"] == "where it comes from the gate said: Surely better."
