"""One file into its parts: archives, their limits, and what is no file at all."""

import os

import pytest

from data import archives
from data.sources import File, listed
from tests.documents import packed, parse_here, put, tarred


def read(path):
    """(ids of the documents, reason by file) of everything at a path."""
    found = [part for _, part in parse_here(listed(path))]
    reasons = {row.file: row.reason for part in found for row in part.quarantined}
    return [document.id for part in found for document in part.documents], reasons


@pytest.mark.parametrize(("name", "pack"), [("docs_DOT_zip", packed), ("docs_DOT_tar_DOT_gz", tarred)])
def test_an_archive_is_read_file_by_file(tmp_path, name, pack):
    members = {
        "b.txt": b"other",
        "guide/a.md": b"# A\ntext",
        ".hidden/c.md": b"# C\nx",
        "../up.md": b"# Up\nx",
        "bad.json": b"{",
        "inner.zip": packed(**{"d.md": b"x"}),
        "e.pptx": b"x",
    }
    plain = name.replace("_DOT_", ".")
    documents, reasons = read(put(tmp_path, **{name: pack(**members)}))
    assert documents == [f"{plain}/b.txt", f"{plain}/guide/a.md"]
    assert set(reasons) == {f"{plain}/{member}" for member in ("bad.json", "inner.zip", "e.pptx")}
    assert "inside an archive" in reasons[f"{plain}/inner.zip"] and "no reader" in reasons[f"{plain}/e.pptx"]
    assert read(str(tmp_path / plain))[0] == ["b.txt", "guide/a.md"]


def test_an_archive_that_unpacks_to_too_much_is_read_up_to_there(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_ARCHIVE_BYTES", 10)
    documents, reasons = read(put(tmp_path, docs_DOT_zip=packed(**{"a.md": b"# A\ntext", "b.md": b"# B\ntext"})))
    assert documents == ["docs.zip/a.md"]
    assert "unpacks to more" in reasons["docs.zip"]


def test_an_archive_with_nothing_to_see_in_it_is_quarantined(tmp_path):
    documents, reasons = read(put(tmp_path, a_DOT_zip=packed(**{".hidden/a.md": b"# A\ntext"}), b_DOT_zip=packed()))
    assert documents == [] and set(reasons) == {"a.zip", "b.zip"}


def test_a_file_over_the_limit_is_refused_without_being_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_BYTES", 4)
    documents, reasons = read(put(tmp_path, a_DOT_md="# A\ntext", b_DOT_md="abc"))
    assert documents == ["b.md"] and "over the limit" in reasons["a.md"]


def test_an_error_that_no_reader_foresaw_costs_only_its_file(tmp_path, monkeypatch):
    monkeypatch.setitem(archives.READERS, ".odd", lambda name, data: {}["gone"])
    documents, reasons = read(put(tmp_path, a_DOT_odd="x", b_DOT_md="# B\nx"))
    assert documents == ["b.md"] and reasons == {"a.odd": "cannot be read: KeyError: 'gone'"}


@pytest.mark.parametrize("name", ["pipe.md", "pipe.zip", "pipe.tar.gz"])
def test_a_pipe_among_the_files_is_refused_rather_than_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    documents, reasons = read(put(tmp_path, good_DOT_md="# Good\ntext"))
    assert documents == ["good.md"] and "not a plain file" in reasons[name]


def test_a_link_to_nothing_and_a_file_that_is_gone_are_refused(tmp_path):
    (tmp_path / "link.md").symlink_to("nowhere.md")
    assert "link to nothing" in read(str(tmp_path))[1]["link.md"]
    gone = File("gone.md", str(tmp_path / "gone.md"), "")
    assert [part.quarantined[0].file for _, part in parse_here([gone])] == ["gone.md"]
