import socket
from dataclasses import dataclass, replace

import pytest

from data.records import IndexVersion, Model, Release
from serving import replica, up

INDEX = IndexVersion("helpdesk", "uri", "t", 1, "sum", "emb", "chunk", 1, 1, "snap")
LIVE = Release("helpdesk", Model("a" * 64, "a.gguf", "openvino", "b"), INDEX)
CANARY = replace(LIVE, model=Model("c" * 64, "c.gguf", "openvino", "b"))
NAMES = ["model-" + "a" * 12, "model-" + "c" * 12]


@dataclass
class Routing:
    live: Release | None
    canary: Release | None = None
    b: Release | None = None


class Ledger:
    down = False

    def live(self):
        if self.down:
            raise OSError("disk gone")
        return {"helpdesk": Routing(LIVE, CANARY), "other": Routing(LIVE), "empty": Routing(None)}


@pytest.fixture
def asked(monkeypatch):
    asked = []
    monkeypatch.setattr(replica, "run", lambda model: asked.append(replica.app_name(model.sha256)))
    return asked


def test_every_live_and_canary_artifact_is_started_once(asked):
    watch = up.Watch(Ledger())
    assert watch.deploy_missing({}, 100.0) == NAMES and asked == NAMES
    assert watch.deploy_missing({NAMES[0]: "RUNNING", NAMES[1]: "DEPLOYING"}, 101.0) == [NAMES[1]] and asked == NAMES


def test_the_artifact_of_a_split_tests_second_arm_is_kept_up(asked, monkeypatch):
    monkeypatch.setattr(Ledger, "live", lambda _: {"helpdesk": Routing(LIVE, b=CANARY)})
    assert up.Watch(Ledger()).deploy_missing({}, 100.0) == NAMES


def test_a_failed_artifact_is_tried_again_but_not_at_every_look(asked):
    watch, failed = up.Watch(Ledger()), dict.fromkeys(NAMES, "DEPLOY_FAILED")
    for now in (100.0, 102.0, 129.0, 131.0):
        watch.deploy_missing(failed, now)
    assert asked == NAMES * 2


def test_what_runs_or_recovers_by_itself_is_left_alone(asked):
    up.Watch(Ledger()).deploy_missing({NAMES[0]: "UNHEALTHY", NAMES[1]: "DELETING"}, 100.0)
    assert asked == []


def test_an_unreadable_ledger_is_left_for_the_next_look(asked):
    ledger = Ledger()
    ledger.down = True
    assert up.Watch(ledger).deploy_missing({}, 100.0) == [] and asked == []


def test_it_gives_up_only_when_the_endpoint_stays_unhealthy():
    watch = up.Watch(Ledger())
    assert not watch.given_up("RUNNING", 100.0)
    assert not watch.given_up("UNHEALTHY", 110.0) and not watch.given_up(None, 129.0)
    assert not watch.given_up("RUNNING", 129.5) and not watch.given_up("DEPLOYING", 131.0)
    assert watch.given_up("DEPLOYING", 151.0)


def test_a_taken_port_is_named_with_what_to_do():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(up.PortTaken, match=f"127.0.0.1:{port}.*PERENNIAL_ENDPOINT_PORT"):
            up.check_port("127.0.0.1", port)
        assert up.reachable(f"127.0.0.1:{port}")
    up.check_port("127.0.0.1", port)
    assert not up.reachable(f"127.0.0.1:{port}")
