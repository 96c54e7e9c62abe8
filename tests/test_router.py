import stat
import threading
from dataclasses import dataclass, replace

import pytest

import settings
from data.records import IndexVersion, Model, Release
from serving.router import NoRelease, Router, internal_token, share


@dataclass(frozen=True)
class Routing:
    assistant: str
    live: Release | None
    live_seq: int
    canary: Release | None = None
    canary_share: float = 0.0
    split: int = 0
    b: Release | None = None
    b_share: float = 0.0


def release(name: str, assistant: str = "helpdesk") -> Release:
    index = IndexVersion(assistant, "uri", "t", 1, name, "emb", "chunk", 1, 1, "snap")
    return Release(assistant, Model("a" * 64, "m.gguf", "openvino", "b"), index)


ONE, TWO, THREE = release("one"), release("two"), release("three")
OTHER = release("other", "other")


class Ledger:
    """What the router needs of a ledger; `down` makes it unreadable."""

    def __init__(self, *routings: Routing):
        self.routings = {routing.assistant: routing for routing in routings}
        self.buried: dict[str, frozenset[str]] = {}
        self.releases = {r.id: r for r in (ONE, TWO, THREE)}
        self.down = False
        self.tombstone_reads = 0

    def live(self):
        if self.down:
            raise OSError("disk gone")
        return dict(self.routings)

    def set(self, routing: Routing):
        self.routings[routing.assistant] = routing

    def release(self, release_id):
        return self.releases[release_id]

    def tombstones(self, assistant):
        self.tombstone_reads += 1
        return self.buried.get(assistant, frozenset())


def test_requests_follow_the_live_pointer_after_the_next_look():
    ledger = Ledger(Routing("helpdesk", ONE, 1))
    router = Router(ledger)
    router.poll()
    assert router.resolve("helpdesk", "ann") == (ONE, "live")
    ledger.set(Routing("helpdesk", TWO, 2))
    assert router.resolve("helpdesk", "ann") == (ONE, "live")
    router.poll()
    assert router.resolve("helpdesk", "ann") == (TWO, "live")


def test_a_new_assistant_of_a_deleted_ones_name_is_read_and_warmed_again():
    warmed, ledger = [], Ledger(Routing("helpdesk", ONE, 1), Routing("other", OTHER, 1))
    router = Router(ledger, warmed.append)
    router.poll()
    router.resolve("helpdesk", "ann", pinned=ONE.id)
    del ledger.routings["helpdesk"]
    router.poll()
    moved = replace(ONE, model=replace(ONE.model, uri="elsewhere"))
    ledger.set(Routing("helpdesk", moved, 1))
    ledger.releases[ONE.id] = moved
    router.poll()
    assert [release.model.uri for release in warmed] == ["m.gguf", "m.gguf", "elsewhere"]
    assert router.resolve("helpdesk", "ann", pinned=ONE.id)[0].model.uri == "elsewhere"


def test_an_unreadable_ledger_leaves_the_last_routing():
    ledger = Ledger(Routing("helpdesk", ONE, 1))
    router = Router(ledger)
    router.poll()
    ledger.down = True
    router.poll()
    assert router.resolve("helpdesk", "ann") == (ONE, "live") and router.age < 5


def test_a_router_that_never_read_the_ledger_says_so():
    ledger = Ledger()
    ledger.down = True
    router = Router(ledger)
    router.poll()
    with pytest.raises(NoRelease, match="not been read"):
        router.resolve("helpdesk", "ann")


def test_unknown_assistants_and_assistants_without_a_release_are_told_apart():
    router = Router(Ledger(Routing("empty", None, 0)))
    router.poll()
    with pytest.raises(KeyError):
        router.resolve("nobody", "ann")
    with pytest.raises(NoRelease, match="no live release"):
        router.resolve("empty", "ann")
    assert router.assistants() == []


def test_a_user_stays_on_one_arm_and_the_canary_gets_its_share():
    router = Router(Ledger(Routing("helpdesk", ONE, 1, TWO, 0.2)))
    router.poll()
    arms = {f"user {n}": router.resolve("helpdesk", f"user {n}")[1] for n in range(2000)}
    assert all(router.resolve("helpdesk", user)[1] == arm for user, arm in arms.items())
    assert 0.16 < sum(arm == "canary" for arm in arms.values()) / 2000 < 0.24


def test_in_a_split_test_a_user_stays_on_one_arm_and_each_arm_gets_its_share():
    router = Router(Ledger(Routing("helpdesk", ONE, 1, split=7, b=TWO, b_share=0.3)))
    router.poll()
    arms = {f"/user {n}": router.resolve("helpdesk", "request", asker=f"/user {n}") for n in range(2000)}
    again = {user: router.resolve("helpdesk", "another request", asker=user) for user in arms}
    assert again == arms and set(arms.values()) == {(ONE, "a"), (TWO, "b")}
    assert 0.26 < sum(arm == "b" for _, arm in arms.values()) / 2000 < 0.34


def test_the_next_split_test_spreads_users_anew():
    first, second = ({n for n in range(1000) if share(f"split {test}", f"user {n}") < 0.5} for test in (1, 2))
    assert 180 < len(first & second) < 320


def test_requests_of_nobody_in_particular_are_spread_one_by_one():
    router = Router(Ledger(Routing("helpdesk", ONE, 1, split=7, b=TWO, b_share=0.5)))
    router.poll()
    assert {router.resolve("helpdesk", f"request {n}")[1] for n in range(30)} == {"a", "b"}


def test_a_canary_goes_before_a_split_test():
    router = Router(Ledger(Routing("helpdesk", ONE, 1, THREE, 1.0, split=7, b=TWO, b_share=0.5)))
    router.poll()
    assert router.resolve("helpdesk", "ann") == (THREE, "canary")


def test_an_arm_that_can_not_be_warmed_gets_no_users_and_nobody_counts_meanwhile():
    def warm(release):
        if release == TWO:
            raise RuntimeError("manifest truncated")

    router = Router(Ledger(Routing("helpdesk", ONE, 1, split=7, b=TWO, b_share=0.9)), warm)
    router.poll()
    assert {router.resolve("helpdesk", f"user {n}") for n in range(30)} == {(ONE, "live")}


def test_the_next_canary_falls_on_other_users():
    first, second = ({n for n in range(1000) if share(r.id, f"user {n}") < 0.1} for r in (TWO, THREE))
    assert len(first & second) < 40


def test_a_pinned_release_answers_even_if_it_is_not_live_but_only_for_its_assistant():
    router = Router(Ledger(Routing("helpdesk", ONE, 1), Routing("other", None, 0)))
    router.poll()
    assert router.resolve("helpdesk", "ann", pinned=TWO.id) == (TWO, "pinned")
    with pytest.raises(ValueError, match="belongs to 'helpdesk'"):
        router.resolve("other", "ann", pinned=TWO.id)
    with pytest.raises(KeyError):
        router.resolve("helpdesk", "ann", pinned="rel-unknown")


def test_tombstones_are_read_at_once_when_the_pointer_moves_and_else_every_second():
    ledger = Ledger(Routing("helpdesk", ONE, 1))
    router = Router(ledger)
    router.poll()
    router.poll()
    assert ledger.tombstone_reads == 1
    ledger.buried = {"helpdesk": frozenset({"gone"})}
    ledger.set(Routing("helpdesk", TWO, 2))
    router.poll()
    assert router.tombstones("helpdesk") == {"gone"} and ledger.tombstone_reads == 2
    router._slow_at -= 2
    ledger.buried = {"helpdesk": frozenset({"gone", "also"})}
    router.poll()
    assert router.tombstones("helpdesk") == {"gone", "also"}
    assert router.tombstones("nobody") == frozenset()


def test_a_release_whose_index_is_damaged_never_replaces_one_that_works():
    def warm(release):
        if release in broken:
            raise RuntimeError("manifest truncated")

    broken = {TWO}
    ledger = Ledger(Routing("helpdesk", ONE, 1))
    router = Router(ledger, warm)
    router.poll()
    ledger.set(Routing("helpdesk", TWO, 2))
    router.poll()
    assert router.resolve("helpdesk", "ann") == (ONE, "live")
    broken.clear()
    router._refused.clear()
    router.poll()
    assert router.resolve("helpdesk", "ann") == (TWO, "live")


def test_a_canary_that_can_not_be_warmed_gets_no_traffic():
    def warm(release):
        if release == TWO:
            raise RuntimeError("manifest truncated")

    router = Router(Ledger(Routing("helpdesk", ONE, 1, TWO, 1.0)), warm)
    router.poll()
    assert router.resolve("helpdesk", "ann") == (ONE, "live")


def test_a_release_is_warmed_once_and_before_it_is_routed_to():
    warmed = []
    ledger = Ledger(Routing("helpdesk", ONE, 1))
    router = Router(ledger, lambda release: warmed.append((release.id, dict(router.routings))))
    router.poll()
    router.poll()
    assert warmed == [(ONE.id, {})]


def test_the_thread_reads_in_the_background_and_ends():
    ledger = Ledger(Routing("helpdesk", ONE, 1))
    router = Router(ledger)
    router.start()
    ledger.set(replace(ledger.routings["helpdesk"], live=TWO, live_seq=2))
    done = threading.Event()
    for _ in range(40):
        if router.resolve("helpdesk", "ann")[0] == TWO:
            break
        done.wait(0.05)
    assert router.resolve("helpdesk", "ann")[0] == TWO and router.alive
    router.close()
    assert not router.alive


def test_the_internal_token_is_made_once_and_only_its_owner_can_read_it(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.router.settings", lambda: settings.Settings(home=tmp_path))
    token = internal_token()
    assert internal_token() == token and len(token) > 30
    assert stat.S_IMODE((tmp_path / "internal.token").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["internal.token"]


def test_keys_are_read_every_second_and_stay_when_they_can_not_be():
    known = {"hash": "key"}
    router = Router(Ledger(), read_keys=lambda: dict(known))
    router.poll()
    known.clear()
    router.poll()
    assert router.keys == {"hash": "key"}
    router._slow_at -= 2
    router.poll()
    assert router.keys == {}
