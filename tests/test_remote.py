"""Files at URLs, against servers on this machine: an object store, a web server and a stand-in for the hub."""

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from data import archives, remote
from data.formats import read
from data.remote import Unreachable, fetched, shown
from data.sections import Unreadable
from data.sources import listed
from tests.documents import packed, parse_here

ROOT = Path(__file__).resolve().parent.parent


def texts(path):
    """{document id: its text} of everything at a URL, read in this process."""
    found = [part for _, part in parse_here(listed(path))]
    assert not [row for part in found for row in part.quarantined]
    return {document.id: document.sections[0].text for part in found for document in part.documents}


class Web(BaseHTTPRequestHandler):
    """Sends what its server holds under a path: bytes, a status, or an answer of its own."""

    def do_GET(self):
        where = urlsplit(self.path)
        body = self.server.answer(unquote(where.path), parse_qs(where.query))
        if isinstance(body, int):
            return self.send_error(body)
        self.send_response(200)
        for name, value in self.server.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@contextmanager
def serving(answer, headers=()):
    """The address of a web server; `answer(path, query)` gives bytes or a status."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    server.answer, server.headers = answer, headers
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# --- object stores ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store():
    """A bucket 'docs' on a local S3 server, found through the environment as on any other."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="docs")
        yield client
    server.stop()


def fill(store, **contents):
    for name, content in contents.items():
        store.put_object(Bucket="docs", Key=name.replace("__", "/").replace("_DOT_", "."), Body=content)


def test_a_prefix_in_an_object_store_is_read_like_a_folder(store):
    fill(
        store,
        s__a_DOT_md=b"# A\none",
        s__d__b_DOT_txt=b"two",
        s___DOT_hid__c_DOT_md=b"# C\nx",
        sibling_DOT_md=b"# S\nx",
    )
    fill(store, s__z_DOT_zip=packed(**{"in.md": b"# In\nthree"}))
    store.put_object(Bucket="docs", Key="s/folder/", Body=b"")
    assert texts("s3://docs/s") == texts("s3://docs/s/") == {"a.md": "one", "d/b.txt": "two", "z.zip/in.md": "three"}
    assert texts("s3://docs/s/*.md") == texts("s3://docs/s/a.md") == {"a.md": "one"}
    assert texts("s3://docs/s/z.zip") == {"in.md": "three"}
    assert [document.id for document in read("s3://docs/s").documents] == ["a.md", "d/b.txt", "z.zip/in.md"]


def test_an_object_has_another_identity_when_it_was_edited_and_the_same_when_not(store):
    fill(store, i__a_DOT_md=b"# A\none", i__b_DOT_md=b"# B\none")
    before, again = listed("s3://docs/i"), listed("s3://docs/i")
    fill(store, i__b_DOT_md=b"# B\ntwo")
    after = listed("s3://docs/i")
    assert before == again and before[0] == after[0]
    assert before[1].identity != after[1].identity == listed("s3://docs/i/b.md")[0].identity
    fill(store, i__b_DOT_md=b"# B\nthree")
    assert listed("s3://docs/i/b.md")[0].identity != after[1].identity
    assert after[0].modified.startswith("20") and after[0].modified.endswith("Z")


def test_an_object_over_the_limit_is_refused_before_it_is_fetched(store, monkeypatch):
    fill(store, l__a_DOT_md=b"# A\n" + b"x" * 100)
    monkeypatch.setattr(archives, "MOST_BYTES", 50)
    monkeypatch.setattr(remote, "_blocks", lambda file: pytest.fail("it was fetched"))
    ((_, found),) = parse_here(listed("s3://docs/l"))
    assert "over the limit" in found.quarantined[0].reason


@pytest.mark.parametrize("path", ["s3://docs/nothing", "s3://no-such-bucket/a", "s3://docs/nothing/*.md"])
def test_nothing_in_an_object_store_is_an_error_because_it_is_no_deletion(store, path):
    with pytest.raises(FileNotFoundError, match=r"s3://.*(nothing was changed|that exists)"):
        listed(path)


def test_an_object_that_is_gone_is_refused_and_a_store_that_does_not_answer_is_no_fault_of_its_files(
    store, monkeypatch
):
    with pytest.raises(Unreadable, match="cannot be fetched"):
        fetched("s3://docs/gone.md", 100)
    monkeypatch.setattr("fsspec.core.url_to_fs", refuses)
    with pytest.raises(Unreachable, match="no route"):
        fetched("s3://docs/gone.md", 100)
    with pytest.raises(FileNotFoundError, match="no route"):
        listed("s3://docs")


def refuses(*_):
    raise TimeoutError("no route")


# --- the web ----------------------------------------------------------------------------------


def test_a_file_and_an_archive_on_a_web_server_are_read_under_their_own_names():
    pages = {"/team guide.md": b"# Guide\none", "/all.zip": packed(**{"d/a.md": b"# A\ntwo"})}
    with serving(lambda path, query: pages.get(path, 404), [("Last-Modified", "Wed, 21 Oct 2026 07:28:00 GMT")]) as web:
        assert texts(f"{web}/team%20guide.md") == {"team guide.md": "one"}
        assert texts(f"{web}/team%20guide.md?key=secret") == {"team guide.md": "one"}
        assert texts(f"{web}/all.zip") == {"d/a.md": "two"}
        assert listed(f"{web}/all.zip")[0].modified == "2026-10-21T07:28:00Z"


@pytest.mark.parametrize("tells", [True, False])
def test_a_page_has_another_identity_when_it_was_edited_even_if_the_server_tells_nothing(tells):
    page = [b"# A\none"]
    headers = [("ETag", '"1"')] if tells else []
    with serving(lambda path, query: page[0], headers) as web:
        before, again = listed(f"{web}/a.md"), listed(f"{web}/a.md")
        page[0], headers[:] = b"# A\ntwo", [("ETag", '"2"')] if tells else []
        assert before == again and listed(f"{web}/a.md")[0].identity != before[0].identity


def test_a_page_without_end_is_fetched_up_to_the_limit():
    with serving(lambda path, query: b"x" * 5000) as web, pytest.raises(Unreadable, match="over the limit"):
        fetched(f"{web}/a.md", 4999)


@pytest.mark.parametrize("status", [404, 403, 500])
def test_a_page_that_cannot_be_had_is_an_error_that_keeps_the_key_to_itself(status):
    with serving(lambda path, query: status) as web, pytest.raises(FileNotFoundError, match=r"/a\.md") as caught:
        listed(f"{web}/a.md?key=secret")
    assert "secret" not in str(caught.value)
    assert shown("https://user:secret@host/a.md?key=secret") == "https://host/a.md"


def test_an_address_without_encryption_is_refused_beyond_this_machine():
    with pytest.raises(ValueError, match="use https"):
        listed("http://docs.example/a.md")


def test_a_web_address_that_names_no_file_is_refused():
    with serving(lambda path, query: b"<p>x") as web, pytest.raises(FileNotFoundError, match="names no file"):
        listed(f"{web}/")


# --- other file systems -----------------------------------------------------------------------


def test_any_other_file_system_is_listed_and_an_empty_one_is_an_error():
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/team/a.md": b"# A\none", "/team/d/b.md": b"# B\ntwo", "/team/.git/c.md": b"x"})
    memory.mkdir("/empty")
    assert texts("memory://team") == {"a.md": "one", "d/b.md": "two"}
    for path in ("memory://empty", "memory://missing"):
        with pytest.raises(FileNotFoundError):
            listed(path)


def test_a_package_or_a_file_system_that_is_missing_is_named():
    with pytest.raises(ImportError, match=r"gs://team.*gcsfs.*pip"):
        listed("gs://team/docs")
    with pytest.raises(FileNotFoundError, match="Protocol not known: nonsense"):
        listed("nonsense://team")


HUB = {"README.md": b"# About\na card", "data/train.jsonl": b'{"text": "a row"}\n', ".gitattributes": b"x"}


def hub(path, query):
    """The part of the hub's interface that listing and fetching a dataset 'org/name' takes."""
    if path.startswith("/datasets/org/name/resolve/main/"):
        return HUB.get(path.split("/main/")[1], 404)
    if not path.startswith("/api/datasets/org/name"):
        return 404
    if "/tree/main" not in path:
        return json.dumps({"id": "org/name", "sha": "0" * 40, "siblings": []}).encode()
    below = path.split("/tree/main")[1].strip("/")
    rows = [{"type": "directory", "path": "data", "size": 0, "oid": "d"}]
    rows += [{"type": "file", "path": n, "size": len(b), "oid": f"{n}{len(b)}"} for n, b in HUB.items()]
    rows = [row for row in rows if row["path"].startswith(below + "/" if below else "")]
    if query["recursive"] == ["false"]:
        rows = [row for row in rows if "/" not in row["path"].removeprefix(below).strip("/")]
    return json.dumps(rows).encode() if rows else 404


# The hub's address is read once in a process, so it takes one of its own; its child inherits the environment.
READ = """
import json, sys
from data.formats import read
for path in sys.argv[1:]:
    try:
        print(json.dumps({d.id: d.sections[0].text for d in read(path).documents}))
    except FileNotFoundError as error:
        print(json.dumps(str(error)))
"""


def test_a_dataset_on_the_hub_is_read_by_its_files():
    paths = ["name", "name/data", "name@main/data", "name/README.md", "unknown"]
    with serving(hub) as address:
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", READ, *(f"hf://datasets/org/{path}" for path in paths)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *found, unknown = map(json.loads, done.stdout.splitlines())
    assert found == [
        {"README.md": "a card", "data/train.jsonl#1": "a row"},
        {"train.jsonl#1": "a row"},
        {"train.jsonl#1": "a row"},
        {"README.md": "a card"},
    ]
    assert "cannot list 'hf://datasets/org/unknown'" in unknown


def test_a_hub_that_is_switched_off_is_named_with_what_to_do(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"HF_HUB_OFFLINE=0.*save_to_disk"):
        listed("hf://datasets/org/name")
