"""The review queue as a page of the endpoint, on the endpoint's own app, and in the terminal."""

import base64
import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from data import reviews
from data.reviews import AGED, AlreadySettled
from flows import review as terminal
from serving.app import Parts, create_app
from serving.review import FILE
from settings import Settings
from tasks.calibrate import read_labels
from tests.ledgers import new_ledger
from tests.test_reviews import ANSWER, ROW, one

KEY = {"authorization": "Bearer k"}


@pytest.fixture
def ledger(tmp_path):
    return new_ledger(tmp_path, "wiki")


def client(ledger, key=None, base="http://127.0.0.1:8000"):
    router, log = SimpleNamespace(keys={}), SimpleNamespace(totals=lambda by, since: {})
    parts = Parts(router, None, None, None, log, None, ledger)
    app = create_app(parts, Settings(api_key=key), "token", ThreadPoolExecutor(1))
    return TestClient(app, base)


def verdict(**more):
    return {"verdict": "accepted", "reviewer": "eve"} | more


def test_what_waits_is_listed_with_its_texts_and_settled_with_who(ledger):
    waiting, http = one(ledger, AGED), client(ledger)
    (item,) = http.get("/review/items").json()["items"]
    assert (item["number"], item["kind"], item["actions"]["accepted"]) == (waiting.number, AGED, "still right")
    assert (item["shown"]["old"], item["shown"]["new"]) == (ROW["old"], ROW["new"])
    said = verdict(verdict="corrected", answer="60 days")
    assert http.post(f"/review/items/{waiting.number}", json=said).json()["reviewer"] == "eve"
    assert reviews.item(ledger, waiting.number).answer == "60 days"
    assert http.get("/review/items").json() == {"items": [], "waiting": 0}


def test_what_cannot_be_settled_is_refused_with_the_reason(ledger):
    number, http = one(ledger, AGED).number, client(ledger)
    for path, said, status in [
        ("99", verdict(), 404),
        ("x", verdict(), 404),
        ("9" * 20, verdict(), 404),
        ("9" * 5000, verdict(), 404),
        ("٣", verdict(), 404),
        (number, verdict(verdict="liked"), 400),
        (number, verdict(reviewer=""), 400),
        (number, verdict(reviewer="e" * 81), 400),
        (number, verdict(more=1), 400),
        (number, verdict(), 200),
        (number, verdict(verdict="discarded", reviewer="dan"), 409),
    ]:
        reply = http.post(f"/review/items/{path}", json=said)
        assert (reply.status_code, bool(reply.json().get("error"))) == (status, status != 200), (path, said)
    assert "accepted by eve" in reply.json()["error"]["message"]


def test_with_a_key_the_page_opens_without_it_and_shows_and_settles_nothing(ledger):
    number, http = one(ledger, AGED).number, client(ledger, "k", "http://team.example")
    assert http.get("/review").status_code == 200
    assert http.get("/review/items").status_code == 401
    assert http.post(f"/review/items/{number}", json=verdict()).status_code == 401
    assert http.post("/review").status_code == 401 and http.get("/review/").status_code == 401
    assert http.get("/review/items", headers=KEY).status_code == 200
    assert http.post(f"/review/items/{number}", json=verdict(), headers=KEY).status_code == 200


@pytest.mark.parametrize(
    "headers, base",
    [
        ({"origin": "http://evil.example"}, "http://127.0.0.1:8000"),
        ({"origin": "null"}, "http://127.0.0.1:8000"),
        ({"origin": "http://127.0.0.1:9000"}, "http://127.0.0.1:8000"),
        ({"sec-fetch-site": "cross-site"}, "http://127.0.0.1:8000"),
        ({"sec-fetch-site": "same-site"}, "http://127.0.0.1:8000"),
        ({}, "http://rebound.example"),
    ],
)
def test_another_site_can_neither_read_nor_settle(ledger, headers, base):
    number, http = one(ledger, AGED).number, client(ledger, None, base)
    assert http.get("/review/items", headers=headers).status_code == 403
    assert http.post(f"/review/items/{number}", json=verdict(), headers=headers).status_code == 403
    assert reviews.item(ledger, number).state == "open"


def test_a_form_of_another_site_cannot_send_a_verdict(ledger):
    number, http = one(ledger, AGED).number, client(ledger)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        reply = http.post(f"/review/items/{number}", content=json.dumps(verdict()), headers={"content-type": kind})
        assert reply.status_code == 415
    assert reviews.item(ledger, number).state == "open"


def test_the_page_runs_its_own_script_alone_loads_nothing_and_writes_no_text_as_markup(ledger):
    reply = client(ledger).get("/review")
    policy = reply.headers["content-security-policy"]
    script = re.search(r"<script>(.*?)</script>", reply.text, re.S)[1]
    sha = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{sha}'" in policy and "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy and reply.headers["cache-control"] == "no-cache"
    assert not re.search(r"https?://|src=|innerHTML|insertAdjacentHTML|document\.write|<[^>]* on\w+=", FILE.read_text())


def test_a_queue_longer_than_the_page_says_how_much_waits(ledger):
    reviews.ask_labels(ledger, "wiki", [ANSWER | {"answer": f"{n} days"} for n in range(60)])
    found = client(ledger).get("/review/items").json()
    assert (len(found["items"]), found["waiting"]) == (50, 60)


# --- in the terminal --------------------------------------------------------------------------


def said(ledger, capsys, *words):
    terminal.run(ledger, terminal.arguments(["--who", "eve", *map(str, words)]))
    return capsys.readouterr().out


def test_the_terminal_lists_shows_and_settles(ledger, capsys):
    number = one(ledger, AGED).number
    assert "How long?" in said(ledger, capsys, "list") and "1 wait" in said(ledger, capsys, "list")
    assert "new: Files stay 60 days." in said(ledger, capsys, "show", number)
    assert said(ledger, capsys, "correct", number, "60 days") == f"{number}: answer now (corrected) by eve: 60 days\n"
    assert said(ledger, capsys, "list") == "nothing waits for a person\n"
    assert json.loads(said(ledger, capsys, "--json", "show", number))["reviewer"] == "eve"
    with pytest.raises(AlreadySettled):
        terminal.run(ledger, terminal.arguments(["--who", "dan", "discard", str(number)]))


def test_one_by_one_takes_first_letters_skips_and_tells_what_it_refuses(ledger, capsys):
    reviews.ask_labels(ledger, "wiki", [ANSWER, ANSWER | {"answer": "x"}])
    number = one(ledger, AGED).number
    typed = iter(["", "a", "c", "", "q"])
    one_by_one = terminal.arguments(["--who", "eve"])
    terminal.one_by_one(ledger, one_by_one, lambda prompt: next(typed))
    out = capsys.readouterr().out
    assert "right (accepted) by eve" in out and "what is the right answer" in out
    assert [item.number for item in reviews.items(ledger)] == [1, number]


def test_answers_of_an_evaluation_are_asked_for_and_exported_as_labels(ledger, capsys, tmp_path, monkeypatch):
    from tests.ledgers import release

    candidate = release()
    ledger.add_release(candidate, "tuned", None, {})
    rows = [{"id": f"q{n}", "question": f"Q{n}?", "accepted": ["a"], "answer": "a"} for n in range(4)]
    rows.append({"id": "q9", "question": "Unanswerable?", "accepted": [], "answer": "no"})
    body = {"evaluation": {"release": candidate.id, "champion": "rel-0"}, "rows": {"candidate": rows, "champion": rows}}
    folder = tmp_path / "reports" / candidate.id
    folder.mkdir(parents=True)
    (folder / "e.json").write_text(json.dumps(body))
    monkeypatch.setattr(terminal, "settings", lambda: Settings(home=tmp_path))
    assert "6 answers" in said(ledger, capsys, "ask", candidate.id, "--items", 6)
    for item in reviews.items(ledger):
        said(ledger, capsys, "correct", item.number)
    (tmp_path / "labels.jsonl").write_text(said(ledger, capsys, "labels"))
    labels = read_labels(tmp_path / "labels.jsonl")
    assert len(labels) == 6 and {label.label for label in labels} == {0}
    assert {label.system for label in labels} == {candidate.id, "rel-0"}
    with pytest.raises(LookupError, match="no evaluation of 'rel-x'"):
        terminal.ask(ledger, "rel-x", 5)
