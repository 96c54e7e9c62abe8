"""What stays whole when a process is killed while it indexes; `make chaos` does so before and after each step."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import settings
from data import embedding, snapshots, store
from data.records import IndexVersion, Snapshot, Sources, as_json
from serving.engine import models
from tasks import index
from tasks.prepare import prepare
from tests.test_index import FakeEmbedder

ROOT = Path(__file__).resolve().parent.parent
TIMES = int(os.environ.get("PERENNIAL_CHAOS", "1"))
WHEN = ("before", "after") if TIMES > 1 else ("after",)
# Where the process is killed: before or after its first call of this function.
STEPS = [
    (when, place)
    for place in (
        "data.formats:parse",
        "tasks.prepare:filtered",
        "tasks.examples:sort_out",
        "data.snapshots:Writer.close",
        "data.snapshots:replace_text",
        "lancedb.merge:LanceMergeInsertBuilder.execute",
        "lancedb.table:LanceTable.delete",
        "lancedb.table:LanceTable.create_index",
        "lance.dataset:DatasetOptimizer.compact_files",
        "lance.dataset:LanceDataset.cleanup_old_versions",
    )
    for when in WHEN
]
CHILD = """
import importlib, json, os, signal, sys
from data.records import IndexVersion
from tests.test_faults import every_step, prepared

when, place, pinned = sys.argv[1:]
module, _, path = place.partition(":")
owner = importlib.import_module(module)
*parents, name = path.split(".")
for parent in parents:
    owner = getattr(owner, parent)
original = getattr(owner, name)

def killed(*given, **named):
    if when == "after":
        original(*given, **named)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, name, killed)
every_step(prepared(), IndexVersion.of(json.loads(pinned)))
"""


def prepared() -> Snapshot:
    """The snapshot that the home already holds."""
    folder = settings.settings().snapshots / "a"
    (found,) = [made for path in folder.glob("snap-*") if (made := snapshots.complete(path)) and made.documents == 12]
    return found


def every_step(before: Snapshot, *pinned: IndexVersion) -> IndexVersion:
    """Prepare, index and sweep the documents as they are now, every optimisation of the table included."""
    from data.store import build, versions

    build.MOST_SEGMENTS = build.MOST_FRAGMENTS = 0
    versions.NEWEST_KEPT = 1
    embedding.load = lambda path: FakeEmbedder()
    models.embedder_folder = lambda: "none"
    version = index.build_index(prepare(Sources("a", os.environ["DOCUMENTS"]), before))
    store.sweep(version, pinned)
    return version


@pytest.fixture
def documents(tmp_path, monkeypatch):
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOCUMENTS", str(tmp_path / "docs"))
    settings.settings.cache_clear()
    for owner, name in ((embedding, "load"), (models, "embedder_folder")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back what every_step replaces
    folder = tmp_path / "docs"
    folder.mkdir()
    yield folder
    settings.settings.cache_clear()


@pytest.mark.parametrize("step", STEPS, ids=":".join)
@pytest.mark.parametrize("time", range(TIMES))
def test_a_killed_index_run_loses_nothing_doubles_nothing_and_leaves_the_old_version(documents, step, time):
    for number in range(12):
        (documents / f"d{number}.md").write_text(f"# D{number}\n## One\nFact {number}.\n## Two\nOther {number}.\n")
    before = prepare(Sources("a", str(documents)))
    old = every_step(before)
    (documents / "d0.md").unlink()
    (documents / "d1.md").write_text("# D1\n## One\nA new fact.\n## Two\nOther 1.\n")
    (documents / "new.md").write_text("# New\n## One\nSomething else.\n")

    child = subprocess.run([sys.executable, "-c", CHILD, *step, json.dumps(as_json(old))], cwd=ROOT, timeout=120)
    assert child.returncode == -signal.SIGKILL
    store.open_index.cache_clear()
    store.open_index(old).verify()

    version = every_step(before, old)
    chunks = store.open_index(version).chunks()
    store.open_index(version).verify()
    texts = {chunk.text for chunk in chunks}
    assert len(chunks) == len({chunk.id for chunk in chunks}) == 23
    assert {"A new fact.", "Something else."} <= texts and not {"Fact 0.", "Fact 1."} & texts
    store.open_index(old).verify()
