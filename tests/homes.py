"""A home with a small assistant in it: a tiny model, an index of a few chunks, a snapshot, a release that is live."""

import zlib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

import settings
from data import snapshots, store
from data.chunking import chunk_ids
from data.ledger import Ledger
from data.records import (
    Chunk,
    Decision,
    Document,
    Model,
    Prompt,
    Release,
    Section,
    Sources,
    as_json,
    file_sha256,
)
from serving.engine import base_sha256, bases, export
from tests import tiny
from tests.ledgers import migrated

NAME = "handbook"
TEXTS = ["trash keeps files 30 days", "invoice is due in May", "port 6514 carries syslog", "pool keys are wrapped"]
SNAPSHOT = "snap-" + "1" * 20


class Embed:
    """Hashed words as a unit vector of 64 numbers."""

    sha256 = "e" * 64

    def embed_passages(self, texts):
        rows = np.zeros((len(texts), 64), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[zlib.crc32(word.encode()) % 64] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@contextmanager
def at(home: Path):
    """The settings of another home."""
    import os

    before = os.environ["PERENNIAL_HOME"]
    os.environ["PERENNIAL_HOME"] = str(home)
    settings.settings.cache_clear()
    try:
        home.mkdir(parents=True, exist_ok=True)
        yield settings.settings()
    finally:
        os.environ["PERENNIAL_HOME"] = before
        settings.settings.cache_clear()


def ledger() -> Ledger:
    """The ledger of the home of the moment, migrated."""
    file = settings.settings().home / "ledger.db"
    if not file.exists():
        file.write_bytes(migrated())
    return Ledger(settings.settings().ledger)


def weights(place: Path) -> Path:
    """A tiny base as hf/, its export as model.gguf and an adapter for it as adapter/."""
    tiny.folder(place, template=tiny.CHATML)
    tiny.adapter(place / "adapter", place / "hf")
    export.export_gguf(place / "hf", place / "model.gguf", place / "template.gguf")
    return place


def base(place: Path) -> bases.Base:
    """The base of `weights`, as if it were the embedded one."""
    sha256 = base_sha256(place / "hf")
    untuned = Model("0" * 64, str(place / "hf" / "none.gguf"), "openvino", sha256)
    return bases.Base(str(place / "hf"), sha256, "llama", "chatml", untuned)


def tuned(made: Path, key: str = "k") -> Model:
    """A published model in the home of the moment."""
    folder = settings.settings().models / "tuned" / key
    (folder / "adapter").mkdir(parents=True)
    (folder / "model.Q8_0.gguf").write_bytes((made / "model.gguf").read_bytes())
    for file in (made / "adapter").iterdir():
        (folder / "adapter" / file.name).write_bytes(file.read_bytes())
    for name, text in (("README.md", "# card"), ("training.json", f'{{"assistant": "{NAME}"}}'), ("loss.png", "png")):
        (folder / name).write_text(text)
    gguf, adapter = folder / "model.Q8_0.gguf", folder / "adapter" / "adapter_model.safetensors"
    found = base_sha256(made / "hf")
    return Model(file_sha256(gguf), str(gguf), "openvino", found, file_sha256(adapter), str(adapter))


def sections(texts):
    for text in texts:
        name = f"{text.split()[0]}.md"
        section = Section(name, "Title", "Heading", text)
        yield Document(name, "Title", (section,)), section


def split(document, section):
    (chunk_id,) = chunk_ids([(document.id, document.title, section.heading, section.text, "", "")])
    return [Chunk(chunk_id, document.id, document.title, section.heading, section.hash, section.text)]


def index(texts=TEXTS, assistant=NAME, snapshot=SNAPSHOT):
    embed = Embed()
    return store.write(assistant, sections(texts), split, embed.embed_passages, embed.sha256, "c" * 64, snapshot)


def snapshot(assistant=NAME, name=SNAPSHOT):
    """A whole snapshot with one golden question."""
    writer = snapshots.Writer(settings.settings().snapshots / assistant)
    question = {
        "id": "q",
        "question": "How long?",
        "answers": ["30 days"],
        "document": "trash.md",
        "section": "Heading",
    }
    writer.add("golden", [question | {"section_hash": "h", "state": "active", "origin": "given"}])
    writer.finish(*snapshots.SCHEMAS)
    counts = dict.fromkeys(
        ["documents", "sections", "examples", "golden", "aged", "quarantined", "duplicates", "leaked"], 1
    )
    return writer.close(name, {}, assistant=assistant, **counts)


def live(made: Path, documents: Path, assistant=NAME, texts=TEXTS, key="k") -> Release:
    """A release that went live in the home of the moment, with its decision and a report."""
    book, home = ledger(), settings.settings().home
    documents.mkdir(exist_ok=True)
    (documents / "trash.md").write_text(TEXTS[0])
    taken = snapshot(assistant)
    release = Release(assistant, tuned(made, key), index(texts, assistant), Prompt(system=f"Answer for {assistant}."))
    book.register(Sources(assistant, str(documents)), as_json(taken))
    book.add_release(release, "tuned", None, as_json(taken))
    report = home / "reports" / release.id / "abc.json"
    report.parent.mkdir(parents=True)
    report.write_text("{}")
    report.with_suffix(".md").write_text("# Report")
    book.decide_gate(assistant, Decision("promote", "Surely better.", release.id, evaluation=str(report)))
    for kind, verdict in (("smoke", "answered"), ("canary", "held")):
        book.decide(assistant, kind, release.id, verdict, "", {})
    book.promote(assistant, release.id, book.assistant(assistant)["live_seq"])
    return replace(release)
