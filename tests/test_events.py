"""What users hang their automations on: every event is in the table, and its payload has the same fields."""

import ast
from pathlib import Path

import prefect.events
import pytest
import yaml

from tasks import events
from tasks.diagnose import Remedy

ROOT = Path(__file__).resolve().parent.parent
FIELDS = {"assistant", "release", "outbox", "kind", "row", "reason", "evidence", "links"}


@pytest.fixture
def sent(monkeypatch):
    """The events that would have gone to the Prefect server."""
    found: list[dict] = []
    monkeypatch.setattr(prefect.events, "emit_event", lambda **event: found.append(event))
    return found


def names_in(file: Path) -> set[str]:
    """Every text in a file that begins as an event's name does; of one put together, its beginning and '*'."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
            found.add(f"{node.values[0].value}*")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    kinds = ("perennial.drift.", "perennial.remedy.", "perennial.release.", "perennial.split.")
    return {name for name in found if name.startswith(kinds) and "\n" not in name and name not in kinds}


def test_every_event_named_in_the_flows_is_in_the_table_and_every_one_of_the_table_is_sent():
    named = set().union(*(names_in(file) for file in (ROOT / "flows").glob("*.py")))
    whole = {name for name in named if not name.endswith("*")}
    assert whole <= set(events.EVENTS)
    sent = whole | set(events.REFUSED.values()) | {f"perennial.remedy.{kind}" for kind in events.REMEDIES}
    assert "perennial.remedy.*" in named and sent == set(events.EVENTS)


def test_the_triggers_of_prefect_yaml_expect_events_of_the_table():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    expected = {name for one in deployments for trigger in one.get("triggers", ()) for name in trigger["expect"]}
    assert expected and expected <= set(events.EVENTS)


def test_every_payload_has_the_same_fields_and_relates_its_release(sent):
    events.emit("perennial.drift.detected", "wiki")
    events.emit("perennial.release.held", "wiki", release="rel-1", kind="tuned", reason="Only 20 questions vote.")
    assert [set(event["payload"]) for event in sent] == [FIELDS, FIELDS]
    assert [event["resource"]["prefect.resource.id"] for event in sent] == ["perennial.assistant.wiki"] * 2
    assert [len(event["related"]) for event in sent] == [0, 1]
    assert sent[1]["related"][0]["prefect.resource.id"] == "perennial.release.rel-1"
    assert sent[0]["payload"]["links"]["console"].startswith("http://127.0.0.1:")


def test_an_event_that_is_not_in_the_table_is_refused(sent):
    with pytest.raises(KeyError, match="no event 'perennial"):
        events.emit("perennial.drift.detect", "wiki")
    assert sent == []


def test_a_payload_holds_no_secret_and_no_users_question(sent):
    topic = {"name": "questions", "evidence": {"topics": [{"examples": ["Where is Ann's file?"]}]}}
    found = Remedy("alert", "5", "why", {"signals": [topic], "questions": ["Where is Ann's file?"], "loss": 0.25})
    assert events.figures(found) == {"signals": ["questions"], "loss": 0.25}
    events.emit("perennial.drift.detected", "wiki", reason="cannot read postgresql://ann:hunter2hunter2@db/ledger")
    assert "hunter2" not in sent[0]["payload"]["reason"]
