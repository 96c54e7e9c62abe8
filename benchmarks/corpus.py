"""Documents made for figures that need many: sentences of real ones, drawn by a seed."""

from __future__ import annotations

import random
import re
from pathlib import Path

from benchmarks.machine import SAMPLE


def sentences() -> list[str]:
    """The sentences of the sample's documents."""
    from data import formats

    texts = [
        section.text for document in formats.read(str(SAMPLE / "documents")).documents for section in document.sections
    ]
    found = [part.strip() for text in texts for part in re.split(r"(?<=[.!?])\s+", text.replace("\n", " "))]
    return sorted({part for part in found if 30 <= len(part) <= 160})


def write(folder: Path, numbers: range, sections: int = 1, lines: int = 2, edition: int = 0) -> None:
    """Markdown documents `numbers`, a hundred in a folder; another `edition` of a document has one section changed."""
    every = sentences()
    for number in numbers:
        draw, parts = random.Random(number), []
        for part in range(sections):
            if edition and part == number % sections:
                draw.seed(f"{number} {edition}")
            chosen = " ".join(draw.choices(every, k=lines))
            parts.append(f"## Part {part + 1} of {number}\n{chosen} Record {number}-{part}-{draw.randrange(10**6)}.\n")
        path = folder / f"{number // 100:04}" / f"d{number}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# Document {number}\n" + "\n".join(parts))
