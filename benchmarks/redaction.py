"""Personal data and secrets in 1,000 labelled texts: found, and told from what looks like them; and the speed."""

import json
import re
import tarfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.machine import ROOT, data

AIM = "recall and precision >= .95 for each kind, 2 MB/s of documents"
LABELLED = ROOT / "tests" / "personal_data.jsonl"
MARK = re.compile(r"⟪(\w+):(.*?)⟫", re.DOTALL)


def met(value: dict) -> bool:
    return value["mb_per_s"] >= 2 and all(
        min(kind["recall"], kind["precision"]) >= 0.95 for kind in value["kinds"].values()
    )


def measure() -> dict:
    """Exact spans of each kind; then what is redacted of one library's documentation, and at what speed."""
    from data.redaction import KINDS, find, redact

    right, wrong, missed = Counter(), Counter(), Counter()
    texts = labelled()
    for text, marked in texts:
        found = {(place.kind, place.start, place.end) for place in find(text)}
        right.update(kind for kind, *_ in found & marked)
        wrong.update(kind for kind, *_ in found - marked)
        missed.update(kind for kind, *_ in marked - found)
        for kind, start, end in sorted(found ^ marked):
            print(
                "missed" if (kind, start, end) in marked else "wrong",
                kind,
                repr(text[start:end]),
                "in",
                repr(text[:80]),
            )
    pages = documentation()
    kept, start = Counter(), time.process_time()
    for page in pages:
        kept.update(redact(page, public=True).found)
    seconds = time.process_time() - start
    kinds = {
        kind: {
            "recall": round(right[kind] / (right[kind] + missed[kind]), 4),
            "precision": round(right[kind] / (right[kind] + wrong[kind]), 4),
            "n": right[kind] + missed[kind],
        }
        for kind in KINDS
    }
    speed = round(sum(len(page.encode()) for page in pages) / seconds / 1e6, 1)
    n = {"texts": len(texts), "without": sum(not marked for _, marked in texts), "pages": len(pages)}
    return {"value": {"kinds": kinds, "mb_per_s": speed, "of_documentation": dict(kept)}, "n": n}


def labelled(file: Path = LABELLED) -> list[tuple[str, set[tuple[str, int, int]]]]:
    """Each text with the spans that are marked in it as ⟪kind:value⟫. A ¦ keeps a made-up secret from being taken for a
    real one by those who scan repositories; it is left out."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text, marked = json.loads(line)["text"].replace("¦", ""), set()
        while mark := MARK.search(text):
            marked.add((mark[1], mark.start(), mark.start() + len(mark[2])))
            text = text[: mark.start()] + mark[2] + text[mark.end() :]
        rows.append((text, marked))
    return rows


def documentation() -> list[str]:
    with tarfile.open(data("docs_pydantic_v2.13.0.tar.gz")) as archive:
        return [archive.extractfile(member).read().decode() for member in archive if member.name.endswith(".md")]
