"""The files of a source: names, identities and times, and what must never look like a deletion."""

import hashlib
import os
from pathlib import Path

import pytest

from data.records import as_json
from data.sources import File, files, listed
from tests.documents import packed, put


def test_a_file_is_known_by_its_content_and_not_by_where_it_lies_or_when_it_was_written(tmp_path):
    for name in ("one", "two"):
        put(tmp_path / name, d__a_DOT_md="# A\ntext")
        os.utime(tmp_path / name / "d" / "a.md", (0, 86400 + len(name)))
    (first,), (second,) = listed(str(tmp_path / "one")), listed(str(tmp_path / "two"))
    assert first.name == second.name == "d/a.md"
    assert first.identity == second.identity == hashlib.sha256(b"# A\ntext").hexdigest()
    assert first.modified == "1970-01-02T00:00:03Z"
    assert File.of(as_json(first)) == first
    put(tmp_path / "one", d__a_DOT_md="# A\nedited")
    assert listed(str(tmp_path / "one"))[0].identity != first.identity


def test_a_glob_names_documents_below_its_fixed_part(tmp_path):
    put(tmp_path, a__x_DOT_md="# X\nx", a__y_DOT_txt="y", b__z_DOT_md="# Z\nz")
    for found in (files, listed):
        assert [as_json(f)["name"] if found is listed else f[0] for f in found(f"{tmp_path}/*/*.md")] == [
            "a/x.md",
            "b/z.md",
        ]
    assert [file.name for file in listed(f"{tmp_path}/a/x.md")] == ["x.md"]
    assert [file.name for file in listed(f"file://{tmp_path}/a")] == ["x.md", "y.txt"]


def test_files_come_in_the_order_of_their_names_and_a_relative_path_is_made_whole(tmp_path, monkeypatch):
    put(tmp_path, a__b_DOT_md="x", **{"a-b_DOT_md": "x", "a_DOT_zip": packed(), "_DOT_hidden__c_DOT_md": "x"})
    monkeypatch.chdir(tmp_path)
    found = listed(".")
    assert [file.name for file in found] == sorted(file.name for file in found) == ["a-b.md", "a.zip", "a/b.md"]
    assert [file.uri for file in found] == [str(tmp_path / file.name) for file in found]
    assert [file.name for file in listed("a.zip")] == [""]


def test_what_cannot_be_opened_is_listed_and_has_no_identity(tmp_path):
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "link.md").symlink_to("nowhere.md")
    assert [(file.name, file.identity) for file in listed(str(tmp_path))] == [("link.md", ""), ("pipe.md", "")]


def test_a_name_that_is_no_text_is_written_so_that_it_can_be_stored(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.md")).write_text("# C\nx")
    (file,) = listed(str(tmp_path))
    assert file.name == "caf\\xe9.md" and Path(file.uri).read_text() == "# C\nx"


def walk_refused_with(error):
    def walk(root, onerror):
        onerror(error)
        yield root, [], ["a.md"]

    return walk


def test_a_folder_that_may_not_be_opened_is_listed_and_one_that_does_not_answer_stops(tmp_path, monkeypatch):
    put(tmp_path, a_DOT_md="# A\ntext", b__c_DOT_md="# C\nx")
    monkeypatch.setattr(os, "walk", walk_refused_with(PermissionError(13, "no", str(tmp_path / "b"))))
    assert [(file.name, bool(file.identity)) for file in listed(str(tmp_path))] == [("a.md", True), ("b", False)]
    monkeypatch.setattr(os, "walk", walk_refused_with(OSError(116, "Stale file handle", str(tmp_path / "b"))))
    with pytest.raises(OSError, match="Stale"):
        listed(str(tmp_path))


def test_nothing_at_the_path_is_an_error_because_it_is_no_deletion(tmp_path):
    for path in (tmp_path / "missing", tmp_path, tmp_path / "*.md"):
        with pytest.raises(FileNotFoundError, match="no files at"):
            listed(str(path))
