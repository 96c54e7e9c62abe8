"""The page: what it may do by its headers, what it says to screen readers, that nothing is put in as HTML."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from data.records import Chunk, Guard
from serving import ask, metering
from serving.rag import HISTORY_MESSAGES
from tests.test_app import LIVE, Stack

HTML = ask.FILE.read_text()
SCRIPT = re.search(r"<script>(.*?)</script>", HTML, re.DOTALL)[1]


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(HTML)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def stack(tmp_path):
    stack = Stack(tmp_path, api_key="right")
    yield stack
    stack.log.close()


def test_the_page_opens_without_a_key_and_what_it_asks_for_does_not(stack):
    reply = stack.get("/ask")
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/html") and reply.text == HTML
    assert stack.get("/v1/models").status_code == stack.get("/v1/sections/c1?model=helpdesk").status_code == 401
    assert stack.call("/ask", method="POST").status_code == 401


def test_its_policy_lets_its_own_script_run_alone_and_nothing_from_elsewhere(stack):
    policy = stack.get("/ask").headers["content-security-policy"]
    own = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{own}';" in policy and policy.startswith("default-src 'none';")
    assert "unsafe" not in policy and "http" not in policy and "frame-ancestors 'none'" in policy
    assert "//" not in re.sub(r"//\s", "", HTML).replace("http-equiv", ""), "nothing is fetched from another host"
    inline = [name for _, attrs in Elements().found for name in attrs if name.startswith("on") or name == "style"]
    assert inline == [], "the policy would block them"


def test_nothing_is_ever_put_in_as_html():
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", ".srcdoc"):
        assert way not in SCRIPT


def test_what_the_page_remembers_is_kept_under_names_that_no_method_of_storage_has():
    used = re.findall(r"Storage\.(\w+)(\(?)", SCRIPT)
    assert set(used) == {("getItem", "("), ("setItem", "(")}, "sessionStorage.key is a function, not what was stored"


def test_a_long_conversation_is_sent_no_longer_than_a_release_reads():
    (turns,) = re.findall(r"TURNS_SENT = (\d+)", SCRIPT)
    assert "history.slice(-2 * TURNS_SENT)" in SCRIPT
    assert HISTORY_MESSAGES <= 2 * int(turns) < Guard().max_messages


def test_each_control_has_a_name_and_the_page_fits_a_phone():
    found = Elements().found
    named = {attrs["id"] for _, attrs in found if "id" in attrs}
    labelled = len(re.findall(r"<label[^>]*>[^<]+<(?:select|textarea|input)", HTML))
    assert labelled == sum(tag in ("select", "textarea", "input") for tag, _ in found)
    assert all(attrs.get("aria-labelledby") in named for tag, attrs in found if tag == "dialog")
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in found
    assert set(re.findall(r'at\("([\w-]+)"\)', SCRIPT)) <= named


def test_a_citation_opens_its_section_and_a_passage_that_is_gone_does_not(stack):
    right = {"authorization": "Bearer right"}
    section = stack.get("/v1/sections/c1?model=helpdesk&user=ann", right).json()
    assert (section["document"], section["title"], section["section"]) == ("a.md", "Offices", "Lyon")
    assert section["text"] == "Lyon opens at 9 a.m. on weekdays." and section["release"] == LIVE.id
    for path, status in (("dead?model=helpdesk", 404), ("c1?model=nobody", 404), ("c1", 400)):
        reply = stack.get(f"/v1/sections/{path}", right)
        assert reply.status_code == status and reply.json()["error"]["message"]
    stack.broken = RuntimeError("manifest truncated at /secret/path")
    assert stack.get("/v1/sections/c1?model=helpdesk", right).json()["error"]["code"] == "index_unavailable"


def test_sections_wait_in_the_same_queue_as_questions(tmp_path):
    full = Stack(tmp_path, max_queued=0)
    assert full.get("/v1/sections/c1?model=helpdesk").json()["error"]["code"] == "too_many_requests"
    one = Stack(tmp_path, max_queued=1)
    for name, status in (("c1", 200), ("gone", 404), ("c1", 200)):
        assert one.get(f"/v1/sections/{name}?model=helpdesk").status_code == status


def test_whoever_reads_a_source_does_not_wait_for_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(metering, "LEAST", 0)
    slow = Stack(tmp_path, max_wait_s=-1.0)
    assert slow.chat().status_code == 429
    assert slow.get("/v1/sections/c1?model=helpdesk").status_code == 200


def test_a_section_of_several_chunks_is_one_text_in_which_an_overlap_stands_once():
    texts = ("One. " + "x" * 60, "x" * 60 + " Two.", "Three.")
    chunks = [Chunk(f"c{n}", "a.md", "A", "B", "h", text, part=n) for n, text in enumerate(texts)]
    assert ask.section(chunks, LIVE)["text"] == "One. " + "x" * 60 + " Two.\nThree."
