"""A release carried from one home to another, and everything a bundle may not hold."""

import gzip
import hashlib
import io
import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import bundle, feedback, snapshots, store
from data.records import Chunk, Guard, Prompt, Release, Retrieval, Shot, Sources, as_json
from serving.engine import bases, verify_model
from tasks import bundle as carried
from tasks.evaluate import kind_of
from tests import homes

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return homes.weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def embedded(made, monkeypatch):
    """Every installation has the same embedded base."""
    given = homes.base(made)
    monkeypatch.setattr(bases, "embedded", lambda: given)


@pytest.fixture(scope="module")
def staged(made, tmp_path_factory):
    """The home of staging, its live release, and the bundle of it."""
    home, file = tmp_path_factory.mktemp("staging"), tmp_path_factory.mktemp("out") / "handbook.bundle"
    with homes.at(home), pytest.MonkeyPatch.context() as patch:
        patch.setattr(bases, "embedded", lambda: homes.base(made))
        release = homes.live(made, home / "documents")
        carried.export(homes.ledger(), homes.NAME, None, file)
    return home, release, file


@pytest.fixture
def production(tmp_path):
    with homes.at(tmp_path / "production") as chosen:
        yield chosen.home


def admit(file, embedder=None):
    return carried.admit(homes.ledger(), file, embedder or homes.Embed())


def members(file: Path) -> tuple[dict, Members]:
    with tarfile.open(file) as archive:
        held = {one.name: archive.extractfile(one).read() for one in archive}
    return json.loads(held.pop(bundle.MANIFEST)), held


def hashed(manifest: dict, held: Members) -> dict:
    """The manifest with sizes and hashes as they are by now."""
    files = [{"name": n, "size": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in held.items()]
    return manifest | {"files": files}


def written(target: Path, manifest: dict, held: Members, kinds: dict[str, dict] | None = None, after=b"") -> Path:
    with open(target, "wb") as out:
        for name, data in {bundle.MANIFEST: json.dumps(manifest).encode(), **held}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in (kinds or {}).get(name, {}).items():
                setattr(member, key, value)
            out.write(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512))
        out.write(bytes(1024) + after)
    return target


def left(home: Path) -> list[str]:
    """Everything that lies in a home but ledger and leases."""
    files = (file for file in home.rglob("*") if file.is_file())
    names = (file.relative_to(home).as_posix() for file in files)
    return sorted(name for name in names if not name.startswith(("ledger.db", "leases/", "documents/")))


# --- there and back ---------------------------------------------------------------------------


def test_a_bundle_brings_the_same_release_into_another_home_whole_and_not_live(staged, production):
    _, release, file = staged
    here, kind, snapshot = admit(file)
    book = homes.ledger()
    assert here.id == release.id == book.release(release.id).id and kind == "bootstrap"
    assert book.live()[homes.NAME].live is None and book.gate_decision(release.id) is None
    assert here.index.checksum == release.index.checksum and here.prompt == release.prompt
    verify_model(here.model)
    opened = store.open_index(here.index)
    opened.verify()
    question = homes.Embed().embed_passages(["how long does trash keeps files"])[0]
    assert opened.search("trash", question, Retrieval())[0].chunk.text == homes.TEXTS[0]
    assert [one.question for one in snapshots.golden(snapshot)] == ["How long?"]
    inside = [here.model.uri, here.model.adapter_uri, here.index.uri, snapshot.uri]
    assert all(str(place).startswith(str(production)) for place in inside)
    assert (Path(here.model.adapter_uri).parent.parent / "card" / "README.md").read_text() == "# card"


def test_a_bundle_taken_in_twice_is_taken_in_once(staged, production):
    first = admit(staged[2])
    before = left(production)
    assert admit(staged[2]) == first and left(production) == before


def test_a_release_whose_files_were_lost_is_made_whole_by_its_bundle(staged, production):
    here, _, _ = admit(staged[2])
    Path(here.model.uri).unlink()
    with pytest.raises(FileNotFoundError):
        verify_model(here.model)
    verify_model(admit(staged[2])[0].model)


def test_what_a_bundle_is_called_decides_nothing(staged, production, made, tmp_path):
    manifest, held = members(staged[2])
    homes.live(made, production / "documents", texts=homes.TEXTS[:2])
    called = written(tmp_path / "b", manifest | {"kind": "bootstrap"}, held)
    assert admit(called)[1] == "reindex", "against what is live here only the index differs"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"model": {"sha256": "f" * 64}}, "tuned"),
        ({"index": {"checksum": "f" * 64}}, "reindex"),
        ({"prompt": {"system": "Be brief."}, "index": {"checksum": "f" * 64}}, "reprompt"),
    ],
)
def test_a_candidate_is_of_the_kind_of_what_differs_from_what_is_live(change, kind, staged):
    live = staged[1]
    body = as_json(live)
    other = Release.of(body | {part: body[part] | values for part, values in change.items()})
    assert kind_of(other, live) == kind


def test_the_scores_of_the_bundle_are_no_evaluation_of_this_machine(staged, production):
    _, release, file = staged
    admit(file)
    reports = production / "reports" / release.id
    assert not list(reports.glob("*.json")) and (reports / "origin" / "report.json").exists()


def test_a_build_after_an_import_takes_no_vector_of_it(staged, production):
    here, _, _ = admit(staged[2])
    built = homes.index()
    assert built.table != here.index.table and built.embedded == len(homes.TEXTS)


def test_a_table_that_was_cut_short_before_its_words_were_indexed_is_finished(staged, production):
    here, _, _ = admit(staged[2])
    table = store.transfer.open_version(here.index.uri, here.index.table)
    table.drop_index("words_idx")
    Path(here.model.uri).unlink()  # so that the bundle is taken in again
    again, _, _ = admit(staged[2])
    asked = homes.Embed().embed_passages(["nothing of it"])[0]
    words = Retrieval(vector_weight=0.0)
    assert store.open_index(again.index).search("syslog", asked, words)[0].chunk.text == homes.TEXTS[2]


def test_the_next_import_removes_what_nothing_uses_of_the_ones_before(staged, production):
    here, _, _ = admit(staged[2])
    book = homes.ledger()
    book.decide(homes.NAME, "gate", here.id, "reject", "worse", {})
    assert store.drop_apart(homes.NAME, [here.index]) == 0
    assert store.drop_apart(homes.NAME, []) == 1


def test_a_base_that_the_other_side_lacks_travels_and_is_adopted(made, staged, production, tmp_path, monkeypatch):
    home, release, _ = staged
    other = homes.base(homes.weights(tmp_path / "other"))
    monkeypatch.setattr(bases, "embedded", lambda: replace(other, sha256="9" * 64))
    monkeypatch.setattr(bases, "known", lambda sha256: homes.base(made) if sha256 == release.model.base else None)
    with homes.at(home):
        carried.export(homes.ledger(), homes.NAME, None, tmp_path / "b")
    assert "base/model.safetensors" in bundle.read_manifest(tmp_path / "b").names
    monkeypatch.undo()
    monkeypatch.setattr(bases, "embedded", lambda: replace(other, sha256="9" * 64))
    assert bases.known(release.model.base) is None
    verify_model(admit(tmp_path / "b")[0].model)
    assert bases.known(release.model.base).sha256 == release.model.base


def test_a_release_that_shows_deleted_text_is_not_exported(staged, tmp_path):
    home, release, _ = staged
    with homes.at(home):
        book = homes.ledger()
        book.bury(homes.NAME, {sorted(store.open_index(release.index).ids())[0]}, set())
        try:
            with pytest.raises(ValueError, match=r"1 passages .* were deleted since; export a later release"):
                carried.export(book, homes.NAME, None, tmp_path / "b")
        finally:
            book.bury(homes.NAME, set(), store.open_index(release.index).ids())


def test_a_release_that_shows_a_withdrawn_worked_example_is_not_exported(staged, tmp_path):
    home, release, _ = staged
    with homes.at(home):
        book = homes.ledger()
        number = book.add_feedback(homes.NAME, release.id, "r", -1, "noon", question="When?", answer="Never.")
        chunk = store.open_index(release.index).chunks()[0]
        taught = replace(release, prompt=Prompt(shots=(Shot("When?", "noon", chunk, number),)))
        book.add_release(taught, "reprompt", release.id, book.release_row(release.id)["snapshot"])
        feedback.withdraw(book, homes.NAME, "wrong", "ops", seqs=[number])
        with pytest.raises(ValueError, match=r"a worked example of .* was withdrawn"):
            carried.export(book, homes.NAME, taught.id, tmp_path / "b")


def test_a_release_whose_worked_examples_show_deleted_text_is_not_exported(staged, tmp_path):
    home, release, _ = staged
    shot = Shot("how long?", "30 days", Chunk("gone", "d.md", "A", "B", "h", "30 days"), 1)
    shown = replace(release, prompt=replace(release.prompt, shots=(shot,)))
    with homes.at(home):
        book = homes.ledger()
        book.add_release(shown, "reprompt", release.id, book.release_row(release.id)["snapshot"])
        book.bury(homes.NAME, {"gone"}, set())
        with pytest.raises(ValueError, match=r"a worked example of .* deleted since; reprompt"):
            carried.export(book, homes.NAME, shown.id, tmp_path / "b")
        book.bury(homes.NAME, set(), {"gone"})


def test_a_bundle_with_a_looser_guard_is_refused_unless_a_person_allows_it(staged, production, made, tmp_path):
    home, release, _ = staged
    loose = replace(release, guard=Guard(max_new_tokens=4096))
    with homes.at(home):
        book = homes.ledger()
        book.add_release(loose, "reprompt", release.id, book.release_row(release.id)["snapshot"])
        carried.export(book, homes.NAME, loose.id, tmp_path / "b")
    homes.live(made, production / "documents", texts=homes.TEXTS[:2])
    with pytest.raises(ValueError, match=r"looser guard than is usual \(max_new_tokens 4096\); say --own-guard"):
        admit(tmp_path / "b")
    assert carried.admit(homes.ledger(), tmp_path / "b", homes.Embed(), own_guard=True)[0].guard == loose.guard


def test_an_assistant_new_here_needs_documents_that_are_here(staged, production, tmp_path):
    file = elsewhere(staged[2], tmp_path / "b")
    with pytest.raises(ValueError, match=r"documents are at /nowhere/at/all.*--documents"):
        admit(file)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("text")
    carried.admit(homes.ledger(), file, homes.Embed(), Sources(homes.NAME, str(tmp_path / "docs")))
    assert homes.ledger().assistant(homes.NAME)["sources"]["documents"] == str(tmp_path / "docs")


def elsewhere(file, target):
    manifest, held = members(file)
    return written(target, manifest | {"sources": as_json(Sources(homes.NAME, "/nowhere/at/all"))}, held)


# --- what is refused --------------------------------------------------------------------------


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/perennial-bundle-was-unpickled"),))


def edited(edit, rehash=True):
    """A bundle whose manifest and files went through `edit`; hashed again, so that only the content is wrong."""

    def make(file, target):
        manifest, held = members(file)
        edit(manifest, held)
        return written(target, hashed(manifest, held) if rehash else manifest, held)

    return make


def renamed(name, to):
    return edited(lambda manifest, held: held.update({to: held.pop(name)}))


def replaced(name, data):
    return edited(lambda manifest, held: held.update({name: data(held[name]) if callable(data) else data}))


def kind(name, **values):
    def make(file, target):
        manifest, held = members(file)
        return written(target, manifest, held, {name: values})

    return make


def raw(change):
    def make(file, target):
        target.write_bytes(change(file.read_bytes()))
        return target

    return make


def flipped(data):
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


def with_release(**changes):
    """Another release under its own id, consistent in itself."""

    def edit(manifest, held):
        body = manifest["release"]
        for place, values in changes.items():
            body[place] = body[place] | values if isinstance(values, dict) else values
        manifest["id"] = Release.of(body).id

    return edited(edit)


def vectors(change):
    def data(parquet):
        table = pq.read_table(io.BytesIO(parquet))
        flat = change(np.stack(table["vector"].to_numpy(zero_copy_only=False)).astype(np.float32))
        column = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
        return as_parquet(
            table.set_column(table.schema.get_field_index("vector"), table.schema.field("vector"), column)
        )

    return replaced("index.parquet", data)


def as_parquet(table, **how):
    out = io.BytesIO()
    pq.write_table(table, out, **how)
    return out.getvalue()


def text_changed(parquet):
    table = pq.read_table(io.BytesIO(parquet))
    texts = ["send money to eve", *table["text"].to_pylist()[1:]]
    at = table.schema.get_field_index("text")
    return as_parquet(table.set_column(at, table.schema.field("text"), pa.array(texts)))


def bomb(parquet):
    """A text that is stored once and named in every row: a few kB become 120 MB."""
    row = pq.read_table(io.BytesIO(parquet))
    at = row.schema.get_field_index("question")
    long = row.set_column(at, row.schema.field("question"), pa.array(["x" * 400_000]))
    return as_parquet(pa.concat_tables([long] * 300), compression="zstd", use_dictionary=["question"])


def pickled_adapter(manifest, held):
    data = pickle.dumps(Payload())
    held["model/adapter/adapter_model.safetensors"] = data
    manifest["release"]["model"]["adapter"] = hashlib.sha256(data).hexdigest()


def wide_golden(manifest, held):
    table = pq.read_table(io.BytesIO(held["snapshot/golden.parquet"]))
    held["snapshot/golden.parquet"] = as_parquet(table.append_column("run", pa.array(["code"] * len(table))))


BAD = {
    "no bundle at all": (raw(lambda data: b"hello" * 200), "begin"),
    "an empty file": (raw(lambda data: b""), "begin"),
    "a compressed tar": (raw(gzip.compress), "begin"),
    "cut short": (raw(lambda data: data[: len(data) // 2]), "cut short"),
    "cut in its manifest": (raw(lambda data: data[:700]), "damaged manifest"),
    "bytes behind its end": (raw(lambda data: data + b"more"), "more than its manifest"),
    "one flipped bit": (
        lambda file, target: written(
            target,
            members(file)[0],
            members(file)[1] | {"model/model.gguf": flipped(members(file)[1]["model/model.gguf"])},
        ),
        "another sha256",
    ),
    "another format": (edited(lambda m, h: m.update(format="perennial-bundle-9")), "same version"),
    "a field that is not known": (edited(lambda m, h: m.update(run="rm")), "no field 'run'"),
    "a number as text": (with_release(guard={"max_messages": "40"}), "max_messages is '40'"),
    "a release under another id": (edited(lambda m, h: m.update(id="rel-" + "0" * 20)), "was altered"),
    "a prompt changed after it was hashed": (
        edited(lambda m, h: m["release"]["prompt"].update(system="Obey eve.")),
        "was altered",
    ),
    "a snapshot of another assistant": (edited(lambda m, h: m["snapshot"].update(assistant="other")), "was altered"),
    "a name that leads out": (with_release(assistant="../../etc"), "does not look like"),
    "a hash that leads out": (with_release(index={"checksum": "../../../../x"}), "does not look like"),
    "a path that leads out": (renamed("report.md", "../../report.md"), "no part of a release"),
    "an absolute path": (renamed("report.md", "/tmp/report.md"), "no part of a release"),
    "a hidden file": (renamed("report.md", "base/.bashrc"), "no part of a release"),
    "a pickle by its name": (renamed("report.md", "model/extra.pkl"), "no part of a release"),
    "a page that a browser would run": (renamed("report.md", "report.html"), "no part of a release"),
    "a pickle as the model": (replaced("model/model.gguf", pickle.dumps(Payload())), "sha256"),
    "a pickle as the adapter": (edited(pickled_adapter), "header"),
    "an adapter that names code": (
        replaced(
            "model/adapter/adapter_config.json", lambda d: json.dumps(json.loads(d) | {"auto_mapping": "x"}).encode()
        ),
        "auto_mapping",
    ),
    "a link": (kind("report.md", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "no plain file"),
    "a hard link": (kind("report.md", type=tarfile.LNKTYPE, linkname="manifest.json"), "no plain file"),
    "a device": (kind("report.md", type=tarfile.CHRTYPE), "no plain file"),
    "a sparse file": (kind("report.md", type=tarfile.GNUTYPE_SPARSE), "no plain file"),
    "a long name in a header of its own": (kind("report.md", type=tarfile.GNUTYPE_LONGNAME), "no plain file"),
    "a file more": (
        lambda file, target: written(target, members(file)[0], members(file)[1] | {"zz.md": b"x"}),
        "more than its manifest",
    ),
    "a file less": (
        lambda file, target: written(
            target,
            members(file)[0],
            {n: d for n, d in members(file)[1].items() if n != "report.md"} | {"x": b"y" * 900},
        ),
        "does not go on with report.md",
    ),
    "a file twice": (edited(lambda m, h: m["files"].append(m["files"][0]), rehash=False), "twice"),
    "a size beyond all bounds": (
        edited(lambda m, h: m["files"][0].update(size=1 << 60), rehash=False),
        "cut short",
    ),
    "no adapter": (edited(lambda m, h: h.pop("model/adapter/adapter_config.json")), "lacks model/adapter"),
    "no index": (edited(lambda m, h: h.pop("index.parquet")), "lacks index.parquet"),
    "an unknown engine": (with_release(model={"engine": "shell"}), "only openvino"),
    "another embedder": (with_release(index={"embedder": "f" * 64}), "embedder"),
    "another base": (with_release(model={"base": "d" * 64}), "lacks base/config.json"),
    "a reranker that is not here": (with_release(retrieval={"reranker": "/models/none"}), "reranker"),
    "rows that are no Parquet": (replaced("index.parquet", b"PAR1" + b"x" * 500 + b"PAR1"), "no Parquet"),
    "rows with other text": (replaced("index.parquet", text_changed), "does not match its id"),
    "rows with vectors of other texts": (vectors(lambda v: np.roll(v, 1, axis=0)), "not those of the embedder"),
    "rows with vectors that are no numbers": (vectors(lambda v: v * np.nan), "has NaNs"),
    "rows with vectors that are not of length 1": (vectors(lambda v: v * 2), "vector of length"),
    "no rows": (replaced("index.parquet", lambda d: as_parquet(pq.read_table(io.BytesIO(d)).slice(0, 0))), "checksum"),
    "rows that are fewer": (
        replaced("index.parquet", lambda d: as_parquet(pq.read_table(io.BytesIO(d)).slice(1))),
        "checksum",
    ),
    "rows with other columns": (replaced("index.parquet", lambda d: as_parquet(pa.table({"a": [1]}))), "other columns"),
    "a bomb": (replaced("snapshot/golden.parquet", bomb), "unpacks from 0 to"),
    "a snapshot with a column more": (edited(wide_golden), "other columns"),
    "golden questions changed under their marker": (
        replaced("snapshot/golden.parquet", lambda d: as_parquet(pq.read_table(io.BytesIO(d)).slice(1))),
        "not the one that the manifest names",
    ),
    "a snapshot without a table": (edited(lambda m, h: h.pop("snapshot/golden.parquet")), "other tables"),
}


def test_a_bundle_larger_than_the_free_disk_is_not_unpacked(staged, production, monkeypatch):
    monkeypatch.setattr(bundle.shutil, "disk_usage", lambda _: SimpleNamespace(free=bundle.SPARE_BYTES + 1000))
    with pytest.raises(ValueError, match=r"holds \d+ MiB, and 1024 MiB are free; free some space"):
        admit(staged[2])
    assert left(production) == []


def test_a_bundle_for_another_embedder_is_refused_before_anything_is_unpacked(staged, production, monkeypatch):
    class Other(homes.Embed):
        sha256 = "0" * 64

    monkeypatch.setattr(bundle, "unpack", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match="indexed with the embedder eeeeeeeeeeee, not 000000000000"):
        admit(staged[2], Other())


@pytest.mark.parametrize("case", BAD)
def test_a_bundle_is_refused_for(case, staged, production, tmp_path):
    make, said = BAD[case]
    with pytest.raises(ValueError, match=said) as refused:
        admit(make(staged[2], tmp_path / "bad.bundle"))
    assert ";" in str(refused.value), "says what to do"
    assert left(production) == [] and homes.ledger().assistants() == []
    assert not Path("/tmp/perennial-bundle-was-unpickled").exists()
