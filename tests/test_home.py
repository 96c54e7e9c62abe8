"""The commands on the state of a machine, as they are typed."""

import pytest

from flows import stack
from tasks import registry
from tests import homes


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return homes.weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def home(made, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "forget", lambda name: 0)
    with homes.at(tmp_path / "home") as chosen:
        homes.live(made, tmp_path / "documents")
        yield chosen.home


@pytest.fixture
def run(monkeypatch):
    def typed(*words):
        monkeypatch.setattr("sys.argv", ["flows.stack", *map(str, words)])
        stack.main()

    return typed


def test_what_was_backed_up_is_restored_in_an_empty_home_and_named(home, run, tmp_path, capsys):
    live = homes.ledger().live()[homes.NAME].live.id
    run("backup", tmp_path / "backup")
    assert live in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is not empty"):
        run("restore", tmp_path / "backup")
    with homes.at(tmp_path / "new"):
        run("restore", tmp_path / "backup")
        assert f"{live} is whole" in capsys.readouterr().out
        assert homes.ledger().live()[homes.NAME].live.id == live


def test_an_assistant_is_deleted_only_when_one_is_sure(home, run, capsys):
    with pytest.raises(SystemExit, match=r"deletes 'handbook' for good.*let it end first.*--yes"):
        run("delete", homes.NAME)
    assert homes.ledger().live()[homes.NAME].live
    run("delete", homes.NAME, "--yes")
    said = capsys.readouterr().out
    assert "deleted: 1 releases" in said and f"mlflow gc --backend-store-uri sqlite:///{home}/mlflow.db" in said
    assert homes.ledger().assistants() == []
    with pytest.raises(SystemExit, match="no assistant 'handbook'"):
        run("delete", homes.NAME)


def test_a_user_is_forgotten_only_when_one_is_sure(home, run, capsys):
    homes.ledger().add_feedback(homes.NAME, "rel", "r1", edit="mine", user="ann")
    with pytest.raises(SystemExit, match=r"what 'ann' asked and said.*--yes"):
        run("forget", "ann")
    assert homes.ledger().feedback(homes.NAME)[0]["edit"] == "mine"
    run("forget", "ann", "--yes")
    assert "deleted: 1 pieces of feedback" in capsys.readouterr().out
    assert homes.ledger().feedback(homes.NAME)[0]["edit"] is None


def test_a_command_that_needs_a_name_says_so(run):
    with pytest.raises(SystemExit):
        run("backup")
