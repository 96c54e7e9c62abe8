"""An alert reaches a real mail server and a real web server, and a dead channel harms nobody."""

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from aiosmtpd.controller import Controller

from data.records import as_json
from tasks import alerts
from tasks.alerts import Alert
from tasks.evidence import Evidence
from tasks.signals import Signal
from tests.conftest import ROOT
from tests.ledgers import new_ledger

LINKS = {"console": "http://127.0.0.1:8000/console", "run": "http://127.0.0.1:4200/runs/flow-run/1"}
ALERT = Alert("wiki", "alert (row 5 of the diagnosis)", "The documents lack the answer.", "rel-1", LINKS)


class Mailbox:
    """A mail server that keeps what it is given."""

    def __init__(self):
        self.mails: list[str] = []

    async def handle_DATA(self, server, session, envelope):
        self.mails.append(envelope.content.decode())
        return "250 kept"


@pytest.fixture
def mail():
    box = Mailbox()
    server = Controller(box, hostname="127.0.0.1", port=0)
    server.port = free_port()
    server.start()
    yield f"mailto://127.0.0.1:{server.port}?from=perennial@example.org&to=ops@example.org", box.mails
    server.stop()


@pytest.fixture
def web():
    """A webhook: its Apprise address and the bodies that were posted to it."""
    posted: list[dict] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(500 if "broken" in self.path else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"json://127.0.0.1:{server.server_port}/hook", posted
    server.shutdown()


@pytest.fixture
def silent():
    """The address of a server that accepts a connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"json://127.0.0.1:{server.getsockname()[1]}/s3cret-token"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_mail_says_who_what_why_and_where(mail):
    address, mails = mail
    assert alerts.deliver(ALERT, [address]) == {"1 (mailto)": ""}
    assert len(mails) == 1
    assert "Subject: Perennial: wiki: alert (row 5 of the diagnosis)" in mails[0] and "ops@example.org" in mails[0]
    for part in ("The documents lack the answer.", "rel-1", *LINKS.values()):
        assert part in mails[0].replace("=\r\n", "")


def test_a_webhook_gets_it_once(web):
    address, posted = web
    assert alerts.deliver(ALERT, [address]) == {"1 (json)": ""}
    assert [(body["title"], body["message"]) for body in posted] == [(ALERT.title, ALERT.text)]


def test_a_dead_channel_keeps_no_other_from_it_and_is_named_without_its_secret(web, silent):
    address, posted = web
    dead = f"json://ann:pa55word@127.0.0.1:{free_port()}"
    said = alerts.deliver(ALERT, [dead, silent, f"{address}/broken", "nonsense://x", address], patience_s=2.0)
    assert list(said) == ["1 (json)", "2 (json)", "3 (json)", "4 (nonsense)", "5 (json)"]
    assert [bool(problem) for problem in said.values()] == [True, True, True, True, False]
    assert "no answer within 2 s" in said["2 (json)"]
    assert "pa55word" not in json.dumps(said) and "s3cret" not in json.dumps(said)
    assert len(posted) == 2


@pytest.mark.parametrize("written", ["hooks.slack.com/services/T/B/S3CRET", "htp://ann:S3CRET@hooks", "slack://S3CRET"])
def test_a_mistyped_address_is_named_nowhere(tmp_path, monkeypatch, capsys, caplog, written):
    ledger = new_ledger(tmp_path, "wiki")
    monkeypatch.setattr(alerts, "Ledger", lambda _: ledger)
    monkeypatch.setattr(alerts, "settings", lambda: Chosen(written))
    alerts.send(ALERT).join()
    (row,) = ledger.decisions("wiki", "alert")
    assert row["verdict"] == "undelivered" and "PERENNIAL_ALERTS" in str(row["body"]["channels"])
    told = capsys.readouterr()
    assert "S3CRET" not in str(row) + told.out + told.err + caplog.text


def test_what_came_of_it_is_on_record_and_nothing_is_raised(tmp_path, monkeypatch, web, capsys):
    ledger, (address, _) = new_ledger(tmp_path, "wiki"), web
    monkeypatch.setattr(alerts, "Ledger", lambda _: ledger)
    for written in (address, f"{address}, json://127.0.0.1:{free_port()}", ""):
        monkeypatch.setattr(alerts, "settings", lambda written=written: Chosen(written))
        alerts.send(ALERT).join()
    rows = list(reversed(ledger.decisions("wiki", "alert")))
    assert [row["verdict"] for row in rows] == ["told", "undelivered", "told"]
    assert [len(row["body"]["channels"]) for row in rows] == [1, 2, 0]
    assert rows[0]["release"] == "rel-1" and rows[0]["body"]["why"] == ALERT.why
    assert "alert not delivered by 2 (json)" in capsys.readouterr().out


class Chosen:
    """Settings with these channels."""

    ledger = ""

    def __init__(self, written: str, questions: bool = False):
        self.alerts, self.alert_questions = written, questions


def test_nobody_waits_for_a_channel_and_a_process_that_ends_still_delivers(web, mail, silent, tmp_path):
    ledger = new_ledger(tmp_path, "wiki")
    code = f"""
from tasks import alerts
from tasks.alerts import Alert
alerts.PATIENCE_S = 3.0
thread = alerts.send(Alert.of({as_json(ALERT)!r}))
print("sent", thread.is_alive())
"""
    environment = {"PERENNIAL_LEDGER_URL": str(ledger.engine.url), "PERENNIAL_ALERTS": f"{silent} {web[0]},{mail[0]}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert "sent True" in done.stdout, done.stderr
    assert (len(web[1]), len(mail[1])) == (1, 1)
    assert ledger.decisions("wiki", "alert")[0]["verdict"] == "undelivered"


def test_a_message_holds_no_secret_and_no_mail_address():
    told = Alert(
        "wiki", "unwatched", "cannot read postgresql://ann:hunter2hunter2@db/ledger", questions=("I am a@b.org",)
    )
    assert "hunter2" not in told.text and "a@b.org" not in told.text


def test_what_users_asked_is_told_only_where_a_setting_allows_it(monkeypatch):
    topic = {"words": "gift cards", "examples": ["Do you sell gift cards?"]}
    evidence = Evidence(signals=(Signal("questions", 1.0, True, "", {"topics": [topic]}),))
    assert alerts.asked(evidence) == ()
    monkeypatch.setattr(alerts, "settings", lambda: Chosen("", questions=True))
    assert alerts.asked(evidence) == ("Do you sell gift cards?",)
    assert "asked: Do you sell gift cards?" in Alert("wiki", "", "", questions=alerts.asked(evidence)).text
