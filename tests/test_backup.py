"""A home copied while it is written to, and restored in another place with the same releases live."""

import json
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from data import backup, feedback, store
from data.lease import DELETING, lease
from data.records import Snapshot
from data.requests import Logged, RequestLog
from data.snapshots import complete
from serving.engine import verify_model
from serving.router import Router
from settings import settings
from tasks import index
from tests import homes


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return homes.weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def home(made, tmp_path):
    with homes.at(tmp_path / "home") as chosen:
        homes.live(made, tmp_path / "documents")
        yield chosen.home


def live():
    return homes.ledger().live()[homes.NAME].live


def test_a_restored_home_has_the_same_release_live_and_every_file_of_it(home, tmp_path):
    before = live()
    log = RequestLog(settings().requests)
    log.write(Logged("r1", 1.0, homes.NAME, before.id, "live", question="How long?"))
    log.close()
    homes.ledger().add_feedback(homes.NAME, before.id, "r1", rating=1)
    said = backup.backup(tmp_path / "backup")
    assert said.live == {homes.NAME: before.id}
    home.rename(tmp_path / "lost")
    with homes.at(tmp_path / "new"):
        assert backup.restore(tmp_path / "backup") == said
        book, router = homes.ledger(), Router(homes.ledger(), lambda release: store.open_index(release.index).verify())
        router.poll()
        release, arm = router.resolve(homes.NAME, "ann")
        assert (release.id, arm) == (before.id, "live")
        verify_model(release.model)
        row = book.release_row(release.id)
        assert complete(Path(row["snapshot"]["uri"])) == Snapshot.of(row["snapshot"])
        places = json.dumps([row["body"], row["snapshot"], book.assistant(homes.NAME)["snapshot"]])
        assert str(home) not in places and Path(book.gate_decision(release.id)["body"]["evaluation"]).is_file()
        assert RequestLog(settings().requests).find("r1")["question"] == "How long?"
        assert [said.rating for said in feedback.read(book, homes.NAME)] == [1]
        assert homes.index([*homes.TEXTS, "one more"]).embedded == 1, "the next build goes on from the restored table"


def test_a_backup_is_whole_while_the_index_and_the_log_are_written(home, tmp_path):
    before, stop, log = live(), threading.Event(), RequestLog(settings().requests)

    def write():
        number = 0
        while not stop.is_set():
            number += 1
            homes.index([*homes.TEXTS, f"edition {number} of a page"])
            log.write(Logged(f"r{number}", 1.0, homes.NAME, before.id, "live"))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            backup.backup(tmp_path / f"b{number}")
    finally:
        stop.set()
        writer.join()
        log.close()
    for number in range(3):
        with homes.at(tmp_path / f"home{number}"):
            backup.restore(tmp_path / f"b{number}")
            store.open_index(live().index).verify()
            homes.index([*homes.TEXTS, "after the restore"])
            with closing(sqlite3.connect(settings().home / "requests.db")) as copy:
                assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_nothing_is_swept_while_a_backup_is_copied(home):
    version = homes.index(homes.TEXTS[:2])
    for number in range(20):
        version = homes.index([*homes.TEXTS, f"edition {number}"])
    table = store.tables.open_version(version.uri, version.table)
    before = len(table.list_versions())
    with lease(DELETING):
        index.sweep(homes.ledger(), version)
        assert len(table.list_versions()) == before
    index.sweep(homes.ledger(), version)
    assert len(table.list_versions()) < before
    store.open_index(live().index).verify()


def test_a_backup_waits_for_nobody_who_builds(home, tmp_path):
    with lease(live().index.table):
        backup.backup(tmp_path / "backup")


@pytest.mark.parametrize("harm", ["altered", "gone", "no marker", "another format", "a place outside"])
def test_a_backup_that_is_not_whole_is_not_restored(harm, home, tmp_path):
    source = tmp_path / "backup"
    said = backup.backup(source)
    file = next(source / file.name for file in said.files if file.name.endswith(".gguf"))
    marker = json.loads((source / "backup.json").read_text())
    if harm == "altered":
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    elif harm == "gone":
        file.unlink()
    elif harm == "no marker":
        (source / "backup.json").unlink()
    elif harm == "another format":
        (source / "backup.json").write_text(json.dumps(marker | {"format": "x"}))
    else:
        marker["files"][0]["name"] = "../../outside"
        (source / "backup.json").write_text(json.dumps(marker))
    with homes.at(tmp_path / "new") as chosen:
        with pytest.raises(ValueError, match=";"):
            backup.restore(source)
        assert list(chosen.home.iterdir()) == []


def test_a_home_that_is_in_use_is_not_written_over(home, tmp_path):
    backup.backup(tmp_path / "backup")
    with pytest.raises(FileExistsError, match="is not empty; stop what runs there"):
        backup.restore(tmp_path / "backup")
    with pytest.raises(FileExistsError, match="name a new folder"):
        backup.backup(tmp_path / "backup")


def test_a_mount_point_is_refused_before_anything_is_copied(home, tmp_path, monkeypatch):
    backup.backup(tmp_path / "backup")
    monkeypatch.setattr(backup, "_copied", None)
    with homes.at(tmp_path / "volume") as chosen:
        monkeypatch.setattr(Path, "is_mount", lambda path: path == chosen.home)
        with pytest.raises(ValueError, match=r"is a mount point.*a folder in it"):
            backup.restore(tmp_path / "backup")


def test_a_version_that_is_written_while_files_are_listed_is_copied_whole(home, tmp_path, monkeypatch):
    walk, made = backup.os.walk, []

    def manifests_last(top, **how):
        folders = sorted(walk(top, **how), key=lambda one: one[0].endswith(backup.MANIFESTS))
        for folder, inner, _ in folders:
            if folder.endswith(backup.MANIFESTS) and not made:
                made.append(homes.index([*homes.TEXTS, "written meanwhile"]))
            yield folder, inner, sorted(path.name for path in Path(folder).iterdir() if path.is_file())

    with monkeypatch.context() as patch:
        patch.setattr(backup.os, "walk", manifests_last)
        said = backup.backup(tmp_path / "backup")
    assert any(backup.MANIFESTS in file.name for file in said.files)
    with homes.at(tmp_path / "new") as chosen:
        backup.restore(tmp_path / "backup")
        store.open_index(replace(made[0], uri=str(chosen.store))).verify()


def test_state_on_other_servers_is_refused_without_showing_its_password(home, monkeypatch, tmp_path):
    monkeypatch.setenv("PERENNIAL_LEDGER_URL", "postgresql://u:secret@db/ledger")
    settings.cache_clear()
    with pytest.raises(ValueError, match="PERENNIAL_LEDGER_URL is set") as refused:
        backup.backup(tmp_path / "backup")
    assert "secret" not in str(refused.value)


def test_every_place_that_the_settings_name_is_in_a_backup(home):
    chosen = settings()
    urls = [url.removeprefix("sqlite:///") for url in (chosen.ledger, chosen.requests)]
    places = {str(Path(place).relative_to(home)) for place in (*urls, chosen.store, chosen.models, chosen.snapshots)}
    assert places <= {*backup.DATABASES, *backup.FOLDERS}


def test_a_backup_that_fails_leaves_nothing(home, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup, "_copied", full)
    with pytest.raises(OSError, match="No space"):
        backup.backup(tmp_path / "backup")
    assert not [path for path in tmp_path.iterdir() if "backup" in path.name]
