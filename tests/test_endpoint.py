"""The Serve ingress without Serve: what warming and its health check do to the index of a live release."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from data import store
from data.records import Chunk, Constrained, Decoding, Filter, IndexVersion, Model, Prompt, Release
from serving import endpoint as endpoint_module
from serving.endpoint import Endpoint

INDEX = IndexVersion("helpdesk", "uri", "t", 1, "sum", "emb", "chunk", 1, 1, "snap")
LIVE = Release("helpdesk", Model("a" * 64, "m.gguf", "openvino", "b"), INDEX)


class Index:
    def __init__(self):
        self.asked, self.broken = [], None

    def verify(self):
        if self.broken:
            raise self.broken

    def search(self, question, vector, retrieval, exclude, allowed):
        self.verify()
        self.asked.append(question)
        return []


@pytest.fixture
def endpoint(monkeypatch):
    made, index = Endpoint.__new__(Endpoint), Index()
    monkeypatch.setattr(store, "open_index", cache(lambda record: index))
    made.embedder = SimpleNamespace(sha256="emb", embed=lambda texts: np.ones((len(texts), 4), np.float32))
    made.threads = ThreadPoolExecutor(1)
    routing = SimpleNamespace(live=LIVE)
    made.router = SimpleNamespace(alive=True, routings={"helpdesk": routing}, close=made.threads.shutdown)
    made.requests = made.traces = SimpleNamespace(close=lambda: None)
    made.index = index
    made.ledger = SimpleNamespace(accepted_releases=lambda name: [])
    made.instead = {}
    return made


def test_health_and_warming_search_the_index(endpoint):
    asyncio.run(endpoint.check_health())
    endpoint.warm(LIVE)
    assert endpoint.index.asked == ["health", "warm"]


@pytest.mark.parametrize("file", ["serving/pages/ask.html", "serving/engine/openvino.py", "data/store/search.py"])
def test_a_change_of_a_page_an_engine_or_the_store_is_another_endpoint(tmp_path, monkeypatch, file):
    (tmp_path / "settings.py").touch()
    changed = tmp_path / file
    changed.parent.mkdir(parents=True)
    changed.write_text("before")
    monkeypatch.setattr(endpoint_module, "ROOT", tmp_path)
    before = endpoint_module.version()
    changed.write_text("after")
    assert endpoint_module.version() != before


def test_a_replica_is_told_of_a_schema_only_where_one_is_asked_for():
    assert Decoding.of(endpoint_module.sent(Constrained(seed=7))) == Decoding(seed=7)
    assert endpoint_module.sent(Constrained(json_schema="{}"))["json_schema"] == "{}"


def test_a_damaged_index_or_a_dead_router_is_unhealthy(endpoint):
    endpoint.index.broken = store.IndexDamaged("gone")
    with pytest.raises(store.IndexDamaged):
        asyncio.run(endpoint.check_health())
    endpoint.router.alive = False
    with pytest.raises(RuntimeError, match="router"):
        asyncio.run(endpoint.check_health())


def test_an_earlier_index_stands_in_for_a_damaged_one_of_a_live_release_only(endpoint, monkeypatch):
    earlier, damaged, whole = replace(LIVE, index=replace(LIVE.index, version=LIVE.index.version + 1)), Index(), Index()
    damaged.broken = store.IndexDamaged("gone")
    monkeypatch.setattr(store, "open_index", cache(lambda record: whole if record == earlier.index else damaged))
    with pytest.raises(store.IndexDamaged):
        endpoint.warm(LIVE)
    endpoint.ledger = SimpleNamespace(
        accepted_releases=lambda name: [LIVE.id, "earlier"],
        release=lambda name: earlier if name == "earlier" else LIVE,
    )
    endpoint.warm(LIVE)
    endpoint.find(LIVE, "after", "", frozenset())
    assert (whole.asked, damaged.asked) == (["warm", "after"], [])
    candidate = replace(LIVE, prompt=Prompt(system="Another"))  # shares the damaged index, and was never live
    for attempt in (endpoint.warm, lambda release: endpoint.find(release, "canary", "", frozenset())):
        with pytest.raises(store.IndexDamaged):
            attempt(candidate)


def test_an_index_that_was_deleted_and_built_anew_is_opened_anew(endpoint, monkeypatch):
    built = [Index()]
    monkeypatch.setattr(store, "open_index", cache(lambda record: built[-1]))
    for read in (endpoint.warm, lambda release: endpoint.find(release, "how long?", "", frozenset())):
        read(LIVE)
        built[-1].broken = store.IndexDamaged("its files are gone")
        built.append(Index())
        read(LIVE)
    assert built[-1].asked == ["how long?"]


def test_a_section_is_read_as_far_as_its_asker_may_see_it(endpoint):
    def chunk(part, access="", section_hash="h"):
        return Chunk(f"c{part}", "a.md", "A", "B", section_hash, f"Part {part}.", part=part, access=access)

    held = {one.id: one for one in (chunk(0), chunk(1, "hr"), chunk(2), chunk(3, section_hash="another"))}
    endpoint.index.chunk, endpoint.index.section = held.get, lambda chunk: list(held.values())

    def seen(name, buried=frozenset(), **allowed):
        return [one.id for one in endpoint.section(LIVE, name, frozenset(buried), Filter(**allowed))]

    assert seen("c0", labels=("hr",)) == ["c0", "c1", "c2"]
    assert seen("c0") == ["c0", "c2"] and seen("c0", {"c2"}) == ["c0"]
    assert seen("c1") == seen("gone") == seen("c0", {"c0"}) == []


def test_an_index_of_another_embedder_is_refused(endpoint):
    endpoint.embedder.sha256 = "other"
    with pytest.raises(ValueError, match="build it again"):
        endpoint.warm(LIVE)
