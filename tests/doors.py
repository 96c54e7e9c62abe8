"""Sixteen doors with codes, thirty-two questions about them, and rows made of those with the tiny tokenizer."""

from data.records import Chunk, Example
from tasks.contexts import Mixture, bind, contexts, rows
from tests import tiny

ALWAYS_FULL = Mixture(abstain=0.0, narrow=0.0)


def chunk(document: int, section: int) -> Chunk:
    text = f"The code of door {document}-{section} is {document}{section}{document}7."
    return Chunk(f"c{document}-{section}", f"d{document}", "Doors", f"Section {section}", "", text)


CHUNKS = [chunk(document, section) for document in range(4) for section in range(4)]
EXAMPLES = [
    Example(
        f"Which code opens door {document}-{section}? ({way})",
        (f"{document}{section}{document}7",),
        f"d{document}",
        f"Section {section}",
    )
    for document in range(4)
    for section in range(4)
    for way in range(2)
]


def search(questions):
    """The chunks of the document the question names, in a fixed order: the source is often not among the first."""
    return [[c for c in CHUNKS if c.document == f"d{q.split('door ')[1][0]}"][:3] for q in questions]


BOUND, _ = bind(EXAMPLES, CHUNKS, search)


def build(question, chunks):
    return "".join(f"{c.text}\n" for c in chunks) + f"Question: {question}\n"


def small_rows(passes=1, mixture=ALWAYS_FULL, tokens=10**9):
    made = tiny.tokenizer()
    planned = contexts(BOUND, search, 3, mixture, passes, seed=1)
    return rows(planned, build, lambda text: made(text).input_ids, "The documents do not say.", mixture, tokens)
