"""A release into a bundle, and a bundle into a candidate of this machine: everything checked, nothing live by its word.

What came in is in places of its own (models/imported, a table apart), addressed by content, so a bundle taken in twice
is taken in once. The ledger's row comes last; then the candidate is evaluated and gated like any other.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from data import bundle, snapshots, store
from data.bundle import Manifest, refuse
from data.embedding import Embedder
from data.lease import DELETING, lease
from data.ledger import Ledger
from data.records import Decision, Guard, IndexVersion, Model, Release, Snapshot, Sources, as_json, digest
from data.remote import is_remote
from data.sources import files as local_files
from serving import rag
from serving.engine import base_sha256, bases, verify, verify_model
from serving.engine.models import written_whole
from serving.engine.safety import check_adapter, files
from serving.engine.weights import read_json
from settings import settings
from tasks.evaluate import kind_of
from tasks.index import in_use
from tasks.publish import card

CARRIED = ("openvino", "transformers")
"""The engines whose models are files."""
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
CARD = ("README.md", "training.json", "loss.png")


# --- out --------------------------------------------------------------------------------------


def export(ledger: Ledger, name: str, release_id: str | None, target: Path) -> Manifest:
    """Writes a release of an assistant, None for the live one, to the file `target`; what the bundle says it holds.

    Raises ValueError for a release whose files are not those on record, or that shows text deleted, or an
    example withdrawn, since.
    """
    release_id = release_id or ledger.assistant(name)["live_release"]
    if release_id is None:
        raise ValueError(f"{name!r} has nothing live; name a release with --release")
    row, release = ledger.release_row(release_id), ledger.release(release_id)
    if release.assistant != name:
        raise ValueError(f"{release_id} is a release of {release.assistant!r}, not of {name!r}")
    if replace(release).id != release_id:
        raise ValueError(f"{release_id} was released by an earlier version; run the lifecycle of {name!r} again first")
    if release.model.engine not in CARRIED:
        raise ValueError(f"the model of {release_id} is no file: only {' and '.join(CARRIED)} are carried")
    verify_model(release.model)
    index = store.open_index(release.index)
    index.verify()
    tombstones = ledger.tombstones(name)
    if deleted := len(index.ids() & tombstones):
        raise ValueError(f"{deleted} passages of {release_id} were deleted since; export a later release, or re-index")
    if rag.standing(release, tombstones) != release:
        raise ValueError(f"a worked example of {release_id} was withdrawn or deleted since; reprompt, then export that")
    recorded = Snapshot.of(row["snapshot"])
    if snapshots.complete(Path(recorded.uri)) is None:
        raise ValueError(f"snapshot {recorded.id} of {release_id} is gone or was altered; run the lifecycle again")
    decided = ledger.gate_decision(release_id)
    decision = Decision.of(decided["body"]) if decided else None
    places = model_files(release.model)
    places |= {f"snapshot/{file.name}": file for file in Path(recorded.uri).iterdir() if file.is_file()}
    if decision and decision.evaluation:
        reports = (Path(decision.evaluation).with_suffix(kind) for kind in (".json", ".md"))
        places |= {f"report{file.suffix}": file for file in reports if file.is_file()}
    manifest = Manifest(
        release.id,
        row["kind"],
        release.moved(replace(release.model, uri="", adapter_uri=None), replace(release.index, uri="", table="")),
        replace(recorded, uri=""),
        Sources.of(ledger.assistant(name)["sources"]),
        replace(decision, evaluation="") if decision else None,
    )
    with tempfile.TemporaryDirectory(prefix=".export-", dir=settings().home) as folder:
        store.dump(release.index, Path(folder) / "index.parquet")
        return bundle.pack(target, manifest, places | {"index.parquet": Path(folder) / "index.parquet"})


def model_files(model: Model) -> dict[str, Path]:
    """Name in a bundle -> place of everything a model is served from and trained on, with its card.

    The base travels unless it is the embedded one, which every installation has.
    """
    places = {} if model.engine == "transformers" else {"model/model.gguf": Path(model.uri)}
    if model.adapter:
        folder = Path(model.adapter_uri).parent
        places |= {f"model/adapter/{name}": folder / name for name in ADAPTER}
        if (record := card(model)) is not None:
            places |= {f"model/card/{name}": record / name for name in CARD}
    if model.base != bases.embedded().sha256:
        held = files(Path(bases.find(model.base).folder))
        places |= {f"base/{name}": place for name, place in held.items()}
    return places


# --- in ---------------------------------------------------------------------------------------


def admit(
    ledger: Ledger, file: Path, embedder: Embedder, sources: Sources | None = None, own_guard: bool = False
) -> tuple[Release, str, Snapshot]:
    """Takes a bundle in: its release, recorded under the id it has where it comes from and served by nothing yet, the
    kind of candidate it is here, and its snapshot.

    `sources`: where the documents of an assistant that is new here are; by default where the bundle says. `own_guard`:
    whether its limits may be looser than the usual ones. Raises ValueError for whatever is wrong with the bundle, with
    what to do, and leaves nothing of it behind.
    """
    manifest = bundle.read_manifest(file)
    release = manifest.release
    name, routing = release.assistant, ledger.live().get(release.assistant)
    kind = kind_of(release, routing.live if routing else None)
    _check_fit(manifest, file, embedder)
    if not own_guard and (looser := _looser(release.guard)):
        raise refuse(file, f"is served with a looser guard than is usual ({looser[0]})", "say --own-guard to allow it")
    if routing is None:
        sources = _reachable(sources or manifest.sources, file)
    settings().models.mkdir(parents=True, exist_ok=True)
    with lease(f"import-{name}"):
        if (snapshot := _held(ledger, release)) is not None:
            return ledger.release(release.id), kind, snapshot
        with tempfile.TemporaryDirectory(prefix=".import-", dir=settings().home) as temporary:
            folder = Path(temporary)
            if bundle.unpack(file, folder) != manifest:
                raise refuse(file, "changed while it was read", "import it again")
            _check_snapshot(folder / "snapshot", manifest)
            model = _checked_model(folder, release.model, file)
            index = _loaded(ledger, folder, release, file, embedder)
            placed = release.moved(_placed_model(folder, model), index)
            snapshot = _placed_snapshot(folder / "snapshot", manifest.snapshot)
            _keep_report(folder, manifest)
        if routing is None:
            ledger.register(sources, as_json(snapshot))
        ledger.add_release(placed, kind, routing.live.id if routing and routing.live else None, as_json(snapshot))
        ledger.relocate(placed)
        said = manifest.decision.reason if manifest.decision else "nothing on record"
        body = {"kind": manifest.kind, "decision": as_json(manifest.decision) if manifest.decision else None}
        ledger.decide(name, "import", release.id, "admitted", f"where it comes from the gate said: {said}", body)
    return placed, kind, snapshot


def _check_fit(manifest: Manifest, file: Path, embedder: Embedder) -> None:
    """Refuses what could not be served here whatever the files are."""
    model, retrieval = manifest.release.model, manifest.release.retrieval
    if model.engine not in CARRIED:
        raise refuse(file, f"is of the engine {model.engine[:60]!r}", f"only {' and '.join(CARRIED)} are carried")
    if manifest.release.index.embedder != embedder.sha256:
        was, here = manifest.release.index.embedder[:12], embedder.sha256[:12]
        raise refuse(file, f"was indexed with the embedder {was}, not {here}", "use the same models.lock on both sides")
    if (place := retrieval.reranker) and Path(place).is_absolute() and not Path(place).is_dir():
        raise refuse(file, f"needs the reranker {place}, which is not here", "put the same model at that place")
    wanted = {"model/model.gguf"} if model.engine == "openvino" else set()
    if model.adapter:
        wanted |= {f"model/adapter/{name}" for name in ADAPTER}
    if not bases.known(model.base):
        wanted |= {"base/config.json"}
    if missing := wanted - manifest.names:
        raise refuse(file, f"lacks {sorted(missing)[0]}", bundle.AGAIN)


def _looser(guard: Guard) -> list[str]:
    """What a guard allows beyond the usual one."""
    usual = Guard()
    limits = ("max_question_characters", "max_messages", "max_new_tokens")
    found = [f"{name} {getattr(guard, name)}" for name in limits if getattr(guard, name) > getattr(usual, name)]
    return found + ["its log is not redacted"] * (usual.redact_log and not guard.redact_log)


def _reachable(wanted: Sources, file: Path) -> Sources:
    """Without its documents an assistant would never notice that they changed."""
    for what in ("documents", "examples", "golden"):
        place = getattr(wanted, what)
        if place and not is_remote(place):
            try:
                local_files(place)
            except FileNotFoundError as missing:
                why = f"is of an assistant whose {what} are at {place}, where nothing is here"
                raise refuse(file, why, f"say where they are with --{what}") from missing
    return wanted


def _held(ledger: Ledger, release: Release) -> Snapshot | None:
    """The snapshot of a release that is here already and whole."""
    try:
        row, here = ledger.release_row(release.id), ledger.release(release.id)
        store.open_index(here.index).verify()
    except (KeyError, store.IndexDamaged):
        return None
    return snapshots.complete(Path(row["snapshot"]["uri"])) if _whole(here.model) else None


def _check_snapshot(folder: Path, manifest: Manifest) -> None:
    """Refuses tables that this version does not write, and a marker that says something else than the manifest."""
    marker = read_json(folder / "COMPLETE")
    tables = {file.stem for file in folder.glob("*.parquet")}
    hashed = marker.get("sha256")
    if (
        not isinstance(hashed, dict)
        or tables != set(snapshots.SCHEMAS)
        or set(hashed) != {f"{t}.parquet" for t in tables}
    ):
        raise refuse(folder.name, "holds other tables than a snapshot of this version", "use the same version of both")
    for table in tables:
        bundle.readable(folder / f"{table}.parquet", snapshots.SCHEMAS[table].equals)
    try:
        found = snapshots.complete(folder)
    except (ValueError, TypeError, KeyError):
        found = None
    if found is None or replace(found, uri="") != manifest.snapshot:
        raise refuse(folder.name, "is not the one that the manifest names", bundle.AGAIN)


def _checked_model(folder: Path, model: Model, file: Path) -> Model:
    """The model as it lies in the opened bundle, every file of it verified; a base that came along is adopted."""
    base = bases.known(model.base)
    if base is None:
        if base_sha256(folder / "base") != model.base:
            raise refuse(file, "brings another base than its model was made from", bundle.AGAIN)
        base = bases.adopt(folder / "base")
    artifact = Path(base.folder) if model.engine == "transformers" else folder / "model" / "model.gguf"
    adapter = folder / "model" / "adapter"
    here = replace(model, uri=str(artifact), adapter_uri=str(adapter / ADAPTER[1]) if model.adapter else None)
    verify_model(here)
    if model.adapter:
        verify(here.adapter_uri, model.adapter)
        check_adapter(adapter, Path(base.folder), base.sha256)
    return here


def _loaded(ledger: Ledger, folder: Path, release: Release, file: Path, embedder: Embedder) -> IndexVersion:
    with lease(DELETING):
        store.drop_apart(
            release.assistant, [Release.of(row["body"]).index for row in in_use(ledger, release.assistant)]
        )
    try:
        return store.load(folder / "index.parquet", release.index, embedder.embed_passages)
    except store.IndexDamaged as damage:
        raise refuse(file, f"holds an index that is not the one on record ({damage})", bundle.AGAIN) from damage


def _placed_model(folder: Path, model: Model) -> Model:
    """Moves a checked model to its place among the models; one that is there already is taken as it is."""
    given = bases.known(model.base).model
    if given.sha256 == model.sha256:
        return given
    target = settings().models / "imported" / digest(model.sha256, model.adapter)[:24]
    uri = model.uri if model.engine == "transformers" else str(target / "model.gguf")
    placed = replace(model, uri=uri, adapter_uri=str(target / "adapter" / ADAPTER[1]) if model.adapter else None)
    if not _whole(placed):
        target.parent.mkdir(exist_ok=True)
        with written_whole(target) as staging:
            for part in (folder / "model").iterdir():
                shutil.move(part, staging)
    return placed


def _whole(model: Model) -> bool:
    try:
        verify_model(model)
        return model.adapter is None or verify(model.adapter_uri, model.adapter) is None
    except (ValueError, OSError):
        return False


def _placed_snapshot(folder: Path, snapshot: Snapshot) -> Snapshot:
    target = settings().snapshots / snapshot.assistant / snapshot.id
    if snapshots.complete(target) is None:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)  # only ever a damaged one
        shutil.move(folder, target)
    return snapshots.complete(target)


def _keep_report(folder: Path, manifest: Manifest) -> None:
    """In a folder of its own beside the reports made here: an evaluation reads no scores from elsewhere."""
    target = settings().home / "reports" / manifest.id / "origin"
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("report.*"):
        shutil.copy(file, target)
    (target / "manifest.json").write_text(json.dumps(as_json(manifest)))
