"""The console: who may read it, what its views say of a filled ledger, and that it shows no texts to who may not."""

import asyncio
import base64
import hashlib
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import parse_qsl

import pytest
from starlette.testclient import TestClient

from data import quarantine
from data.requests import RequestLog
from serving import keys
from serving.app import Parts, create_app
from serving.console import FILE, Views
from serving.refused import Refused
from serving.reports import Reports
from settings import Settings
from tasks.quarantine import set_aside
from tests import histories
from tests.histories import SCRIPT
from tests.ledgers import new_ledger

ADMIN = {"authorization": "Bearer k"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("console")


@pytest.fixture(scope="module")
def week(home):
    ledger, log = histories.filled(home)
    yield ledger, log
    log.close()


def client(home, ledger, log, key=None, base="http://127.0.0.1:8000"):
    router = SimpleNamespace(keys=keys.valid(ledger), read_at=0.0, age=0.0)
    app = create_app(
        Parts(router, None, None, None, log, None, ledger), Settings(home=home, api_key=key), "t", ThreadPoolExecutor(1)
    )
    return TestClient(app, base, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def http(home, week):
    return client(home, *week)


def read(http, path="", **headers):
    reply = http.get(f"/v1/console/assistants{path}", headers=headers)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_the_overview_says_of_each_assistant_what_is_live_and_what_is_pressing(http):
    by_name = {one["name"]: one for one in read(http)["assistants"]}
    handbook, texts = by_name["handbook"], [said["text"] for said in by_name["handbook"]["state"]]
    healed = histories.made()[3]
    assert (handbook["live"]["id"], handbook["live"]["tuned"], handbook["live"]["chunks"]) == (healed.id, True, 129)
    assert texts == ["1 in alarm: latency", "reindex waits to start", "1 held release to review"]
    assert handbook["week"]["requests"] > handbook["today"]["requests"] and handbook["week"]["cost"] > 0
    assert handbook["thumbs"]["up"] > handbook["thumbs"]["down"]
    assert [said["text"] for said in by_name["new"]["state"]] == ["nothing live yet"] and by_name["new"]["live"] is None
    assert [said["text"] for said in by_name["quiet"]["state"]] == ["automation paused"]


def test_the_page_of_an_assistant_holds_lineage_marks_cycles_signals_and_traffic(http):
    one = read(http, "/handbook?days=7")
    _, tuned, held, healed, broken = histories.made()
    lineage = {row["id"]: row for row in one["releases"]}
    assert [lineage[r.id]["changed"] for r in (tuned, healed, broken)] == [["model"], ["index"], ["prompt"]]
    assert (lineage[held.id]["verdict"], lineage[held.id]["live_at"]) == ("hold", [])
    assert len(lineage[healed.id]["live_at"]) == 2, "once by promotion, once by rollback"
    lanes = {mark["lane"] for mark in one["marks"]}
    assert lanes == {"alarms", "decisions", "remedies", "gates", "canaries", "releases", "outcomes", "people"}
    (alarm,) = [mark for mark in one["marks"] if mark["text"] == "grounding, questions"]
    assert alarm["cycle"] == "remedy-2"
    remedy = next(mark for mark in one["marks"] if mark["kind"] == "remedy")
    assert remedy["at"] - remedy["from"] == pytest.approx(41.0)
    assert (
        one["signals"][0]["name"] == "latency"
        and one["signals"][0]["alarm"]
        and len(one["signals"][0]["points"]) <= 120
    )
    labels = next(signal for signal in one["signals"] if signal["name"] == "labels")
    assert labels["learning"] and "12 of 60" in labels["sentence"]
    assert sum(row["requests"] for row in one["traffic"]) > 100
    assert all(one["since"] <= row["at"] <= one["until"] for row in one["traffic"] + one["ratings"])


def test_each_remedy_is_a_cycle_with_its_release_and_so_is_each_release_that_no_remedy_made(http):
    cycles = {cycle["id"]: cycle for cycle in read(http, "/handbook?days=7")["cycles"]}
    first, tuned, held, healed, broken = histories.made()
    assert cycles["remedy-1"]["release"] == healed.id and cycles["remedy-1"]["state"] == "acted"
    assert cycles["remedy-2"]["release"] == healed.id, "it went back to a release that was there"
    assert (cycles["remedy-3"]["state"], cycles["remedy-3"]["release"]) == ("waiting", None)
    assert {cycles[r.id]["state"] for r in (first, tuned, broken)} == {"released"} and cycles[held.id][
        "state"
    ] == "hold"
    assert healed.id not in cycles


def test_a_cycle_tells_what_moved_was_decided_was_seen_was_spent_and_came_of_it(http):
    one = read(http, "/handbook/cycles/remedy-1")
    healed = histories.made()[3]
    assert [signal["name"] for signal in one["moved"]["signals"]] == ["staleness"]
    assert one["moved"]["facts"] == {"stale_sections": 4}
    assert (one["decided"]["row"], len(one["decided"]["alternatives"])) == ("3", 4)
    assert one["seconds"] == 41.0 and one["price_per_hour"] > 0
    assert one["outcome"]["verdict"] == "recovered"
    assert one["made"]["id"] == healed.id == one["live"]["release"]
    (gate,) = one["gates"]
    assert [i["metric"] for i in gate["intervals"]][:2] == ["correct", "grounding"] and gate["report"]
    assert [(row["name"], row["n"]) for row in gate["slices"]] == [("travel", 20), ("leave", 18)], "none of them sealed"
    assert {check["kind"] for check in one["checks"]} == {"smoke", "canary", "promotion", "rollback"}
    by_person = read(http, f"/handbook/cycles/{histories.made()[2].id}")
    assert by_person["moved"] is None and by_person["state"] == "hold"


def test_what_is_not_there_is_said_to_be_missing(http):
    paths = ("/nobody", "/nobody/cycles/remedy-1", "/handbook/cycles/remedy-99", "/handbook/cycles/rel-0")
    strange = (
        "/handbook/cycles/remedy-" + "9" * 5000,
        "/handbook/cycles/remedy-x",
        f"/quiet/cycles/{histories.made()[0].id}",
    )
    for path in (*paths, *strange):
        reply = http.get(f"/v1/console/assistants{path}")
        assert reply.status_code == 404 and reply.json()["error"]["message"], path
    assert http.get("/v1/console/assistants/handbook?days=365").status_code == 400


# --- who may read -----------------------------------------------------------------------------


def give(ledger, **about) -> dict:
    return {"authorization": f"Bearer {keys.create(ledger, keys.Key(f'key-{time.time_ns()}', 'ann', **about))}"}


def test_beyond_loopback_the_page_opens_and_its_data_needs_a_key_with_scope_metrics_and_no_tenant(home, week):
    ledger, log = week
    given = [
        give(ledger, scopes=("metrics",)),
        give(ledger, scopes=("ask", "review")),
        give(ledger, scopes=("admin",), tenant="a"),
    ]
    http = client(home, ledger, log, "k", "http://team.example")
    assert http.get("/console").status_code == 200
    for path in ("", "/handbook", "/handbook/cycles/remedy-1"):
        path = f"/v1/console/assistants{path}"
        assert http.get(path).status_code == 401
        assert [http.get(path, headers=key).status_code for key in (ADMIN, *given)] == [200, 200, 403, 403]
        assert http.post(path, headers=ADMIN).status_code == 405, "nothing is changed from here"
        refused = {http.get(path, headers=key).json()["error"]["code"] for key in given[1:]}
        assert refused == set(re.findall(r'"(\w+)"', re.search(r"OTHER_KEY = (.*);", http.get("/console").text)[1]))


def test_texts_of_people_are_shown_to_reviewers_alone(home, week):
    ledger, log = week
    metrics, reviewer = give(ledger, scopes=("metrics",)), give(ledger, scopes=("metrics", "review"))
    http = client(home, ledger, log, "k", "http://team.example")
    for path in ("/handbook", "/handbook/cycles/remedy-2", "/handbook/cycles/remedy-1"):
        few = read(http, path, **metrics)
        assert "parental leave" not in json.dumps(few), path
        if path != "/handbook":
            assert "<script>" not in json.dumps(few)
    told = read(http, "/handbook/cycles/remedy-2", **reviewer)["moved"]["signals"][1]["topics"][0]
    assert told["words"] == "parental leave" and told["examples"] == [SCRIPT]
    assert read(http, "/handbook/cycles/remedy-1", **metrics)["gates"][0]["report"] is None


def test_whose_ratings_are_set_aside_is_not_told_to_who_may_see_figures_alone(tmp_path):
    ledger, log = new_ledger(tmp_path, "handbook"), RequestLog(f"sqlite:///{tmp_path}/requests.db")
    names = ["without a key: alice@example.com", "bob"]
    said = set_aside(ledger, "handbook", names)
    reason = "A few users carry 90% of the bad ratings: set them aside."
    seen = {"row": "8", "reason": reason, "signals": [], "rating_alarm_users_share": 0.9}
    broken = {"hard_broken": ["answers carry marks of a template"], "rating_alarm_voices": names}
    histories.remedy(ledger, "quarantine_ratings", time.time(), 1.0, said, seen | broken)
    quarantine.give_back(ledger, "handbook", "bob", "eve")
    metrics = give(ledger, scopes=("metrics",))
    http = client(tmp_path, ledger, log, "k", "http://team.example")
    told = [read(http, path, **metrics) for path in ("", "/handbook", "/handbook/cycles/remedy-1")]
    assert "alice" not in json.dumps(told) and "bob" not in json.dumps(told)
    assert "ratings of 2 voices are set aside" in json.dumps(told[1])
    assert told[2]["moved"]["facts"] == {"rating_alarm_users_share": 0.9, "hard_broken": broken["hard_broken"]}
    log.close()


@pytest.mark.parametrize("headers", [{"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}])
def test_another_site_reads_nothing(http, headers):
    assert http.get("/v1/console/assistants", headers=headers).status_code == 403


# --- evaluation pages -------------------------------------------------------------------------


def test_an_evaluation_page_opens_by_its_signed_address_alone_and_may_run_nothing(home, week):
    http = client(home, *week, "k", "http://team.example")
    address = read(http, "/handbook/cycles/remedy-1", **ADMIN)["gates"][0]["report"]
    reply = http.get(address)
    assert reply.status_code == 200 and "<h1>Evaluation" in reply.text
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("sandbox;") and "default-src 'none'" in policy and "script" not in policy
    path, query = address.split("?")
    seq = int(path.rsplit("/", 1)[1])
    for wrong in (
        path,
        f"{path}?{query[:-1]}0",
        address.replace(f"/{seq}?", f"/{seq + 1}?"),
        address.replace("until=", "until=9"),
    ):
        if wrong != address:
            assert http.get(wrong).status_code == 403, wrong
    assert http.get("/console/reports/../../settings.py").status_code in (401, 404)
    assert http.post(address).status_code == 401


def test_a_path_in_a_decision_names_nothing_outside_the_reports(home, week):
    reports, made = Reports(home / "reports", "s"), histories.made()[1].id
    assert reports.stored(made, "/elsewhere/now/0123456789abcdef.json", ".html"), "a home that was moved"
    (home / "reports" / made / "ab.html").symlink_to("/etc/hostname")
    (home / "reports" / made / "notes.html").write_text("no evaluation")
    strange = [(made, name) for name in ("../../../etc/passwd", "", "x\0", "ab.json", "notes.json")]
    assert [reports.stored(*one, ".html") for one in [*strange, ("..", "0123456789abcdef")]] == [None] * 6


def test_an_address_opens_for_ten_minutes_at_least_and_not_for_ever(home):
    reports = Reports(home / "reports", "s")
    fresh, old = (dict(parse_qsl(reports.address(1, time.time() - past).split("?")[1])) for past in (0, 1201))
    assert int(fresh["until"]) >= time.time() + 600
    reports.check(1, int(fresh["until"]), fresh["sign"])
    with pytest.raises(Refused, match="expired"):
        reports.check(1, int(old["until"]), old["sign"])


# --- the page ---------------------------------------------------------------------------------

HTML = FILE.read_text()
STYLE, SOURCE = (re.search(f"<{tag}>(.*?)</{tag}>", HTML, re.DOTALL)[1] for tag in ("style", "script"))


def test_the_page_runs_its_own_script_alone_loads_nothing_and_writes_no_text_as_markup(http):
    reply = http.get("/console")
    policy = reply.headers["content-security-policy"]
    sha = base64.b64encode(hashlib.sha256(SOURCE.encode()).digest()).decode()
    assert f"script-src 'sha256-{sha}'" in policy and policy.startswith("default-src 'none';")
    assert not re.search(
        r"https?:|src=|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|<[^>]* on\w+=", HTML
    )
    assert ' style="' not in HTML and 'setAttribute("style' not in SOURCE, "the policy would block it"
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in HTML


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("side", [0, 1], ids=["light", "dark"])
def test_every_text_colour_stands_out_from_card_and_paper_as_wcag_aa_asks(side):
    colours = {name: both for name, *both in re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", STYLE)}
    for ground in ("paper", "card"):
        for ink in ("ink", "soft", "link", "second", "good", "bad", "warn", "busy"):
            dark, light = sorted(luminance(colours[name][side]) for name in (ink, ground))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


# --- views ------------------------------------------------------------------------------------


def test_many_readers_cost_one_computation_and_a_failed_one_is_not_kept():
    asked = []

    def work(name):
        asked.append(name)
        time.sleep(0.02)
        if name == "bad":
            raise KeyError(name)
        return name.upper()

    async def go():
        views = Views()
        assert await asyncio.gather(*(views.get(work, "a") for _ in range(20))) == [b'"A"'] * 20
        assert await views.get(work, "b") == b'"B"' and await views.get(work, "a") == b'"A"'
        for _ in range(2):
            with pytest.raises(KeyError):
                await views.get(work, "bad")
            await asyncio.sleep(0)

    asyncio.run(go())
    assert asked == ["a", "b", "bad", "bad"]


def test_an_empty_ledger_and_a_ledger_that_is_away_are_said_to_be(tmp_path, week):
    from data.ledger import Ledger

    ledger = new_ledger(tmp_path)
    assert read(client(tmp_path, ledger, week[1])) == {"assistants": []}
    router = SimpleNamespace(keys={})
    parts = Parts(router, None, None, None, week[1], None, Ledger(f"sqlite:///{tmp_path}/none.db"))
    app = create_app(parts, Settings(home=tmp_path, api_key=None), "t", ThreadPoolExecutor(1))
    reply = TestClient(app, "http://127.0.0.1:8000").get("/v1/console/assistants")
    assert reply.status_code == 503 and reply.json()["error"]["code"] == "ledger_unavailable"
