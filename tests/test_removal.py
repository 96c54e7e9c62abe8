"""An assistant deleted whole, and nothing of another one."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from data import store
from data.records import Generation, Release, as_json
from data.requests import Logged, RequestLog
from data.tables import metadata
from serving.cache import AnswerCache
from serving.engine import verify_model
from serving.router import NoRelease, Router
from settings import settings
from tasks import registry, removal
from tasks.bill import REMEMBERED, memory
from tests import homes

OTHER = "handbook-2"


class Page(list):
    token = None


class Mlflow:
    """What MLflow does with names: that of a deleted experiment stays taken."""

    def __init__(self, *names):
        self.experiments = {str(n): [name, "active"] for n, name in enumerate(names)}
        self.models, self.prompts = set(names), {f"{name}-prompt" for name in names}
        self.traces, self.away = {}, False

    def get_experiment_by_name(self, name):
        found = [(key, stage) for key, (known, stage) in self.experiments.items() if known == name]
        return SimpleNamespace(experiment_id=found[0][0], lifecycle_stage=found[0][1]) if found else None

    def search_traces(self, locations, max_results, page_token, include_spans):
        if self.away:
            raise MlflowException("no answer")
        at = int(page_token or 0)
        mine = [(key, tag) for key, (place, tag) in self.traces.items() if [place] == locations]
        page = Page(SimpleNamespace(info=SimpleNamespace(trace_id=key, tags=tag)) for key, tag in mine[at : at + 2])
        page.token = str(at + 2) if at + 2 < len(mine) else None
        return page

    def delete_traces(self, key, trace_ids):
        return sum(self.traces.pop(trace)[0] == key for trace in trace_ids)

    def rename_experiment(self, key, name):
        self.experiments[key][0] = name

    def delete_experiment(self, key):
        self.experiments[key][1] = "deleted"

    def delete_registered_model(self, name):
        self._delete(self.models, name)

    def delete_prompt(self, name):
        self._delete(self.prompts, name)

    def _delete(self, held, name):
        if name not in held:
            raise MlflowException(f"no {name}", error_code=RESOURCE_DOES_NOT_EXIST)
        held.remove(name)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return homes.weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def mlflow(monkeypatch):
    client = Mlflow(homes.NAME, OTHER)
    monkeypatch.setattr(registry, "_client", lambda: client)
    return client


@pytest.fixture
def home(made, mlflow, tmp_path):
    """Two assistants that are live, with requests and feedback; the second one's model is its own."""
    with homes.at(tmp_path / "home") as chosen:
        log = RequestLog(chosen.requests)
        for name, key in ((homes.NAME, "a"), (OTHER, "b")):
            release = homes.live(made, tmp_path / "documents", name, key=key)
            log.write(Logged(f"r-{name}", 1.0, name, release.id, "live", question=f"a secret of {name}?"))
            book = homes.ledger()
            book.add_feedback(name, release.id, f"r-{name}", edit=f"an edit of {name}.")
            book.ask_review(name, "edit", {"1": {"text": "look"}})
            book.bury(name, {"gone"}, set())
            book.open_remedy(name, "reindex", "changed", {})
            book.store_signals(name, {"stale": {"n": 1}})
        log.close()
        with closing(memory(chosen.home / REMEMBERED)) as verdicts:
            verdicts.execute("INSERT INTO verdicts VALUES ('digest', 'a reply about a secret')")
        AnswerCache().write({"k": Generation("text", 1, 1, "stop", 0.0, 0.0)})
        yield chosen.home


def rows(name):
    """Table -> how many rows of the ledger belong to an assistant."""
    book = homes.ledger()
    tables = [table for table in metadata.sorted_tables if "assistant" in table.c]
    counted = {table.name: len(book.rows(sa.select(table).where(table.c.assistant == name))) for table in tables}
    return counted | {"assistants": len([row for row in book.assistants() if row["name"] == name])}


def test_everything_of_an_assistant_is_deleted_and_nothing_of_another(home):
    book = homes.ledger()
    router = Router(book)
    router.poll()
    first, second, before = book.live()[homes.NAME].live, book.live()[OTHER].live, rows(OTHER)
    said = removal.remove(book, homes.NAME)
    assert set(rows(homes.NAME).values()) == {0} and rows(OTHER) == before
    assert {said[what] for what in ("releases", "models", "snapshots", "logged requests", "index tables")} == {1}
    log = RequestLog(settings().requests)
    assert log.find(f"r-{homes.NAME}") is None and log.find(f"r-{OTHER}")
    log.close()
    assert AnswerCache().read(["k"]) == {} and b"a reply about" not in (home / REMEMBERED).read_bytes()
    assert said["kept replies of the judge about all assistants"] == 1
    # Locks stay: a writer that has lost its right is told by the number in them
    files = [path for path in home.rglob("*") if path.parent.name != "leases"]
    named = [path for path in files if homes.NAME in path.name and OTHER not in path.name]
    assert named == [] and not (home / "reports" / first.id).exists() and not (home / "models/tuned/a").exists()
    with pytest.raises(store.IndexDamaged):
        store.open_index(replace(first.index, snapshot="another reading"))
    verify_model(second.model)
    store.open_index(second.index).verify()
    assert (home / "reports" / second.id / "abc.json").exists()
    router.poll()
    assert router.assistants() == [OTHER]


def test_no_table_of_the_ledger_is_forgotten():
    assert {table.name for table in metadata.sorted_tables if "assistant" not in table.c} == {
        "assistants",  # its own row
        "reports",  # by their release
        "keys",  # of people, for any assistant
    }


def test_its_text_is_overwritten_in_the_databases(home):
    removal.remove(homes.ledger(), homes.NAME)
    for name in ("ledger.db", "requests.db"):
        with closing(sqlite3.connect(home / name)) as opened:
            opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        held = (home / name).read_bytes()
        assert f"secret of {homes.NAME}?".encode() not in held and f"edit of {homes.NAME}.".encode() not in held
    assert f"an edit of {OTHER}.".encode() in (home / "ledger.db").read_bytes()


def test_its_name_is_free_in_mlflow_and_the_other_experiment_is_there(home, mlflow):
    removal.remove(homes.ledger(), homes.NAME)
    assert mlflow.get_experiment_by_name(homes.NAME) is None and mlflow.models == {OTHER}
    assert [stage for _, stage in mlflow.experiments.values()] == ["deleted", "active"]
    assert registry.forget(homes.NAME) == 0, "forgetting twice changes nothing"


def test_a_model_that_another_assistant_is_served_from_stays(home):
    book = homes.ledger()
    shared = book.live()[homes.NAME].live.model
    theirs = replace(book.live()[OTHER].live, model=shared)
    book.add_release(Release(theirs.assistant, shared, theirs.index), "tuned", None, {})
    assert removal.remove(book, homes.NAME)["models"] == 0
    verify_model(shared)


def test_nothing_is_deleted_while_one_of_its_remedies_is_under_way(home):
    book = homes.ledger()
    (row,) = book.outbox(homes.NAME)
    book.claim(row["seq"], "run-7")
    before = rows(homes.NAME)
    with pytest.raises(ValueError, match=r"reindex of 'handbook' is under way .*run-7.*wait for its end or cancel"):
        removal.remove(book, homes.NAME)
    assert rows(homes.NAME) == before and book.live()[homes.NAME].live
    book.free(row["seq"], "run-7")
    removal.remove(book, homes.NAME)


def test_a_deletion_that_was_cut_short_goes_on(home, monkeypatch):
    book = homes.ledger()

    def away(name):
        raise ConnectionError("MLflow does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "forget", away)
        with pytest.raises(ConnectionError):
            removal.remove(book, homes.NAME)
    router = Router(book)
    router.poll()
    with pytest.raises(NoRelease):
        router.resolve(homes.NAME, "ann")
    assert book.assistant(homes.NAME)["paused"]
    removal.remove(book, homes.NAME)
    assert set(rows(homes.NAME).values()) == {0}


def test_what_a_training_left_behind_goes_too(home):
    key = "f" * 24
    for folder in (
        f"training/{homes.NAME}-{key}-12345678",
        f"training/{OTHER}-{key}-12345678",
        f"models/tuned/.{key}.work",
    ):
        (home / folder).mkdir(parents=True)
    removal.remove(homes.ledger(), homes.NAME)
    assert [path.name for path in (home / "training").iterdir()] == [f"{OTHER}-{key}-12345678"]
    assert not (home / "models" / "tuned" / f".{key}.work").exists()


def test_an_unknown_assistant_is_named_with_the_known_ones(home):
    with pytest.raises(KeyError, match="known: handbook, handbook-2"):
        removal.remove(homes.ledger(), "nobody")


def test_a_new_assistant_can_take_the_name(home, made, tmp_path):
    removal.remove(homes.ledger(), homes.NAME)
    again = homes.live(made, tmp_path / "documents", key="again")
    store.open_index(again.index).verify()
    assert as_json(homes.ledger().live()[homes.NAME].live) == as_json(again)


def test_what_a_user_asked_and_said_is_deleted_of_every_assistant_and_nothing_of_others(home, mlflow):
    log, book = RequestLog(settings().requests), homes.ledger()
    for name, user in ((homes.NAME, "ann"), (OTHER, "ann"), (OTHER, "bob")):
        log.write(Logged(f"r-{user}-{name}", 1.0, name, "rel", "live", user=user, question=f"a secret of {user}?"))
        book.add_feedback(name, "rel", f"r-{user}-{name}", edit=f"an edit of {user}.", user=user)
    log.flush()
    tagged = {
        "tr-1": ("0", f"r-ann-{homes.NAME}"),
        "a-callers": ("1", f"r-ann-{OTHER}"),
        "tr-2": ("1", f"r-bob-{OTHER}"),
    }
    tagged |= {f"tr-9{n}": ("1", "gone") for n in range(3)} | {"tr-3": ("1", f"r-ann-{OTHER}")}
    mlflow.traces = {key: (place, {"response": response}) for key, (place, response) in tagged.items()}
    mlflow.away = True
    with pytest.raises(ConnectionError, match="start it, and again"):
        removal.forget(book, "ann")
    mlflow.away = False
    said = removal.forget(book, "ann")
    assert (said["traces"], said["pieces of feedback"], said["logged requests"]) == (3, 2, 2)
    assert set(mlflow.traces) == {"tr-2", "tr-90", "tr-91", "tr-92"}
    assert log.find(f"r-ann-{OTHER}") is None and log.find(f"r-bob-{OTHER}")
    log.close()
    assert {row["edit"] for row in book.feedback(OTHER)} == {None, "an edit of bob.", f"an edit of {OTHER}."}
    assert AnswerCache().read(["k"]) == {}
