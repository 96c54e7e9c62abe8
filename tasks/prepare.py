"""Sources into a snapshot: documents read, cleaned and filtered, examples and golden questions, by content hash.

Only files that changed are read and cleaned; the rows of the others come from the previous snapshot.
"""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data import cleaning, copies, formats, redaction, snapshots
from data.feedback import Said
from data.formats import File
from data.readers import Read
from data.records import ASSISTANT, Cleaning, Document, Example, Snapshot, Sources, as_json, digest
from data.reviews import Ruling
from data.snapshots import NO_FILE, VERSION, Writer
from settings import settings
from tasks import examples
from tasks.cluster import has_ray
from tasks.guards import Guards

# More files than this are read on Ray, where the work is seen, spread, and a lost worker is replaced.
MOST_IN_PROCESS = 2000
FILES_A_BATCH = 1024
SECOND = "a second document with this id"


def prepare(
    sources: Sources,
    previous: Snapshot | None = None,
    said: Sequence[Said] = (),
    guards: Guards = Guards(),
    rulings: Sequence[Ruling] = (),
    live: Snapshot | None = None,
) -> Snapshot:
    """Reads the sources and returns their snapshot; the same sources, `previous`, feedback and rulings are a read.

    `previous` is the snapshot that was prepared last: what did not change is taken from it, golden questions keep their
    binding and age against it, a held-out set stays held out, and training examples whose answer was edited away are
    left out. `live` is the one that is served: golden questions are made only from what it says too. `said` is the
    assistant's feedback (data.feedback.read): what `guards` let through becomes examples and preferences. `rulings`:
    what reviewers decided on golden questions that aged (data.reviews.rulings). The id is a hash of content, so sources
    and feedback that changed nothing give the snapshot there already is.
    Raises FileNotFoundError for a path with nothing at it, ValueError when no document could be read.
    """
    if not re.fullmatch(ASSISTANT, sources.assistant):
        raise ValueError(f"assistant {sources.assistant!r}: use letters, digits, '-', '_' and '.', at most 63")
    folder = settings().snapshots / sources.assistant
    listed = formats.listed(sources.documents)
    memo = folder / "inputs" / inputs_key(sources, listed, previous, said, guards, rulings, live)
    if memo.is_file() and (done := snapshots.complete(folder / memo.read_text())):
        return done
    writer = Writer(folder)
    try:
        snapshot = _prepared(writer, sources, listed, previous, said, guards, rulings, live)
    finally:
        writer.discard()
    memo.parent.mkdir(parents=True, exist_ok=True)
    snapshots.replace_text(memo, snapshot.id)
    return snapshot


def inputs_key(
    sources: Sources,
    listed: Sequence[File],
    previous: Snapshot | None,
    said: Sequence[Said] = (),
    guards: Guards = Guards(),
    rulings: Sequence[Ruling] = (),
    live: Snapshot | None = None,
) -> str:
    """Hash of names and bytes of every source file, both snapshots, filters, feedback, rulings and this code."""
    more = [formats.listed(path) for path in (sources.examples, sources.golden) if path]
    names = [[(file.name, file.identity) for file in files] for files in (listed, *more)]
    heard = [said, guards] if said else []
    before = [held.id if held else None for held in (previous, live)]
    return digest(VERSION, sources, names, before, heard, list(rulings))[:32]


def _prepared(
    writer: Writer,
    sources: Sources,
    listed: Sequence[File],
    previous: Snapshot | None,
    said: Sequence[Said],
    guards: Guards,
    rulings: Sequence[Ruling],
    live: Snapshot | None,
) -> Snapshot:
    """Writes every table; returns the snapshot, or the equal one that there already is."""
    made_by = {"code": VERSION, "cleaning": as_json(sources.cleaning)}
    held = previous if previous and snapshots.made_by(previous) == made_by else None
    read = pa.concat_tables(_copied_or_read(writer, listed, held, sources.cleaning))
    before = frozenset(snapshots.table(held, "furniture")["line"].to_pylist()) if held else frozenset()
    kept, furniture = filtered(read, sources.cleaning, before)
    writer.table("documents", kept)
    writer.add("furniture", ({"line": line} for line in sorted(furniture)))
    again = kept.filter(pc.starts_with(kept["reason"], SECOND)).select(["file", "document", "reason"]).to_pylist()
    writer.add(
        "quarantine",
        ({"source": NO_FILE, "file": r["file"], "place": r["document"], "reason": r["reason"]} for r in again),
    )
    writer.finish("files", "sections", "given", "furniture")
    chosen = kept.filter(pc.equal(kept["reason"], ""))
    if not chosen.num_rows:
        writer.finish("quarantine")
        bad = list(snapshots.stream(writer.part, "quarantine"))[:3] + kept.slice(0, 3).to_pylist()
        reasons = "; ".join(f"{row['file']}: {row['reason']}" for row in bad[:3])
        raise ValueError(f"no document could be read under {sources.documents!r} ({reasons}); nothing was changed")
    corpus = examples.Sorted(writer.part, kept)
    redacted = partial(_redacted, chosen=sources.cleaning)
    found = examples.sort_out(sources, corpus, previous, redacted, said, guards, rulings, live)
    if said:
        print(f"prepare: {found.chosen}")
    for name, rows in found.tables.items():
        writer.add(name, rows)
    writer.finish("quarantine", *(name for name in found.tables if name != "quarantine"))
    quarantined = [tuple(row.values()) for row in snapshots.stream(writer.part, "quarantine")]
    content = [chosen[name].to_pylist() for name in ("document", "hash")]
    # A vote that nothing is trained on makes no other snapshot, and so no other adapter
    tables = {name: rows for name, rows in found.tables.items() if name not in ("quarantine", "feedback_left_out")}
    rate = found.chosen.flip_rate if tables["preferences"] else 0.0
    parts = (made_by, sources.assistant, content, sorted(furniture), tables, quarantined, rate)
    snapshot_id = "snap-" + digest(*parts)[:20]
    if done := snapshots.complete(writer.folder / snapshot_id):
        return done
    reasons = Counter(reason.split(" ")[0] for reason in kept["reason"].to_pylist())
    return writer.close(
        snapshot_id,
        made_by,
        assistant=sources.assistant,
        documents=chosen.num_rows,
        sections=pc.sum(chosen["sections"]).as_py(),
        examples=len(tables["examples"]),
        golden=len(tables["golden"]),
        aged=sum(row["state"] == "aged" for row in tables["golden"]),
        quarantined=len(quarantined),
        duplicates=reasons["exact"],
        leaked=found.leaked,
        near_duplicates=reasons["near"],
        unfit=reasons["unfit:"],
        redacted=sum(sum(json.loads(text).values()) for text in chosen["redacted"].to_pylist()),
        furniture=len(furniture),
        preferences=len(tables["preferences"]),
        feedback=found.chosen.rows,
        flip_rate=rate,
    )


# --- reading ----------------------------------------------------------------------------------


def _copied_or_read(
    writer: Writer, listed: Sequence[File], held: Snapshot | None, chosen: Cleaning
) -> Iterator[pa.Table]:
    """Writes the rows of every file in the order of `listed`; gives the document rows, a table for some files each.

    Both what is held and what is read come in that order, so neither is ever whole in memory.
    """
    from tqdm import tqdm

    known, modified = {}, {}
    if held:
        for row in snapshots.rows(held, "files"):
            known[row["name"]], modified[row["name"]] = row["identity"], row["modified"]
    changed = [file for file in listed if known.get(file.name) != file.identity]
    fresh = _read(changed, chosen)
    kinds = {"documents": "file", "sections": "file", "given": "source", "quarantine": "source"}
    streams = {
        name: snapshots.by_file(Path(held.uri), name, column) if held else iter(()) for name, column in kinds.items()
    }
    ahead: dict[str, tuple[str, list[dict]] | None] = {name: next(rows, None) for name, rows in streams.items()}

    def held_rows(name: str, file: str) -> list[dict]:
        while (head := ahead[name]) is not None and head[0] < file:
            ahead[name] = next(streams[name], None)
        return head[1] if head is not None and head[0] == file else []

    waiting: list[dict] = []
    yield snapshots.SCHEMAS["documents"].empty_table()
    for file in tqdm(listed, desc="prepare", unit="file", disable=None, mininterval=2):
        unchanged = known.get(file.name) == file.identity
        rows = {name: held_rows(name, file.name) for name in kinds} if unchanged else next(fresh)
        when = modified[file.name] if unchanged else file.modified
        writer.add("files", [{"name": file.name, "identity": file.identity, "modified": when}])
        for name in ("sections", "given", "quarantine"):
            writer.add(name, rows[name])
        waiting += rows["documents"]
        if len(waiting) >= snapshots.ROWS_IN_MEMORY:
            yield pa.Table.from_pylist(waiting, schema=snapshots.SCHEMAS["documents"])
            waiting = []
    yield pa.Table.from_pylist(waiting, schema=snapshots.SCHEMAS["documents"])


def _read(files: Sequence[File], chosen: Cleaning) -> Iterator[dict[str, list[dict]]]:
    """The rows of each file, in order; on Ray when there are many files and a cluster to read them."""
    if len(files) <= MOST_IN_PROCESS or not has_ray():
        yield from (rows_of(file, found, chosen) for file, found in formats.parse(files))
        return
    import ray

    def batch(given: dict) -> dict:
        some = [File.of(json.loads(text)) for text in given["file"]]
        return {"rows": [pickle.dumps(rows_of(file, found, chosen)) for file, found in formats.parse(some)]}

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    data = ray.data.from_items([{"file": json.dumps(as_json(file))} for file in files])
    for row in data.map_batches(batch, batch_size=FILES_A_BATCH).iter_rows():
        yield pickle.loads(row["rows"])


def rows_of(file: File, found: Read, chosen: Cleaning) -> dict[str, list[dict]]:
    """What was read from one file as rows of the snapshot's tables, personal data redacted."""
    rows: dict[str, list[dict]] = {"documents": [], "sections": [], "given": [], "quarantine": []}
    for document in found.documents:
        document, taken = _without_personal_data(document) if chosen.redact else (document, {})
        text = "\n".join(section.text for section in document.sections)
        document = replace(
            document,
            language=document.language or cleaning.language(text),
            modified=document.modified or file.modified,
        )
        print_ = copies.fingerprint(document)
        parts = [(section.heading, section.text, section.page) for section in document.sections]
        rows["documents"].append(
            {"file": file.name, "document": document.id, "sections": len(parts), "redacted": json.dumps(taken)}
            | {name: getattr(document, name) for name in ("title", "modified", "language", "access", "tenant")}
            | {name: getattr(print_, name) for name in ("content", "figures", "signature")}
            | {"hash": digest(document.title, parts, document.access, document.tenant, document.language)}
            | {"unfit": cleaning.quality(document), "lines": sorted(cleaning.lines(document))}
        )
        rows["sections"] += [
            {"file": file.name, "document": document.id, "heading": heading, "text": text, "page": page}
            for heading, text, page in parts
        ]
    for example in found.examples:
        rows["given"].append(as_json(_redacted(example, chosen)) | {"source": file.name})
    rows["quarantine"] = [as_json(row) | {"source": file.name} for row in found.quarantined]
    return rows


def _without_personal_data(document: Document) -> tuple[Document, dict[str, int]]:
    """The document redacted, and how many of each kind were replaced."""
    taken: Counter = Counter()

    def redacted(text: str) -> str:
        done = redaction.redact(text, public=True)
        taken.update(done.found)
        return done.text

    title = redacted(document.title)
    sections = tuple(
        replace(section, title=title, heading=redacted(section.heading), text=redacted(section.text))
        for section in document.sections
    )
    return replace(document, title=title, sections=sections), dict(taken)


def _redacted(example: Example, chosen: Cleaning) -> Example:
    if not chosen.redact:
        return example
    texts = [redaction.redact(text, public=True).text for text in (example.question, *example.answers)]
    return replace(example, question=texts[0], answers=tuple(texts[1:]))


# --- filters ----------------------------------------------------------------------------------


def filtered(read: pa.Table, chosen: Cleaning, before: frozenset[int]) -> tuple[pa.Table, frozenset[int]]:
    """The document rows with `reason` ('' kept) and `dropped` (what is kept instead), and the lines that are furniture.

    `before`: the furniture of the previous snapshot.
    """
    reasons, dropped = [""] * read.num_rows, [""] * read.num_rows
    place: dict[str, int] = {}
    columns = ("document", "hash", "unfit", "content", "signature", "figures", "modified", "tenant", "access")
    prints = []
    for row, one in enumerate(zip(*(read[name].to_pylist() for name in columns), strict=True)):
        document, content, unfit = one[:3]
        if (first := place.setdefault(document, row)) != row:
            same = content == read["hash"][first].as_py()
            reasons[row] = "exact copy under the same id" if same else f"{SECOND}; rename one of them"
        elif unfit and chosen.unfit:
            reasons[row] = f"unfit: {unfit}"
        else:
            prints.append(copies.Fingerprint(document, *one[3:7], reader="\n".join(one[7:])))
    for document, (kept, kind) in copies.duplicates(prints, chosen.near_duplicates).items():
        reasons[place[document]], dropped[place[document]] = f"{kind} copy of {kept}", kept
    marked = read
    for name, values in (("reason", reasons), ("dropped", dropped)):
        marked = marked.set_column(marked.schema.get_field_index(name), name, pa.array(values, pa.string()))
    if not chosen.boilerplate:
        return marked, frozenset()
    left = marked.filter(pc.equal(marked["reason"], ""))
    counts = pc.value_counts(pc.list_flatten(left["lines"]).combine_chunks())
    per_line = dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
    return marked, frozenset(cleaning.boilerplate(per_line, left.num_rows, before))
