"""What a person asks of the outbox, in the terminal and over the API: it writes a row and nothing else."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from data import outbox, quarantine
from flows import by_hand
from serving import keys
from serving.app import Parts, create_app
from settings import Settings
from tasks import remedy
from tests.ledgers import go_live, new_ledger, release

KEY = {"authorization": "Bearer k"}


@pytest.fixture
def ledger(tmp_path):
    book = new_ledger(tmp_path, "wiki", "idle")
    go_live(book, release())
    return book


def client(ledger, key=None, base="http://127.0.0.1:8000", **known):
    router, log = SimpleNamespace(keys=known), SimpleNamespace(totals=lambda by, since: {})
    parts = Parts(router, None, None, None, log, None, ledger)
    return TestClient(create_app(parts, Settings(api_key=key), "token", ThreadPoolExecutor(1)), base)


def test_every_kind_has_a_cooldown_and_a_flow_with_a_deployment_and_its_trigger():
    import yaml

    from flows import remedies
    from settings import ROOT

    assert set(outbox.KINDS) == set(remedy.COOLDOWN_S)
    deployed = {one["name"]: one for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    for kind in outbox.KINDS:
        assert getattr(remedies, kind).name == kind, "reconcile starts FLOW/DEPLOYMENT by the name of the kind"
        assert deployed[kind]["entrypoint"] == f"flows.remedies.{kind}"
        assert deployed[kind]["triggers"][0]["expect"] == [f"perennial.remedy.{kind}"]


def test_a_remedy_asked_for_twice_before_it_starts_is_one_row(ledger):
    first = outbox.ask(ledger, "wiki", "rollback", "ann", "worse since noon", to="rel-1")
    assert outbox.ask(ledger, "wiki", "rollback", "bob", to="rel-1") == first
    assert outbox.ask(ledger, "wiki", "rollback", "bob", to="rel-2") != first
    plain = outbox.ask(ledger, "wiki", "rollback", "bob", "worse since noon")
    assert plain != first and outbox.ask(ledger, "wiki", "rollback", "eve") == plain, "to wherever is not to rel-1"
    row = outbox.listed(ledger, "wiki")[-1]
    assert (row["number"], row["by"], row["reason"]) == (first, "ann", "worse since noon")


def test_what_cannot_be_asked_for_is_said(ledger):
    with pytest.raises(KeyError, match="no assistant 'wikki'"):
        outbox.ask(ledger, "wikki", "reindex")
    with pytest.raises(ValueError, match="no remedy 'reboot'; there are reindex"):
        outbox.ask(ledger, "wiki", "reboot")
    with pytest.raises(ValueError, match="'idle' has nothing live yet"):
        outbox.ask(ledger, "idle", "reindex")
    with pytest.raises(KeyError, match="no outbox row 9"):
        outbox.veto(ledger, 9, "ann")


# --- by API -----------------------------------------------------------------------------------


def test_the_api_writes_one_outbox_row_and_nothing_else(ledger):
    reply = client(ledger).post("/v1/remedies", json={"assistant": "wiki", "kind": "reindex", "why": "new pages"})
    assert reply.status_code == 201 and reply.json()["state"] == "open"
    (row,) = ledger.outbox("wiki")
    assert (row["seq"], row["kind"], row["state"]) == (reply.json()["number"], "reindex", "open")
    assert row["body"] == {"asked": "by hand", "by": "this machine", "reason": "new pages"}
    assert ledger.assistant("wiki")["live_seq"] == 1 and ledger.decisions("wiki", "remedy") == []


def test_rows_are_listed_newest_first_and_vetoed_until_they_start(ledger):
    http = client(ledger)
    signal = ledger.open_remedy("wiki", "retrain", "worse", {"reason": "labels fell"})
    asked = http.post("/v1/remedies", json={"assistant": "wiki", "kind": "collect"}).json()["number"]
    rows = http.get("/v1/remedies", params={"assistant": "wiki"}).json()["data"]
    assert [(row["number"], row["by"]) for row in rows] == [(asked, "this machine"), (signal, "")]
    assert http.post(f"/v1/remedies/{signal}/veto", json={"why": "labels are wrong"}).json()["state"] == "vetoed"
    assert http.post(f"/v1/remedies/{signal}/veto", json={}).status_code == 409
    assert [row["number"] for row in http.get("/v1/remedies?state=vetoed").json()["data"]] == [signal]
    assert "labels are wrong" in ledger.decisions("wiki", "veto")[0]["reason"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("", {"assistant": "wikki", "kind": "reindex"}, 404),
        ("", {"assistant": "idle", "kind": "reindex"}, 400),
        ("", {"assistant": "wiki", "kind": "reboot"}, 400),
        ("", {"assistant": "wiki"}, 400),
        ("", {"assistant": "wiki", "kind": "reindex", "brakes": {}}, 400),
        ("/99/veto", {}, 404),
        ("/0/veto", {}, 400),
        (f"/{9**30}/veto", {}, 400),
        ("/x/veto", {}, 400),
    ],
)
def test_what_the_api_cannot_do_is_refused_and_no_row_is_written(ledger, path, body, status):
    reply = client(ledger).post(f"/v1/remedies{path}", json=body)
    assert (reply.status_code, bool(reply.json()["error"]["message"])) == (status, True)
    assert ledger.outbox() == []


def test_only_an_admins_key_without_a_tenant_asks(ledger):
    body = {"assistant": "wiki", "kind": "reindex"}
    made = {"asks": {"scopes": ("ask", "review")}, "tenants": {"tenant": "acme", "scopes": ("admin",)}, "admins": {}}
    secrets = {
        name: keys.create(ledger, keys.Key(name, "ann", **({"scopes": ("admin",)} | more)))
        for name, more in made.items()
    }
    http = client(ledger, "k", "http://team.example", **keys.valid(ledger))
    sent = {name: {"authorization": f"Bearer {secret}"} for name, secret in secrets.items()}
    for headers in ({}, {"authorization": "Bearer wrong"}):
        assert http.post("/v1/remedies", json=body, headers=headers).status_code == 401
    for name in ("asks", "tenants"):
        assert http.post("/v1/remedies", json=body, headers=sent[name]).status_code == 403
        assert http.get("/v1/remedies", headers=sent[name]).status_code == 403
        assert http.post("/v1/remedies/1/veto", json={}, headers=sent[name]).status_code == 403
    assert ledger.outbox() == []
    assert http.post("/v1/remedies", json=body, headers=sent["admins"]).status_code == 201
    assert ledger.outbox()[0]["body"]["by"] == "ann"


@pytest.mark.parametrize(
    "headers, base",
    [
        ({"origin": "http://evil.example"}, "http://127.0.0.1:8000"),
        ({"origin": "http://127.0.0.1:9000"}, "http://127.0.0.1:8000"),
        ({"sec-fetch-site": "cross-site"}, "http://127.0.0.1:8000"),
        ({"content-type": "text/plain"}, "http://127.0.0.1:8000"),
        ({}, "http://rebound.example"),
    ],
)
def test_where_no_key_is_asked_for_no_other_site_asks_or_vetoes(ledger, headers, base):
    seq = ledger.open_remedy("wiki", "retrain", "worse", {})
    http = client(ledger, None, base)
    for path, body in (("", {"assistant": "wiki", "kind": "reindex"}), (f"/{seq}/veto", {})):
        reply = http.post(f"/v1/remedies{path}", json=body, headers=headers)
        assert reply.status_code in (403, 415)
    assert [row["state"] for row in ledger.outbox()] == ["open"]


# --- in the terminal --------------------------------------------------------------------------


def said(ledger, *words) -> str:
    return by_hand.run(ledger, by_hand.arguments(["--who", "eve", "--why", "we saw it", *words]))


def test_the_terminal_asks_wakes_the_flow_lists_and_vetoes(ledger, monkeypatch):
    woken = []
    monkeypatch.setattr(by_hand.events, "emit", lambda *event, **about: woken.append((*event, about["outbox"])))
    assert "outbox row 1" in said(ledger, "ask", "rollback", "wiki", "--to", "rel-1")
    assert ledger.outbox()[0]["body"]["to"] == "rel-1"
    assert woken == [("perennial.remedy.rollback", "wiki", 1)]
    assert "rollback  open  eve: we saw it" in said(ledger, "list", "wiki")
    assert "vetoed" in said(ledger, "veto", "1") and "vetoed by eve" in said(ledger, "list")
    with pytest.raises(ValueError, match="too late"):
        said(ledger, "veto", "1")


def test_the_terminal_pauses_resumes_and_gives_back(ledger):
    assert "paused" in said(ledger, "pause", "wiki") and ledger.assistant("wiki")["paused"]
    assert said(ledger, "resume", "wiki").endswith("are on")
    quarantine.set_aside(ledger, "wiki", ["mob"], "a flood")
    assert said(ledger, "give-back", "wiki", "mob") == "ratings of mob count again"
    assert quarantine.aside(ledger, "wiki") == {}
