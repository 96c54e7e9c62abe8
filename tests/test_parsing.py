"""Files parsed in a guarded child: what a bad one costs, and what it does not."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import tracemalloc

import psutil
import pytest

from data import parsing
from data.parsing import parse
from data.readers import MOST_BYTES
from data.sources import File, listed
from tests.documents import packed, parse_here, pdf, put, tarred, word

# The child of these tests: readers that misbehave, each under a suffix of its own.
ODD = """
import os, signal, time
from data import parsing
from data.readers import READERS, Read, read_text

kept = []

def leaks(name, data):
    kept.append(bytes(1 << 30))
    return read_text(name, data)

def prints(name, data):
    print("to standard output", flush=True)
    os.write(1, b"and past Python")
    return read_text(name, data)

READERS |= {
    ".hangs": lambda name, data: time.sleep(600),
    ".eats": lambda name, data: [bytes(1 << 30) for _ in range(9)],
    ".exits": lambda name, data: os._exit(3),
    ".faults": lambda name, data: os.kill(os.getpid(), signal.SIGSEGV),
    ".fails": lambda name, data: {}["unforeseen"],
    ".leaks": leaks,
    ".prints": prints,
}
"""


@pytest.fixture
def odd(monkeypatch):
    monkeypatch.setattr(parsing, "COMMAND", (sys.executable, "-c", ODD + "parsing.main()"))


def read(path):
    """(text by document id, reason by file) of everything at a path."""
    found = [part for _, part in parse(listed(path))]
    texts = {document.id: document.sections[0].text for part in found for document in part.documents}
    return texts, {row.file: row.reason for part in found for row in part.quarantined}


def test_what_is_read_does_not_depend_on_the_process_that_reads_it(tmp_path):
    rows = [
        {"id": "e", "title": "E", "section": "S", "text": "caf\u00e9 \U0001f600", "access": "hr"},
        {"question": "Q?"},
    ]
    put(
        tmp_path, a_DOT_md="# A\n## B\ntext", b_DOT_html="<h1>B</h1>x", c_DOT_pdf=pdf(["one", "two"]), d_DOT_docx=word()
    )
    put(tmp_path, e_DOT_jsonl="\n".join(map(json.dumps, [*rows, {}])), f_DOT_txt=b"\xff")
    put(tmp_path, g_DOT_zip=packed(**{"a.md": b"# A\nx", "b.txt": b""}), h_DOT_tar_DOT_gz=tarred(**{"a.md": b"# A\nx"}))
    files = listed(str(tmp_path))
    guarded = list(parse(files))
    assert guarded == list(parse_here(files))
    assert [file for file, _ in guarded] == files and list(parse([])) == []


@pytest.mark.parametrize(
    ("suffix", "reason"),
    [
        ("eats", "needs more than 1536 MB of memory to read; split it"),
        ("exits", "crashed its reader (exit status 3)"),
        ("faults", "crashed its reader (SIGSEGV)"),
        ("fails", "cannot be read: KeyError: 'unforeseen'"),
    ],
)
def test_a_file_that_ends_its_reader_costs_only_itself_and_so_in_an_archive(tmp_path, odd, suffix, reason):
    put(tmp_path, a_DOT_md="# A\none", c_DOT_md="# C\nthree", **{f"b_DOT_{suffix}": "x"})
    put(tmp_path, d_DOT_zip=packed(**{"a.md": b"# A\nfour", f"b.{suffix}": b"x", "c.md": b"# C\nfive"}))
    texts, reasons = read(str(tmp_path))
    assert texts == {"a.md": "one", "c.md": "three", "d.zip/a.md": "four", "d.zip/c.md": "five"}
    assert reasons == {f"b.{suffix}": reason, f"d.zip/b.{suffix}": reason}


def test_a_file_that_hangs_its_reader_costs_only_itself(tmp_path, odd, monkeypatch):
    monkeypatch.setattr(parsing, "MOST_SECONDS", 5.0)
    texts, reasons = read(put(tmp_path, a_DOT_md="# A\none", b_DOT_hangs="x", c_DOT_md="# C\nthree"))
    assert texts == {"a.md": "one", "c.md": "three"}
    assert reasons == {"b.hangs": "took longer than 5 s to read; split it"}


def test_a_server_that_never_sends_the_file_is_waited_for_no_longer_than_a_reader(monkeypatch):
    monkeypatch.setattr(parsing, "MOST_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_file = File("a.md", f"http://127.0.0.1:{silent.getsockname()[1]}/a.md", "1")
        ((_, found),) = parse([silent_file])
    assert found.quarantined[0].reason == "took longer than 3 s to read; split it"


def test_a_source_that_stops_answering_stops_the_reading_because_its_files_are_not_at_fault(tmp_path):
    (good,) = listed(put(tmp_path, a_DOT_md="# A\none"))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    reading = parse([good, File("b.md", f"http://127.0.0.1:{port}/b.md?key=secret", "1")])
    assert next(reading)[1].documents
    with pytest.raises(ConnectionError, match=rf"http://127.0.0.1:{port}/b.md'.*nothing was changed") as caught:
        next(reading)
    assert "secret" not in str(caught.value)


def test_a_file_is_not_blamed_for_the_memory_that_those_before_it_took(tmp_path, odd):
    texts, reasons = read(put(tmp_path, **{f"{name}_DOT_leaks": name for name in "abc"}))
    assert (texts, reasons) == ({"a.leaks": "a", "b.leaks": "b", "c.leaks": "c"}, {})


def test_an_archive_full_of_fatal_files_is_given_up_and_says_so(tmp_path, odd, monkeypatch):
    monkeypatch.setattr(parsing, "MOST_FATAL", 2)
    members = {"a.md": b"# A\none", **{f"{number}.exits": b"x" for number in range(5)}, "z.md": b"# Z\nlast"}
    texts, reasons = read(put(tmp_path, a_DOT_zip=packed(**members), b_DOT_md="# B\ntwo"))
    assert texts == {"a.zip/a.md": "one", "b.md": "two"}
    assert set(reasons) == {"a.zip/0.exits", "a.zip/1.exits", "a.zip"}
    assert reasons["a.zip"] == "2 of its files could not be read safely; the rest was left out"


def test_a_file_that_gives_more_text_than_the_parent_takes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parsing, "MOST_REPLY", 100_000)
    texts, reasons = read(put(tmp_path, a_DOT_md="# A\none", b_DOT_txt="two " * 40_000, c_DOT_md="# C\nthree"))
    assert set(texts) == {"a.md", "c.md"} and "of text; split it" in reasons["b.txt"]


def test_a_reader_that_prints_does_not_garble_what_was_read(tmp_path, odd):
    assert read(put(tmp_path, a_DOT_prints="one", b_DOT_prints="two"))[0] == {"a.prints": "one", "b.prints": "two"}


def test_long_names_and_long_documents_do_not_block_the_pipes(tmp_path):
    deep = "/".join(["d" * 250] * 13)
    put(tmp_path, **{f"{deep}/{number}.txt": "word " * 60_000 for number in range(12)})
    assert [len(found.documents) for _, found in parse(listed(str(tmp_path)))] == [1] * 12


def test_a_child_that_does_not_start_is_an_error_and_quarantines_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(parsing, "COMMAND", (sys.executable, "-c", "raise SystemExit(4)"))
    with pytest.raises(RuntimeError, match=r"exit status 4.*at its start"):
        list(parse(listed(put(tmp_path, a_DOT_md="# A\none"))))


def test_the_child_ends_with_its_input_and_when_the_reading_is_given_up(tmp_path):
    child = subprocess.Popen(parsing.COMMAND, cwd=parsing.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdin.close()
    assert child.wait(60) == 0
    child.stdout.close()
    put(tmp_path, a_DOT_md="# A\none", b_DOT_md="# B\ntwo")
    before = set(psutil.Process().children())
    reading = parse(listed(str(tmp_path)))
    next(reading)
    assert len(set(psutil.Process().children()) - before) == 1
    reading.close()
    assert set(psutil.Process().children()) == before


def test_a_child_in_a_file_that_hangs_does_not_outlive_a_parent_that_was_killed(tmp_path):
    (file,) = listed(put(tmp_path, a_DOT_hangs="x"))
    command = (sys.executable, "-c", ODD + "parsing.MOST_SECONDS = 1\nparsing.main()")
    child = subprocess.Popen(command, cwd=parsing.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    parsing._send(child.stdin, [vars(file), 0])
    child.stdin.close()
    assert child.wait(60) == -signal.SIGALRM
    child.stdout.close()


def test_forty_bad_files_of_many_kinds_cost_none_of_two_hundred_good_ones(tmp_path, odd, monkeypatch):
    monkeypatch.setattr(parsing, "MOST_SECONDS", 8.0)
    whole = packed(**{"a.md": b"# A\n" + bytes(range(32, 127)) * 40})
    kinds = {
        "empty.md": b"",
        "headings.md": b"# A\n## B\n",
        "latin1.txt": "caf\u00e9 and more".encode("latin-1"),
        "binary.md": b"# A\n\0\1\2",
        "broken.json": b'{"data": [',
        "deep.json": b"[" * 200_000,
        "broken.jsonl": b"{nothing",
        "nocolumn.csv": b"a,b\n1,2\n",
        "cut.txt.gz": gzip.compress(b"text " * 500)[:-9],
        "bomb.txt.gz": gzip.compress(b"a" * (MOST_BYTES + 1), 1),
        "cut.zip": whole[: len(whole) // 2],
        "bomb.zip": packed(**{"a.txt": b"a" * (MOST_BYTES + 1)}),
        "nested.zip": packed(**{"inner.zip": packed(**{"d.md": b"x"})}),
        "cut.tar.gz": tarred(**{"a.md": os.urandom(5000)})[:100],
        "locked.pdf": pdf(["Keys are wrapped."], password="x"),
        "broken.pdf": pdf(["text"])[:300],
        "broken.docx": word()[:500],
        "broken.parquet": b"PAR1 nothing PAR1",
        "slides.pptx": b"PK",
        "fails.fails": b"x",
        "eats.eats": b"x",
        "exits.exits": b"x",
        "faults.faults": b"x",
        "hangs.hangs": b"x",
    }
    bad = {
        f"{5 * number:03}-{kind}": content
        for number, (kind, content) in enumerate([*kinds.items(), *[*kinds.items()][:13]])
    }
    put(tmp_path, **bad)
    os.mkfifo(tmp_path / "190-pipe.md")
    (tmp_path / "191-link.md").symlink_to("nowhere.md")
    with open(tmp_path / "192-large.txt", "wb") as file:
        file.truncate(MOST_BYTES + 1)
    pages = {".md": "# T\n{}", ".txt": "{}", ".html": "<h1>T</h1><p>{}", ".rst": "T\n=\n\n{}", ".csv": "text\n{}\n"}
    put(tmp_path, **{f"{n:03}-good{s}": page.format(f"Page {n}.") for n in range(40) for s, page in pages.items()})
    files = listed(str(tmp_path))
    tracemalloc.start()
    documents, quarantined = [], []
    for _, found in parse(files):
        documents += found.documents
        quarantined += found.quarantined
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(files) == 240 and len({document.id for document in documents}) == len(documents) == 200
    assert {row.file.split("/")[0] for row in quarantined} == {*bad, "190-pipe.md", "191-link.md", "192-large.txt"}
    assert len(quarantined) == 40 and all(row.reason for row in quarantined)
    assert peak < 16 << 20
