"""A release carried to another installation: `python -m flows.release export ... --to FILE | import FILE`.

The bundle carries what is served, what judged it and how it was judged; what it may do here is decided here.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from prefect import flow
from prefect.states import State

from data.bundle import Manifest, read_manifest
from data.ledger import Ledger, migrate
from data.records import file_sha256
from flows.home import told
from flows.lifecycle import named, release_candidate
from settings import apply_environment, settings
from tasks import bundle, precedents


def export_release(assistant: str, to: Path | str, release: str | None = None) -> Manifest:
    """Write a release of an assistant, None for the live one, to one file; what the file says it holds."""
    return bundle.export(Ledger(settings().ledger), assistant, release, Path(to))


@flow(name="import", log_prints=True)
def import_release(
    file: str,
    documents: str | None = None,
    examples: str | None = None,
    golden: str | None = None,
    own_guard: bool = False,
) -> State:
    """Take a bundle in and release it: evaluated, gated against what is live here, then smoke query and canary.

    `documents`, `examples`, `golden`: where those of an assistant that is new here are, if not where the bundle says.
    `own_guard`: the bundle may bring looser limits than the usual ones. The gate's settings are those of this
    installation.
    """
    from data import embedding
    from serving.engine.models import embedder_folder

    book, said = Ledger(settings().ledger), read_manifest(Path(file)).sources
    given = {"documents": documents, "examples": examples, "golden": golden}
    sources = replace(said, **{what: place for what, place in given.items() if place})
    candidate, kind, snapshot = bundle.admit(book, Path(file), embedding.load(embedder_folder()), sources, own_guard)
    print(f"import: {candidate.id} of {candidate.assistant} is here and whole")
    return named(release_candidate(candidate, kind, snapshot, precedents.gates(book, candidate.assistant)))


@told()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.release", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="write a release to a file")
    out.add_argument("--assistant", required=True)
    out.add_argument("--release", help="its id; the live one by default")
    out.add_argument("--to", required=True, type=Path, help="the file to write")
    into = commands.add_parser("import", help="take a release in, judge it here, and release it if it is accepted")
    into.add_argument("file", type=Path)
    for what in ("documents", "examples", "golden"):
        into.add_argument(f"--{what}", help="where they are here, for an assistant that is new here")
    into.add_argument("--own-guard", action="store_true", help="it may bring looser limits than the usual ones")
    apply_environment()
    chosen = parser.parse_args()
    migrate(settings().ledger)
    if chosen.command == "export":
        made = export_release(chosen.assistant, chosen.to, chosen.release)
        size, sha256 = chosen.to.stat().st_size / 1e6, file_sha256(chosen.to)
        print(f"{made.id} is in {chosen.to}: {len(made.files)} files, {size:.1f} MB, sha256 {sha256}")
        return
    places = {what: getattr(chosen, what) for what in ("documents", "examples", "golden")}
    decision = import_release(str(chosen.file), **places, own_guard=chosen.own_guard, return_state=True).result()
    print(json.dumps({"release_id": decision.release, "decision": decision.verdict, "reason": decision.reason}))


if __name__ == "__main__":
    main()
