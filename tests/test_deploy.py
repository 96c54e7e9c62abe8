"""Rollback chooses an accepted release; smoke and canary believe only what a client sees."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from data import splits
from tasks import deploy
from tasks.deploy import Canary
from tests.ledgers import accept, go_live, new_ledger, release


class Endpoint:
    """A real HTTP server that answers as `served`, in the way `manner` says."""

    def __init__(self):
        self.served, self.manner, self.asked = "", "well", 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                outer.asked += 1
                citation = {"number": 1, "text": "the passage"}
                text = {"empty": "", "uncited": "75 days"}.get(outer.manner, "75 days [1]")
                body = {
                    "choices": [{"message": {"content": text}}],
                    "citations": [citation] if outer.manner != "empty" else [],
                    "system_fingerprint": outer.served,
                }
                self.send_response(500 if outer.manner == "failing" else 200)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A ledger with one candidate, and an endpoint that answers as it."""
    ledger, endpoint = new_ledger(tmp_path, "wiki"), Endpoint()
    endpoint.served = release().id
    chosen = SimpleNamespace(
        ledger=str(ledger.engine.url), requests=f"sqlite:///{tmp_path}/r.db", endpoint=endpoint.url, api_key=None
    )
    monkeypatch.setattr(deploy, "settings", lambda: chosen)
    ledger.add_release(release(), "tuned", None, {})
    yield ledger, endpoint
    endpoint.server.shutdown()


def test_smoke_is_answered_by_the_very_release_or_it_is_silent(place):
    ledger, endpoint = place
    assert deploy.smoke(release(), "how long?") == ""
    endpoint.served = "rel-another"
    assert "answered by rel-another" in deploy.smoke(release(), "how long?", patience_s=0)
    verdicts = [row["verdict"] for row in ledger.decisions("wiki", "smoke")]
    assert verdicts == ["silent", "answered"]


@pytest.mark.parametrize(
    "manner, problem", [("empty", "empty answer"), ("uncited", "does not resolve"), ("failing", "status 500")]
)
def test_a_canary_that_breaks_a_hard_constraint_is_not_held(place, manner, problem):
    ledger, endpoint = place
    endpoint.manner = manner
    assert problem in deploy.canary(release(), ["a?", "b?"], Canary(requests=6))
    assert ledger.decisions("wiki", "canary")[0]["verdict"] == "broken"


def test_a_quiet_canary_replays_as_many_questions_as_were_asked_for(place):
    ledger, endpoint = place
    assert deploy.canary(release(), ["a?", "b?"], Canary(requests=10)) == ""
    row = ledger.decisions("wiki", "canary")[0]
    assert (row["verdict"], row["body"]["canary"], row["body"]["requests"]) == ("held", "replay", 10)
    assert endpoint.asked == 10


def test_artifacts_of_canaries_and_split_tests_are_in_use_as_live_ones_are(tmp_path):
    ledger, live, b, canary = new_ledger(tmp_path, "wiki"), release(model="a"), release(model="c"), release(model="d")
    go_live(ledger, live)
    for each in (b, canary, release(model="e")):
        accept(ledger, each)
    splits.start(ledger, "wiki", live.id, b.id, 0.5, {})
    ledger.set_canary("wiki", canary.id, 0.1)
    with ledger.write() as c:  # an hour ago: nothing is about to go live
        c.exec_driver_sql("UPDATE decisions SET at = at - 3600")
    assert deploy.in_use(ledger) == {digit * 12 for digit in "acd"}


def test_rollback_takes_the_release_before_over_the_live_index(tmp_path):
    ledger = new_ledger(tmp_path, "wiki")
    good, bad = release(model="a", index="old"), release(model="c", index="new")
    go_live(ledger, good)
    go_live(ledger, bad)
    back = deploy.rollback_release(ledger, "wiki", None, keep_index=True)
    assert (back.model, back.index) == (good.model, bad.index)
    assert deploy.rollback_release(ledger, "wiki", None, keep_index=False) == good


def test_rollback_skips_releases_that_differ_in_the_index_alone(tmp_path):
    ledger = new_ledger(tmp_path, "wiki")
    first, tuned, reindexed = release(model="a"), release(model="c"), release(model="c", index="new")
    for each in (first, tuned, reindexed):
        go_live(ledger, each)
    assert deploy.rollback_release(ledger, "wiki", None, keep_index=True).model == first.model


def test_rollback_to_a_release_that_was_never_live_is_refused(tmp_path):
    ledger = new_ledger(tmp_path, "wiki")
    go_live(ledger, release())
    accept(ledger, release(model="d"))
    with pytest.raises(ValueError, match="was never live"):
        deploy.rollback_release(ledger, "wiki", release(model="d").id, keep_index=True)


def test_with_nothing_to_go_back_to_rollback_says_so(tmp_path):
    ledger = new_ledger(tmp_path, "wiki", "empty")
    go_live(ledger, release())
    accept(ledger, release(model="d"))
    with pytest.raises(ValueError, match="nothing to roll back to"):
        deploy.rollback_release(ledger, "wiki", None, keep_index=True)
    with pytest.raises(ValueError, match="no live release"):
        deploy.rollback_release(ledger, "empty", None, keep_index=True)
